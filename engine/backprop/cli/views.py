"""Three ways to show a run while it goes on: a live line under a log, log lines alone, and events as JSON Lines."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from itertools import zip_longest
from math import isnan
from pathlib import Path
from typing import TypeAlias

from backprop.cli import output
from backprop.core import events as ev
from backprop.runs.describe import (
    describe,
    describe_averages,
    describe_dataset,
    duration,
    findings_by_kind,
    level,
    metrics_text,
    number,
    verdict_words,
)
from backprop.runs.forgetting import Forgetting
from backprop.runs.state import RunState

_BAR = 24
_PAINT_EVERY = 0.1
_LOADING_EVERY = 5.0
_SAMPLE = 120
_STEP_LINES = 200
"""About how many step lines a long run gets off a terminal; a short one gets at most one a second."""


class JsonLines:
    """Every event as its JSON line on standard output."""

    def show(self, event: ev.AnyEvent, state: RunState) -> None:
        output.json_line(ev.encode(event))

    def close(self, state: RunState) -> None:
        pass


class PlainLines:
    """A line for each thing that happens; steps and progress thinned."""

    def __init__(self) -> None:
        self._last_step = 0
        self._last_step_time = 0.0
        self._loading = ("", 0.0)

    def show(self, event: ev.AnyEvent, state: RunState) -> None:
        match event:
            case ev.Step():
                if self._is_due(event):
                    output.line(describe(event) + _left(state), level(event))
                return
            case ev.ModelLoading():
                stage, since = self._loading
                if stage == event.stage and event.time - since < _LOADING_EVERY:
                    return
                self._loading = (event.stage, event.time)
        show_event(event)

    def _is_due(self, event: ev.Step) -> bool:
        first_or_last = self._last_step == 0 or event.step == event.total_steps
        rested = event.time - self._last_step_time >= 1.0
        spaced = event.step - self._last_step >= event.total_steps / _STEP_LINES
        if not (first_or_last or (rested and spaced)):
            return False
        self._last_step, self._last_step_time = event.step, event.time
        return True

    def close(self, state: RunState) -> None:
        show_ending(state)


class LiveLine:
    """Log lines, and below them one line that is written over."""

    def __init__(self) -> None:
        self._painted = 0.0
        self._shown = False

    def show(self, event: ev.AnyEvent, state: RunState) -> None:
        if not isinstance(event, ev.Step | ev.ModelLoading | ev.Heartbeat | ev.Gpu):
            self._wipe()
            show_event(event)
        now = time.monotonic()
        last = isinstance(event, ev.Step) and event.step == event.total_steps
        if not state.ended and (last or now - self._painted >= _PAINT_EVERY):
            self._painted = now
            self._paint(progress_line(state, event))

    def _paint(self, text: str) -> None:
        columns = shutil.get_terminal_size().columns
        sys.stdout.write(f"\r\x1b[2K{output.clean(text)[: columns - 1]}")
        sys.stdout.flush()
        self._shown = True

    def _wipe(self) -> None:
        if self._shown:
            sys.stdout.write("\r\x1b[2K")
            self._shown = False

    def close(self, state: RunState) -> None:
        self._wipe()
        show_ending(state)


View: TypeAlias = JsonLines | PlainLines | LiveLine
"""Shows events as they come (``show``: the state has taken in the event already) until the run is over (``close``)."""


def progress_line(state: RunState, event: ev.AnyEvent) -> str:
    """What the run does now: a bar with step, loss, speed and remaining time, or the phase."""
    if isinstance(event, ev.ModelLoading):
        return describe(event)
    if state.last_step is None or state.phase != "training":
        return describe(ev.PhaseChanged(phase=state.phase, detail=state.phase_detail)) if state.phase else "starting"  # type: ignore[arg-type]
    done = round(_BAR * state.step / max(1, state.total_steps))
    held = f" paused: {state.paused_for}" if state.status == "paused" else ""
    held = f" {silent}" if (silent := state.silence(time.time())) else held
    return (
        f"[{'#' * done}{'.' * (_BAR - done)}] {state.step}/{state.total_steps} loss {number(state.last_step.loss)} "
        f"{state.last_step.tokens_per_second:.0f} tokens/s{_left(state)}{held}"
        + metrics_text(state.last_step.metrics, "rewards/margins", "rewards/accuracies")
    )


def _left(state: RunState) -> str:
    return "" if state.eta_seconds is None else f" {duration(state.eta_seconds)} left"


def show_event(event: ev.AnyEvent) -> None:
    """Print what an event says, in the colour of its weight."""
    if isinstance(event, ev.DatasetPrepared):
        for text in dataset_lines(event):
            output.line(text)
        return
    text = describe(event)
    if isinstance(event, ev.Sample) and len(text) > _SAMPLE:
        text = text[: _SAMPLE - 2] + " …"  # whole at the end, side by side
    if text:
        output.line(text, level(event))


def show_ending(state: RunState) -> None:
    """Print the samples side by side and the run's last numbers."""
    if state.samples:
        for text in before_and_after(state.samples, output.width()):
            output.line(text)
        output.line()
    if state.forgetting.cells:
        show_forgetting(state.forgetting)
    for text in ending_lines(state):
        output.line(text)


