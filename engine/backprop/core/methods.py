"""What can be learned, and from which rows. A method is one word here and one module of ``backprop.train.methods``."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

Rows: TypeAlias = Literal["conversation", "pairs", "feedback"]
"""What one row is: a conversation or a text; a chosen and a rejected answer; an answer with a verdict."""


class MethodFacts(Struct, frozen=True):
    """One method, as far as data, commands and screens have to know it."""

    rows: Rows
    """What it learns from."""
    reference: bool
    """Whether it compares with the untouched model."""
    meaning: str

    @property
    def width(self) -> int:
        """Sequences of a row."""
        return 2 if self.rows == "pairs" else 1


METHODS: dict[str, MethodFacts] = {
    "sft": MethodFacts("conversation", False, "to answer as the rows do"),
    "dpo": MethodFacts("pairs", True, "to prefer chosen answers more than the untouched model does"),
    "orpo": MethodFacts("pairs", False, "to answer as the chosen side, with odds against the rejected one"),
    "simpo": MethodFacts("pairs", False, "to prefer chosen answers by their mean log-probability"),
    "kto": MethodFacts("feedback", True, "to prefer answers labelled good over those labelled bad"),
}


def methods_for(rows: Rows) -> list[str]:
    """The methods that learn from such rows."""
    return [name for name, facts in METHODS.items() if facts.rows == rows]
