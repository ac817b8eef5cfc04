"""Axes whose limits and labels are round numbers and change seldom."""

from __future__ import annotations

from math import ceil, floor, log10


def round_step(span: float, parts: int) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that divides ``span`` into at most ``parts``."""
    rough = span / max(1, parts)
    magnitude = 10.0 ** floor(log10(rough))
    return next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999999)


class Axis:
    """Maps values to 0 (bottom) … 1 (top). ``follow`` keeps the limits while the data stay well within them."""

    def __init__(self) -> None:
        self.low, self.high = 0.0, 1.0
        self.log = False
        self._parts = 0

    def follow(self, low: float, high: float, *, log: bool, parts: int) -> None:
        """Make the data from ``low`` to ``high`` visible with about ``parts`` labels."""
        if log:
            low, high = log10(low), log10(high)
        if high - low < 1e-9:
            low, high = low - max(0.01, abs(low) * 0.05), high + max(0.01, abs(high) * 0.05)
        inside = self.low <= low and high <= self.high
        used = (high - low) / (self.high - self.low)
        if (log, parts) == (self.log, self._parts) and inside and used > 0.55:
            return
        step = round_step(high - low, 2 * parts)
        self.low, self.high = floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step
        self.log, self._parts = log, parts

    def share(self, value: float) -> float:
        """Where ``value`` lies; on a logarithmic axis only positive values can be asked for."""
        return ((log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def labels(self) -> list[tuple[float, str]]:
        """Round values with their text, from bottom to top; the first is a share of the height."""
        step = round_step(self.high - self.low, self._parts)
        first = ceil(self.low / step - 1e-9)
        values = [i * step for i in range(first, floor(self.high / step + 1e-9) + 1)]
        decimals = max(0, -floor(log10(step) + 1e-9))
        if round(step * 10**decimals, 6) % 1:
            decimals += 1
        found = []
        for value in values:
            text = f"{10**value:.3g}" if self.log else f"{value:.{decimals}f}"
            found.append(((value - self.low) / (self.high - self.low), text))
        return found


def step_labels(shown: int, width: int) -> list[tuple[int, str]]:
    """Round step numbers for a horizontal axis of ``width`` cells that covers steps 1 to ``shown``."""
    every = max(1, int(round_step(shown, max(2, width // 12))))
    return [(step, f"{step:,}".replace(",", " ")) for step in range(every, shown + 1, every)]
