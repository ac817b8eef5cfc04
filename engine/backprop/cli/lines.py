"""Longer things as lines for people: the first row with its mask, answers side by side, how a run ended."""

from __future__ import annotations

import textwrap
from math import isnan

from backprop.cli import output
from backprop.core import events as ev
from backprop.runs.describe import describe_dataset, duration, number
from backprop.runs.state import RunState

_SPAN = 240
"""Characters shown of one piece of the first row."""
_PROBLEMS = 5


def dataset(event: ev.DatasetPrepared) -> list[str]:
    """The counted pre-flight, what was found in the rows, and the first row with its trained tokens in brackets."""
    lines = [describe_dataset(event), *event.notes]
    for problem in event.problems[:_PROBLEMS]:
        lines.append(f"line {problem.line}: [{problem.code}] {problem.message}")
    more = sum(event.problem_counts.values()) - len(event.problems[:_PROBLEMS])
    if more > 0:
        lines.append(f"… and {more} more findings")
    if event.first_row:
        lines.append("first row, [trained]: " + first_row(event.first_row))
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
        left = _wrap(before.get(prompt, ""), column)
        right = _wrap(after.get(prompt, ""), column)
        height = max(len(left), len(right))
        left += [""] * (height - len(left))
        right += [""] * (height - len(right))
        lines.append(f"{'before':<{column}} | after")
        lines.append(f"{'-' * column}-+-{'-' * column}")
        lines += [f"{a:<{column}} | {b}".rstrip() for a, b in zip(left, right, strict=True)]
    return lines


def _wrap(text: str, width: int) -> list[str]:
    return [part for row in output.clean(text).strip().splitlines() for part in textwrap.wrap(row, width) or [""]]


def ending(state: RunState) -> list[str]:
    """What a person wants to know at the end: losses, rows, where the result is, how to talk to it."""
    lines = []
    curves = state.curves
    if len(curves):
        first, last = (None if isnan(loss) else loss for loss in (curves.loss[0], curves.loss[-1]))
        lines.append(
            f"loss {number(first)} -> {number(last)} over {len(curves)} steps, "
            f"{state.samples_seen} rows and {state.tokens_seen} tokens seen in {duration(state.duration_seconds)}"
        )
    if state.dataset is not None:
        lines.append(describe_dataset(state.dataset))
    if state.output_path:
        lines.append(f"adapter:     {state.output_path}")
        lines.append(f'talk to it:  backprop generate {state.run_id} --prompt "…"')
    lines.append(f"on screen:   backprop-tui --attach {state.run_id}")
    lines.append(f"as text:     backprop show-run {state.run_id}")
    return lines
