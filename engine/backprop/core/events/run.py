"""The course of a run: its start, what it does, and its end."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

from msgspec import Struct, field

from backprop.core.errors import BackpropError, error_for
from backprop.core.events.base import Count, Event

Phase = Literal[
    "loading_model",
    "preparing_data",
    "reference",
    "sampling",
    "training",
    "evaluating",
    "saving",
    "cooling",
    "finishing",
]
EndStatus = Literal["done", "stopped", "interrupted"]
"""How a run that ended in order ended: all steps, on request, or by a signal. A failed run has ``run_failed``."""


class RunStarted(Event):
    """First event of a run, and of each continuation (then with ``resumed_from``)."""

    config: dict[str, Any]
    """Every setting as resolved (``core.settings.RunConfig``); what model and rows decide about is open, ``null`` or
    ``auto``, until ``settings_chosen``."""
    output_dir: str
    pid: Count
    kind: str = "train"
    resumed_from: Count | None = None
    """Step of the checkpoint that this continuation starts from. Steps after it are taken again."""
    environment: dict[str, Any] = field(default_factory=dict)
    forked_from: str = ""
    """Folder with the adapter that the run started from (``run.json`` has it too)."""
    origins: dict[str, str] = field(default_factory=dict)
    """Where the value of each setting that is no default comes from, in words."""
    multi: dict[str, Any] = field(default_factory=dict)
    """Of a session of several runs (kind ``multi_run``): its own settings (``core.settings.MultiConfig``)."""


class PhaseChanged(Event):
    """The run does something else from here; ``detail`` says how far it is or what with."""

    phase: Phase
    detail: str = ""


class SettingsChosen(Event):
    """What rules chose once model and rows were known; it stands from here in place of what ``run_started`` had."""

    values: dict[str, Any]
    """By the settings' names, as in ``run_started.config``."""
    reasons: dict[str, str]


BATCH_SETTLED = "BATCH_SETTLED"
"""Code of the warning that passes take other rows than ``run_started`` says, because it was measured what fits."""


class Warning(Event):
    """Something that a person should know, and that stops nothing."""

    code: str
    message: str
    hint: str = ""


class Heartbeat(Event):
    """The engine is alive; sent when nothing else was for ten seconds."""

    step: Count = 0


class ReplayCompared(Event):
    """A run that repeats another one is over: how its losses compare with that one's, step by step."""

    replayed: str
    """The other run."""
    steps: Count
    """Steps that both took."""
    parted_at: Count | None = None
    """The first of these whose loss was another; ``None`` where all are equal to the last bit."""
    loss: float | None = None
    replayed_loss: float | None = None
    """Both losses there."""


class Verdict(Struct, kw_only=True):
    """Whether a model is better than another on the same rows, and how sure that is (``runs.verdict``).

    Losses are nats per token; ``low`` and ``high`` are the bounds of the difference with 95 %.
    """

    LEAST: ClassVar[int] = 6
    """Of fewer rows nothing is said: five that chance alone decides all fall to one side in one of sixteen cases."""

    word: Literal["better", "worse", "cannot tell"]
    difference: float
    """The loss after less the loss before: negative where it helped."""
    low: float | None
    high: float | None
    rows: Count
    smallest: float | None
    """The smallest difference that so many rows could have shown, in four of five cases. ``None``: of one row nothing
    is known."""


class RunFinished(Event):
    """Last event of a stretch that ended in order."""

    status: EndStatus
    steps: Count
    final_loss: float | None
    output_path: str
    duration_seconds: float
    samples_seen: Count
    tokens_seen: Count = 0
    energy: float | None = None
    """Watt-hours, where the card reports power."""
    verdict: Verdict | None = None
    """The result beside the base model on the held-out rows; ``None`` where one of them was not evaluated on them."""
    began: bool = True
    """Whether its engine had said ``run_started``; if not, what came before is another one's, and stays as it was."""


class RunFailed(Event):
    """Last event of a stretch that ended on an error."""

    code: str
    message: str
    hint: str
    retryable: bool
    traceback: str = ""
    """For ``--verbose``; secrets blacked out."""
    details: dict[str, Any] = {}
    """As of ``BackpropError``: where it is (``path``, ``line``, ``field``), and the ``remedy``."""
    began: bool = True
    """As of ``run_finished``."""

    def error(self) -> BackpropError:
        """The same as an exception, of the class that raises its code here."""
        return error_for(self.code, self.message, self.hint, self.retryable, self.details)


RunEvent: TypeAlias = (
    RunStarted | PhaseChanged | SettingsChosen | Warning | Heartbeat | ReplayCompared | RunFinished | RunFailed
)
