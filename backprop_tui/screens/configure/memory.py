"""The memory that a run would take, against the card of this machine, and what would make it fit."""

from __future__ import annotations

from backprop.core.errors import BackpropError
from backprop.core.models import find_architecture
from backprop.core.settings import RunConfig
from backprop.hardware.devices import CardFacts
from backprop.hardware.estimate import Change, Parts, Shape, changes, estimate, parameters, trained_parameters
from backprop.runs.measured import Measured, Peaks, of_shape
from msgspec import Struct

from backprop_tui.text import Row, from_home
from backprop_tui.widgets.cells import bar, labelled


class MemoryOutlook(Struct, kw_only=True):
    """What is known of a run's memory. Bytes."""

    parts: Parts | None = None
    trained_parameters: int = 0
    card: CardFacts | None = None
    measured: Measured | None = None
    """What an earlier run of this shape took."""
    changes: list[Change] = []
    """What would save memory, where the run does not fit."""
    unknown: str = ""
    """Why nothing can be said."""

    @property
    def short(self) -> bool:
        """Whether it does not fit."""
        free = self.card.vram_free if self.card else None
        return self.parts is not None and free is not None and self.parts.total > free


def memory_of(config: RunConfig, card: CardFacts | None, peaks: Peaks) -> MemoryOutlook:
    """What ``config`` takes of ``card``, or would take of one where there is none; ``peaks`` are earlier runs'."""
    free = card.vram_free if card else None
    try:
        model = find_architecture(config.model)
        shape = Shape.of(config, memory=free)
    except BackpropError as error:
        return MemoryOutlook(unknown=error.message, card=card)
    found = MemoryOutlook(parts=estimate(model, shape), trained_parameters=trained_parameters(model, shape), card=card)
    found.measured = of_shape(peaks, shape.settings(config))
    if found.short and free is not None:
        found.changes = changes(model, shape, free)
    return found


def size_of(name: str) -> str:
    """How many parameters a model has, as its configuration says; empty where that cannot be told."""
    try:
        return f"{parameters(find_architecture(name)) / 1e9:.2g}B"
    except BackpropError:
        return ""


def memory_rows(known: MemoryOutlook, width: int) -> list[Row]:
    """The bar, what the memory is for, and what would make it fit."""
    if known.parts is None:
        return labelled("", from_home(known.unknown), width, "muted") if known.unknown else []
    parts, total = known.parts, known.parts.total
    free = known.card.vram_free if known.card else None
    if free is None:
        rows: list[Row] = [[(gib(total), "strong"), (" of a card; there is none here", "muted")]]
    else:
        ink = "bad" if total > free else "warn" if total > 0.9 * free else "good"
        words = f"{gib(total)} of {gib(free)} free  "
        rows = [[(words, "strong"), *bar(total / free, max(6, width - len(words)), ink)]]
    named = {"weights": parts.weights, "optimizer": parts.gradients + parts.optimizer}
    named |= {"activations": parts.activations, "logits": parts.logits}
    rows += labelled("", " · ".join(f"{name} {gib(number)}" for name, number in named.items()), width, "muted")
    if known.measured is not None:
        rows += labelled("measured  ", str(known.measured), width)
    for change in known.changes[:4]:
        fits = ", and it fits" if change.fits else ""
        rows.append(
            [
                ("f ", "key+bold"),
                (f"{change.setting} {change.value}", "text"),
                (f" saves {gib(change.saves)}{fits}", "muted"),
            ]
        )
    return rows


def gib(number: int) -> str:
    """Bytes in the unit that cards are sold by, whatever they call it."""
    return f"{number / 2**30:.1f} GiB"
