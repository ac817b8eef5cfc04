"""The contract between the engine process and everything that looks at a run.

An engine says what happens as events, one JSON object a line: first into the run's journal
(``events.jsonl``), then to its standard output. It listens to commands, one JSON object a line. The application,
the plain output, the history, library callbacks and trackers know a run by these messages alone.

Every event has:

``type``     the tag: the class name in snake_case
``schema``   version of this contract (``SCHEMA``); a reader ignores types and keys that it does not know
``run_id``   the run
``seq``      1, 2, 3 … without gaps within a run, across resumes
``time``     seconds since the Unix epoch (UTC)

Units are SI or named in the field: seconds, bytes, tokens, degrees Celsius, watts. A loss or norm that is not finite is
``null``. Keys are added over time, never renamed.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta, Struct, field

from backprop.core.errors import BackpropError, error_for
from backprop.core.files import too_deep

SCHEMA = 1

Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
"""A number of things: what a double still holds exactly, so that every reader of JSON reads the same."""
Moment: TypeAlias = Annotated[float, Meta(ge=0, le=253402300799)]
"""Seconds since the Unix epoch (UTC), until the year 9999."""

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


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Event(Struct, kw_only=True, tag_field="type", tag=_snake):
    """Fields of every event. The engine's writer stamps them; whoever creates an event leaves them out."""

    schema: int = SCHEMA
    run_id: str = ""
    seq: Count = 0
    time: Moment = 0.0

    @property
    def type(self) -> str:
        """The tag, as in JSON."""
        return str(self.__struct_config__.tag)


class RunStarted(Event):
    """First event of a run, and of each continuation (then with ``resumed_from``)."""

    config: dict[str, Any]
    """Every setting as resolved (``core.settings.RunConfig``)."""
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


class ModelLoading(Event):
    """Progress of getting the weights: ``done`` of ``total`` bytes (``total`` 0 when not known)."""

    model: str
    stage: Literal["download", "convert", "load"]
    done: Count = 0
    total: Count = 0


class ModelLoaded(Event):
    """What is really in memory, measured on the loaded weights."""

    model: str
    path: str
    device: str
    mode: str
    dtype: str
    parameters: Count
    trainable_parameters: Count
    targets: list[str] = field(default_factory=list)
    """Kinds of layer that carry an adapter, such as ``q_proj``."""
    notes: list[str] = field(default_factory=list)
    share_4bit: float = 0.0
    """How much of the frozen weights' bytes is in 4 bits: of 1."""


class SettingsChosen(Event):
    """What rules chose once model and rows were known; it stands from here in place of what ``run_started`` had."""

    values: dict[str, Any]
    """By the settings' names, as in ``run_started.config``."""
    reasons: dict[str, str]


class TokenSpan(Struct):
    """A piece of a rendered row; ``trained`` when its tokens are in the loss."""

    text: str
    trained: bool


class Problem(Struct, kw_only=True):
    """One finding about one row of the data (SPEC section 13, ``validate``)."""

    line: Count
    code: str
    message: str
    field: str = ""
    severity: Literal["error", "warning", "info"] = "error"
    excerpt: str = ""


def with_place(field: str, message: str) -> str:
    """What is wrong in a row, after the field where it is wrong unless the words name that (or what holds it)."""
    holder = field.rpartition(".")[0] or field
    return message if field in message or message.startswith(holder) else f"{field}: {message}"


class LengthLimit(Struct, frozen=True):
    """What one limit on the length of rows costs: how many are whole, cut, split (texts), or lose their answer."""

    max_length: Count
    whole: Count
    cut: Count = 0
    split: Count = 0
    answer_lost: Count = 0


LEFT_OUT = ("label_false", "trace_too_short", "trace_too_long", "trace_unbalanced")
"""Findings about rows that are left out on purpose: answers that are labelled bad, reasoning traces of no use."""


class DatasetPrepared(Event):
    """The counted pre-flight: what will be trained, before the first step."""

    path: str
    format: str
    rows: Count
    kept: Count
    unit: str = "line"
    """What ``line`` of a finding counts: ``row`` where the data has no lines."""
    cut: Count = 0
    """Kept rows whose beginning was cut to fit ``max_length``."""
    answer_lost: Count = 0
    """Rows whose answer could not be kept whole within ``max_length``."""
    dropped: Count = 0
    """Rows that are not trained; the reasons are in ``problems`` and ``problem_counts``."""
    duplicated: Count = 0
    tokens: Count = 0
    trained_tokens: Count = 0
    max_length: Count = 0
    p50: Count = 0
    """Tokens of a row to the end of its last answer, before anything is cut: half of the rows have no more."""
    p90: Count = 0
    p99: Count = 0
    longest: Count = 0
    limits: list[LengthLimit] = field(default_factory=list)
    """What is lost at ``max_length``, and would be at p50, p90, p99 and ``longest``."""
    answers_fit: Count = 0
    """The smallest ``max_length`` at which no answer is lost."""
    held_out: Count = 0
    problem_counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    """The first findings; ``backprop validate`` lists all."""
    first_row: list[TokenSpan] = field(default_factory=list)
    """As it is trained: without what ``max_length`` cuts; of a pair, the chosen side."""
    first_rejected: list[TokenSpan] = field(default_factory=list)
    """The other side of a pair."""
    cached: bool = False
    notes: list[str] = field(default_factory=list)
    """Choices made for the person, each with its reason: a field mapping that was found, for instance."""

    @property
    def unusable(self) -> int:
        """Rows that would train nothing. What is left out on purpose is none of them."""
        return self.dropped + self.answer_lost - sum(self.problem_counts.get(code, 0) for code in LEFT_OUT)


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


