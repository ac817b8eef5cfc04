"""What is known of a run: the fold of its events.

Live screens, attached ones, ``show-run``, plain output and the library's result all look at a ``RunState``; a live run
and a finished one therefore cannot disagree.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from contextlib import suppress
from math import isnan
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from backprop.core import events as ev
from backprop.core.errors import InputError, RunError
from backprop.runs import journal
from backprop.runs.describe import duration
from backprop.runs.directory import RunDirectory
from backprop.runs.forgetting import Forgetting
from backprop.runs.record import RunRecord

Status = Literal["starting", "running", "paused", "done", "stopped", "interrupted", "failed", "crashed", "damaged"]
ENDED: frozenset[Status] = frozenset({"done", "stopped", "interrupted", "failed", "crashed", "damaged"})
_LONG = 30.0
"""Seconds without an event, of which there is one in ten at least, after which an engine may hang."""
SHORT_RUN = 200
"""Steps of a run whose curve a heavy average would lag behind."""
_RECENT = 20
"""Steps whose mean duration the remaining time is estimated from."""
FELT = 400
"""Steps that a moving average still shows something of."""

_STANDING = (
    *("journal_status", "finished", "failed", "config", "origins", "environment", "pid", "model", "dataset", "resumes"),
    *("step", "last_step", "samples_seen", "tokens_seen", "evaluations", "samples"),
    *("ended_at", "seconds_before", "stretch_started_at", "paused_at"),
)
"""What of a run an engine that begins to continue it changes."""


class Curves(Struct):
    """One value a step, in columns. A value that was not finite is NaN."""

    step: array[int] = field(default_factory=lambda: array("q"))
    loss: array[float] = field(default_factory=lambda: array("d"))
    learning_rate: array[float] = field(default_factory=lambda: array("d"))
    grad_norm: array[float] = field(default_factory=lambda: array("d"))
    tokens_per_second: array[float] = field(default_factory=lambda: array("d"))
    seconds: array[float] = field(default_factory=lambda: array("d"))
    margin: array[float] = field(default_factory=lambda: array("d"))

    def append(self, event: ev.Step) -> None:
        """Take in one step."""
        for name in self.__struct_fields__:
            value = getattr(event, name)
            getattr(self, name).append(float("nan") if value is None else value)

    def truncate(self, last_step: int) -> Curves:
        """Forget the steps after ``last_step``, which a resume takes again; what is forgotten."""
        keep, forgotten = bisect_right(self.step, last_step), Curves()
        for name in self.__struct_fields__:
            getattr(forgotten, name).extend(getattr(self, name)[keep:])
            del getattr(self, name)[keep:]
        return forgotten

    def extend(self, others: Curves) -> None:
        """Take in later steps."""
        for name in self.__struct_fields__:
            getattr(self, name).extend(getattr(others, name))

    def forget_first(self, steps: int) -> None:
        """Let go of the first ``steps`` values, which somebody keeps in another form."""
        for name in self.__struct_fields__:
            del getattr(self, name)[:steps]

    def __len__(self) -> int:
        return len(self.step)


class RunState(Struct, kw_only=True):
    """Everything that screens and answers show of one run. Times are seconds since the epoch."""

    run_id: str = ""
    kind: str = "train"
    path: str = ""
    worked_in: str = ""
    """Its directory as its newest engine knew it."""
    config: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """Where the value of each setting that is no default comes from, in words."""
    environment: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    note: str = ""
    parent: str = ""
    """The directory of the run that it was forked from, or that it replays."""
    pid: int = 0

    journal_status: Status = "starting"
    """Status by the journal alone; ``status`` also looks at whether the engine lives."""
    alive: bool = False
    """Whether an engine worked on the run when last looked at."""
    phase: str = ""
    phase_detail: str = ""
    loading: ev.ModelLoading | None = None
    model: ev.ModelLoaded | None = None
    dataset: ev.DatasetPrepared | None = None

    step: int = 0
    total_steps: int = 0
    last_step: ev.Step | None = None
    curves: Curves = field(default_factory=Curves)
    evaluations: list[ev.Evaluated] = field(default_factory=list)
    samples: list[ev.Sample] = field(default_factory=list)
    gpus: dict[int, ev.Gpu] = field(default_factory=dict)
    checkpoints: list[ev.CheckpointSaved] = field(default_factory=list)
    multi: dict[str, Any] = field(default_factory=dict)
    """Of a session of several runs: its own settings."""
    runs: list[ev.RunBegun] = field(default_factory=list)
    """Its runs that were begun, each once, in order."""
    merges: list[ev.MergeDone] = field(default_factory=list)
    """What became of those that are over, in order."""
    forgetting: Forgetting = field(default_factory=Forgetting)
    notable: list[ev.AnyEvent] = field(default_factory=list)
    """Events for the log and the timeline: all but steps, readings and heartbeats."""
    paused_for: str = ""
    pacing_rest: float = 0.0
    samples_seen: int = 0
    tokens_seen: int = 0

    started_at: float = 0.0
    last_event_at: float = 0.0
    awaited_since: float = 0.0
    """When the engine was launched or took the run: before that it was not silent."""
    ended_at: float = 0.0
    seconds_before: float = 0.0
    """Working time of earlier stretches, before a resume."""
    stretch_started_at: float = 0.0
    paused_at: float = 0.0
    finished: ev.RunFinished | None = None
    failed: ev.RunFailed | None = None
    refused: ev.RunFailed | None = None
    """Why it was not continued when that was last tried: it is what it was before."""
    stood: dict[str, Any] | None = None
    """What it was before an engine began to continue it (``_STANDING``), until that engine trains."""
    last_seq: int = 0
    missing: int = 0
    """Events that the journal should have and has not."""
    damage: list[str] = field(default_factory=list)
    """What is wrong with the run's directory, in words."""
    resumes: int = 0

    @property
    def status(self) -> Status:
        """A run without an end whose engine is gone has crashed; what was never written to is damaged."""
        if self.journal_status in ENDED or self.alive:
            return self.journal_status
        if self.last_seq == 0 and self.damage:
            return "damaged"
        return "crashed"

    @property
    def ended(self) -> bool:
        """Whether no engine works on the run any more."""
        return self.status in ENDED

    @property
    def last_failure(self) -> ev.RunFailed | None:
        """What the last engine ended with where that was no end in order: ``refused``, else ``failed``."""
        return self.refused or self.failed

    @property
    def can_resume(self) -> bool:
        """Whether continuing it is something to do: it is over, but not done."""
        return self.ended and self.status not in ("done", "damaged")

    @property
    def final_loss(self) -> float | None:
        """Training loss of the last step, ``None`` before the first and where it was not finite."""
        if not len(self.curves):
            return None
        loss = self.curves.loss[-1]
        return None if isnan(loss) else loss

    @property
    def smoothed_loss(self) -> float | None:
        """The loss as its curve ends where it is drawn smoothed; ``None`` where no step had a finite one."""
        weight = usual_smoothing(max(self.total_steps, self.step))
        average = total = 0.0
        for loss in self.curves.loss[-FELT:]:
            if not isnan(loss):
                average = weight * average + (1 - weight) * loss
                total = weight * total + (1 - weight)
        return average / total if total else None

    @property
    def duration_seconds(self) -> float:
        """Working time of all stretches of the run, up to its last event; pauses are none."""
        if self.stretch_started_at == 0:
            return self.seconds_before
        until = self.paused_at or self.ended_at or self.last_event_at
        return self.seconds_before + max(0.0, until - self.stretch_started_at)

    @property
    def eta_seconds(self) -> float | None:
        """Remaining seconds at the pace of the last steps and with evaluations as before; ``None``: cannot be known."""
        left = self.total_steps - self.step
        recent = self.curves.seconds[-_RECENT:]
        if left <= 0 or not recent or self.status in ENDED:
            return None
        evaluating = sum(each.seconds for each in self.evaluations if not each.base) / max(1, self.step)
        return (sum(recent) / len(recent) + self.pacing_rest + evaluating) * left

    @property
    def output_path(self) -> str:
        """The directory of the trained adapter or whole model; empty before the end."""
        return self._here(self.finished.output_path) if self.finished else ""

    @property
    def verdict(self) -> ev.Verdict | None:
        """Whether the result is better than the base model; ``None`` before the end, and where it is not known."""
        return self.finished.verdict if self.finished else None

    def _here(self, named: str) -> str:
        """Where a file of the run is: its directory may have been moved or copied since an event named it."""
        for home in filter(None, (self.worked_in, self.run_id)):
            _, found, below = named.partition(f"{home}/")
            if found and below and self.path:
                return str(Path(self.path, below))
        return named

    def silence(self, now: float) -> str:
        """What to say of an engine that lives and has said nothing for long; empty where all is well."""
        quiet = now - max(self.last_event_at, self.awaited_since)
        if not self.alive or self.ended or not self.last_seq or quiet < _LONG:
            return ""
        said = f"no sign of the engine for {duration(quiet)}"
        with suppress(OSError):
            if Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T":
                return f"{said}: it is stopped, `kill -CONT {self.pid}` lets it go on"
        return said

    def apply(self, event: ev.AnyEvent) -> None:
        """Take in one event. Events come in order; one already taken is ignored."""
        if event.seq <= self.last_seq:
            return
        self.missing += event.seq - self.last_seq - 1
        self.last_seq = event.seq
        never_began = isinstance(event, ev.RunFailed | ev.RunFinished) and not event.began and self.pid > 0
        if never_began or (isinstance(event, ev.RunStarted) and event.resumed_from is not None):
            self._remember()
        if never_began or isinstance(event, ev.RunStarted):
            # A new engine speaks: the one before worked up to its last event, however it ended.
            self.seconds_before, self.stretch_started_at, self.paused_at = self.duration_seconds, 0.0, 0.0
        self.last_event_at = event.time
        match event:
            case ev.Step():
                self.journal_status, self.phase = "running", "training"
                self.step, self.total_steps = event.step, event.total_steps
                self.samples_seen, self.tokens_seen = event.samples_seen, event.tokens_seen
                self.last_step, self.stood = event, None
                self.curves.append(event)
            case ev.Gpu():
                self.gpus[event.index] = event
            case ev.Heartbeat() | ev.Unknown():
                pass
            case _:
                self.notable.append(event)
                self._notable(event)

    def await_start(self, now: float) -> None:
        """An engine was launched on the run again and has said nothing yet: its old end is no longer the end."""
        self._remember()
        self.awaited_since = now
        self.alive, self.journal_status = True, "starting"
        self.finished = self.failed = self.refused = None
        self.phase = self.phase_detail = ""

    def _remember(self) -> None:
        """Keep what the run is, for where it is not continued after all."""
        if self.stood is None:
            self.stood = {name: getattr(self, name) for name in _STANDING} | {"forgotten": Curves()}
            if self.journal_status not in ENDED:  # its engine went without a word
                self.stood |= {"journal_status": "crashed", "ended_at": self.last_event_at}

    def _notable(self, event: ev.AnyEvent) -> None:
        match event:
            case ev.RunStarted():
                self._start(event)
            case ev.PhaseChanged(phase=phase, detail=detail):
                self.phase, self.phase_detail = phase, detail
                if phase == "training":
                    self.stood = None
            case ev.ModelLoading():
                self.loading = event
                self.notable.pop()  # progress, shown where it happens and not as a log of its own
            case ev.ModelLoaded():
                self.model = event
            case ev.DatasetPrepared():
                self.dataset = event
            case ev.Evaluated():
                # A run that begins again scores its base again.
                self.evaluations = [e for e in self.evaluations if e.step != event.step] + [event]
            case ev.Sample():
                # A resumed run answers again what it was ended at.
                self.samples = [s for s in self.samples if _asked(s) != _asked(event)] + [event]
            case ev.CheckpointSaved():
                event.path = self._here(event.path)
                self.checkpoints.append(event)
            case ev.CheckpointPruned(path=path):
                path = self._here(path)
                self.checkpoints = [c for c in self.checkpoints if c.path != path]
            case ev.Paused(reason=reason):
                self.journal_status, self.paused_for = "paused", reason
                self.paused_at = self.paused_at or event.time
            case ev.SettingsChosen():
                self.config = {**self.config, **event.values}
                self.origins = {**self.origins, **{name: f"rule: {why}" for name, why in event.reasons.items()}}
            case ev.Resumed():
                self.journal_status, self.paused_for = "running", ""
                self.seconds_before -= event.time - self.paused_at if self.paused_at else 0.0
                self.paused_at = 0.0
            case ev.Pacing(rest=rest):
                self.pacing_rest = rest
            case ev.RunBegun(index=index):
                self.stood = None
                self.runs = [*(r for r in self.runs if r.index < index), event]
            case ev.MergeDone(index=index):
                self.merges = [*(m for m in self.merges if m.index < index), event]
                self.forgetting.learned = [m.index for m in self.merges if m.merged]
            case ev.HeldOutScored():
                self.forgetting.add(event)
                self.notable.pop()  # a table, and no log of its cells
            case ev.Rewound(index=index):
                self.runs = [r for r in self.runs if r.index <= index]
                self.merges = [m for m in self.merges if m.index <= index]
                self.checkpoints = [c for c in self.checkpoints if c.step <= self.step]
                self.forgetting.rewind(index)
                begun = [n for n, e in enumerate(self.notable) if isinstance(e, ev.RunBegun) and e.index == index]
                kept = self.notable[begun[-1] :] if begun else []
                self.dataset = next((e for e in kept if isinstance(e, ev.DatasetPrepared)), None)
            case ev.RunFinished(began=False) if self.pid:
                self.refused = None
                self._stand()
            case ev.RunFinished():
                self.finished, self.stood = event, None
                self.samples_seen, self.tokens_seen = event.samples_seen, event.tokens_seen or self.tokens_seen
                self._end(event.status, event.time)
            case ev.RunFailed():
                if self.stood is None and self.journal_status not in ENDED:
                    self.failed = event
                    self._end("failed", event.time)
                else:
                    self.refused = event
                    self._stand()

    def _start(self, event: ev.RunStarted) -> None:
        self.run_id, self.kind, self.pid = event.run_id, event.kind, event.pid
        self.worked_in = event.output_dir
        self.config, self.environment, self.origins = event.config, event.environment, event.origins
        self.multi = event.multi
        self.resumes += event.resumed_from is not None
        self.started_at = self.started_at or event.time
        self.stretch_started_at = event.time
        self.ended_at = 0.0
        self.finished = self.failed = self.refused = None
        self.journal_status, self.paused_for, self.pacing_rest = "running", "", 0.0
        if event.resumed_from is not None:
            self.step = event.resumed_from
            if not self.step:
                self.samples_seen = self.tokens_seen = 0
            forgotten = self.curves.truncate(self.step)
            if self.stood is not None:
                forgotten.extend(self.stood["forgotten"])
                self.stood["forgotten"] = forgotten
            if self.last_step is not None and self.last_step.step > self.step:
                self.last_step = None
            self.evaluations = [e for e in self.evaluations if e.step <= self.step]
            self.samples = [s for s in self.samples if s.step <= self.step]

    def _stand(self) -> None:
        """It was not continued: it is again what it was."""
        stood, self.stood = self.stood or {}, None
        for name in _STANDING if stood else ():
            setattr(self, name, stood[name])
        self.curves.extend(stood.get("forgotten", Curves()))
        self.phase = self.paused_for = ""

    def _end(self, status: Status, time: float) -> None:
        self.journal_status, self.ended_at, self.phase, self.paused_for = status, time, "", ""


