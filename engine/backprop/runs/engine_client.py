"""The only door between the faces and a run's engine: start its process, read its events, send it commands.

The engine is started in a session of its own, so that a hang-up of the terminal does not reach it. Its pipe is the fast
path and may lose lines when nobody reads; the journal has them all, and a reader that sees a gap in ``seq`` fills it
from there. Attaching to a run that somebody else started follows the journal alone.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from backprop.core.confinement import require_writable
from backprop.core.errors import ConfigurationError, EngineCrashedError, RunError
from backprop.core.events import AnyEvent, Command, RunFailed, RunFinished, decode_event, encode
from backprop.core.extras import require_for
from backprop.core.resolve import config_from
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs.checkpoints import CheckpointStore, read_manifest
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_process import WarmEngine, how_it_went, start_engine
from backprop.runs.journal import Follower
from backprop.runs.model_files import BASE_FILES, require_same_model
from backprop.runs.record import Replays, RunRecord
from backprop.runs.sessions import session_of
from backprop.runs.state import RunState, read_run

_CHUNK = 1 << 20
_POLL = 0.2
"""Seconds between two looks at a journal that is followed without a pipe."""


class EngineClient:
    """The engine of one run, from outside. ``read`` gives every event once and in order, from the first."""

    def __init__(self, directory: RunDirectory, process: subprocess.Popen[bytes] | None = None) -> None:
        self.directory = directory
        self._process = process
        self.launched_at = time.time() if process is not None else 0.0
        """When this client started the engine, in seconds since the epoch; 0 where somebody else did."""
        self._pipe: int | None = None
        if process is not None and process.stdout is not None:
            self._pipe = process.stdout.fileno()
            os.set_blocking(self._pipe, False)
        run_id = ""  # that of the first event, where run.json cannot be read
        with suppress(RunError):
            run_id = directory.read_record().run_id
        self._follower = Follower(directory.journal, run_id=run_id)
        self._rest = b""
        self._ahead: list[AnyEvent] = []
        """What the pipe brought before the events that it follows; these are read from the journal first."""
        self._last_seq = 0
        self.over = False
        """Whether no event can follow: the end was read, or the engine is gone and everything it wrote was read."""

    @property
    def run_id(self) -> str:
        """The run that is watched."""
        return self.directory.run_id

    def alive(self) -> bool:
        """Whether the engine lives."""
        if self._process is not None:
            return self._process.poll() is None
        return self.directory.is_alive()

    def read(self, timeout: float) -> list[AnyEvent]:
        """New events, waiting up to ``timeout`` seconds for the first. Empty when none came or the run is over.

        Raises:
            RunError: the engine that this client started may not work on the run; another one does, for instance.
        """
        deadline = time.monotonic() + timeout
        while True:
            was_alive = self.alive()
            left = max(0.0, deadline - time.monotonic())
            found = self._read_pipe(left) if self._pipe is not None else self._follower.poll()
            if found:
                self._last_seq = found[-1].seq
                self._follower.skip_to(self._last_seq)
                # An end may be followed by another stretch of the same run: only a dead engine makes it final.
                if isinstance(found[-1], RunFinished | RunFailed) and not self._ahead and not self.alive():
                    self.over = True
                return found
            if self._pipe is None and not was_alive:
                self.over = True
                return []
            if time.monotonic() >= deadline:
                return []
            if self._pipe is None:
                self._pause(min(_POLL, max(0.0, deadline - time.monotonic())))

    def _pause(self, seconds: float) -> None:
        """Let some time pass, but none after the end of the engine that this client started."""
        if self._process is None:
            time.sleep(seconds)
        else:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)

    def _read_pipe(self, timeout: float) -> list[AnyEvent]:
        assert self._pipe is not None
        if self._ahead:
            return self._catch_up()
        if not select.select([self._pipe], [], [], timeout)[0]:
            return []
        chunk = os.read(self._pipe, _CHUNK)
        if not chunk:
            self.detach()
            return self._follower.poll()
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = [event for line in lines if (event := decode_event(line)) is not None]
        for event in events:
            if event.seq == 0 and isinstance(event, RunFailed):
                self.detach()
                self.over = True
                raise event.error()
        found = [event for event in events if event.seq > self._last_seq]
        if found and found[-1].seq - self._last_seq != len(found):
            self._ahead = found
            return self._catch_up()
        return found

    def _catch_up(self) -> list[AnyEvent]:
        """Events of the journal; once it has no more, those of the pipe: on a full disk it waits for room itself."""
        found = self._follower.poll()
        last = found[-1].seq if found else self._last_seq
        ahead, self._ahead = [event for event in self._ahead if event.seq > last], []
        if not found:
            return ahead
        self._ahead = ahead
        return found

    def detach(self) -> None:
        """Stop watching; the engine goes on."""
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._pipe = None

    def send(self, command: Command) -> None:
        """Give the engine a command; what comes of it is an event.

        Raises:
            RunError: no engine listens (code ``RUN_NOT_ACTIVE``), or ``control`` is no pipe (``RUN_DAMAGED``).
        """
        self.directory.require_control()
        try:
            descriptor = os.open(self.directory.control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):
                raise self._deaf() from None
            raise
        try:
            # One write of less than PIPE_BUF bytes: commands of several senders never mix.
            os.write(descriptor, encode(command))
        finally:
            os.close(descriptor)

    def _deaf(self) -> RunError:
        """Why nobody takes a command."""
        message = f"no engine is working on run {self.run_id}"
        hint = f"`backprop show-run {self.run_id}` says how it ended"
        if alive := self.alive():
            message, hint = f"the engine of run {self.run_id} is only starting", "try again in a moment"
            if not os.path.lexists(self.directory.control):
                message = f"the engine of run {self.run_id} cannot be reached: {self.directory.control} is gone"
                hint = f"`kill -INT {self._pid()}` stops it after the step, with a checkpoint; then `backprop resume`"
        return RunError(message, code="RUN_NOT_ACTIVE", hint=hint, retryable=alive)

    def kill(self) -> None:
        """End the engine at once, losing what came after its last checkpoint."""
        if (pid := self._pid()) > 0:
            with suppress(ProcessLookupError):  # it ended just now
                os.killpg(pid, signal.SIGKILL)

    def interrupt(self) -> None:
        """Pass a Ctrl+C on to the engine: it finishes the step and saves; the second time it ends at once."""
        with suppress(ProcessLookupError):
            if (pid := self._pid()) > 0:
                os.kill(pid, signal.SIGINT)

    def _pid(self) -> int:
        """Process id of the living engine, 0 where there is none."""
        if self._process is not None:
            return self._process.pid if self.alive() else 0
        pid = self.directory.lock_holder().pid if self.directory.is_locked() else 0
        return pid if _works_on(pid, self.directory) else 0

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for an engine that this client started; its exit status, ``None`` for one that was attached to."""
        return None if self._process is None else self._process.wait(timeout)

    def crash(self) -> EngineCrashedError:
        """The error for an engine that is gone without an end event, with the last lines of its log."""
        session = session_of(self.directory.path)
        hint = f"the directory was deleted meanwhile: {self.directory.path}"
        if self.directory.path.is_dir():
            hint = f"`backprop resume {session.name if session else self.run_id}` goes on from its last checkpoint, "
            hint += f"or from step 0 where it has none; the log is {self.directory.log}"
        return EngineCrashedError(
            f"the engine of run {self.run_id} is gone{how_it_went(self._process, self.directory)}",
            hint=hint,
            retryable=True,
            details={"run_id": self.run_id, "path": str(self.directory.path)},
        )


