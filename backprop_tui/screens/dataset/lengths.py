"""How long the rows are: counted in the background, drawn at any limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from backprop.data.example import Fields, RowError
from backprop.data.reader import Row as DataRow
from backprop.data.reader import open_source
from backprop.data.truncate import LengthCounter, Lengths
from msgspec import Struct
from textual.message import Message

from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.messages import Notice
from backprop_tui.screens.dataset.row_text import all_turns, format_of, read_row
from backprop_tui.screens.dataset.tasks import Task, Tasks
from backprop_tui.screens.dataset.tokens import Chosen
from backprop_tui.text import Row, short_number
from backprop_tui.widgets.text_view import TextView

if TYPE_CHECKING:
    from backprop.data.encode import Rendered
    from backprop.data.tokenizer import ChatTokenizer

_BATCH_ROWS = 500
_BATCH_BYTES = 1_000_000
LIMITS = [2**power for power in range(4, 21)]
"""Limits that keys go through."""


class LengthsPane(TextView):
    """The lengths as bars, with the limit between them, and what it costs."""

    class Counted(Message):
        """Lengths counted so far."""

        def __init__(self, task: Task, lengths: CountedLengths) -> None:
            super().__init__()
            self.task = task
            self.lengths = lengths

    def __init__(self, chosen: Chosen, tasks: Tasks, *, id: str) -> None:
        super().__init__(id=id)
        self._chosen, self._tasks = chosen, tasks
        self.counted: CountedLengths | None = None
        self._counting: Task | None = None

    def forget(self) -> None:
        """Another file, or another model."""
        self._tasks.stop("lengths")
        self._counting = self.counted = None
        self.redraw()

    def need_count(self, opened: OpenFile) -> None:
        """Count where that was not done: with the chosen tokenizer, once it was looked for."""
        if self._chosen.need_tokenizer(self._tasks) or self._counting is not None:
            return
        tokenizer = self._chosen.tokenizer

        def count(task: Task) -> None:
            count_lengths(opened, tokenizer, task, lambda lengths: self.post_message(self.Counted(task, lengths)))

        unit = "tokens" if tokenizer is not None else "characters"
        self._counting = self._tasks.begin("lengths", f"counting {unit}", count)

    def on_lengths_pane_counted(self, message: Counted) -> None:
        if message.task is self._counting:
            self.counted = message.lengths
            self.redraw()
            self.post_message(Notice())

    def next_limit(self, by: int) -> int:
        """The next longer or shorter power of two."""
        limit = self._chosen.limit
        further = [at for at in LIMITS if at > limit] if by > 0 else [at for at in reversed(LIMITS) if at < limit]
        return further[0] if further else limit

    def content(self, width: int) -> list[Row]:
        if self.counted is None:
            return [[("counting …", "muted")]]
        limit = self._chosen.limit
        keys: Row = [(f"limit {limit:,}", "strong+bold"), ("  (+ and - change it, = asks)", "muted")]
        return [keys, *histogram_lines(self.counted, limit, width, self.size.height - 1)]


class CountedLengths(Struct, frozen=True):
    """What is known of the rows counted so far, in tokens, or in characters where no tokenizer was given."""

    unit: str
    lengths: Lengths
    rows: int = 0
    unusable: int = 0
    """Rows that training would skip, whatever the limit."""
    tokens: int = 0
    trained: int = 0
    whole: bool = False
    """True when every row was counted."""


class _Counter:
    """The numbers behind ``CountedLengths`` while they grow."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.lengths = LengthCounter()
        self.rows = self.unusable = self.tokens = self.trained = 0

    def snapshot(self, *, whole: bool = False) -> CountedLengths:
        lengths = self.lengths.snapshot()
        return CountedLengths(self.unit, lengths, self.rows, self.unusable, self.tokens, self.trained, whole)


def count_lengths(
    opened: OpenFile, tokenizer: ChatTokenizer | None, task: Task, show: Callable[[CountedLengths], object]
) -> None:
    """Count the rows of a file, handing what is known to ``show`` twice a second and at the end."""
    counter = _Counter("tokens" if tokenizer is not None else "characters")
    encoder = _Encoder(opened, tokenizer, counter) if tokenizer is not None else None
    seen, shown = 0, time.monotonic()
    with open_source(opened.path) as source:
        for batch in _batches(source):
            if task.stopped():
                show(counter.snapshot())
                return
            if encoder is None:
                _count_characters(batch, opened, counter)
            else:
                encoder.count(batch)
            seen += sum(len(row.raw) + 1 for row in batch)
            task.progress(min(seen, source.bytes), source.bytes)
            if time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                show(counter.snapshot())
    show(counter.snapshot(whole=True))