def show_forgetting(table: Forgetting) -> None:
    """Print the table: the loss of every run's held-out rows after every run, with the 95 % interval's half width."""

    def words(after: int, held_out: int) -> str:
        cell = table.cell(after, held_out)
        if cell is None:
            return ""
        wide = "" if cell.low is None or cell.high is None else f" ±{(cell.high - cell.low) / 2:.2f}"
        return number(cell.loss, 3) + wide + ("" if cell.exact is None else f" {cell.exact:.0%}")

    rows = {each.held_out: each.rows for each in table.cells}
    head = ["held-out loss", *(f"run {each} (n {rows[each]})" for each in table.columns)]
    names = {0: "base model", **{after: f"after run {after}" for after in table.rows if after}}
    output.line()
    output.table(
        head,
        [[names[after], *(words(after, each) for each in table.columns)] for after in table.rows],
        frozenset(range(1, len(head))),
    )
    output.line(describe_averages(table.averages()))
    output.line()


def choose_view(as_json: bool) -> View:
    """JSON where it was asked for; a live line on a terminal that can wipe a line; else log lines."""
    if as_json:
        return JsonLines()
    if output.can_rewrite(sys.stdout):
        return LiveLine()
    return PlainLines()


_SPAN = 240
"""Characters shown of one piece of the first row."""


def dataset_lines(event: ev.DatasetPrepared) -> list[str]:
    """The counted pre-flight, what was found in the rows, and the first row with its trained tokens in brackets."""
    lines = [describe_dataset(event), *event.notes]
    lines += [words for _, words in findings_by_kind(event.problems, event.problem_counts, event.unit)]
    if event.first_row:
        lines.append("first row, [trained]: " + first_row(event.first_row))
    if event.first_rejected:
        lines.append("its rejected side: " + first_row(event.first_rejected))
    return lines


def first_row(spans: list[ev.TokenSpan]) -> str:
    """``<|user|>Hi<|assistant|>[Hello<|end|>]``; line breaks as ``\\n``, a long piece by its two ends."""
    shown = []
    for span in spans:
        text = span.text.replace("\n", "\\n")
        if len(text) > _SPAN:
            text = f"{text[: _SPAN // 2]} … {text[-_SPAN // 2 :]}"
        shown.append(f"[{text}]" if span.trained else text)
    return "".join(shown)


def before_and_after(samples: list[ev.Sample], width: int) -> list[str]:
    """Each prompt with the base model's first answer on the left and the tuned one's last on the right."""
    before = {sample.prompt: sample.text for sample in reversed(samples) if not sample.tuned}
    after = {sample.prompt: sample.text for sample in samples if sample.tuned}
    column = (width - 3) // 2
    lines = []
    for prompt in dict.fromkeys(sample.prompt for sample in samples):
        lines += ["", *textwrap.wrap(f"> {prompt}", width, subsequent_indent="  ")]
        left, right = (_wrap(answers.get(prompt, ""), column) for answers in (before, after))
        lines.append(f"{'before':<{column}} | after")
        lines.append(f"{'-' * column}-+-{'-' * column}")
        lines += [f"{a:<{column}} | {b}".rstrip() for a, b in zip_longest(left, right, fillvalue="")]
    return lines


def _wrap(text: str, width: int) -> list[str]:
    return [part for row in output.clean(text).strip().splitlines() for part in textwrap.wrap(row, width) or [""]]


def ending_lines(state: RunState) -> list[str]:
    """What a person wants to know at the end: losses, rows, where the result is, how to talk to it."""
    lines = []
    curves = state.curves
    if len(curves):
        first, last = (None if isnan(loss) else loss for loss in (curves.loss[0], curves.loss[-1]))
        lines.append(
            f"loss {number(first)} -> {number(last)} over {len(curves)} step{'s' * (len(curves) > 1)}, "
            f"{state.samples_seen} rows and {state.tokens_seen} tokens seen in {duration(state.duration_seconds)}"
        )
    if state.verdict is not None:
        lines.append(f"did it help? {verdict_words(state.verdict)}")
    if state.dataset is not None:
        lines.append(describe_dataset(state.dataset))
    if state.output_path:
        lines.append(f"{Path(state.output_path).name + ':':<13}{state.output_path}")
        lines.append(f'talk to it:  backprop generate {state.run_id} --prompt "…"')
    lines.append(f"on screen:   backprop-tui --attach {state.run_id}")
    lines.append(f"as text:     backprop show-run {state.run_id}")
    return lines