def _works_on(pid: int, directory: RunDirectory) -> bool:
    """Whether process ``pid`` may be the run's engine: what a damaged ``lock`` names must not be killed."""
    opened = Path(f"/proc/{pid}/fd")
    if not Path("/proc/self").exists():  # this system does not show what a process has open
        return True
    with suppress(OSError):
        held = directory.lock.stat()
        for file in opened.iterdir():
            with suppress(OSError):
                if os.path.samestat(file.stat(), held):
                    return True
    return False


def start(
    config: RunConfig,
    kind: str = "train",
    forked_from: str = "",
    origins: dict[str, str] | None = None,
    warm: WarmEngine | None = None,
    *,
    replays: Replays | None = None,
    multi: MultiConfig | None = None,
) -> EngineClient:
    """Make a run directory and start its engine.

    Args:
        origins: where each setting's value comes from.
        forked_from: a folder with an adapter to start from, instead of a fresh one.
        warm: an engine that was started ahead, to do it where it is still there.
        replays: the run that this one is to repeat.
        multi: what makes it a session of several runs.

    Raises:
        ConfigurationError: the output directory cannot be written.
        RunError: the weights to start from were trained on another model.
    """
    _require_startable(config)
    hashes: dict[str, str] = {}
    if forked_from:
        why = "the weights to start from were trained on another model"
        hashes = require_same_model(config.model, read_manifest(Path(forked_from)).identity, why, BASE_FILES)
    directory = RunDirectory.create(config, kind, forked_from, origins, replays, multi=multi)
    return launch(directory, "start", warm=warm, hashes=hashes)


def resume(path: Path, model: str = "") -> EngineClient:
    """Continue the run in ``path`` exactly where its newest good checkpoint stands.

    Args:
        model: where the same base model is now, if it is no longer where the run found it.

    Raises:
        RunError: it is being worked on, it is done, its directory is damaged, or the model is another one.
    """
    record, state = _require_usable(path)
    if state.status == "done":
        further = f"`backprop extend {path.name} --steps N` gives it a new end"
        raise RunError(
            f"run {path.name} is done: there is nothing left to resume",
            code="RUN_NOT_ACTIVE",
            hint=further if record.multi is None else f"`backprop rewind {path.name} --to I` goes back to run I",
        )
    hashes = _require_known_model(path, model or record.config.model)
    return launch(RunDirectory(path), "resume", "", model, hashes=hashes)