def _batches(rows: Iterable[DataRow]) -> Iterator[list[DataRow]]:
    batch: list[DataRow] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.raw)
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _count_characters(batch: list[DataRow], opened: OpenFile, counter: _Counter) -> None:
    lengths = []
    for row in batch:
        counter.rows += 1
        example, _ = read_row(row, opened.file)
        if example is None:
            counter.unusable += 1
        else:
            turns = [turn for _, part in all_turns(example) for turn in part]
            lengths.append(len(example.text or "") + sum(len(turn.content) for turn in turns))
    counter.lengths.add_texts(lengths)


class _Encoder:
    """Rows → what counts of their tokens."""

    def __init__(self, opened: OpenFile, tokenizer: ChatTokenizer, counter: _Counter) -> None:
        from backprop.data.encode import Renderer

        self._file = opened.file
        self._names = Fields(opened.file.mapping)
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer)
        self._counter = counter

    def count(self, batch: list[DataRow]) -> None:
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
        from backprop.data.encode import encode_row

        counted = []
        encodings = self._tokenizer.encode([item.text for item in rendered], special=raw) if rendered else []
        for item, encoding in zip(rendered, encodings, strict=True):
            encoded = encode_row(item, encoding, self._tokenizer)
            trained = int(encoded.trained.sum())
            if not trained:
                self._counter.unusable += 1
                continue
            self._counter.trained += trained
            self._counter.tokens += len(encoded.ids)
            counted.append((item, encoded))
        self._counter.lengths.add(counted, self._tokenizer.bos_id)


def edges(longest: int, limit: int, most: int) -> list[int]:
    """Borders of at most ``most`` stretches of one round width that reach ``longest``; the limit is a border."""
    top = max(longest, limit, 1)
    width = next(w * 10**e for e in range(9) for w in (1, 2, 5) if w * 10**e * max(most - 1, 1) >= top)
    return sorted({*range(0, top + width, width), limit + 1} if limit else {*range(0, top + width, width)})


def histogram_lines(counted: CountedLengths, limit: int, width: int, height: int) -> list[Row]:
    """The lengths as bars, with the limit between them, and what it costs."""
    in_tokens = counted.unit == "tokens"
    lengths = counted.lengths
    lines: list[Row] = list(_table(counted, limit)) if in_tokens else _no_limit(counted)
    if not lengths.rows:
        return lines
    lines.append([])
    borders = edges(lengths.longest, limit if in_tokens else 0, max(height - len(lines) - 2, 6))
    counts = lengths.buckets(borders)
    most, room = max(*counts, 1), max(width - 24, 10)
    for start, end, count in zip(borders, borders[1:], counts, strict=False):
        over = in_tokens and start > limit
        if in_tokens and start == limit + 1:
            rule = "─" * max(width - 13 - len(f"{limit:,}"), 1)
            lines.append([(f"──── limit {limit:,} {rule}"[:width], "warn")])
        filled = "█" * (count * room // most) or ("▏" if count else "")
        label = f"{start:>7,}–{end - 1:<7,}"
        bar = (filled, "warn" if over else "good")
        lines.append([(label, "muted"), bar, (f" {count:,}" if count else "", "text")])
    return lines


def _table(counted: CountedLengths, limit: int) -> Iterator[Row]:
    share = 100 * counted.trained / max(counted.tokens, 1)
    part = "" if counted.whole else " so far"
    yield [
        (f"{counted.rows:,} rows{part}", "strong+bold"),
        (f" · {short_number(counted.tokens)} tokens, {share:.0f} % trained", "text"),
    ]
    if counted.unusable:
        yield [(f"! {counted.unusable:,} rows cannot be used at any length (c lists why)", "warn")]
    yield []
    limits = counted.lengths.limits(limit)
    shorter = "cut" if not any(at.split for at in limits) else "cut, split"
    yield [(f"at a limit of      kept whole {shorter:>10}  answer lost", "muted")]
    for name, at in zip(("chosen", "p50", "p90", "p99", "longest"), limits, strict=True):
        less = at.cut + at.split
        yield [
            (f"{at.max_length:>7,} {name:<8}", "strong+bold" if name == "chosen" else "text"),
            (f"{at.whole:>13,}", "text"),
            (f"{less:>11,}", "warn" if less else "text"),
            (f"{at.answer_lost:>13,}", "bad" if at.answer_lost else "text"),
        ]


def _no_limit(counted: CountedLengths) -> list[Row]:
    part = "" if counted.whole else " so far"
    return [
        [(f"{counted.rows:,} rows{part}", "strong+bold"), (", in characters", "text")],
        [(percentiles(counted.lengths), "text")],
        [("The limit is in tokens: choose a model (m) to see what it cuts.", "muted")],
    ]


def percentiles(lengths: Lengths) -> str:
    p50, p90, p99 = (f"{lengths.percentile(share):,}" for share in (0.5, 0.9, 0.99))
    return f"p50 {p50} · p90 {p90} · p99 {p99} · longest {lengths.longest:,}"
