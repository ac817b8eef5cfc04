"""A dataset → ids and trained flags, once: counted, cached, used for everything.

prepared = prepare("data.jsonl", model_dir, max_length=2048)
ids, trained = prepared.row(0)       # of pairs a Pair of these, of feedback a Judged
prepared.summary            # what was kept, cut and left out, and why
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

import jinja2
import msgspec
import numpy as np
import tokenizers
from msgspec import Struct

from backprop.core.datasets import data_files
from backprop.core.errors import DatasetError, TrainingAbortedError
from backprop.core.events import DatasetPrepared, TokenSpan
from backprop.core.methods import Rows
from backprop.core.paths import token_cache
from backprop.core.rules import USUAL_LENGTH, sequence_length
from backprop.data import token_cache as cache
from backprop.data.encode import EncodedRow, Renderer, Side, encoded_rows, merge_spans, pieces
from backprop.data.example import Findings, RowError, one_label, require_parts
from backprop.data.formats import FormatCounts, chosen_alone, file_format
from backprop.data.reader import Source, open_source
from backprop.data.token_cache import Prepared, Writer
from backprop.data.tokenizer import ChatTokenizer, context_length
from backprop.data.truncate import LengthCounter, Truncated, truncate_sides
from backprop.data.unusable import none_usable

__all__ = ["Prepared", "prepare"]

_WHOLE = 2**31
"""A limit that cuts no row."""
PROBLEMS_KEPT = 50
"""Findings of each code that are kept with their rows; all are counted."""


class Options(Struct, frozen=True, kw_only=True):
    """What decides about the samples, beside data and model."""

    rows: Rows = "conversation"
    max_length: int = 2048
    everything: bool = False
    """Train on all tokens, not on answers alone."""
    traces: bool = False
    samples: int | None = None
    mapping: dict[str, str] = {}


def prepare(
    path: str | Path,
    model_dir: str | Path,
    *,
    rows: Rows = "conversation",
    max_length: int | Literal["auto"] = 2048,
    most: int = USUAL_LENGTH,
    train_on_responses: bool = True,
    traces: bool = False,
    mapping: dict[str, str] | None = None,
    samples: int | None = None,
    now: datetime | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Prepared:
    """Tokenise a dataset for a model, or find it tokenised already.

    Args:
        rows: what the method learns from (``core.methods``); a row that is none of these is an error.
        max_length: longest sequence in tokens, of a pair each side; never more than the model has positions. ``auto``:
            as the rows' own lengths say (``core.rules.sequence_length``); the summary has what it is.
        most: what ``auto`` becomes at most.
        train_on_responses: loss on the assistant's turns alone; otherwise on everything, whatever rows say of turns.
            Of pairs and feedback it is on the answers alone.
        traces: reasoning traces are trained as rows have them; rows whose trace is of no use are left out
            (``data.traces``).
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
    require_parts(mapping or {})
    tokenizer = ChatTokenizer.load(model_dir, now)
    longest = context_length(model_dir) or _WHOLE
    options = Options(
        rows=rows,
        max_length=longest if max_length == "auto" else min(max_length, longest),
        everything=not train_on_responses and rows == "conversation",
        traces=traces,
        samples=samples,
        mapping=mapping or {},
    )
    at = partial(
        _at_limit,
        Path(path),
        tokenizer,
        root=cache_dir or token_cache(),
        progress=progress,
        cancelled=cancelled,
    )
    return _at_its_own_length(at, options, most) if max_length == "auto" else at(options)


def _at_limit(
    path: Path,
    tokenizer: ChatTokenizer,
    options: Options,
    *,
    root: Path,
    progress: Callable[[int, int], None] | None,
    cancelled: Callable[[], bool] | None,
) -> Prepared:
    """The dataset cut at ``options.max_length``: what is kept of it in ``root``, else tokenised now."""
    with open_source(path, progress=progress, cancelled=cancelled) as source:
        key = _key(path, tokenizer, options)
        found = cache.load(root, key)
        if found is not None:
            found.summary.path = str(path)
            return found
        writer = Writer(root, key, options.rows)
        try:
            summary = _write_rows(source, tokenizer, options, writer, progress=progress, cancelled=cancelled)
            return writer.finish(summary)
        except BaseException:  # whatever it is, a cancelled pass too: nothing half written stays
            writer.discard()
            raise


def _at_its_own_length(at: Callable[[Options], Prepared], options: Options, most: int) -> Prepared:
    """The dataset at the limit that the rule makes of its lengths; only one that cuts something costs a second pass."""
    whole = at(options)
    summary = whole.summary
    limit = min(sequence_length(summary.p99, summary.answers_fit, most, traces=options.traces), summary.max_length)
    # A sample has what follows its last answer too; of a row whose answer is lost there is none.
    if limit < max(summary.longest, int(np.diff(whole.offsets).max())):
        return at(msgspec.structs.replace(options, max_length=limit))
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


class _Counts(Struct):
    """What is counted of the rows beside the summary."""

    findings: Findings
    formats: FormatCounts = msgspec.field(default_factory=FormatCounts)
    lengths: LengthCounter = msgspec.field(default_factory=LengthCounter)
    contents: set[int] = msgspec.field(default_factory=set)
    labels: Counter[bool | None] = msgspec.field(default_factory=Counter)
    split_texts: int = 0


