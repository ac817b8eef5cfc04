"""Dots in character cells (braille 2 by 4, quadrant blocks 2 by 2, plain ASCII 1 by 2), and axes with round numbers."""

from __future__ import annotations

import re
from math import ceil, floor, log10
from typing import NamedTuple

from backprop_tui.text import Piece, Row, count


class Symbols(NamedTuple):
    """How many dots a cell has, and the character for each set of them (bit ``row * columns + column``)."""

    name: str
    columns: int
    rows: int
    characters: str


def _braille() -> str:
    bits = (0x01, 0x08, 0x02, 0x10, 0x04, 0x20, 0x40, 0x80)
    return "".join(
        chr(0x2800 + sum(bit for i, bit in enumerate(bits) if mask >> i & 1)) if mask else " " for mask in range(256)
    )


SYMBOLS = (
    Symbols("braille", 2, 4, _braille()),
    Symbols("block", 2, 2, " ▘▝▀▖▌▞▛▗▚▐▜▄▙▟█"),
    Symbols("ascii", 1, 2, " '.:"),
)


class Raster:
    """A grid of dots; each cell remembers the ink of the most important layer drawn in it."""

    def __init__(self, width: int, height: int, symbols: Symbols) -> None:
        """``width`` by ``height`` in cells."""
        self.width, self.height, self.symbols = width, height, symbols
        self.dots_across = width * symbols.columns
        self.dots_down = height * symbols.rows
        self._masks = [[0] * width for _ in range(height)]
        self._inks = [[""] * width for _ in range(height)]
        self._signs: dict[tuple[int, int], Piece] = {}
        self.stroke = "1"
        """Which columns of dots are set, over and over: those that are ``1``."""

    def column(self, x: int, top: int, bottom: int, ink: str) -> None:
        """Set the dots of one column from ``top`` to ``bottom``."""
        gap = self.stroke[x % len(self.stroke)] == "0" and abs(bottom - top) < self.symbols.rows  # a rise is whole
        if not 0 <= x < self.dots_across or gap:
            return
        cell, dx = divmod(x, self.symbols.columns)
        first, last = max(0, min(top, bottom)), min(self.dots_down - 1, max(top, bottom))
        for y in range(first, last + 1):
            row, dy = divmod(y, self.symbols.rows)
            if self._inks[row][cell] != ink:  # a new layer replaces the older one's dots in its cell
                self._masks[row][cell], self._inks[row][cell] = 0, ink
            self._masks[row][cell] |= 1 << (dy * self.symbols.columns + dx)

    def line(self, x0: int, y0: int, x1: int, y1: int, ink: str) -> None:
        """Set the dots between two points, ``x0 <= x1``; each column shares its rise with its neighbour."""
        if x1 <= x0:
            self.column(x0, y0, y1, ink)
            return
        previous = y0
        for x in range(x0, x1 + 1):
            y = round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
            middle = (previous + y) // 2 if abs(y - previous) > 1 else y
            if x > x0 and middle != previous:
                self.column(x - 1, previous, middle, ink)
            self.column(x, middle, y, ink)
            previous = y

    def mark(self, x: int, y: int, sign: str, ink: str) -> None:
        """Put a sign over the cell in which dot ``x, y`` lies."""
        self._signs[y // self.symbols.rows, x // self.symbols.columns] = (sign, ink)

    def row(self, y: int) -> Row:
        """Row ``y`` as pieces of one ink each."""
        pieces: Row = []
        for x, (mask, ink) in enumerate(zip(self._masks[y], self._inks[y], strict=True)):
            character, ink = self._signs.get((y, x), (self.symbols.characters[mask], ink if mask else "text"))
            if pieces and pieces[-1][1] == ink:
                pieces[-1] = (pieces[-1][0] + character, ink)
            else:
                pieces.append((character, ink))
        return pieces


def round_step(span: float, parts: int) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that divides ``span`` into at most ``parts``."""
    rough = span / max(1, parts)
    magnitude = 10.0 ** floor(log10(rough))
    return next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999999)


LABEL = 6
"""Cells for the text of a label."""


class Axis:
    """Maps values to 0 (bottom) … 1 (top), with round limits that stay while the data keep well within them."""

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
            if len(text) > LABEL:
                text = re.sub(r"e\+?(-?)0*", r"e\1", f"{10**value if self.log else value:.2g}")
            found.append(((value - self.low) / (self.high - self.low), text))
        return found


def step_labels(shown: int, width: int) -> list[tuple[int, str]]:
    """Round step numbers for a horizontal axis of ``width`` cells that covers steps 1 to ``shown``."""
    every = max(1, int(round_step(shown, max(2, width // 12))))
    return [(step, count(step)) for step in range(every, shown + 1, every)]
