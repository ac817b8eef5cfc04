"""What a session of several runs reports beside their steps."""

from __future__ import annotations

from typing import TypeAlias

from backprop.core.events.base import Count, Event


class RunBegun(Event):
    """In a session: one of its runs begins, or goes on after a resume. It is an ordinary run with its own journal."""

    index: Count
    """Which of them, from 1."""
    of: Count
    """How many there are to be."""
    run: str
    """Its id; its directory is ``runs/<id>`` in the session's."""
    data: str
    """The dataset that its rows are from."""
    rows: Count
    """Rows that it trains, those of earlier runs included."""
    replayed: Count
    """How many of these are of earlier runs."""
    held_out: Count
    """Rows of its own that no run trains: the column ``index`` of the forgetting table."""
    step: Count
    """Steps of the session before its first one."""


class MergeDone(Event):
    """In a session: a run is over and merged into the adapter, or kept out of it.

    Losses are nats per token on the held-out rows of that run.
    """

    index: Count
    """Which run, from 1."""
    run: str
    merged: bool
    reason: str = ""
    """Why it was kept out; empty where it was merged."""
    failed: bool = False
    """Whether it was kept out because the run itself failed."""
    count: Count = 0
    """Runs that are merged now: i."""
    step_size: float | None = None
    """How far the merged B went towards the fine-tuned B: lambda(i); ``None`` where the mode has none."""
    moved: float | None = None
    """Length of the merged B's move, as a share of its length afterwards (Frobenius norm over all layers)."""
    similarity: float | None = None
    """Cosine between the fine-tuned update and the merged one before it; ``None`` of the first."""
    loss: float | None = None
    """Of the merged adapter, which is what is used; of a run that was kept out, what it would have been."""
    tuned_loss: float | None = None
    """Of the adapter as this run left it. The merged one's loss above it is what retention costs."""
    seconds: float = 0.0
    """For merging, scoring and saving."""


class HeldOutScored(Event):
    """In a session: one cell of the forgetting table. What the adapter that is used after a run scores on one set.

    ``low`` and ``high`` are the bounds of 95 % of the loss, ``None`` of one row.
    """

    after: Count
    """The row: after which run; 0 is the base model's."""
    held_out: Count
    """The column: the run, from 1, whose held-out rows these are."""
    loss: float | None
    rows: Count
    low: float | None = None
    high: float | None = None
    exact: float | None = None
    """Share of answers that are the expected ones to the letter; ``None`` where answers are too long to be compared."""
    answers: Count = 0
    """How many were compared."""


class Rewound(Event):
    """In a session: it stands again as it did after run ``index``; what was said of later runs is no longer so."""

    index: Count


SessionEvent: TypeAlias = RunBegun | MergeDone | HeldOutScored | Rewound
