"""How long the rows are: counted in the background, drawn at any limit."""

from __future__ import annotations

from collections.abc import Iterator

from backprop.core.models import find_tokenizer
from backprop.core.resolve import resolve
from backprop.data.truncate import CountedLengths, Lengths, count_lengths

from backprop_tui.keys import press
from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.row_text import error_lines
from backprop_tui.screens.dataset.tokens import Chosen
from backprop_tui.screens.tasks import Notice, RowsChanged, Task, Tasks
from backprop_tui.text import Row, rows_of, short_number, wrap
from backprop_tui.widgets.path_input import Prompt, between
from backprop_tui.widgets.text_view import TextView

LIMITS = [2**power for power in range(4, 21)]
"""Limits that keys go through."""
LIMIT_RANGE = range(LIMITS[0], LIMITS[-1] + 1)
"""Limits that can be typed."""


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
        """Count with the chosen tokenizer, or characters where there is none; then look at the limit of a run."""
        tokenizer, model, rows = self._chosen.tokenizer, self._chosen.model, self._chosen.rows
        traces = self._chosen.traces

        def count(task: Task[CountedLengths | int]) -> CountedLengths:
            counted = count_lengths(
                opened.path,
                opened.file,
                tokenizer,
                rows=rows,
                traces=traces,
                progress=task.progress,
                cancelled=task.stopped,
                so_far=task.so_far,
            )
            if tokenizer is not None and counted.whole and counted.lengths.rows and self._chosen.by_rows:
                task.deliver(limit_of_run(opened.path, model, counted))
            return counted

        unit = "tokens" if tokenizer is not None else "characters"
        self._tasks.begin("lengths", f"counting {unit}", count, self._take)

    def _take(self, found: CountedLengths | int) -> None:
        if not isinstance(found, int):
            self.counted = found
            self.redraw()
            self.post_message(Notice())
        elif self._chosen.by_rows:
            self._chosen.limit = found
            self.post_message(RowsChanged())

    def next_limit(self, by: int) -> int:
        """The next longer or shorter power of two."""
        limit = self._chosen.limit
        if by > 0:
            return next((at for at in LIMITS if at > limit), limit)
        return next((at for at in reversed(LIMITS) if at < limit), limit)

    def ask_limit(self, prompt: Prompt) -> None:
        """Ask for the limit to look at."""
        label = f"Longest row in tokens, {between(LIMIT_RANGE)}"
        prompt.ask(label, self.set_limit, str(self._chosen.limit), numbers=LIMIT_RANGE)

    def set_limit(self, text: str) -> None:
        """Look at the rows at another limit, one of ``LIMIT_RANGE``; at the same one where none is named."""
        self._chosen.limit = int(text or self._chosen.limit)
        self._chosen.limit_chosen = self._chosen.limit_chosen or bool(text)
        self.redraw()
        self.post_message(RowsChanged())

    def content(self, width: int) -> list[Row]:
        if self.counted is None:
            return [[("counting …", "muted")]]
        limit = self._chosen.limit
        longer, shorter, ask = map(press, ("data.longer-limit", "data.shorter-limit", "data.limit"))
        whose = "a run's, by these rows; " if self._chosen.by_rows else ""
        words = f"  ({whose}{longer} and {shorter} change it, {ask} asks)"
        head: list[Row] = [[(f"limit {limit:,}", "strong+bold"), (words, "muted")]]
        if (why := self._chosen.why_none) is not None:
            head = [part for line in error_lines(why) for part in wrap(line, width)] + [[]]
        return [*head, *histogram_lines(self.counted, limit, width, self.size.height - len(head))]


def limit_of_run(data: str, model: str, counted: CountedLengths) -> int:
    """The limit that a run on these rows would choose, on this machine."""
    from backprop.data.plan import length_by_rows
    from backprop.data.tokenizer import context_length
    from backprop.hardware.devices import info
    from backprop.hardware.fit import longest_rows

    config = resolve({"data": data, "model": model}, kind="screen").config()
    free = 0 if config.backend == "cpu" else max((card.vram_free or 0 for card in info().gpus), default=0)
    return length_by_rows(config, counted, context_length(find_tokenizer(model)), longest_rows(config, free))[0]


def edges(longest: int, usual: int, limit: int, most: int) -> list[int]:
    """Borders of at most ``most`` stretches of one round width that reach ``longest``; where few rows are much longer
    than ``usual``, the last stretch holds them all. The limit is a border where rows reach it."""
    top = usual if longest > 2 * usual else longest
    width = next(w * 10**e for e in range(9) for w in (1, 2, 5) if w * 10**e * max(most - 2, 1) >= max(top, 1))
    borders = {*range(0, top + width, width), longest + 1}
    return sorted(at for at in borders | {limit + 1} if at <= longest + 1)


def histogram_lines(counted: CountedLengths, limit: int, width: int, height: int) -> list[Row]:
    """The lengths as bars, with the limit between them, and what it costs."""
    in_tokens = counted.unit == "tokens"
    lengths = counted.lengths
    lines: list[Row] = list(_table(counted, limit)) if in_tokens else _no_limit(counted)
    if not lengths.rows:
        return lines
    lines.append([])
    usual = lengths.percentile(0.99)
    limit = limit if in_tokens else lengths.longest
    borders = edges(lengths.longest, usual, limit, max(height - len(lines) - 1, 6))
    counts = lengths.buckets(borders)
    most, room = max(*counts, 1), max(width - 24, 10)
    rule = f"──── limit {limit:,} "
    rule = rule.ljust(width - 2, "─")[:width]
    for start, end, count in zip(borders, borders[1:], counts, strict=False):
        if start == limit + 1:
            lines.append([(rule, "warn")])
        filled = "█" * (count * room // most) or ("▏" if count else "")
        bar = (filled, "warn" if start > limit else "good")
        lines.append([(f"{start:>7,}–{end - 1:<7,}", "muted"), bar, (f" {count:,}" if count else "", "text")])
    return [*lines, [(rule, "muted")]] if in_tokens and limit >= lengths.longest else lines


def _table(counted: CountedLengths, limit: int) -> Iterator[Row]:
    tokens, trained = counted.lengths.tokens_at(limit)
    share = 100 * trained / max(tokens, 1)
    yield _counted(counted, f" · at this limit {short_number(tokens)} tokens, {share:.0f} % trained")
    if counted.unusable:
        why = f"({press('data.check')} lists why)"
        yield [(f"! {rows_of(counted.unusable)} cannot be used at any length {why}", "warn")]
    limits = counted.lengths.limits(limit)
    if not limits:
        return
    yield []
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
    return [
        _counted(counted, ", in characters"),
        [(percentiles(counted.lengths), "text")],
        [(f"The limit is in tokens: choose a model ({press('data.model')}) to see what it cuts.", "muted")],
    ]


def _counted(counted: CountedLengths, more: str) -> Row:
    part = "" if counted.whole else " so far"
    return [(f"{rows_of(counted.rows)}{part}", "strong+bold"), (more, "text")]


def percentiles(lengths: Lengths) -> str:
    p50, p90, p99 = (f"{lengths.percentile(share):,}" for share in (0.5, 0.9, 0.99))
    return f"p50 {p50} · p90 {p90} · p99 {p99} · longest {lengths.longest:,}"