def _write_rows(
    source: Source,
    tokenizer: ChatTokenizer,
    options: Options,
    writer: Writer,
    *,
    progress: Callable[[int, int], None] | None,
    cancelled: Callable[[], bool] | None,
) -> DatasetPrepared:
    """Write every sample.

    Raises:
        DatasetError: no row (``DATASET_EMPTY``) or nothing to train (``DATASET_NOTHING_TO_TRAIN``).
        TrainingAbortedError: cancelled.
    """
    file = file_format(source, options.mapping)
    counts = _Counts(Findings(PROBLEMS_KEPT))
    summary = DatasetPrepared(
        path=str(source.path),
        format=file.format or "",
        rows=0,
        kept=0,
        unit=source.unit,
        max_length=options.max_length,
        problems=counts.findings.problems,
        notes=[*source.notes, *tokenizer.notes, *file.notes()],
    )
    done = 0
    renderer = Renderer(tokenizer, rows=options.rows, everything=options.everything, traces=options.traces)
    wanted = None if options.samples is None else lambda: (options.samples or 0) - summary.kept
    for batch in encoded_rows(source, file, renderer, wanted):
        for item in batch:
            done += len(item.row.raw) + 1
            _take(item, summary, counts, tokenizer, writer)
        counts.lengths.add([item.sides for item in batch if item.error is None], tokenizer.bos_id)
        if cancelled is not None and cancelled():
            raise TrainingAbortedError("preparing the data was cancelled")
        if progress is not None:
            progress(min(done, source.size), source.size)
    _finish(summary, counts, options.rows)
    if file.traces and not options.traces:
        counts.findings.add(0, b"", file.trace_finding(tokenizer.template.trained_thinking()))
    summary.problems.sort(key=lambda problem: problem.line)
    summary.problem_counts = dict(counts.findings.counts.most_common())
    return summary


def _take(
    item: EncodedRow, summary: DatasetPrepared, counts: _Counts, tokenizer: ChatTokenizer, writer: Writer
) -> None:
    """Count one row, fit it into the length and write it."""

    def report(error: RowError) -> None:
        counts.findings.add(item.row.line, item.row.raw, error)

    summary.rows += 1
    if item.format is not None:
        counts.formats.add(item.format, item.row.line)
    for finding in item.warnings:
        report(finding)
    if item.error is not None:
        summary.dropped += 1
        report(item.error)
        return
    sides, bos = item.sides, tokenizer.bos_id
    if bos is not None and bool((sides[0].encoded.ids[:2] == bos).all()):
        words = "two begin tokens in a row: the text starts with one, and the template writes one"
        report(RowError("double_bos", "", words, "warning"))
    fitted = truncate_sides(sides, summary.max_length, bos)
    if fitted[0].finding is not None:
        report(fitted[0].finding)
    if not fitted[0].samples:
        summary.answer_lost += 1
        return
    if not summary.first_row:
        summary.first_row, *others = map(_shown, sides, fitted, [tokenizer] * len(sides))
        summary.first_rejected = others[0] if others else []
        encoded = sides[0].encoded
        last = int(encoded.ids[encoded.answers[-1][1] - 1])
        ends = last in tokenizer.special_ids or last in tokenizer.end_ids
        known = f"{tokenizer.token(last)}, which is trained"
        summary.notes.append(
            f"answers end with {known if ends else 'no special token: the model may not learn to stop'}"
        )
    summary.cut += fitted[0].cut > 0
    counts.split_texts += fitted[0].split
    counts.labels[item.good] += 1
    if item.content in counts.contents:
        summary.duplicated += 1
        report(RowError("duplicate_row", "", "the same content as an earlier row", "info"))
    counts.contents.add(item.content)
    summary.kept += 1
    # The pieces of a text are rows of their own, the sides of a pair are one.
    for sequences in zip(*(side.samples for side in fitted), strict=True):
        writer.add(item.row.line, item.content, list(sequences), item.good)
        summary.tokens += sum(len(ids) for ids, _ in sequences)
        summary.trained_tokens += sum(int(np.count_nonzero(trained)) for _, trained in sequences)


def _shown(side: Side, fitted: Truncated, tokenizer: ChatTokenizer) -> list[TokenSpan]:
    """One side as it is trained, for a person."""
    rendered, encoded = side.rendered, side.encoded
    parts = pieces(rendered, tokenizer.encode([rendered.text], special=rendered.raw)[0], encoded, tokenizer)
    return merge_spans(parts, fitted.at(encoded.ids))


def _finish(summary: DatasetPrepared, counts: _Counts, rows: Rows) -> None:
    if rows == "pairs":
        summary.notes.append("lengths are those of the longer side of a pair")
    if note := chosen_alone(summary.format, rows):
        summary.notes.append(note)
    if rows == "feedback" and summary.kept:
        good, bad = counts.labels[True], counts.labels[False]
        summary.notes.append(f"{good} answers are labelled good, {bad} bad")
        if not good or not bad:
            counts.findings.add(0, b"", one_label(bool(good)))
    if not summary.rows:
        raise DatasetError(f"{summary.path}: the dataset holds no row", code="DATASET_EMPTY", hint="add rows to it")
    if not summary.kept:
        raise none_usable(summary, counts.findings.counts, rows)
    lengths = counts.lengths.snapshot()
    summary.p50, summary.p90, summary.p99 = (lengths.percentile(share) for share in (0.5, 0.9, 0.99))
    summary.longest = lengths.longest
    summary.answers_fit = lengths.answers_fit
    summary.limits = lengths.limits(summary.max_length)
    if counts.formats.mixed:
        words = f"the file mixes formats: {counts.formats.describe()}; each row is read as what it is"
        summary.notes.append(words)
    if summary.format == "text":
        summary.notes.append("the rows are plain texts: samples go on with their prompt as it stands, without a chat")
    if counts.split_texts:
        words = f"{counts.split_texts} long texts were split into pieces of {summary.max_length} tokens"
        summary.notes.append(words)
