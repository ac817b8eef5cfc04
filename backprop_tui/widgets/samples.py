"""The same prompts answered by the model before and after training, side by side."""

from __future__ import annotations

from itertools import zip_longest

from backprop.core.events import Sample
from msgspec import Struct
from rich.cells import cell_len

from backprop_tui.keys import press
from backprop_tui.text import Row, wrap_text
from backprop_tui.widgets.cells import heading, paragraph
from backprop_tui.widgets.text_view import StateView

_GAP = 3
"""Cells between the two answers."""


class Pair(Struct):
    """One prompt, the untouched model's answer and the newest one of the tuned model."""

    prompt: str
    before: Sample | None = None
    after: Sample | None = None


def pairs(samples: list[Sample]) -> list[Pair]:
    """Samples by prompt, in the order in which the prompts came first."""
    found: dict[str, Pair] = {}
    for sample in samples:
        pair = found.setdefault(sample.prompt, Pair(sample.prompt))
        if sample.tuned:
            pair.after = sample
        else:
            pair.before = sample
    return list(found.values())


class SamplesPane(StateView):
    def content(self, width: int) -> list[Row]:
        if self.state is None or not self.state.samples:
            return paragraph(self._empty(), width, "muted")
        found = pairs(self.state.samples)
        left = (width - _GAP) // 2
        right = width - _GAP - left
        after = next((f", step {pair.after.step}" for pair in found if pair.after), "")
        gap = (" " * _GAP, "text")
        rows = [[*heading("before", left, "the base model"), gap, *heading("after", right, f"tuned{after}")]]
        for pair in found:
            rows += [[], *paragraph("› " + pair.prompt, width, "strong+bold")]
            rows += self._beside(pair, left, right)
        return rows

    def _beside(self, pair: Pair, left: int, right: int) -> list[Row]:
        before = wrap_text(answer(pair.before), left) if pair.before else ["–"]
        waiting = (
            "–"
            if self.state is not None and self.state.ended
            else f"comes after the last step, or with {press('live.sample')}"
        )
        after = wrap_text(answer(pair.after), right) if pair.after else wrap_text(waiting, right)
        ink = "trained" if pair.after else "muted"
        return [
            [(a, "text"), (" " * (left - cell_len(a) + _GAP), "text"), (b, ink)]
            for a, b in zip_longest(before, after, fillvalue="")
        ]

    def _empty(self) -> str:
        if self.state is not None and not self.state.config.get("sample_prompts"):
            return "no sample prompts in this run: those of the setting sample_prompts are answered before and after"
        return "no answers yet: the prompts are answered before the first step and after the last"


def answer(sample: Sample) -> str:
    """The text without blank lines at its ends; an empty answer says so."""
    lines = [line for line in sample.text.strip().splitlines() if line.strip()]
    return "\n".join(lines) or "(an empty answer)"
