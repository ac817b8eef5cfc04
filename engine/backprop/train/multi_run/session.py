"""A session of several runs: each is an ordinary run that starts from the one before it, and is merged when it is done.

The session's directory has the ordinary lock, control pipe and journal; its runs are in ``runs/<id>`` with journals of
their own. What they take as steps and what they warn of is in the session's journal too, with steps counted over all of
them. What the session stands at after each run is one checkpoint (``state``), written before the next begins:
whatever kills the engine, the run goes on from its own last checkpoint, or is merged from its result, or the next one
begins. A run that fails is not merged and not counted, and the next one begins from where it did.
"""

from __future__ import annotations

import gc
import hashlib
import shutil
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import msgspec
import torch
from msgspec.structs import replace

from backprop.core import events as ev
from backprop.core.errors import (
    BackpropError,
    BatchOperationError,
    CheckpointError,
    GPUTemperatureError,
    RunError,
    SLAOMergeError,
    TrainingAbortedError,
)
from backprop.core.events import EndStatus, Event
from backprop.core.multi_run import learning_rates, runs_of
from backprop.core.settings import MultiConfig, RunConfig
from backprop.data import slices
from backprop.data.slices import Slice, Slices
from backprop.fetch import datasets
from backprop.fetch.models import fetch_model
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.result_files import IDENTITY
from backprop.runs.state import read_run
from backprop.train import model as models
from backprop.train.checkpoint import load_weights
from backprop.train.model import Loaded
from backprop.train.multi_run.merge import Merger
from backprop.train.persistence.resume import begin, run_started
from backprop.train.run import Run
from backprop.train.steering import Steering
from backprop.worker.commands import Control
from backprop.worker.process import inner_run

_ENDS_ALL = (TrainingAbortedError, GPUTemperatureError, CheckpointError, SLAOMergeError, RunError, OSError)
"""What is no matter of one run alone."""


class _Stopped(Exception):
    """Somebody wants the session to end, while no run takes steps."""


