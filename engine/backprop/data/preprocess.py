"""A dataset → ids and trained flags, once: counted, cached, used for everything.

    prepared = prepare("data.jsonl", model_dir, max_length=2048)
    ids, trained = prepared.row(0)
    prepared.summary            # what was kept, cut and left out, and why

Rows are rendered here and encoded in batches by the Rust tokenizer in a thread, so that both go on at once.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

import jinja2
import msgspec
import numpy as np
import tokenizers
from msgspec import Struct
from tokenizers import Encoding

from backprop.core.datasets import data_files
from backprop.core.errors import DatasetError, DatasetFormatError, InvalidSettingError, TrainingAbortedError
from backprop.core.events import DatasetPrepared
from backprop.core.paths import token_cache
from backprop.core.rules import USUAL_LENGTH, sequence_length
from backprop.data import token_cache as cache
from backprop.data.dedup import content_key
from backprop.data.encode import Encoded, Rendered, Renderer, encode_row, merge_spans, pieces
from backprop.data.example import PARTS, Fields, Findings, RowError, unknown_parts
from backprop.data.formats import FormatCounts, detect_fields, file_format, mixed_format, read_as, unknown_format
from backprop.data.reader import Row, Source, open_source
from backprop.data.token_cache import Prepared, Writer
from backprop.data.tokenizer import ChatTokenizer, context_length
from backprop.data.truncate import LengthCounter, truncate

__all__ = ["Prepared", "prepare"]

_WHOLE = 2**31
"""A limit that cuts no row."""
BATCH_ROWS = 500
BATCH_CHARACTERS = 2_000_000
PROBLEMS_KEPT = 50
"""Findings of each code that are kept with their rows; all are counted."""


class Options(Struct, frozen=True, kw_only=True):
    """What decides about the samples, beside data and model."""

    max_length: int = 2048
    everything: bool = False
    """Train on all tokens, not on answers alone."""
    samples: int | None = None
    mapping: dict[str, str] = {}


def prepare(
    path: str | Path,
    model_dir: str | Path,
    *,
    max_length: int | Literal["auto"] = 2048,
    most: int = USUAL_LENGTH,
    train_on_responses: bool = True,
    mapping: dict[str, str] | None = None,
    samples: int | None = None,
    now: datetime | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Prepared:
    """Tokenise a dataset for a model, or find it tokenised already.

    Args:
        max_length: longest sample in tokens; never more than the model has positions. ``auto``: as the rows' own
            lengths say (``core.rules.sequence_length``); the summary has what it is.
        most: what ``auto`` becomes at most.
        train_on_responses: loss on the assistant's turns alone; otherwise on everything, whatever rows say of turns.
        mapping: part → field, as ``{"instruction": "question"}``; found from the rows where not given.
        samples: stop after this many usable rows.
        now: the time that a chat template with a date in it writes; the present by default.
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
    if max_length == "auto":
        again = partial(
            prepare,
            path,
            model_dir,
            train_on_responses=train_on_responses,
            mapping=mapping,
            samples=samples,
            now=now,
            cache_dir=cache_dir,
            progress=progress,
            cancelled=cancelled,
        )
        return _at_its_own_length(again, most)
    tokenizer = ChatTokenizer.load(model_dir, now)
    root = cache_dir or token_cache()
    fits = context_length(model_dir)
    options = Options(
        max_length=min(max_length, fits or max_length),
        everything=not train_on_responses,
        samples=samples,
        mapping=mapping or {},
    )
    with open_source(path, progress=progress, cancelled=cancelled) as source:
        key = _key(Path(path), tokenizer, options)
        found = cache.load(root, key)
        if found is not None:
            found.summary.path = str(path)
            return found
        writer = Writer(root, key)
        try:
            work = _Preparation(source, tokenizer, options, progress, cancelled)
            return writer.finish(work.run(writer))
        except BaseException:
            writer.discard()
            raise


def _at_its_own_length(prepare: Callable[..., Prepared], most: int) -> Prepared:
    """The dataset at the limit that the rule makes of its lengths; only one that cuts something costs a second pass."""
    whole = prepare(max_length=_WHOLE)
    summary = whole.summary
    limit = min(sequence_length(summary.p99, summary.answers_fit, most), summary.max_length)
    if limit < summary.longest:
        return prepare(max_length=limit)
    summary.max_length = limit
    summary.limits = [msgspec.structs.replace(each, max_length=min(each.max_length, limit)) for each in summary.limits]
    return whole


