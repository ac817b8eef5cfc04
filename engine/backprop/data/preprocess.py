"""One pass over a dataset: rows in, samples out, everything counted.

Rows are rendered here and encoded in batches by the Rust tokenizer in a thread, so that both go on at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice

import numpy as np
from msgspec import Struct
from tokenizers import Encoding

from backprop.core.errors import DatasetError, DatasetFormatError, TrainingAbortedError
from backprop.core.events import DatasetPrepared, Problem
from backprop.data.encode import Encoded, Rendered, Renderer, encode_row, merge_spans, pieces, unknown_format
from backprop.data.example import RowError
from backprop.data.fit import chat_size, fit
from backprop.data.formats import FileFormat, Format, detect_fields, detect_file
from backprop.data.lengths import LengthCounter
from backprop.data.mapping import Fields, describe_mapping
from backprop.data.reader import Row, Source
from backprop.data.token_cache import Writer
from backprop.data.tokenizer import ChatTokenizer
from backprop.data.words import WordEncoding

Encodings = Future[Sequence[Encoding | WordEncoding]]

BATCH_ROWS = 500
BATCH_CHARACTERS = 2_000_000
HEAD_ROWS = 1000
"""Rows looked at to tell the file's format and mapping."""
PROBLEMS_KEPT = 50
"""Findings of each code that are kept with their rows; all are counted."""


class Options(Struct, frozen=True, kw_only=True):
    """What decides about the samples, beside data and model."""

    max_length: int = 2048
    everything: bool = False
    """Train on all tokens, not on answers alone."""
    samples: int | None = None
    mapping: dict[str, str] = {}


class _Item(Struct):
    row: Row
    rendered: Rendered


