"""A dataset → ids and trained flags, once: counted, cached, used for everything.

    prepared = prepare("data.jsonl", model_dir, max_length=2048)
    ids, trained = prepared.row(0)
    prepared.summary            # what was kept, cut and left out, and why

Rows are rendered first and encoded in batches by the Rust tokenizer. A row that is too long loses its beginning;
one whose answer is too long is left out, never trained in part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import jinja2
import msgspec
import tokenizers

from backprop.core.errors import InvalidSettingError
from backprop.core.paths import token_cache
from backprop.data import token_cache as cache
from backprop.data.encode import Token, explain_row
from backprop.data.mapping import PARTS, unknown_parts
from backprop.data.preprocess import Options, Preparation
from backprop.data.reader import open_source
from backprop.data.token_cache import Prepared
from backprop.data.tokenizer import ChatTokenizer

__all__ = ["ChatTokenizer", "Prepared", "Token", "explain_row", "prepare"]


def prepare(
    path: str | Path,
    model_dir: str | Path,
    *,
    max_length: int = 2048,
    train_on_responses: bool = True,
    mapping: dict[str, str] | None = None,
    samples: int | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Prepared:
    """Tokenise a dataset for a model, or find it tokenised already.

    Args:
        max_length: longest sample in tokens.
        train_on_responses: loss on the assistant's turns alone; otherwise on everything, whatever rows say of turns.
        mapping: part → field, as ``{"instruction": "question"}``; found from the rows where not given.
        samples: stop after this many usable rows.
        cache_dir: where tokenised data is kept; the user's cache by default.
        progress: called with bytes done and their total.
        cancelled: asked now and then.

    Raises:
        DatasetError: the file cannot be read, is empty (``DATASET_EMPTY``), or no row has a token that is trained
            (``DATASET_NOTHING_TO_TRAIN``).
        ModelLoadError: the tokenizer or the template cannot be read.
        TrainingAbortedError: cancelled.
    """
    wrong = unknown_parts(mapping or {})
    if wrong:
        raise InvalidSettingError(
            f"mapping: {wrong[0]!r} is no part of a row", hint=f"the parts are {', '.join(PARTS)}"
        )
    tokenizer = ChatTokenizer.load(model_dir)
    root = cache_dir or token_cache()
    options = Options(max_length=max_length, everything=not train_on_responses, samples=samples, mapping=mapping or {})
    with open_source(path, progress=progress, cancelled=cancelled) as source:
        key = _key(Path(path), tokenizer, options)
        found = cache.load(root, key)
        if found is not None:
            found.summary.path = str(path)
            return found
        writer = cache.Writer(root, key)
        try:
            work = Preparation(source, tokenizer, options, progress=progress, cancelled=cancelled)
            return writer.finish(work.run(writer))
        except BaseException:
            writer.discard()
            raise


def _key(path: Path, tokenizer: ChatTokenizer, options: Options) -> str:
    """Everything that decides about the arrays: data, tokenizer and template, this code, its libraries, options."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20))
    digest.update(msgspec.json.encode([suffix.lower() for suffix in path.suffixes[-2:]]))
    digest.update(tokenizer.fingerprint.encode())
    if tokenizer.template.dated:
        digest.update(tokenizer.template.render([{"role": "user", "content": "a"}]).encode())
    here = Path(__file__).parent
    for file_of_code in sorted(here.glob("*.py")):
        digest.update(file_of_code.read_bytes())
    digest.update(repr((tokenizers.__version__, jinja2.__version__)).encode())
    digest.update(msgspec.json.encode(options))
    return digest.hexdigest()
