"""A row as the tokens that the model will see, the trained ones marked; and the tokenizer that makes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backprop.core import paths
from backprop.core.errors import ModelLoadError
from backprop.core.presets import MODEL_PRESETS
from backprop.core.settings import EMBEDDED_MODEL
from backprop.data.example import RowError
from backprop.data.formats import FileFormat
from backprop.data.reader import Row

from backprop_tui.screens.data_rows import format_of, problem_lines
from backprop_tui.widgets.styled import Line, Piece, many_lines

if TYPE_CHECKING:
    from backprop.data.encode import Token
    from backprop.data.tokenizer import ChatTokenizer
    from backprop.data.truncate import Truncated

MOST_TOKENS = 50_000
"""Tokens of one row that are drawn."""


def find_tokenizer(name: str) -> Path:
    """The directory of a model's tokenizer: a directory, a preset, or a Hugging Face name that was fetched before.

    Raises:
        ModelLoadError: it is not on this machine, with the way to get it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name == EMBEDDED_MODEL:
        folder = paths.model_cache(EMBEDDED_MODEL)
        hint = "run `backprop demo` once: it fetches the small model (93 MB); or name a model's directory (m)"
    else:
        repo = MODEL_PRESETS[name].repo if name in MODEL_PRESETS else name
        folder = _fetched(repo)
        hint = f"name the directory of a model (m), or {EMBEDDED_MODEL}; a model is fetched when a run first uses it"
    if not (folder / "tokenizer.json").is_file():
        raise ModelLoadError(f"the tokenizer of {name} is not on this machine", hint=hint, details={"model": name})
    return folder


def _fetched(repo: str) -> Path:
    """Where the Hugging Face cache keeps the newest copy of ``repo``."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    folder = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"models--{repo.replace('/', '--')}"
    revision = folder / "refs" / "main"
    return folder / "snapshots" / (revision.read_text().strip() if revision.is_file() else "none")


def token_lines(
    row: Row, file: FileFormat, tokenizer: ChatTokenizer, limit: int, *, brackets: bool = False
) -> list[Line]:
    """The row as tokens, in two shades so that their borders show.

    Args:
        limit: the longest row in tokens; what it would do to this row is said.
        brackets: put trained tokens in brackets, for a terminal without colour.
    """
    from backprop.data.encode import explain_row
    from backprop.data.truncate import truncate_value

    if row.error is not None:
        return problem_lines(row.error)
    try:
        format = format_of(row.value, file)
        tokens = explain_row(row.value, tokenizer, format=format, mapping=file.mapping)
        cut = truncate_value(row.value, tokenizer, limit, format=format, mapping=file.mapping)
    except RowError as error:
        return problem_lines(error)
    lines = [*_summary(tokens, tokenizer), *_cut(cut, limit), ()]
    lines += _body(tokens[:MOST_TOKENS], brackets=brackets)
    if len(tokens) > MOST_TOKENS:
        lines.append(((f"… {len(tokens) - MOST_TOKENS:,} more tokens, not shown", "dim"),))
    return lines


def _summary(tokens: Sequence[Token], tokenizer: ChatTokenizer) -> list[Line]:
    """Counts, the begin token and the terminators."""
    trained = sum(token.trained for token in tokens)
    share = 100 * trained / max(len(tokens), 1)
    lines: list[Line] = [
        ((f"{len(tokens):,} tokens, ", ""), (f"{trained:,} trained", "trained"), (f" ({share:.0f} %)", ""))
    ]
    if tokenizer.bos_id is None:
        lines.append((("BOS     ", "dim"), ("this tokenizer has none", "")))
    else:
        count = next((i for i, token in enumerate(tokens) if token.id != tokenizer.bos_id), len(tokens))
        words = {0: " is not at the start", 1: " once, at the start"}.get(count, f" {count} times at the start")
        if count == 1 and (all_told := sum(token.id == tokenizer.bos_id for token in tokens)) > 1:
            words = f" at the start, {all_told} times in the row"
        style = "special" if count <= 1 else "error"
        lines.append((("BOS     ", "dim"), (tokenizer.token(tokenizer.bos_id), style), (words, "")))
    ends = _ends(tokens)
    if ends:
        names = ", ".join(dict.fromkeys(many_lines(token.text) for token in ends))
        known = all(token.special or token.id in tokenizer.end_ids for token in ends)
        note = ", trained" if known else ", trained, but no special token: the model may not learn to stop"
        lines.append((("answers end with ", "dim"), (names, "special" if known else "warning"), (note, "")))
    return lines


def _ends(tokens: Sequence[Token]) -> list[Token]:
    """The last trained token of each answer."""
    return [
        token
        for token, after in zip(tokens, [*tokens[1:], None], strict=True)
        if token.trained and (after is None or not after.trained)
    ]


def _cut(fitted: Truncated, limit: int) -> list[Line]:
    """What training at this limit does to the row."""
    if not fitted.samples:
        return [((f"! its last answer does not fit the limit of {limit:,}: the row is left out", "warning"),)]
    if fitted.split:
        return [((f"! longer than the limit of {limit:,}: the text is split into pieces", "warning"),)]
    words = f"{fitted.cut:,} tokens are cut from its beginning to fit the limit of {limit:,}"
    return [((f"! {words}", "warning"),)] if fitted.cut else []


def _body(tokens: Sequence[Token], *, brackets: bool) -> list[Line]:
    lines: list[Line] = []
    line: list[Piece] = []
    inside = False
    for number, token in enumerate(tokens):
        if brackets and token.trained != inside:
            line.append(("[" if token.trained else "]", "special"))
            inside = token.trained
        shade = ("trained" if token.trained else "plain") + ("-special" if token.special else "-other" * (number % 2))
        parts = many_lines(token.text.replace("\n", "↵\n")).split("\n")
        for part in parts[:-1]:
            line.append((part, shade))
            lines.append(line)
            line = []
        if parts[-1]:
            line.append((parts[-1], shade))
    if brackets and inside:
        line.append(("]", "special"))
    return [*lines, line]
