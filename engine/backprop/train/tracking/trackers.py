"""Experiment trackers: what a run emits, handed on to W&B, TensorBoard, MLflow or Trackio, and spans to OpenTelemetry.

A tracker is one class here and one line of ``TRACKERS``. Each works in a thread of its own, with a bounded queue, and
imports its library there: one that is slow, offline or broken costs one warning, never time of the step loop. All
settings of the libraries, such as hosts and projects, come from their own environment variables.
"""

from __future__ import annotations

import netrc
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from backprop.core import paths
from backprop.core.errors import InvalidSettingError, MissingDependencyError
from backprop.core.events import Evaluated, Event, RunFinished, RunStarted, SettingsChosen, Step
from backprop.core.events import Warning as WarningEvent
from backprop.core.extras import install_command
from backprop.core.redaction import redact
from backprop.train.tracking.spans import Spans

PROJECT = "backprop"
MOST_WAITING = 10_000
"""Events that wait for a slow tracker; what comes after them is left out there."""
FINISH_SECONDS = 20.0
"""How long the end of a run waits for all of its trackers together."""
_TAG = "backprop.run_id"

Environment = Mapping[str, str]
Emit = Callable[[Event], None]


@dataclass
class About:
    """What a tracker is told of a run before its first value."""

    run_id: str
    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    resumed_from: int | None = None

    @property
    def name(self) -> str:
        """What the run is called in every tracker, also when it is resumed."""
        return f"backprop-{self.run_id[:8]}"


class Tracker(Protocol):
    """Where the curves of a run go. Called from one thread; whatever it raises ends it alone."""

    def start(self, about: About) -> None:
        """Begin the run there, or go on with the one of this name."""
        ...

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def finish(self, status: str) -> None:
        """The run ended: ``done``, ``stopped``, ``interrupted`` or ``failed``."""
        ...


class WandB:
    """Weights & Biases. The curves' axis is our step: a resumed run takes steps again, and its own only grows."""

    def start(self, about: About) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if not os.environ.get("WANDB_API_KEY", "key").strip():
            del os.environ["WANDB_API_KEY"]  # a blank key would hide the one of the netrc file
        wandb: Any = import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=about.run_id,
            name=about.name,
            resume="allow",
            config=about.config,
            dir=str(about.directory),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def finish(self, status: str) -> None:
        self._run.finish(exit_code=int(status == "failed"))


class TensorBoard:
    """Event files in ``TENSORBOARD_LOGGING_DIR``, else in the run's directory. Steps that are taken again replace."""

    def start(self, about: About) -> None:
        writer: Any = import_module("torch.utils.tensorboard").SummaryWriter
        given = os.environ.get("TENSORBOARD_LOGGING_DIR")
        folder = Path(given).expanduser() / about.name if given else about.directory / "tensorboard"
        again = None if about.resumed_from is None else about.resumed_from + 1
        self._writer = writer(str(folder), purge_step=again)
        self._writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in about.config.items()))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, status: str) -> None:
        self._writer.close()


class MLflow:
    """MLflow numbers its runs itself: ours is found again by a tag."""

    _STATUS = {"failed": "FAILED", "interrupted": "KILLED"}

    def start(self, about: About) -> None:
        self._client = client = import_module("mlflow").MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else client.create_experiment(name)
        found = client.search_runs([where], f"tags.`{_TAG}` = '{about.run_id}'")
        run = found[0] if found else client.create_run(where, run_name=about.name, tags={_TAG: about.run_id})
        self._id = run.info.run_id
        client.update_run(self._id, status="RUNNING")
        if not found:
            for name, value in about.config.items():
                client.log_param(self._id, name, str(value)[:500])

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def finish(self, status: str) -> None:
        self._client.set_terminated(self._id, self._STATUS.get(status, "FINISHED"))


