"""How long the rows are: counted in the background, asked at any limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from backprop.data.formats import RowError
from backprop.data.lengths import LengthCounter, Lengths
from backprop.data.mapping import Fields
from backprop.data.reader import Row, open_source
from msgspec import Struct

from backprop_tui.screens.dataset.file import Job, OpenFile
from backprop_tui.screens.dataset.row_text import all_turns, format_of, read_row
from backprop_tui.screens.dataset.rows import in_bytes
from backprop_tui.widgets.styled import Line

if TYPE_CHECKING:
    from backprop.data.encode import Rendered
    from backprop.data.tokenizer import ChatTokenizer

_BATCH_ROWS = 500
_BATCH_BYTES = 1_000_000


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
    opened: OpenFile, tokenizer: ChatTokenizer | None, job: Job, show: Callable[[CountedLengths], object]
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
        from backprop.data.encode import encode_row
        from backprop.data.fit import chat_size

        chats, texts = [], []
        encodings = self._tokenizer.encode([item.text for item in rendered], special=raw) if rendered else []
        for item, encoding in zip(rendered, encodings, strict=True):
            encoded = encode_row(item, encoding, self._tokenizer)
            trained = int(encoded.trained.sum())
            if not trained:
                self._counter.unusable += 1
                continue
            self._counter.trained += trained
            self._counter.tokens += len(encoded.ids)
            if raw:
                texts.append(len(encoded.ids))
            else:
                chats.append(chat_size(encoded, self._tokenizer.bos_id))
        self._counter.lengths.add_chats(chats)
        self._counter.lengths.add_texts(texts)


def edges(longest: int, limit: int, most: int) -> list[int]:
    """Borders of at most ``most`` stretches of one round width that reach ``longest``; the limit is a border."""
    top = max(longest, limit, 1)
    width = next(w * 10**e for e in range(9) for w in (1, 2, 5) if w * 10**e * max(most - 1, 1) >= top)
    return sorted({*range(0, top + width, width), limit + 1} if limit else {*range(0, top + width, width)})


def histogram_lines(counted: CountedLengths, limit: int, width: int, height: int) -> list[Line]:
    """The lengths as bars, with the limit between them, and what it costs."""
    in_tokens = counted.unit == "tokens"
    lengths = counted.lengths
    lines: list[Line] = list(_table(counted, limit)) if in_tokens else _no_limit(counted)
    if not lengths.rows:
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


def _table(counted: CountedLengths, limit: int) -> Iterator[Line]:
    share = 100 * counted.trained / max(counted.tokens, 1)
    part = "" if counted.whole else " so far"
    yield (
        (f"{counted.rows:,} rows{part}", "heading"),
        (f" · {in_bytes(counted.tokens)} tokens, {share:.0f} % trained", ""),
    )
    if counted.unusable:
        yield ((f"! {counted.unusable:,} rows cannot be used at any length (c lists why)", "warning"),)
    yield (("", ""),)
    limits = counted.lengths.limits(limit)
    shorter = "cut" if not any(at.split for at in limits) else "cut, split"
    yield ((f"at a limit of      kept whole {shorter:>10}  answer lost", "dim"),)
    for name, at in zip(("chosen", "p50", "p90", "p99", "longest"), limits, strict=True):
        less = at.cut + at.split
        yield (
            (f"{at.max_length:>7,} {name:<8}", "heading" if name == "chosen" else ""),
            (f"{at.whole:>13,}", ""),
            (f"{less:>11,}", "warning" if less else ""),
            (f"{at.answer_lost:>13,}", "error" if at.answer_lost else ""),
        )


def _no_limit(counted: CountedLengths) -> list[Line]:
    part = "" if counted.whole else " so far"
    lengths = counted.lengths
    p50, p90, p99 = (f"{lengths.percentile(share):,}" for share in (0.5, 0.9, 0.99))
    return [
        ((f"{counted.rows:,} rows{part}", "heading"), (", in characters", "")),
        ((f"p50 {p50} · p90 {p90} · p99 {p99} · longest {lengths.longest:,}", ""),),
        (("The limit is in tokens: choose a model (m) to see what it cuts.", "dim"),),
    ]
