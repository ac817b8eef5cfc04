"""How long the rows are: counted in the background, asked at any limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from backprop.data.formats import RowError
from backprop.data.mapping import Fields
from backprop.data.source import Row, open_source
from msgspec import Struct

from backprop_tui.screens.data_rows import all_turns, format_of, read_row
from backprop_tui.screens.data_work import Job, OpenFile
from backprop_tui.widgets.row_table import in_bytes
from backprop_tui.widgets.styled import Line

if TYPE_CHECKING:
    from backprop.data.encoding import Encoded, Rendered
    from backprop.data.tokenizer import ChatTokenizer

_BATCH_ROWS = 500
_BATCH_BYTES = 1_000_000
_LONGEST = 1_000_000
"""Rows longer than this are counted as this long."""
Counts = npt.NDArray[np.int64]


class Lengths(Struct, frozen=True):
    """Lengths of the rows counted so far, in tokens, or in characters where no tokenizer was given."""

    unit: str
    counts: Counts
    """Rows by their length: to the end of the last answer, since what follows it goes first."""
    losing: Counts
    """Rows by the largest limit at which their last answer no longer fits; 0: never."""
    rows: int = 0
    unusable: int = 0
    """Rows that training would skip, whatever the limit."""
    tokens: int = 0
    trained: int = 0
    whole: bool = False
    """True when every row was counted."""

    def percentile(self, share: float) -> int:
        """The length that ``share`` (0 to 1) of the rows do not exceed."""
        sums = np.cumsum(self.counts)
        return int(np.searchsorted(sums, share * sums[-1])) if len(sums) and sums[-1] else 0

    @property
    def longest(self) -> int:
        return int(np.flatnonzero(self.counts)[-1]) if self.counts.any() else 0

    def at(self, limit: int) -> tuple[int, int, int]:
        """Rows kept whole, cut at the beginning, and left out because the answer does not fit."""
        whole = int(self.counts[: limit + 1].sum())
        lost = int(self.losing[limit:].sum()) if limit else 0
        return whole, int(self.counts.sum()) - whole - lost, lost

    def buckets(self, edges: list[int]) -> list[int]:
        """Rows of each stretch from one edge up to (not including) the next."""
        sums = np.concatenate(([0], np.cumsum(self.counts)))
        places = np.minimum(edges, len(sums) - 1)
        return np.diff(sums[places]).tolist()


class _Counter:
    """The arrays behind ``Lengths`` while they grow."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.counts: Counts = np.zeros(1, dtype=np.int64)
        self.losing: Counts = np.zeros(1, dtype=np.int64)
        self.rows = self.unusable = self.tokens = self.trained = 0

    def add(self, lengths: list[int], losing: list[int]) -> None:
        self.counts = _added(self.counts, lengths)
        self.losing = _added(self.losing, losing)

    def snapshot(self, *, whole: bool = False) -> Lengths:
        return Lengths(self.unit, self.counts, self.losing, self.rows, self.unusable, self.tokens, self.trained, whole)


def _added(counts: Counts, values: list[int]) -> Counts:
    """``counts`` with one more at each of ``values``; a new array, because a screen may be reading the old one."""
    if not values:
        return counts
    more = np.bincount(np.minimum(values, _LONGEST), minlength=len(counts))
    more[: len(counts)] += counts
    return more


def count_lengths(
    opened: OpenFile, tokenizer: ChatTokenizer | None, job: Job, show: Callable[[Lengths], object]
) -> None:
    """Count the rows of a file, handing what is known to ``show`` twice a second and at the end."""
    counter = _Counter("tokens" if tokenizer is not None else "characters")
    encoder = _Encoder(opened, tokenizer, counter) if tokenizer is not None else None
    seen, shown = 0, time.monotonic()
    with open_source(opened.path) as source:
        for batch in _batches(source):
            if job.stopped():
                show(counter.snapshot())
                return
            if encoder is None:
                _count_characters(batch, opened, counter)
            else:
                encoder.count(batch)
            seen += sum(len(row.raw) + 1 for row in batch)
            job.progress(min(seen, source.bytes), source.bytes)
            if time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                show(counter.snapshot())
    show(counter.snapshot(whole=True))


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.raw)
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _count_characters(batch: list[Row], opened: OpenFile, counter: _Counter) -> None:
    lengths = []
    for row in batch:
        counter.rows += 1
        example, _ = read_row(row, opened.file)
        if example is None:
            counter.unusable += 1
        else:
            turns = [turn for _, part in all_turns(example) for turn in part]
            lengths.append(len(example.text or "") + sum(len(turn.content) for turn in turns))
    counter.add(lengths, [])