class Gpu(Event):
    """One reading of one card. ``None`` where the sensor is missing or failed: unknown, never assumed safe."""

    index: Count
    name: str
    level: Literal["safe", "warm", "warning", "critical", "emergency", "unknown"] = "unknown"
    temperature: float | None = None
    utilization: float | None = None
    memory_used: Count | None = None
    memory_total: Count | None = None
    power: float | None = None
    power_limit: float | None = None
    fan: float | None = None
    clock: float | None = None
    """Streaming-multiprocessor clock in MHz."""
    throttle: list[str] = field(default_factory=list)
    other_processes: Count | None = None
    energy: float | None = None
    """Watt-hours used since the run started."""
    shutdown_temperature: float | None = None
    """Degrees at which the card turns itself off, where it says so."""
    detail: str = ""
    """Why the card cannot be read, in words; empty while it answers."""


class CheckpointSaved(Event):
    """A checkpoint is safe on the disk."""

    step: Count
    path: str
    seconds_blocked: float
    """How long the step loop stood still for it."""
    bytes: Count
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


BATCH_SETTLED = "BATCH_SETTLED"
"""Code of the warning that passes take other rows than ``run_started`` says, because it was measured what fits."""


class Warning(Event):
    """Something that a person should know, and that stops nothing."""

    code: str
    message: str
    hint: str = ""


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


class Pacing(Event):
    """Rests between steps to hold the temperature: ``rest`` seconds after each step, 0 when it ended."""

    step: Count
    rest: float
    reason: str


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


class Heartbeat(Event):
    """The engine is alive; sent when nothing else was for ten seconds."""

    step: Count = 0


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

    def error(self) -> BackpropError:
        """The same as an exception, of the class that raises its code here."""
        return error_for(self.code, self.message, self.hint, self.retryable, self.details)


class Unknown(Event):
    """Stands in a reader for an event of a type that this version does not know, or of a newer form."""


AnyEvent: TypeAlias = (
    RunStarted
    | PhaseChanged
    | ModelLoading
    | ModelLoaded
    | SettingsChosen
    | DatasetPrepared
    | Step
    | Evaluated
    | Sample
    | Gpu
    | CheckpointSaved
    | CheckpointFailed
    | CheckpointPruned
    | Warning
    | BatchHalved
    | StepSkipped
    | Paused
    | Resumed
    | Pacing
    | ReplayCompared
    | RunBegun
    | MergeDone
    | HeldOutScored
    | Rewound
    | Heartbeat
    | RunFinished
    | RunFailed
    | Unknown
)


class _Stamp(Struct):
    type: str
    run_id: str
    seq: Count
    time: Moment
    schema: int = SCHEMA


class Command(Struct, kw_only=True, tag_field="type", tag=_snake):
    """What a person asks of a running engine. Its answer is the event that follows."""


class Pause(Command):
    """Hold after the step in progress; answered by ``paused``."""


class Resume(Command):
    """Go on after a pause; answered by ``resumed``."""


class CheckpointNow(Command, tag="checkpoint"):
    """Save after the step in progress; answered by ``checkpoint_saved`` or ``checkpoint_failed``."""


class Stop(Command):
    """Finish the step, save, end with status ``stopped``, or ``interrupted`` where a signal asked for it."""

    by: Literal["person", "signal"] = "person"


class Abort(Command):
    """End now, without saving; answered by ``run_failed`` with ``RUNTIME_TRAINING_ABORTED``."""


class SampleNow(Command):
    """Answer the configured prompts with the model as it is; answered by ``sample`` events."""


AnyCommand: TypeAlias = Pause | Resume | CheckpointNow | Stop | Abort | SampleNow

_KNOWN = frozenset(str(kind.__struct_config__.tag) for kind in get_args(AnyEvent))
_encoder = msgspec.json.Encoder()
_event_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_stamp_decoder: msgspec.json.Decoder[_Stamp] = msgspec.json.Decoder(_Stamp)
_command_decoder: msgspec.json.Decoder[AnyCommand] = msgspec.json.Decoder(AnyCommand)


def encode(message: Event | Command) -> bytes:
    """One JSON line, newline included. Characters that break lines are escaped by JSON itself."""
    return _encoder.encode(message) + b"\n"


def decode_event(line: bytes) -> AnyEvent | None:
    """The event in ``line``, or ``None`` where the line is torn or no event."""
    if too_deep(line):
        return None
    try:
        return _event_decoder.decode(line)
    except ValueError:
        pass
    try:
        stamp = _stamp_decoder.decode(line)
    except ValueError:
        return None
    if stamp.schema <= SCHEMA and stamp.type in _KNOWN:
        return None
    return Unknown(run_id=stamp.run_id, seq=stamp.seq, time=stamp.time)


def decode_command(line: bytes) -> AnyCommand | None:
    """The command in ``line``, or ``None`` where it is none."""
    try:
        return _command_decoder.decode(line)
    except ValueError:
        return None
