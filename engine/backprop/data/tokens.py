"""A dataset → ids and trained flags, once: counted, cached, used for everything.

    prepared = prepare("data.jsonl", model_dir, max_length=2048)
    ids, trained = prepared.row(0)
    prepared.summary            # what was kept, cut and left out, and why

Rows are rendered first and encoded in batches by the Rust tokenizer. A row that is too long loses its beginning;
one whose answer is too long is left out, never trained in part.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import numpy as np
import tokenizers

from backprop.core.errors import DatasetError, DatasetFormatError, InvalidSettingError, TrainingAbortedError
from backprop.core.events import DatasetPrepared, Problem
from backprop.core.paths import token_cache
from backprop.data import token_cache as cache
from backprop.data.encoding import (
    Encoded,
    Rendered,
    encode_row,
    explain_row,
    merge_spans,
    pieces,
    render_row,
    unknown_format,
)
from backprop.data.formats import FileFormat, Format, RowError, detect_fields, detect_file
from backprop.data.mapping import PARTS, Fields, describe_mapping, unknown_parts
from backprop.data.source import Row, Source, open_source
from backprop.data.token_cache import Flags, Ids, Prepared
from backprop.data.tokenizer import ChatTokenizer

__all__ = ["ChatTokenizer", "Prepared", "explain_row", "prepare"]

Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]

_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 4_000_000
_HEAD_ROWS = 1000
_PROBLEMS_KEPT = 200
_SOURCES = (
    "encoding",
    "formats",
    "mapping",
    "mask",
    "messages",
    "parse",
    "source",
    "template",
    "token_cache",
    "tokenizer",
    "tokens",
    "turns",
)


def prepare(
    path: str | Path,
    model_dir: str | Path,
    *,
    max_length: int = 2048,
    train_on_responses: bool = True,
    mapping: dict[str, str] | None = None,
    samples: int | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
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
    with open_source(path, progress=None, cancelled=cancelled) as source:
        options = (max_length, train_on_responses, sorted((mapping or {}).items()), samples)
        key = _key(Path(path), tokenizer, options)
        found = cache.load(root, key)
        if found is not None:
            found.summary.path = str(path)
            return found
        work = _Preparation(source, tokenizer, max_length, not train_on_responses, samples)
        work.progress, work.cancelled = progress, cancelled
        writer = cache.Writer(root, key)
        try:
            summary = work.run(writer, mapping)
            return writer.finish(summary)
        except BaseException:
            writer.discard()
            raise


def _key(path: Path, tokenizer: ChatTokenizer, options: Any) -> str:
    """Everything that decides about the arrays: data, tokenizer and template, this code, its libraries, options."""
    digest = hashlib.blake2b(digest_size=20)
    with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).digest())
    digest.update(repr([suffix.lower() for suffix in path.suffixes[-2:]]).encode())
    digest.update(tokenizer.fingerprint.encode())
    if tokenizer.template.dated:
        digest.update(tokenizer.template.render([{"role": "user", "content": ""}]).encode())
    here = Path(__file__).parent
    for name in _SOURCES:
        digest.update((here / f"{name}.py").read_bytes())
    digest.update(repr((tokenizers.__version__, jinja2.__version__)).encode())
    digest.update(msgspec.json.encode(options))
    return digest.hexdigest()


class _Preparation:
    """One pass over a dataset: rows in, samples to the writer, everything counted."""

    progress: Progress | None = None
    cancelled: Cancelled | None = None

    def __init__(
        self, source: Source, tokenizer: ChatTokenizer, max_length: int, everything: bool, samples: int | None
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.everything = everything
        self.samples = samples
        self.summary = DatasetPrepared(
            path=str(source.path), format="", rows=0, kept=0, max_length=max_length, notes=list(tokenizer.notes)
        )
        self.counts: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.seen: set[int] = set()
        self.split_texts = 0
        self.bytes_done = 0

    def run(self, writer: cache.Writer, mapping: dict[str, str] | None) -> DatasetPrepared:
        rows = iter(self.source)
        head = list(islice(rows, _HEAD_ROWS))
        known = detect_file(((row.line, row.value) for row in head if row.error is None), mapping)
        self._describe(known)
        for batch in self._batches(chain(head, rows), known):
            self._encode(batch, writer)
            if self.cancelled is not None and self.cancelled():
                raise TrainingAbortedError("preparing the data was cancelled")
            if self.progress is not None:
                self.progress(min(self.bytes_done, self.source.bytes), self.source.bytes)
            if self.samples is not None and self.summary.kept >= self.samples:
                break
        self._finish(writer, known)
        return self.summary

    def _describe(self, known: FileFormat) -> None:
        self.known_format = known.format
        self.names = Fields(known.mapping)
        if known.found:
            self.summary.notes.append(
                f"fields were mapped by their names: {describe_mapping(known.mapping)} (--map changes that)"
            )

    def _batches(self, rows: Iterator[Row], known: FileFormat) -> Iterator[list[tuple[Row, Rendered]]]:
        """Rendered rows, about a thousand at a time; rows that cannot be used are counted here."""
        batch: list[tuple[Row, Rendered]] = []
        characters = 0
        for row in rows:
            self.summary.rows += 1
            self.bytes_done += len(row.raw) + 1
            try:
                rendered = self._render(row, known.format)
            except RowError as error:
                self.summary.dropped += 1
                self._report(row, error)
                rendered = None
            if rendered is not None:
                batch.append((row, rendered))
                characters += len(rendered.text)
            if (
                (self.samples is not None and self.summary.kept + len(batch) >= self.samples)
                or len(batch) >= _BATCH_ROWS
                or characters >= _BATCH_CHARACTERS
            ):
                yield batch
                batch, characters = [], 0
        yield batch

    def _render(self, row: Row, usual: Format | None) -> Rendered:
        if row.error is not None:
            raise row.error
        format = detect_fields(row.value, self.names)
        if format is None or usual in ("preference", "kto"):
            # Read as what the file is, so that the error names the field that is missing.
            format = usual
        if format is None:
            raise unknown_format(row.value)
        self.formats[format] += 1
        if format != usual:
            words = f"this row is {format}, most of the file is {usual}"
            self._report(row, RowError("mixed_format", "", words, "warning"))
        return render_row(row.value, format, self.names, self.tokenizer, self.everything)

    def _report(self, row: Row, error: RowError) -> None:
        self.counts[error.code] += 1
        if len(self.summary.problems) < _PROBLEMS_KEPT:
            excerpt = row.raw[:160].decode("utf-8", "replace")
            self.summary.problems.append(
                Problem(
                    line=row.line,
                    code=error.code,
                    message=error.message,
                    field=error.field,
                    severity=error.severity,
                    excerpt=excerpt,
                )
            )

    def _encode(self, batch: list[tuple[Row, Rendered]], writer: cache.Writer) -> None:
        for raw in (False, True):
            part = [item for item in batch if item[1].raw == raw]
            if not part:
                continue
            encodings = self.tokenizer.encode([rendered.text for _, rendered in part], special=raw)
            for (row, rendered), encoding in zip(part, encodings, strict=True):
                encoded = encode_row(rendered, encoding, self.tokenizer)
                if not self.summary.first_row and encoded.trained.any():
                    parts = pieces(rendered, encoding, encoded, self.tokenizer)
                    self.summary.first_row = merge_spans(parts, encoded.trained)
                    self._check_terminator(rendered, encoded)
                self._take(row, rendered, encoded, writer)

    def _check_terminator(self, rendered: Rendered, encoded: Encoded) -> None:
        last = int(encoded.ids[encoded.answers[-1][1] - 1])
        if last in self.tokenizer.special_ids or last in self.tokenizer.end_ids:
            self.summary.notes.append(f"each answer ends with {self.tokenizer.token(last)}, which is trained")
        elif not self.everything:
            self.summary.notes.append(
                "the chat template ends answers with no special token: the model may not learn to stop"
            )

    def _take(self, row: Row, rendered: Rendered, encoded: Encoded, writer: cache.Writer) -> None:
        """Fit one row into the length and write it, or count why not."""
        for warning in rendered.warnings:
            self._report(row, warning)
        if not encoded.trained.any():
            self.summary.dropped += 1
            self._report(row, RowError("nothing_to_train", "", "no token of the row would be trained"))
            return
        pieces_ = self._fit(row, rendered, encoded)
        if not pieces_:
            return
        mark = hash(rendered.text)
        if mark in self.seen:
            self.summary.duplicated += 1
            self._report(row, RowError("duplicate", "", "the same text as an earlier row", "info"))
        self.seen.add(mark)
        self.summary.kept += 1
        for ids, trained in pieces_:
            writer.add(row.line, ids, trained)
            self.summary.tokens += len(ids)
            self.summary.trained_tokens += int(trained.sum())

    def _fit(self, row: Row, rendered: Rendered, encoded: Encoded) -> list[tuple[Ids, Flags]]:
        ids, trained, limit = encoded.ids, encoded.trained, self.max_length
        if len(ids) <= limit:
            return [(ids, trained)]
        if rendered.raw:
            self.split_texts += 1
            starts = range(0, len(ids), limit)
            parts = [(ids[i : i + limit], trained[i : i + limit].copy()) for i in starts]
            for _, flags in parts:
                flags[:1] = False
            return [part for part in parts if part[1].any()]
        keep_bos = self.tokenizer.bos_id is not None and int(ids[0]) == self.tokenizer.bos_id
        cut = len(ids) - limit + (1 if keep_bos else 0)
        start, end = encoded.answers[-1]
        if start <= (cut if not keep_bos else cut - 1):
            self.summary.answer_lost += 1
            words = f"the answer alone is {end - start} tokens, more than fit into {limit} with a prompt"
            self._report(row, RowError("answer_lost", "", words))
            return []
        kept = trained[cut:].copy()
        for first, last in encoded.answers:
            if first < cut < last and not self.everything:
                # The rest of an answer whose beginning is gone is context, never a target.
                kept[: last - cut] = False
        ids = ids[cut:]
        if keep_bos:
            ids, kept = np.concatenate((encoded.ids[:1], ids)), np.concatenate((np.zeros(1, np.bool_), kept))
        kept[:1] = False
        self.summary.cut += 1
        words = f"{cut - keep_bos} of {len(encoded.ids)} tokens were cut from its beginning"
        self._report(row, RowError("cut", "", words, "warning"))
        return [(ids, kept)]

    def _finish(self, writer: cache.Writer, known: FileFormat) -> None:
        summary = self.summary
        if not summary.rows:
            raise DatasetError(f"{summary.path}: the dataset holds no row", code="DATASET_EMPTY", hint="add rows to it")
        if not summary.kept:
            raise self._nothing(known)
        lengths = writer.lengths()
        summary.p50, summary.p90, summary.p99 = (int(value) for value in np.percentile(lengths, (50, 90, 99)))
        summary.longest = int(lengths.max())
        summary.problem_counts = dict(self.counts.most_common())
        summary.format = self.formats.most_common(1)[0][0]
        if len(self.formats) > 1:
            mix = ", ".join(f"{count} {name}" for name, count in self.formats.most_common())
            summary.notes.append(f"the file mixes formats: {mix}; each row is read as what it is")
        if self.split_texts:
            summary.notes.append(f"{self.split_texts} long texts were split into pieces of {self.max_length} tokens")

    def _nothing(self, known: FileFormat) -> DatasetError:
        first = self.summary.problems[0]
        why = f"line {first.line}: {first.message}"
        if known.format is None and not self.formats and set(self.counts) == {"unknown_format"}:
            return DatasetFormatError(
                f"{self.summary.path}: no row has a known format ({why})",
                hint="say which field is what, for instance: --map instruction=question --map output=answer",
                details={"path": self.summary.path, "line": first.line},
            )
        counts = ", ".join(f"{count} {code}" for code, count in self.counts.most_common(4))
        return DatasetError(
            f"{self.summary.path}: none of {self.summary.rows} rows can be trained ({counts}); {why}",
            code="DATASET_NOTHING_TO_TRAIN",
            hint="`backprop validate` lists every problem; a larger --max-seq-length keeps longer answers",
            details={"path": self.summary.path, "problems": dict(self.counts)},
        )
