"""The cards: temperature, memory, work, power and fan, with the limits drawn in. Without a card it says so."""

from __future__ import annotations

from backprop.core.events import Gpu
from backprop.hardware.thermal import Thresholds

from backprop_tui.text import Row, safe
from backprop_tui.widgets.cells import StateCells, cut, heading, paragraph, row_width, spread

LIMITS = Thresholds()
_HOTTEST = 110
"""Degrees at the end of the gauge."""
_HEAT_MARKS = {LIMITS.warning / _HOTTEST: "warn", LIMITS.critical / _HOTTEST: "bad"}
_MEMORY_MARKS = {LIMITS.memory_warning / 100: "warn", LIMITS.memory_critical / 100: "bad"}
_LEVEL_INK = {"safe": "good", "warm": "good", "critical": "bad", "emergency": "bad"}
"""Of the level of a card's temperature; ``warn`` for the others."""


class GpuPanel(StateCells):
    """One row in a low place, a block of rows a card in a high one."""

    def rows(self, width: int, height: int) -> list[Row]:
        cards = [] if self.state is None else [self.state.gpus[index] for index in sorted(self.state.gpus)]
        if height == 1:
            return [cut([("GPU ", "info"), *self._short(cards, width - 4)], width)]
        if not cards:
            return [heading("GPU", width), *paragraph(self._absent(), width, "muted")]
        rows: list[Row] = []
        for card in cards:
            rows += card_rows(card, width)
            rows.append([])
        return rows

    def _absent(self) -> str:
        if self.state is None:
            return "–"
        if self.state.ended:
            return "no readings of a GPU in this run"
        device = self.state.model.device if self.state.model else ""
        if not device or device.startswith("cuda"):
            return "no reading yet"
        return f"no NVIDIA GPU in use: this run trains on the {device.replace('cpu', 'CPU')}"

    def _short(self, cards: list[Gpu], width: int) -> Row:
        if not cards:
            return [(self._absent(), "muted")]
        card = cards[0]
        if card.detail:
            return [(safe(card.detail), "warn")]
        ink = _LEVEL_INK.get(card.level, "warn")
        row: Row = [(known(card.temperature, "°C"), f"{ink}+bold"), (f" of {LIMITS.warning:.0f}", "muted")]
        use, fan = known(card.utilization, "%"), known(card.fan, "%")
        for label, value in (("VRAM", memory(card)), ("use", use), ("power", power(card)), ("fan", fan)):
            row += [(f" · {label} ", "muted"), (value, "strong")]
        name: Row = [("  " + card.name, "muted")]
        return row + name if row_width(row) + row_width(name) <= width else row


def card_rows(card: Gpu, width: int) -> list[Row]:
    """One card as a block of rows."""
    title = heading(f"GPU {card.index}", width, safe(card.name))
    if card.detail:
        return [title, *paragraph(card.detail, width, "warn")]
    ink = _LEVEL_INK.get(card.level, "warn")
    rows = [
        title,
        gauge("heat", card.temperature, _HOTTEST, known(card.temperature, "°C"), width, ink=ink, marks=_HEAT_MARKS),
        gauge("VRAM", card.memory_used, card.memory_total, memory(card), width, marks=_MEMORY_MARKS),
        gauge("use", card.utilization, 100, known(card.utilization, "%"), width),
        gauge("power", card.power, card.power_limit, power(card), width),
        gauge("fan", card.fan, 100, known(card.fan, "%"), width),
    ]
    if card.throttle:
        rows.append([("slowed by ", "muted"), (", ".join(card.throttle), "warn")])
    if card.other_processes:
        rows.append([(f"{card.other_processes} other process(es) on this card", "warn")])
    if card.energy is not None:
        rows.append(spread([("energy", "muted")], [(f"{card.energy:.1f} Wh", "text")], width))
    return [cut(row, width) for row in rows]


def gauge(
    title: str,
    value: float | None,
    full: float | None,
    text: str,
    width: int,
    *,
    ink: str = "info",
    marks: dict[float, str] | None = None,
) -> Row:
    """A bar with its limits as strokes, the reading at its right. An unknown reading has an empty bar."""
    room = max(4, width - 6 - 13)
    share = value / full if value is not None and full else 0.0
    filled = round(max(0.0, min(1.0, share)) * room)
    cells: Row = [("━", ink) if i < filled else ("─", "rule") for i in range(room)]
    for place, mark in (marks or {}).items():
        position = min(room - 1, round(place * room))
        cells[position] = ("┃" if position < filled else "╎", mark)
    known_ink = "strong" if value is not None else "muted"
    return [(f"{title:<6}", "muted"), *cells, (f"{text:>13}", known_ink)]


def known(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{value:.0f} {unit}"


def memory(card: Gpu) -> str:
    if card.memory_used is None or not card.memory_total:
        return "unknown"
    return f"{card.memory_used / 1e9:.1f}/{card.memory_total / 1e9:.1f} GB"


def power(card: Gpu) -> str:
    if card.power is None:
        return "unknown"
    return f"{card.power:.0f}/{card.power_limit:.0f} W" if card.power_limit else f"{card.power:.0f} W"
