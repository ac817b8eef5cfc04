"""What stands in place of the list while there is no run."""

from __future__ import annotations

from collections.abc import Sequence

from backprop_tui.keys import press
from backprop_tui.text import Row, safe
from backprop_tui.widgets.cells import labelled, paragraph

_WAYS = (
    ("runs.demo", "the demonstration: fetches a small model once (93 MB), trains it for some minutes; no GPU"),
    ("everywhere.data", "open a dataset: what is in it, what is wrong, what would be trained"),
    ("everywhere.configure", "train on your own data: every setting explained, the memory known before"),
    ("everywhere.help", "all keys"),
)


def welcome(files: Sequence[str], width: int) -> list[Row]:
    """What a person sees who has no run yet; ``files`` are datasets in the current directory."""
    rows: list[Row] = [
        [],
        [("  Welcome to backprop", "strong+bold")],
        *paragraph("  Fine-tune a language model: see what is trained, leave, come back, ship it.", width),
        [],
    ]
    for id, words in _WAYS:
        rows += labelled(f"  {press(id)}   ", words, width - 2, label_ink="key+bold")
    if files:
        rows += [[], *labelled("  here: ", ", ".join(map(safe, files)), width - 2)]
    return rows