def _key(path: Path, tokenizer: ChatTokenizer, options: Options) -> str:
    """Everything that decides about the arrays: data, tokenizer and template, this code, its libraries, options.

    It says where they are kept. What they are is said by their fingerprint, which no change of code alone moves.
    """
    digest = hashlib.blake2b(digest_size=20)
    for part in data_files(path):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
        digest.update(msgspec.json.encode([suffix.lower() for suffix in part.suffixes[-2:]]))
    digest.update(tokenizer.fingerprint.encode())
    if tokenizer.template.dated:
        digest.update(tokenizer.template.render([{"role": "user", "content": "a"}]).encode())
    for code in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(code.read_bytes())
    digest.update(repr((tokenizers.__version__, jinja2.__version__)).encode())
    digest.update(msgspec.json.encode(options))
    return digest.hexdigest()


class _Item(Struct):
    """A row on its way: as text, with the hash of its content."""

    row: Row
    rendered: Rendered
    content: int


class _Preparation:
    """One pass over a dataset: rows in, samples out, everything counted into ``summary``."""

    def __init__(
        self,
        source: Source,
        tokenizer: ChatTokenizer,
        options: Options,
        progress: Callable[[int, int], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.options = options
        self.progress = progress
        self.cancelled = cancelled
        self._findings = Findings(PROBLEMS_KEPT)
        self.formats = FormatCounts()
        self._renderer = Renderer(tokenizer, everything=options.everything)
        self._seen: set[int] = set()
        self._lengths = LengthCounter()
        self._split_texts = 0
        self._bytes_done = 0
        self._waiting = 0
        file = file_format(source, options.mapping)
        self._format, self._names = file.format, Fields(file.mapping)
        self.summary = DatasetPrepared(
            path=str(source.path),
            format=file.format or "",
            rows=0,
            kept=0,
            max_length=options.max_length,
            problems=self._findings.problems,
            notes=[*source.notes, *tokenizer.notes],
        )
        self.summary.notes += file.notes()

    def run(self, writer: Writer) -> DatasetPrepared:
        """Write every sample.

        Raises:
            DatasetError: no row (``DATASET_EMPTY``) or nothing to train (``DATASET_NOTHING_TO_TRAIN``).
            TrainingAbortedError: cancelled.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode") as pool:
            pending: deque[tuple[list[_Item], Future[list[Encoding]]]] = deque()
            for batch in self._batches():
                self._waiting += len(batch)
                texts, raw = [item.rendered.text for item in batch], batch[0].rendered.raw
                pending.append((batch, pool.submit(self.tokenizer.encode, texts, special=raw)))
                self._between()
                # One batch is encoded while the next is rendered; the last ones wanted are counted before that.
                while len(pending) > 1 or (pending and self._enough(0)):
                    self._write(*pending.popleft(), writer)
            while pending:
                self._write(*pending.popleft(), writer)
        self._finish()
        return self.summary

    def _between(self) -> None:
        if self.cancelled is not None and self.cancelled():
            raise TrainingAbortedError("preparing the data was cancelled")
        if self.progress is not None:
            self.progress(min(self._bytes_done, self.source.size), self.source.size)

    def _batches(self) -> Iterator[list[_Item]]:
        """Rendered rows of one kind, some hundreds at a time; rows that cannot be used are counted here."""
        batch: list[_Item] = []
        characters = 0
        for row in self.source:
            self.summary.rows += 1
            self._bytes_done += len(row.raw) + 1
            try:
                item = self._render(row)
            except RowError as error:
                self.summary.dropped += 1
                self._report(row, error)
                continue
            full = len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS
            if batch and (full or batch[0].rendered.raw != item.rendered.raw):
                yield batch
                batch, characters = [], 0
            batch.append(item)
            characters += len(item.rendered.text)
            if self._enough(len(batch)):
                yield batch
                batch, characters = [], 0
                if self._enough(0):
                    # They are written by now, and none of them was too long.
                    return
        if batch:
            yield batch

    def _enough(self, more: int) -> bool:
        wanted = self.options.samples
        return wanted is not None and self.summary.kept + self._waiting + more >= wanted

    def _render(self, row: Row) -> _Item:
        if row.error is not None:
            raise row.error
        if row.warning is not None:
            self._report(row, row.warning)
        format = read_as(row.value, self._format, self._names)
        if format is None:
            raise unknown_format(row.value)
        if detect_fields(row.value, self._names) is not None:
            self.formats.add(format, row.line)
        rendered = self._renderer.render(row.value, format, self._names)
        if format != self._format:
            rendered.warnings.append(mixed_format(format, self._format))
        key = content_key(row.value, format, self._names)
        return _Item(row, rendered, int.from_bytes(key[:8], "little", signed=True))

    def _report(self, row: Row, error: RowError) -> None:
        self._findings.add(row.line, row.raw, error)

    def _write(self, batch: list[_Item], encodings: Future[list[Encoding]], writer: Writer) -> None:
        self._waiting -= len(batch)
        counted: list[tuple[Rendered, Encoded]] = []
        for item, encoding in zip(batch, encodings.result(), strict=True):
            encoded = encode_row(item.rendered, encoding, self.tokenizer)
            for warning in item.rendered.warnings:
                self._report(item.row, warning)
            if not encoded.trained.any():
                self.summary.dropped += 1
                self._report(item.row, RowError("nothing_to_train", "", "no token of the row would be trained"))
                continue
            if self._begins_twice(encoded):
                words = "two begin tokens in a row: the text starts with one, and the template writes one"
                self._report(item.row, RowError("double_bos", "", words, "warning"))
            if not self.summary.first_row:
                text, raw = item.rendered.text, item.rendered.raw
                parts = pieces(item.rendered, self.tokenizer.encode([text], special=raw)[0], encoded, self.tokenizer)
                self.summary.first_row = merge_spans(parts, encoded.trained)
                self._note_terminator(encoded)
            counted.append((item.rendered, encoded))
            self._take(item, encoded, writer)
        self._lengths.add(counted, self.tokenizer.bos_id)

    def _begins_twice(self, encoded: Encoded) -> bool:
        bos = self.tokenizer.bos_id
        return bos is not None and bool((encoded.ids[:2] == bos).all())

    def _note_terminator(self, encoded: Encoded) -> None:
        last = int(encoded.ids[encoded.answers[-1][1] - 1])
        if last in self.tokenizer.special_ids or last in self.tokenizer.end_ids:
            self.summary.notes.append(f"answers end with {self.tokenizer.token(last)}, which is trained")
        else:
            self.summary.notes.append("answers end with no special token: the model may not learn to stop")

    def _take(self, item: _Item, encoded: Encoded, writer: Writer) -> None:
        """Fit one row into the length and write it, or count why not."""
        fitted = truncate(encoded, item.rendered, self.options.max_length, self.tokenizer.bos_id)
        if fitted.finding is not None:
            self._report(item.row, fitted.finding)
        if not fitted.samples:
            self.summary.answer_lost += 1
            return
        self.summary.cut += fitted.cut > 0
        self._split_texts += fitted.split
        if item.content in self._seen:
            self.summary.duplicated += 1
            self._report(item.row, RowError("duplicate_row", "", "the same content as an earlier row", "info"))
        self._seen.add(item.content)
        self.summary.kept += 1
        for ids, trained in fitted.samples:
            writer.add(item.row.line, item.content, ids, trained)
            self.summary.tokens += len(ids)
            self.summary.trained_tokens += int(np.count_nonzero(trained))

    def _finish(self) -> None:
        summary = self.summary
        summary.problems.sort(key=lambda problem: problem.line)
        if not summary.rows:
            raise DatasetError(f"{summary.path}: the dataset holds no row", code="DATASET_EMPTY", hint="add rows to it")
        if not summary.kept:
            raise self._nothing()
        lengths = self._lengths.snapshot()
        summary.p50, summary.p90, summary.p99 = (lengths.percentile(share) for share in (0.5, 0.9, 0.99))
        summary.longest = lengths.longest
        summary.answers_fit = lengths.answers_fit
        summary.limits = lengths.limits(summary.max_length)
        summary.problem_counts = dict(self._findings.counts.most_common())
        if self.formats.mixed:
            words = f"the file mixes formats: {self.formats.describe()}; each row is read as what it is"
            summary.notes.append(words)
        if summary.format == "text":
            summary.notes.append(
                "the rows are plain texts: samples go on with their prompt as it stands, without a chat"
            )
        if self._split_texts:
            words = f"{self._split_texts} long texts were split into pieces of {self.options.max_length} tokens"
            summary.notes.append(words)

    def _nothing(self) -> DatasetError:
        path, first = self.summary.path, self.summary.problems[0]
        why = f"line {first.line}: {first.message}"
        if set(self._findings.counts) == {"unknown_format"}:
            return DatasetFormatError(
                f"{path}: no row has a known format ({why})",
                hint="say which field is what, for instance: --map instruction=question --map output=answer",
                details={"path": path, "line": first.line},
            )
        counts = ", ".join(f"{count} {code}" for code, count in self._findings.counts.most_common(4))
        return DatasetError(
            f"{path}: none of {self.summary.rows} rows can be trained ({counts}); {why}",
            code="DATASET_NOTHING_TO_TRAIN",
            hint="`backprop validate` lists every problem; a larger --max-seq-length keeps longer answers",
            details={"path": path, "problems": dict(self._findings.counts)},
        )