class _Encoder:
    """Rows → what counts of their tokens."""

    def __init__(self, opened: OpenFile, tokenizer: ChatTokenizer, counter: _Counter) -> None:
        from backprop.data.encoding import Renderer

        self._file = opened.file
        self._names = Fields(opened.file.mapping)
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer)
        self._counter = counter

    def count(self, batch: list[Row]) -> None:
        rendered = []
        for row in batch:
            self._counter.rows += 1
            format = None if row.error is not None else format_of(row.value, self._file)
            try:
                if format is not None:
                    rendered.append(self._renderer.render(row.value, format, self._names))
            except RowError:
                pass  # counted below, with all others that cannot be used
        self._counter.unusable += len(batch) - len(rendered)
        for raw in (False, True):
            self._encode([item for item in rendered if item.raw == raw], raw)

    def _encode(self, rendered: list[Rendered], raw: bool) -> None:
        from backprop.data.encoding import encode_row

        lengths, losing = [], []
        encodings = self._tokenizer.encode([item.text for item in rendered], special=raw) if rendered else []
        for item, encoding in zip(rendered, encodings, strict=True):
            encoded = encode_row(item, encoding, self._tokenizer)
            trained = int(encoded.trained.sum())
            if not trained:
                self._counter.unusable += 1
                continue
            self._counter.trained += trained
            self._counter.tokens += len(encoded.ids)
            length, lost_at = _fitting(encoded, raw, self._tokenizer.bos_id)
            lengths.append(length)
            losing.append(lost_at)
        self._counter.add(lengths, losing)


def _fitting(encoded: Encoded, raw: bool, bos_id: int | None) -> tuple[int, int]:
    """The smallest limit that keeps a row whole, and the largest that loses its answer (``backprop.data.fit``)."""
    ids = encoded.ids
    if raw:
        return len(ids), 0
    start, end = encoded.answers[-1]
    head = int(bos_id is not None and ids[0] == bos_id and np.count_nonzero(ids == bos_id) == 1)
    return end, min(end - 1, end - start + head)


def edges(longest: int, limit: int, most: int) -> list[int]:
    """Borders of at most ``most`` stretches of one round width that reach ``longest``; the limit is a border."""
    top = max(longest, limit, 1)
    width = next(w * 10**e for e in range(9) for w in (1, 2, 5) if w * 10**e * max(most - 1, 1) >= top)
    return sorted({*range(0, top + width, width), limit + 1} if limit else {*range(0, top + width, width)})


def histogram_lines(lengths: Lengths, limit: int, width: int, height: int) -> list[Line]:
    """The lengths as bars, with the limit between them, and what it costs."""
    in_tokens = lengths.unit == "tokens"
    lines: list[Line] = list(_table(lengths, limit)) if in_tokens else _no_limit(lengths)
    if not lengths.counts.sum():
        return lines
    lines.append(())
    borders = edges(lengths.longest, limit if in_tokens else 0, max(height - len(lines) - 2, 6))
    counts = lengths.buckets(borders)
    most, room = max(*counts, 1), max(width - 24, 10)
    for start, end, count in zip(borders, borders[1:], counts, strict=False):
        over = in_tokens and start > limit
        if in_tokens and start == limit + 1:
            lines.append(
                ((f"{'─' * 4} limit {limit:,} {'─' * max(width - 13 - len(f'{limit:,}'), 1)}"[:width], "warning"),)
            )
        filled = "█" * (count * room // most) or ("▏" if count else "")
        label = f"{start:>7,}–{end - 1:<7,}"
        lines.append(((label, "dim"), (filled, "warning" if over else "good"), (f" {count:,}" if count else "", "")))
    return lines


def _table(lengths: Lengths, limit: int) -> Iterator[Line]:
    share = 100 * lengths.trained / max(lengths.tokens, 1)
    part = "" if lengths.whole else " so far"
    yield (
        (f"{lengths.rows:,} rows{part}", "heading"),
        (f" · {in_bytes(lengths.tokens)} tokens, {share:.0f} % trained", ""),
    )
    if lengths.unusable:
        yield ((f"! {lengths.unusable:,} rows cannot be used at any length (c lists why)", "warning"),)
    yield (("", ""),)
    yield (("at a limit of      kept whole        cut  answer lost", "dim"),)
    points = [("chosen", limit)] + [(f"p{p}", lengths.percentile(p / 100)) for p in (50, 90, 99)]
    for name, at in [*points, ("longest", lengths.longest)]:
        whole, cut, lost = lengths.at(at)
        yield (
            (f"{at:>7,} {name:<8}", "heading" if name == "chosen" else ""),
            (f"{whole:>13,}", ""),
            (f"{cut:>11,}", "warning" if cut else ""),
            (f"{lost:>13,}", "error" if lost else ""),
        )


def _no_limit(lengths: Lengths) -> list[Line]:
    part = "" if lengths.whole else " so far"
    p50, p90, p99 = (f"{lengths.percentile(share):,}" for share in (0.5, 0.9, 0.99))
    return [
        ((f"{lengths.rows:,} rows{part}", "heading"), (", in characters", "")),
        ((f"p50 {p50} · p90 {p90} · p99 {p99} · longest {lengths.longest:,}", ""),),
        (("The limit is in tokens: choose a model (m) to see what it cuts.", "dim"),),
    ]
