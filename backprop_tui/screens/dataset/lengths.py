"""How long the rows are: counted in the background, drawn at any limit."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from backprop.data.example import Fields, RowError
from backprop.data.reader import Row as DataRow
from backprop.data.reader import open_source
from backprop.data.truncate import LengthCounter, Lengths
from msgspec import Struct, structs

from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.messages import Notice, RowsChanged
from backprop_tui.screens.dataset.row_text import all_turns, format_of, read_row
from backprop_tui.screens.dataset.tasks import Task, Tasks
from backprop_tui.screens.dataset.tokens import Chosen
from backprop_tui.text import Row, short_number
from backprop_tui.widgets.text_view import TextView

if TYPE_CHECKING:
    from backprop.data.encode import Renderer
    from backprop.data.tokenizer import ChatTokenizer

_BATCH_ROWS = 500
_BATCH_BYTES = 1_000_000
LIMITS = [2**power for power in range(4, 21)]
"""Limits that keys go through."""


class LengthsPane(TextView):
    """The lengths as bars, with the limit between them, and what it costs."""

    def __init__(self, chosen: Chosen, tasks: Tasks, *, id: str) -> None:
        super().__init__(id=id)
        self._chosen, self._tasks = chosen, tasks
        self.counted: CountedLengths | None = None

    def forget(self) -> None:
        """Another file, or another model."""
        self._tasks.forget("lengths")
        self.counted = None
        self.redraw()

    def count(self, opened: OpenFile) -> None:
        """Count with the chosen tokenizer, or characters where there is none."""
        tokenizer = self._chosen.tokenizer
        unit = "tokens" if tokenizer is not None else "characters"
        self._tasks.begin(
            "lengths", f"counting {unit}", lambda task: count_lengths(opened, tokenizer, task), self._take
        )

    def _take(self, counted: CountedLengths) -> None:
        self.counted = counted
        self.redraw()
        self.post_message(Notice())

    def next_limit(self, by: int) -> int:
        """The next longer or shorter power of two."""
        limit = self._chosen.limit
        further = [at for at in LIMITS if at > limit] if by > 0 else [at for at in reversed(LIMITS) if at < limit]
        return further[0] if further else limit

    def set_limit(self, text: str) -> None:
        """Look at the rows at another limit."""
        number = text.replace(",", "")
        if number.isdecimal() and int(number) >= LIMITS[0]:
            self._chosen.limit = int(number)
            self.redraw()
            self.post_message(RowsChanged())
        else:
            self.post_message(Notice(f"{text!r}: a whole number of tokens from {LIMITS[0]} is needed"))

    def content(self, width: int) -> list[Row]:
        if self.counted is None:
            return [[("counting …", "muted")]]
        limit = self._chosen.limit
        keys: Row = [(f"limit {limit:,}", "strong+bold"), ("  (+ and - change it, = asks)", "muted")]
        return [keys, *histogram_lines(self.counted, limit, width, self.size.height - 1)]


class CountedLengths(Struct):
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


def count_lengths(opened: OpenFile, tokenizer: ChatTokenizer | None, task: Task[CountedLengths]) -> CountedLengths:
    """Count the rows of a file, delivering what is known twice a second."""
    from backprop.data.encode import Renderer

    counter = LengthCounter()
    known = CountedLengths("tokens" if tokenizer is not None else "characters", counter.snapshot())
    renderer = Renderer(tokenizer) if tokenizer is not None else None

    seen, shown = 0, time.monotonic()
    with open_source(opened.path) as source:
        for batch in _batches(source):
            if task.stopped():
                break
            known.rows += len(batch)
            if renderer is None:
                _count_characters(batch, opened, counter, known)
            else:
                _count_tokens(batch, opened, renderer, counter, known)
            seen += sum(len(row.raw) + 1 for row in batch)
            task.progress(min(seen, source.size), source.size)
            if time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                task.deliver(structs.replace(known, lengths=counter.snapshot()))
    return structs.replace(known, lengths=counter.snapshot(), whole=not task.stopped())


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


def _count_characters(batch: list[DataRow], opened: OpenFile, counter: LengthCounter, known: CountedLengths) -> None:
    lengths = []
    for row in batch:
        example, _ = read_row(row, opened.file)
        if example is None:
            known.unusable += 1
        else:
            turns = [turn for _, part in all_turns(example) for turn in part]
            lengths.append(len(example.text or "") + sum(len(turn.content) for turn in turns))
    counter.add_texts(lengths)


def _count_tokens(
    batch: list[DataRow], opened: OpenFile, renderer: Renderer, counter: LengthCounter, known: CountedLengths
) -> None:
    from backprop.data.encode import encode_row

    tokenizer, names = renderer.tokenizer, Fields(opened.file.mapping)
    rendered, counted = [], []
    for row in batch:
        format = None if row.error is not None else format_of(row.value, opened.file)
        try:
            if format is not None:
                rendered.append(renderer.render(row.value, format, names))
        except RowError:
            pass  # counted below, with all others that cannot be used
    for raw in (False, True):
        items = [item for item in rendered if item.raw == raw]
        encodings = tokenizer.encode([item.text for item in items], special=raw) if items else []
        for item, encoding in zip(items, encodings, strict=True):
            encoded = encode_row(item, encoding, tokenizer)
            trained = int(encoded.trained.sum())
            if trained:
                known.trained += trained
                known.tokens += len(encoded.ids)
                counted.append((item, encoded))
    known.unusable += len(batch) - len(counted)
    counter.add(counted, tokenizer.bos_id)


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
