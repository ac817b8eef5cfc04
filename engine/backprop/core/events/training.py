"""What the step loop reports: steps, evaluations, samples, checkpoints, and what kept it from a step."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import field

from backprop.core.events.base import Count, Event


class Step(Event):
    """One optimizer step. ``loss`` is the mean over what the whole step weighs, for sft its supervised tokens."""

    step: Count
    total_steps: Count
    loss: float | None
    learning_rate: float
    grad_norm: float | None
    tokens_per_second: float
    """Tokens that went through the model (padding not counted) per second of this step."""
    tokens_seen: Count
    epoch: float
    trained_tokens: Count = 0
    """Supervised tokens of this step."""
    samples_seen: Count = 0
    seconds: float = 0.0
    memory: Count = 0
    """Peak bytes so far: of the GPU where one is used, else of the process."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the training method measures beside the loss, by name, as means over the step; those that are finite."""
    run: Count = 0
    """In a session of several runs, which of them takes the step, from 1; steps are counted over all of them."""

    @property
    def margin(self) -> float | None:
        """Reward of chosen answers above that of rejected ones; ``None`` where the method has none."""
        return self.metrics.get("rewards/margins")


class Evaluated(Event):
    """Loss on held-out rows: the mean over what the training method weighs, for sft supervised tokens."""

    step: Count
    loss: float | None
    tokens: Count
    rows: Count
    seconds: float
    best: bool = False
    base: bool = False
    """The untouched base model's, before the first step."""
    metrics: dict[str, float] = field(default_factory=dict)
    """As in ``Step``, over the held-out rows."""


class Sample(Event):
    """The model's answer to a fixed prompt, decoded greedily."""

    step: Count
    prompt: str
    text: str
    tuned: bool
    """False for the untouched base model."""


class CheckpointSaved(Event):
    """A checkpoint is safe on the disk."""

    step: Count
    path: str
    seconds_blocked: float
    """How long the step loop stood still for it."""
    bytes: Count
    """Of its files, beside the manifest that lists them."""
    reason: str = ""
    seconds: float = 0.0
    """How long until it was safe on disk."""


class CheckpointFailed(Event):
    """A save did not succeed; training goes on and the previous checkpoint stands."""

    step: Count
    code: str
    message: str
    hint: str = ""


class CheckpointPruned(Event):
    """A checkpoint was deleted by the keep policy."""

    path: str
    step: Count


class BatchHalved(Event):
    """Out of memory: the micro-batch was halved and accumulation doubled; the effective batch stays."""

    step: Count
    batch_size: Count
    gradient_accumulation: Count
    message: str = ""
    where: Literal["training", "evaluation"] = "training"


class StepSkipped(Event):
    """The step's loss or gradient was not finite: the weights were left as they were."""

    step: Count
    reason: str
    in_a_row: Count


class Paused(Event):
    """The run stands still after ``step``: on request, or until the GPU has cooled."""

    step: Count
    reason: str = "requested"


class Resumed(Event):
    """The run goes on after a pause."""

    step: Count
    reason: str = "requested"


TrainingEvent: TypeAlias = (
    Step
    | Evaluated
    | Sample
    | CheckpointSaved
    | CheckpointFailed
    | CheckpointPruned
    | BatchHalved
    | StepSkipped
    | Paused
    | Resumed
)