class Preparation:
    """Counts as it goes into ``summary``.

    Args:
        source: the rows.
        progress: called with bytes done and their total.
        cancelled: asked between batches.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: ChatTokenizer,
        options: Options,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.options = options
        self.progress = progress
        self.cancelled = cancelled
        self.summary = DatasetPrepared(
            path=str(source.path), format="", rows=0, kept=0, max_length=options.max_length, notes=list(tokenizer.notes)
        )
        self.counts: Counter[str] = Counter()
        self.formats = FileFormat(format=None, mapping={})
        self._renderer = Renderer(tokenizer, everything=options.everything)
        self._seen: set[int] = set()
        self._lengths = LengthCounter()
        self._split_texts = 0
        self._bytes_done = 0
        self._waiting = 0
        self._names = Fields(options.mapping)
        self._usual: Format | None = None

    def run(self, writer: Writer) -> DatasetPrepared:
        """Write every sample.

        Raises:
            DatasetError: no row (``DATASET_EMPTY``) or nothing to train (``DATASET_NOTHING_TO_TRAIN``).
            TrainingAbortedError: cancelled.
        """
        rows = iter(self.source)
        head = list(islice(rows, HEAD_ROWS))
        self._look(head)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode") as pool:
            pending: deque[tuple[list[_Item], Encodings]] = deque()
            for batch in self._batches(chain(head, rows)):
                pending.append((batch, self._encode(batch, pool)))
                self._between()
                # One batch is encoded while the next is rendered; the last ones wanted are counted before that.
                while pending and (pending[0][1].done() or len(pending) > 1 or self._enough(0)):
                    self._write(*pending.popleft(), writer)
            while pending:
                self._write(*pending.popleft(), writer)
        self._finish(writer)
        return self.summary

    def _encode(self, batch: list[_Item], pool: ThreadPoolExecutor) -> Encodings:
        """Encode by words where that can be done, else beside this thread: the library does not hold it up."""
        texts, raw = [item.rendered.text for item in batch], batch[0].rendered.raw
        words = self.tokenizer.words
        if raw or words is None:
            return pool.submit(self.tokenizer.encode, texts, special=raw)
        done: Encodings = Future()
        done.set_result([words.encode(text) for text in texts])
        return done

    def _between(self) -> None:
        if self.cancelled is not None and self.cancelled():
            raise TrainingAbortedError("preparing the data was cancelled")
        if self.progress is not None:
            self.progress(min(self._bytes_done, self.source.bytes), self.source.bytes)

    def _look(self, head: list[Row]) -> None:
        """Tell the format of the file, and a mapping where none was given."""
        known = detect_file(((row.line, row.value) for row in head if row.error is None), self.options.mapping)
        self._usual = known.format
        self._names = Fields(known.mapping)
        if known.found:
            words = f"fields were mapped by their names: {describe_mapping(known.mapping)} (--map changes that)"
            self.summary.notes.append(words)

    def _batches(self, rows: Iterator[Row]) -> Iterator[list[_Item]]:
        """Rendered rows of one kind, some hundreds at a time; rows that cannot be used are counted here."""
        batch: list[_Item] = []
        characters = 0
        for row in rows:
            self.summary.rows += 1
            self._bytes_done += len(row.raw) + 1
            try:
                rendered = self._render(row)
            except RowError as error:
                self.summary.dropped += 1
                self._report(row, error)
                continue
            if batch and (
                batch[0].rendered.raw != rendered.raw or len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS
            ):
                self._waiting += len(batch)
                yield batch
                batch, characters = [], 0
            batch.append(_Item(row, rendered))
            characters += len(rendered.text)
            if self._enough(len(batch)):
                self._waiting += len(batch)
                yield batch
                batch, characters = [], 0
                if self._enough(0):
                    # They are written by now, and none of them was too long.
                    return
        if batch:
            self._waiting += len(batch)
            yield batch

    def _enough(self, more: int) -> bool:
        wanted = self.options.samples
        return wanted is not None and self.summary.kept + self._waiting + more >= wanted

    def _render(self, row: Row) -> Rendered:
        if row.error is not None:
            raise row.error
        format = detect_fields(row.value, self._names)
        if format is not None:
            self.formats.add(format, row.line)
        if format is None or self._usual in ("preference", "kto"):
            # Read as what the file is, so that the error names the field that is missing.
            format = self._usual
        if format is None:
            raise unknown_format(row.value)
        rendered = self._renderer.render(row.value, format, self._names)
        if format != self._usual:
            words = f"this row is {format}, most of the file is {self._usual}"
            rendered.warnings.append(RowError("mixed_format", "", words, "warning"))
        return rendered

    def _report(self, row: Row, error: RowError) -> None:
        self.counts[error.code] += 1
        if self.counts[error.code] <= PROBLEMS_KEPT:
            self.summary.problems.append(
                Problem(
                    line=row.line,
                    code=error.code,
                    message=error.message,
                    field=error.field,
                    severity=error.severity,
                    excerpt=row.raw[:160].decode("utf-8", "replace"),
                )
            )

    def _write(self, batch: list[_Item], encodings: Encodings, writer: Writer) -> None:
        self._waiting -= len(batch)
        chats, texts = [], []
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
            if item.rendered.raw:
                texts.append(len(encoded.ids))
            else:
                chats.append(chat_size(encoded, self.tokenizer.bos_id))
            self._take(item, encoded, writer)
        self._lengths.add_chats(chats)
        self._lengths.add_texts(texts)

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
        fitted = fit(encoded, item.rendered, self.options.max_length, self.tokenizer.bos_id)
        if fitted.finding is not None:
            self._report(item.row, fitted.finding)
        if not fitted.samples:
            self.summary.answer_lost += 1
            return
        self.summary.cut += fitted.cut
        self._split_texts += len(fitted.samples) > 1
        mark = hash(item.rendered.text)
        if mark in self._seen:
            self.summary.duplicated += 1
            self._report(item.row, RowError("duplicate_row", "", "the same text as an earlier row", "info"))
        self._seen.add(mark)
        self.summary.kept += 1
        for ids, trained in fitted.samples:
            writer.add(item.row.line, ids, trained)
            self.summary.tokens += len(ids)
            self.summary.trained_tokens += int(np.count_nonzero(trained))

    def _finish(self, writer: Writer) -> None:
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
        summary.problem_counts = dict(self.counts.most_common())
        summary.format = self.formats.usual or ""
        if self.formats.mixed:
            words = f"the file mixes formats: {self.formats.describe_mix()}; each row is read as what it is"
            summary.notes.append(words)
        if self._split_texts:
            words = f"{self._split_texts} long texts were split into pieces of {self.options.max_length} tokens"
            summary.notes.append(words)

    def _nothing(self) -> DatasetError:
        path, first = self.summary.path, self.summary.problems[0]
        why = f"line {first.line}: {first.message}"
        if set(self.counts) == {"unknown_format"}:
            return DatasetFormatError(
                f"{path}: no row has a known format ({why})",
                hint="say which field is what, for instance: --map instruction=question --map output=answer",
                details={"path": path, "line": first.line},
            )
        counts = ", ".join(f"{count} {code}" for code, count in self.counts.most_common(4))
        return DatasetError(
            f"{path}: none of {self.summary.rows} rows can be trained ({counts}); {why}",
            code="DATASET_NOTHING_TO_TRAIN",
            hint="`backprop validate` lists every problem; a larger --max-seq-length keeps longer answers",
            details={"path": path, "problems": dict(self.counts)},
        )