class Trackio:
    """Trackio keeps runs by name in a local database, and in a Space where ``TRACKIO_SPACE_ID`` names one."""

    def start(self, about: About) -> None:
        self._run = import_module("trackio").init(
            project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
            name=about.name,
            config=about.config,
            resume="allow",
            embed=False,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def finish(self, status: str) -> None:
        self._run.finish()


def _wandb_lacks(given: Environment) -> str:
    mode = given.get("WANDB_MODE", "").strip().lower()
    if mode in ("offline", "dryrun", "disabled"):
        return ""
    if paths.offline(given):
        return "HF_HUB_OFFLINE is set"
    if given.get("WANDB_API_KEY", "").strip() or given.get("WANDB_IDENTITY_TOKEN_FILE", "").strip():
        return ""
    host = urlsplit(given.get("WANDB_BASE_URL", "").strip() or "https://api.wandb.ai").netloc
    return "" if _netrc_password(given, host) else f"there is no key for {host}"


def _netrc_password(given: Environment, host: str) -> str:
    path = Path(given.get("NETRC") or Path.home() / ".netrc").expanduser()
    try:
        entries = netrc.netrc(path).hosts  # ``authenticators`` would answer with the entry for any host
    except (OSError, ValueError, netrc.NetrcParseError):
        return ""
    return (entries.get(host) or ("", "", ""))[2].strip()


def _mlflow_lacks(given: Environment) -> str:
    remote = urlsplit(given.get("MLFLOW_TRACKING_URI", "")).scheme in ("http", "https", "databricks")
    return "HF_HUB_OFFLINE is set" if remote and paths.offline(given) else ""


def _trackio_lacks(given: Environment) -> str:
    space, server = given.get("TRACKIO_SPACE_ID", "").strip(), given.get("TRACKIO_SERVER_URL", "").strip()
    if (space or server) and paths.offline(given):
        return "HF_HUB_OFFLINE is set"
    if space and not import_module("huggingface_hub").get_token():
        return f"there is no token for the Space {space}"
    if server and not space and "write_token=" not in server and not given.get("TRACKIO_WRITE_TOKEN", "").strip():
        return "TRACKIO_SERVER_URL needs TRACKIO_WRITE_TOKEN"
    return ""


@dataclass(frozen=True)
class _Kind:
    """A tracker that there is.

    Attributes:
        module: found where it is installed.
        configured: variables of which one says that a person wants it; none for one whose credentials say so.
        lacks: what it still needs, in words.
    """

    make: Callable[[], Tracker]
    module: str
    configured: tuple[str, ...]
    lacks: Callable[[Environment], str]
    hint: str = "unset it, or leave the tracker out with --report-to"


TRACKERS = {
    "wandb": _Kind(
        WandB,
        "wandb",
        (),
        _wandb_lacks,
        "`wandb login`, or set WANDB_API_KEY; WANDB_MODE=offline keeps the run on this machine, --report-to none is "
        "without it",
    ),
    "tensorboard": _Kind(TensorBoard, "tensorboard", ("TENSORBOARD_LOGGING_DIR",), lambda given: ""),
    "mlflow": _Kind(MLflow, "mlflow", ("MLFLOW_TRACKING_URI",), _mlflow_lacks),
    "trackio": _Kind(
        Trackio,
        "trackio",
        ("TRACKIO_PROJECT", "TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"),
        _trackio_lacks,
        "`hf auth login` or set the token; without TRACKIO_SPACE_ID and TRACKIO_SERVER_URL it keeps the run here",
    ),
}
"""By the names that ``report_to`` takes."""


def chosen(report_to: Sequence[str] | None, given: Environment) -> tuple[list[str], list[WarningEvent]]:
    """Which trackers a run reports to; without names those that are installed and that the person configured.

    Returns:
        Their names, and what is to be said of one that is left out because it has no credentials.

    Raises:
        InvalidSettingError: one was named that lacks credentials, or ``none`` beside others.
        MissingDependencyError: one was named that is not installed.
    """
    if report_to and "none" in report_to:
        if len(report_to) > 1:
            raise InvalidSettingError(
                f"report_to: none, or names: not {', '.join(report_to)}", details={"field": "report_to"}
            )
        return [], []
    names, notes = [], []
    for name in TRACKERS if report_to is None else dict.fromkeys(report_to):
        kind = TRACKERS[name]
        if report_to is None and kind.configured and not any(given.get(each, "").strip() for each in kind.configured):
            continue
        if find_spec(kind.module) is None:
            if report_to is not None:
                hint = f"{install_command('tracking')} (all trackers), or {kind.module} alone"
                raise MissingDependencyError(f"report_to: {name} is not installed", hint=hint)
        elif lacks := kind.lacks(given):
            if report_to is not None:
                raise InvalidSettingError(
                    f"report_to: {name} cannot be used: {lacks}", hint=kind.hint, details={"field": "report_to"}
                )
            message = f"{name} is installed and left out: {lacks}"
            notes.append(WarningEvent(code="TRACKER_LEFT_OUT", message=message, hint=kind.hint))
        else:
            names.append(name)
    return names, notes


class Curves:
    """Hands a tracker the losses and rates among a run's events; it is begun with the first of them."""

    def __init__(self, tracker: Tracker, about: About) -> None:
        self._tracker = tracker
        self._about = about
        self._begun = False

    def take(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._about.config, self._about.resumed_from = event.config, event.resumed_from
            case SettingsChosen() if not self._begun:
                self._about.config = self._about.config | event.values
            case Step():
                names = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch")
                values = {f"train/{name}": getattr(event, name) for name in names}
                self._log(event.step, values | {f"train/{name}": value for name, value in event.metrics.items()})
            case Evaluated():
                self._log(event.step, {"eval/loss": event.loss})

    def _log(self, step: int, values: dict[str, float | None]) -> None:
        if not self._begun:
            shown = {name: redact(each) if isinstance(each, str) else each for name, each in self._about.config.items()}
            self._about.config = shown
            self._tracker.start(self._about)
            self._begun = True
        self._tracker.log(step, {name: value for name, value in values.items() if value is not None})

    def finish(self, status: str) -> None:
        if self._begun:
            self._tracker.finish(status)


class _Feed:
    """One receiver of events, in a thread."""

    def __init__(self, name: str, receiver: Curves | Spans, emit: Emit) -> None:
        self.name = name
        self._receiver = receiver
        self._emit = emit
        self._queue: queue.Queue[Event | str] = queue.Queue(MOST_WAITING)
        self._lost = False
        # A daemon: the end of the process waits for nobody.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            if self._thread.is_alive() and not self._lost:
                self._lost = True
                self.warn(f"{self.name} is too slow: it does not get all values")

    def finish(self, status: str, deadline: float) -> None:
        """Give it what is left and its end, until ``deadline`` on the monotonic clock."""
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._queue.put(status, timeout=min(1.0, max(0.0, deadline - time.monotonic())))
            except queue.Full:
                continue
            break
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self.warn(f"{self.name} did not take its last values within {FINISH_SECONDS:.0f} s: they may be missing")

    def warn(self, message: str) -> None:
        hint = "training goes on, and everything is in the run's own journal"
        self._emit(WarningEvent(code="TRACKER_FAILED", message=redact(message), hint=hint))

    def _work(self) -> None:
        try:
            while not isinstance(event := self._queue.get(), str):
                self._receiver.take(event)
            self._receiver.finish(event)
        except BaseException as error:  # libraries of others, up to ``sys.exit``
            why = (str(error).splitlines() or [""])[0]
            self.warn(f"{self.name} failed and gets no more values: {type(error).__name__}: {why[:300]}")


class Trackers:
    """Emits a run's events, and hands them on to its trackers; they are finished before the run's last event.

    Args:
        names: of ``TRACKERS``.
        emit: takes all events first, and what is to be said of a tracker, also from their threads.
        spans: whether the run's phases go to OpenTelemetry (``spans.wanted``).
    """

    def __init__(self, names: list[str], run_id: str, directory: Path, emit: Emit, *, spans: bool = False) -> None:
        self._emit = emit
        self._feeds = [
            _Feed(name, Curves(TRACKERS[name].make(), About(run_id, directory)), self._to_run) for name in names
        ]
        if spans:
            self._feeds.append(_Feed("OpenTelemetry", Spans(run_id), self._to_run))
        self._finished = False

    def emit(self, event: Event) -> None:
        """Emit ``event``; never waits, but for the end of the run."""
        if isinstance(event, RunFinished):
            self.finish(event.status)
        self._emit(event)
        for feed in self._feeds:
            feed.put(event)

    def _to_run(self, event: Event) -> None:
        if not self._finished:  # after the last event there is no other
            self._emit(event)

    def finish(self, status: str, seconds: float = FINISH_SECONDS) -> None:
        """Tell the trackers how the run ended, and wait ``seconds`` for them at most; once."""
        if not self._finished:
            deadline = time.monotonic() + seconds
            for feed in self._feeds:
                feed.finish(status, deadline)
            self._finished = True

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            now = issubclass(kind, KeyboardInterrupt)
            self.finish("interrupted" if now else "failed", 0.0 if now else FINISH_SECONDS)