def usual_smoothing(steps: int) -> float:
    """Weight of the exponential moving average that shows the loss of a run of ``steps`` steps."""
    return 0.6 if steps <= SHORT_RUN else 0.9


def _asked(sample: ev.Sample) -> tuple[int, str, bool]:
    return sample.step, sample.prompt, sample.tuned


def read_run(path: Path) -> RunState:
    """The state of the run in ``path`` from what is on disk, however damaged.

    Raises:
        RunError: nothing there can be read as a run.
    """
    directory = RunDirectory(path)
    if not directory.path.is_dir():
        raise RunError(f"{path} is no run directory", hint="`backprop list-runs` shows the runs")
    record, damage = None, []
    try:
        record = directory.read_record()
    except RunError as error:
        damage.append(error.message)
    state = RunState(path=str(directory.path))
    recorded = journal.read(directory.journal, record.run_id if record else "", state.apply)
    state.alive = directory.is_alive()
    if state.alive:  # an engine that continues the run is silent since it took it, not since the one before
        state.awaited_since = directory.lock_holder().time
    state.run_id = state.run_id or (record.run_id if record else directory.run_id)
    state.damage = [*_damage(directory, recorded, state), *damage]
    if record is not None:
        fill_from_record(state, record)
    elif not state.last_seq:
        state.journal_status = "damaged"
    return state