def extend(path: Path, steps: int, model: str = "") -> EngineClient:
    """Continue the run in ``path`` to a new end of ``steps`` steps; its learning-rate curve is computed anew.

    ``model`` is as in ``resume``.

    Raises:
        InvalidSettingError: no run has so many steps.
        RunError: it is being worked on, it is beyond that step already, its directory is damaged, or the model is
            another one.
    """
    record, state = _require_usable(path)
    if record.multi is not None:
        raise RunError(
            f"{path.name} is a session of several runs, which is not extended",
            code="INPUT_VALIDATION_FAILED",
            hint="start a new one with more --steps; `backprop extend` takes one of its runs",
        )
    config_from({**msgspec.to_builtins(record.config), "steps": steps, "epochs": "auto"})
    if steps <= state.step:
        taken = f"run {path.name} has taken {state.step} steps already"
        raise RunError(taken, code="INPUT_VALIDATION_FAILED", hint="give more --steps")
    hashes = _require_known_model(path, model or record.config.model)
    return launch(RunDirectory(path), "extend", str(steps), model, hashes=hashes)


def rewind(path: Path, index: int) -> EngineClient:
    """Take the session in ``path`` back to where it stood after run ``index``; 0 is its beginning.

    Raises:
        RunError: it is being worked on, is no session, has not come to that run, or its directory is damaged.
    """
    record, state = _require_usable(path)
    if record.multi is None:
        raise RunError(
            f"run {path.name} is no session of several runs",
            code="INPUT_VALIDATION_FAILED",
            hint=f"`backprop fork {path.name} --step N` starts a run from one of its checkpoints",
        )
    known = [0, *(merge.index for merge in state.merges)]
    if index not in known:
        raise RunError(
            f"session {path.name} has not come to run {index}",
            code="INPUT_VALIDATION_FAILED",
            hint=f"it can be rewound to {', '.join(map(str, known))}",
        )
    return launch(RunDirectory(path), "rewind", str(index))


def _require_startable(config: RunConfig) -> None:
    """Check that this installation can train as ``config`` says, and is not one of several copies that torchrun, or
    accelerate by it, started: each would train a run.

    Raises:
        MissingDependencyError: it cannot.
        ConfigurationError: it is one of several.
    """
    require_for(config)
    copies = os.environ.get("WORLD_SIZE", "")
    if "TORCHELASTIC_RUN_ID" in os.environ and copies.isdigit() and int(copies) > 1:
        raise ConfigurationError(
            f"a launcher started this {copies} times, and each would train a run of its own",
            hint=f"start it once, without the launcher, with --processes {copies}",
        )


def _require_known_model(path: Path, model: str) -> dict[str, str]:
    """Check that ``model`` is the one that the run's newest checkpoint was made with, where it has any.

    Returns:
        As ``require_same_model``.
    """
    directory = RunDirectory(path)
    kept = CheckpointStore.of_run(directory).checkpoints()
    if not kept:
        return {}
    return require_same_model(model, kept[-1].manifest.identity, "the run cannot be continued exactly")


def _require_usable(path: Path) -> tuple[RunRecord, RunState]:
    """What the run is and how it stands, where nobody works on it and an engine could."""
    directory = RunDirectory(path)
    if directory.is_alive():
        raise RunError(
            f"run {path.name} is being worked on",
            code="RUN_ALREADY_ACTIVE",
            hint=f"watch it: backprop-tui --attach {path.name}",
            details={"run": str(path)},
        )
    record = directory.find_record()
    directory.require_own_journal(record.run_id)
    directory.require_control()
    state = read_run(path)
    mode = state.config.get("mode", record.config.mode)  # what ``auto`` came to
    _require_startable(msgspec.structs.replace(record.config, mode=mode))
    return record, state


def launch(
    directory: RunDirectory,
    *how: str,
    warm: WarmEngine | None = None,
    holding: tuple[int, ...] = (),
    hashes: dict[str, str] | None = None,
) -> EngineClient:
    """Start an engine on an existing run directory: from step 0 where ``how`` is empty.

    Args:
        holding: as in ``engine_process.start_engine``.
        hashes: of the model's files, where they are known: the engine takes them as they are.

    Raises:
        RunError: the log cannot be written.
        InputError: writing is confined to another place than the run's.
    """
    require_writable(directory.path)
    words = (str(directory.path), *how)
    if hashes:
        words += ("",) * (4 - len(words)) + (msgspec.json.encode(hashes).decode(),)
    with directory.open_log() as log:
        process = warm.take(words) if warm is not None else None
        process = process or start_engine(words, log, holding=holding)
    directory.announce(process.pid)
    return EngineClient(directory, process)


def attach(path: Path) -> EngineClient:
    """Watch the run in ``path``, running or not."""
    return EngineClient(RunDirectory(path))