class MultiRun:
    """One stretch of a session."""

    def __init__(
        self, directory: RunDirectory, emit: Callable[[Event], None], control: Control, model: str = ""
    ) -> None:
        self.directory, self.emit, self.control = directory, emit, control
        if model:
            directory.update_record(config=replace(directory.read_record().config, model=model))
        self.record = directory.read_record()
        self.config, self.multi = self.record.config, self.record.multi or MultiConfig()
        if self.config.backend == "auto" and models.resolved(self.config).backend == "mlx":
            self.config = replace(self.config, backend="cpu")  # what MLX trained is not merged
        self.runs = runs_of(self.multi)
        self.steering = Steering(control, emit)
        self.merger = Merger(directory, self.record, self.runs, emit, self._look)
        self.data = directory.path / "data"
        self.last_loss = read_run(directory.path).final_loss
        self._count(0, 0, 0)

    def run(self, continued: bool, notes: Iterable[Event] = ()) -> EndStatus:
        """Go on from where the session stands, ``run_started`` first, then ``notes``, and ``run_finished`` last.

        Raises:
            BackpropError: the session failed: all its runs did, or something is wrong that no other run would get over.
        """
        torch.set_grad_enabled(True)
        models.use_all_cores(self.config.processes)
        self._start(self._position() if continued else None)
        for note in notes:
            self.emit(note)
        ended: EndStatus = "done"
        try:
            self.merger.tell_again()
            parts = self._prepare()
            while not self.merger.progress.over and ended == "done":
                self._look()
                ended = self._next(parts.runs[self.merger.progress.index])
        except _Stopped:
            by = self.steering.stop
            ended = "interrupted" if by is not None and by.by == "signal" else "stopped"
        merges = self.merger.progress.merges
        if ended == "done" and all(each.failed for each in merges):
            listed = "; ".join(f"run {each.index} ({each.run}): {each.reason}" for each in merges)
            hint = "`backprop show-run RUN` shows one; put right what they say and start a new session"
            raise BatchOperationError(f"all {len(merges)} runs failed: {listed}", hint=hint)
        self._finish(ended)
        return ended

    def rewind(self, index: int) -> EndStatus:
        """Go back to where the session stood after run ``index``; it can be resumed from there."""
        # Counted first: killed in between, nothing is lost yet, and runs that come get other ids.
        self.directory.update_record(rewinds=self.record.rewinds + 1)
        self.merger.rewind(index)
        self._count(0, 0, 0)
        told = read_run(self.directory.path)
        told.curves.truncate(self.taken)
        self.last_loss = told.final_loss
        self._start(self.taken)
        self.emit(ev.Rewound(index=index))
        self._finish("stopped")
        return "stopped"

    def _start(self, resumed_from: int | None) -> None:
        started = run_started(self.directory, self.record, models.resolved(self.config), resumed_from)
        started.multi = msgspec.to_builtins(self.multi)
        self.emit(started)

    def _finish(self, status: EndStatus) -> None:
        finished = ev.RunFinished(
            status=status,
            steps=self.taken,
            final_loss=self.last_loss,
            output_path=self.directory.result,
            duration_seconds=0.0,  # put in by whoever knows of earlier stretches
            samples_seen=self.samples,
            tokens_seen=self.tokens,
            verdict=self.merger.progress.verdict if status == "done" else None,
        )
        self.emit(finished)

    def _position(self) -> int:
        """The session's steps before the first that is taken now."""
        progress, directory = self.merger.progress, self._directory_of(self.merger.progress.index + 1)
        if progress.over or not directory.record.is_file():
            return progress.steps
        run = read_run(directory.path)
        checkpoint, _ = CheckpointStore(directory.checkpoints, directory.run_id).newest_valid()
        return progress.steps + (run.step if run.status == "done" else checkpoint.step if checkpoint else 0)

    def _prepare(self) -> Slices:
        """The rows of each run: written once, and as they were ever after."""
        self.emit(ev.PhaseChanged(phase="preparing_data"))
        if (found := slices.read(self.data)) is not None:
            return found
        files = [datasets.find(each, self.emit, self._look) for each in self.multi.tasks or [self.config.data]]
        found = slices.write(self.data, files, self.runs, self.config, replay=self.multi.replay, look=self._look)
        if found.again:
            message = "the runs ask for more rows than there are: later ones train rows of earlier ones again"
            self.emit(ev.Warning(code="ROWS_AGAIN", message=message, hint="give fewer --samples or --runs"))
        if not any(part.held_out for part in found.runs):
            message = "no rows are held out: what is forgotten is not measured"
            self.emit(ev.Warning(code="NOT_HELD_OUT", message=message, hint="--held-out 0.1 holds a tenth out"))
        return found

    def _next(self, part: Slice) -> EndStatus:
        """Train the next run and merge it; how it ended. Merged is what is done."""
        index, run = self.merger.progress.index + 1, self._open(part)
        try:
            ended, loaded, config = self._train(index, part, run)
            if ended == "done" and loaded is None:
                loaded, config = self._load_result(run)
        except (_Stopped, *_ENDS_ALL):
            raise
        except Exception as error:  # one run that fails, by whatever, costs the others nothing: it is kept out and said
            if isinstance(error, BackpropError) and error.retryable:
                raise
            self.control.stepping = False
            why = f"[{error.code}] {error.message}" if isinstance(error, BackpropError) else repr(error)
            self.merger.leave_out(run.run_id, why, (self.taken, self.tokens, self.samples), failed=True)
            return "done"
        if ended == "done" and loaded is not None:
            self.merger.merge(run.run_id, loaded, config, (self.taken, self.tokens, self.samples))
        loaded = None  # before the next one needs its room
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return ended

    def _directory_of(self, index: int) -> RunDirectory:
        """Its directory, whose name follows from the session's, so that it is found again whenever it was made."""
        named = hashlib.sha256(f"{self.record.run_id} {self.record.rewinds} {index}".encode()).hexdigest()[:12]
        return RunDirectory(self.directory.path / "runs" / named)

    def _open(self, part: Slice) -> RunDirectory:
        """The directory of the next run, made where it is not there."""
        index = self.merger.progress.index + 1
        run = self._directory_of(index)
        if not run.record.is_file():
            shutil.rmtree(run.path, ignore_errors=True)  # killed while it was made
            start, config = self.merger.start(), self._config_of(index, part)
            RunDirectory.create(config, forked_from=start, origins=self.record.origins, run_id=run.run_id)
        elif not Path(rows := run.read_record().config.data).is_file():
            hint = "put the session's directory back to where it was until this run is done"
            raise RunError(f"the rows of run {run.run_id} are not at {rows} any more", code="RUN_DAMAGED", hint=hint)
        return run

    def _config_of(self, index: int, part: Slice) -> RunConfig:
        rate = self.config.learning_rate
        if self.multi.final_lr is not None and rate is not None:
            rate = learning_rates(rate, self.multi.final_lr, self.runs, self.multi.lr_decay)[index - 1]
        own = {
            "data": str(self.data / part.train),
            "held_out": str(self.data / part.held_out) if part.held_out else "none",
            "samples": None,
            "learning_rate": rate,
            "seed": (self.config.seed + index - 1) % 2**32,
            "output_dir": str(self.directory.path / "runs"),
            "run_name": f"run {index} of {self.runs}",
            "report_to": ["none"],
        }
        return replace(self.config, **self.merger.progress.adapter, **own)

    def _train(self, index: int, part: Slice, run: RunDirectory) -> tuple[EndStatus, Loaded | None, RunConfig]:
        """Take the run's steps; how it ended, and the model with its result unless that was there before."""
        with inner_run(run, self.control) as emit:
            record, begun = run.read_record(), read_run(run.path)
            self._count(begun.step, begun.tokens_seen, begun.samples_seen)
            new = ev.RunBegun(
                index=index,
                of=self.runs,
                run=run.run_id,
                data=part.data,
                rows=part.rows,
                replayed=part.replayed,
                held_out=part.held_out_rows,
                step=self.merger.progress.steps,
            )
            self.emit(new)
            if begun.journal_status == "done":
                return "done", None, record.config
            start = begin(run, record, "resume" if begun.last_seq else "start", None, models.resolved)

            def tell(event: Event) -> None:
                relayed = self._relayed(index, event)
                emit(event)
                if relayed is not None:
                    self.emit(relayed)

            for event in (run_started(run, record, start.config, start.resumed_from), *start.notes):
                tell(event)
            work = Run(start, run, tell, self.control)
            work.on_loaded = lambda loaded: self.merger.check(loaded, work.config)
            ended = work.run()
            return ended, work.loaded, work.config

    def _load_result(self, run: RunDirectory) -> tuple[Loaded, RunConfig]:
        """The model with the result of a run that was done before this stretch began."""
        config = msgspec.convert(read_run(run.path).config, RunConfig)
        now = datetime.fromtimestamp(run.read_record().created)
        loaded = models.load(config, fetch_model(config.model, self.emit), self.emit, now)
        step = msgspec.json.decode((run.adapter / IDENTITY).read_bytes())["steps"]
        load_weights(CheckpointStore(run.checkpoints, run.run_id).require_step(step).path, loaded.model)
        return loaded, config

    def _relayed(self, index: int, event: Event) -> Event | None:
        """What the session's journal has of an event of a run: steps count over all runs."""
        steps, where = self.merger.progress.steps, f"run {index} of {self.runs}"
        copied = replace(event)
        match copied:
            case ev.RunStarted() | ev.RunFinished() | ev.RunFailed() | ev.SettingsChosen() | ev.Evaluated(base=True):
                return None
            case ev.PhaseChanged():
                copied.detail = f"{where}: {copied.detail}" if copied.detail else where
            case ev.Step():
                self._count(copied.step, copied.tokens_seen, copied.samples_seen)
                self.last_loss, copied.run = copied.loss, index
                copied.total_steps = steps + copied.total_steps * (self.runs - index + 1)
                copied.tokens_seen, copied.samples_seen = self.tokens, self.samples
        if isinstance(number := getattr(copied, "step", None), int):
            copied.step = steps + number  # type: ignore[attr-defined]
        return copied

    def _count(self, steps: int, tokens: int, samples: int) -> None:
        """How far the session is: what the present run has come to, added to those before it."""
        before = self.merger.progress
        self.taken, self.tokens, self.samples = before.steps + steps, before.tokens + tokens, before.samples + samples

    def _look(self) -> bool:
        """Take in what was asked while no run takes steps.

        Raises:
            _Stopped: the session is to end, in order.
            TrainingAbortedError: at once.
        """
        if self.steering.look():
            raise _Stopped
        return False