def require_result(run: RunState) -> Path:
    """The folder of the run's trained adapter or whole model.

    Raises:
        InputError: there is none.
    """
    if result := RunDirectory(Path(run.path)).result:
        return Path(result)
    going = run.status in ("starting", "running", "paused")
    kind = "model" if run.config.get("mode") == "full" else "adapter"
    raise InputError(
        f"run {run.run_id} ({run.status}) has no trained {kind}",
        hint=("wait for its end" if going else "`backprop list-runs --status done` shows runs that have one")
        + "; `backprop export RUN --step N` writes a checkpoint",
        details={"run_id": run.run_id, "status": run.status},
    )


def _damage(directory: RunDirectory, recorded: journal.Journal, state: RunState) -> list[str]:
    """What is wrong with the journal, in words."""
    found = []
    if recorded.problem:
        found.append(recorded.problem)
    elif not state.alive and not os.path.lexists(directory.journal) and directory.was_worked_on():
        found.append("it is missing, though an engine worked here")
    if recorded.damaged:
        lines = ", ".join(map(str, recorded.damaged[:5]))
        found.append(f"line {lines} is no whole event")
    for run_id, count in recorded.strangers.items():
        found.append(f"{count} events belong to run {run_id}")
    if state.missing:
        found.append(f"{state.missing} events are missing")
    return [f"{directory.journal.name}: {what}" for what in found]


def fill_from_record(state: RunState, record: RunRecord) -> None:
    """Take from ``run.json`` what the journal has not said yet, or never says."""
    state.tags, state.note, state.parent = record.tags, record.note, record.parent
    if not state.config:
        state.config = msgspec.to_builtins(record.config)
        state.kind = record.kind
    state.started_at = state.started_at or record.created
