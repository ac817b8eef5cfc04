"""A session of several runs: each is an ordinary run that starts from the one before it, and is merged when it is done.

The session's directory has the ordinary lock, control pipe and journal; its runs are in ``runs/<id>`` with journals of
their own. What they take as steps and what they warn of is in the session's journal too, with steps counted over all of
them. What the session stands at after each run is one checkpoint (``session_state``), written before the next begins:
whatever kills the engine, the run goes on from its own last checkpoint, or is merged from its result, or the next one
begins. A run that fails is not merged and not counted, and the next one begins from where it did.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import torch

from backprop.core import events as ev
from backprop.core.definition import chosen_by_rule
from backprop.core.errors import (
    BackpropError,
    CheckpointError,
    GPUTemperatureError,
    RunError,
    SLAOMergeError,
    TrainingAbortedError,
    TrainingError,
)
from backprop.core.events import EndStatus, Event
from backprop.core.jobs import EvaluatedRow, Evaluation
from backprop.core.multi_run import FORGOTTEN, learning_rates, out_of_patience, runs_of
from backprop.core.settings import MultiConfig, RunConfig, settings_with_effect
from backprop.data import slices
from backprop.data.slices import Slice, Slices
from backprop.fetch import datasets
from backprop.fetch.models import fetch_model
from backprop.runs import evaluations
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import IDENTITY, RunDirectory, RunRecord
from backprop.runs.forgetting import Forgetting
from backprop.runs.state import read_run
from backprop.runs.verdict import compare
from backprop.train import merging
from backprop.train import model as models
from backprop.train.checkpoint import load_weights, trained_parameters
from backprop.train.dataset import now_and_then
from backprop.train.held_out_sets import HeldOutSets
from backprop.train.model import Loaded
from backprop.train.result import save_result
from backprop.train.resume import begin, model_hashes
from backprop.train.session import Session
from backprop.train.session_state import Progress, SessionStore, facts_of, require_room_for_rank, require_same_adapter
from backprop.train.slao import Adapter, State, similarity, step_size
from backprop.train.steering import Steering
from backprop.worker.commands import Control
from backprop.worker.process import inner_run
from backprop.worker.setup import environment

_ENDS_ALL = (TrainingAbortedError, GPUTemperatureError, CheckpointError, SLAOMergeError, RunError, OSError)
"""What is no matter of one run alone."""


class _Stopped(Exception):
    """Somebody wants the session to end, while no run takes steps."""


@dataclass
class _Current:
    """The run that the session works on."""

    index: int
    part: Slice
    directory: RunDirectory
    record: RunRecord
    config: RunConfig
    loaded: Loaded | None = None
    cells: list[ev.HeldOutScored] = field(default_factory=list)
    """The base model's row, where this run is the first to have a model in memory."""


class MultiRun:
    """One stretch of a session."""

    def __init__(
        self, directory: RunDirectory, emit: Callable[[Event], None], control: Control, model: str = ""
    ) -> None:
        self.directory = directory
        record = directory.read_record()
        if model:
            directory.update_record(config=msgspec.structs.replace(record.config, model=model))
        self.record = directory.read_record()
        self.config = self.record.config
        self.multi = self.record.multi or MultiConfig()
        self.runs = runs_of(self.multi)
        self.emit = emit
        self.control = control
        self.steering = Steering(control, emit)
        self.store = SessionStore(directory)
        self.checkpoint, self.progress = self.store.newest()
        self.state = self.store.read(self.checkpoint, self.progress) if self.checkpoint else None
        self.data = directory.path / "data"
        self.sets: HeldOutSets | None = None
        self._count(0, 0, 0)
        self.last_loss = read_run(directory.path).final_loss

    # What happens.

    def run(self, continued: bool, notes: Iterable[Event] = ()) -> EndStatus:
        """Go on from where the session stands, ``run_started`` first, then ``notes``, and ``run_finished`` last.

        Raises:
            BackpropError: the session failed: all its runs did, or something is wrong that no other run would get over.
        """
        self.store.publish(self.checkpoint)
        torch.set_grad_enabled(True)
        models.use_all_cores(self.config.processes)
        self._start(self._position() if continued else None)
        for note in notes:
            self.emit(note)
        ended: EndStatus = "done"
        try:
            if continued:
                self._tell_again()
            parts = self._prepare()
            while not self.progress.over and ended == "done":
                self._look()
                ended = self._next(parts.runs[self.progress.index])
        except _Stopped:
            by = self.steering.stop
            ended = "interrupted" if by is not None and by.by == "signal" else "stopped"
        if ended == "done":
            self._require_some()
        self._finish(ended)
        return ended

    def rewind(self, index: int) -> EndStatus:
        """Go back to where the session stood after run ``index``; it can be resumed from there.

        Raises:
            InputError: there is no such state.
        """
        # Counted first: killed in between, nothing is lost yet, and runs that come get other ids.
        self.directory.update_record(rewinds=self.record.rewinds + 1)
        undone = self.store.rewind(index)
        self.checkpoint, self.progress = self.store.newest()
        self.store.publish(self.checkpoint)
        self._count(0, 0, 0)
        self._start(self.progress.steps)
        for each in undone:
            self.emit(ev.CheckpointPruned(path=str(each.path), step=each.step))
        self.emit(ev.Rewound(index=index))
        self._finish("stopped")
        return "stopped"

    def _start(self, resumed_from: int | None) -> None:
        resolved = models.resolved(self.config)
        self.emit(
            ev.RunStarted(
                config=msgspec.to_builtins(resolved),
                output_dir=str(self.directory.path),
                pid=os.getpid(),
                kind=self.record.kind,
                resumed_from=resumed_from,
                environment=environment(),
                origins={**self.record.origins, **chosen_by_rule(self.config, resolved)},
                multi=msgspec.to_builtins(self.multi),
            )
        )

    def _position(self) -> int:
        """The session's steps before the first that is taken now."""
        directory = self._directory_of(self.progress.index + 1)
        if self.progress.over or not directory.record.is_file():
            return self.progress.steps
        run = read_run(directory.path)
        if run.status == "done":
            return self.progress.steps + run.step
        checkpoint, _ = CheckpointStore(directory.checkpoints, directory.run_id).newest_valid()
        return self.progress.steps + (checkpoint.step if checkpoint else 0)

    def _tell_again(self) -> None:
        """Have the journal say what the state on disk says, whatever was lost between the two."""
        told = read_run(self.directory.path)
        known = {(each.after, each.held_out) for each in told.forgetting.cells}
        if any(each.index > self.progress.index for each in told.merges):
            self.emit(ev.Rewound(index=self.progress.index))
        for cell in self.progress.cells:
            if (cell.after, cell.held_out) not in known:
                self.emit(msgspec.structs.replace(cell))
        for merge in self.progress.merges[len(told.merges) :]:
            self.emit(msgspec.structs.replace(merge))

    def _prepare(self) -> Slices:
        """The rows of each run: written once, and as they were ever after."""
        self.emit(ev.PhaseChanged(phase="preparing_data"))
        found = slices.read(self.data)
        if found is not None:
            return found
        show = now_and_then(
            lambda done, total: self.emit(
                ev.PhaseChanged(phase="preparing_data", detail=f"{100 * done // max(1, total)} %")
            )
        )

        def look() -> bool:
            self._look()
            return False

        found = slices.write(
            self.data,
            [datasets.find(each, self.emit, self._look) for each in self.multi.tasks or [self.config.data]],
            self.runs,
            samples=self.config.samples,
            replay=self.multi.replay,
            held_out=self.config.held_out,
            seed=self.config.seed,
            mapping=self.config.mapping or None,
            skip_bad=self.config.skip_bad,
            look=look,
            progress=show,
        )
        if found.again:
            message = "the runs ask for more rows than there are: later ones train rows of earlier ones again"
            self.emit(ev.Warning(code="ROWS_AGAIN", message=message, hint="give fewer --samples or --runs"))
        if found.left_out:
            self.emit(ev.Warning(code="ROWS_LEFT_OUT", message=f"{found.left_out} rows cannot be used"))
        if not any(part.held_out for part in found.runs):
            message = "no rows are held out: what is forgotten is not measured"
            self.emit(ev.Warning(code="NOT_HELD_OUT", message=message, hint="--held-out 0.1 holds a tenth out"))
        return found

    def _next(self, part: Slice) -> EndStatus:
        """Train the next run and merge it; how it ended. Merged is what is done."""
        current = self._open(part)
        try:
            ended = self._train(current)
            if ended == "done":
                self._merge(current)
            return ended
        except (_Stopped, *_ENDS_ALL):
            raise
        except Exception as error:
            if isinstance(error, BackpropError) and error.retryable:
                raise
            self.control.stepping = False
            why = f"[{error.code}] {error.message}" if isinstance(error, BackpropError) else repr(error)
            self._over(current, self._left_out(current, why, failed=True), time.monotonic())
            return "done"
        finally:
            current.loaded = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    # One run.

    def _directory_of(self, index: int) -> RunDirectory:
        """Its directory, whose name follows from the session's, so that it is found again whenever it was made."""
        named = hashlib.sha256(f"{self.record.run_id} {self.record.rewinds} {index}".encode()).hexdigest()[:12]
        return RunDirectory(self.directory.path / "runs" / named)

    def _open(self, part: Slice) -> _Current:
        """The directory of the next run, made where it is not there."""
        index = self.progress.index + 1
        directory = self._directory_of(index)
        if not directory.record.is_file():
            shutil.rmtree(directory.path, ignore_errors=True)  # killed while it was made
            start = ""
            if self.checkpoint is not None and self.state is not None:
                start = str(self.store.write_start(self.checkpoint, self.state, self.multi.merge_mode))
            RunDirectory.create(
                self._config_of(index, part),
                forked_from=start,
                origins=self.record.origins,
                run_id=directory.run_id,
            )
        record = directory.read_record()
        if not Path(record.config.data).is_file():
            raise RunError(
                f"the rows of run {directory.run_id} are not where it began with them: {record.config.data}",
                code="RUN_DAMAGED",
                hint="put the session's directory back to where it was until this run is done",
            )
        return _Current(index, part, directory, record, record.config)

    def _config_of(self, index: int, part: Slice) -> RunConfig:
        rate = self.config.learning_rate
        if self.multi.final_lr is not None and rate is not None:
            rate = learning_rates(rate, self.multi.final_lr, self.runs, self.multi.lr_decay)[index - 1]
        return msgspec.structs.replace(
            self.config,
            **self.progress.adapter,
            data=str(self.data / part.train),
            held_out=str(self.data / part.held_out) if part.held_out else "none",
            samples=None,
            learning_rate=rate,
            seed=(self.config.seed + index - 1) % 2**32,
            output_dir=str(self.directory.path / "runs"),
            run_name=f"run {index} of {self.runs}",
            report_to=["none"],
        )

    def _train(self, current: _Current) -> EndStatus:
        """Take its steps, unless it is done already."""
        with inner_run(current.directory, self.control) as emit:
            begun = read_run(current.directory.path)
            self._count(begun.step, begun.tokens_seen, begun.samples_seen)
            part = current.part
            self.emit(
                ev.RunBegun(
                    index=current.index,
                    of=self.runs,
                    run=current.directory.run_id,
                    data=part.data,
                    rows=part.rows,
                    replayed=part.replayed,
                    held_out=part.held_out_rows,
                    step=self.progress.steps,
                )
            )
            if begun.journal_status == "done":
                return "done"
            verb = "resume" if begun.last_seq else "start"
            start = begin(current.directory, current.record, verb, None, models.resolved)

            def tell(event: Event) -> None:
                relayed = self._relayed(current, event)
                emit(event)
                if relayed is not None:
                    self.emit(relayed)

            tell(
                ev.RunStarted(
                    config=msgspec.to_builtins(start.config),
                    output_dir=str(current.directory.path),
                    pid=os.getpid(),
                    kind=current.record.kind,
                    resumed_from=start.resumed_from,
                    environment=environment(),
                    forked_from=current.record.forked_from,
                    origins={**current.record.origins, **chosen_by_rule(current.config, start.config)},
                )
            )
            for note in start.notes:
                tell(note)
            session = Session(start, current.directory, tell, self.control)
            session.on_loaded = partial(self._loaded, current, session)
            ended = session.run()
            if ended == "done":
                current.loaded, current.config = session.loaded, session.config
            return ended

    def _relayed(self, current: _Current, event: Event) -> Event | None:
        """What the session's journal has of an event of a run: steps count over all runs."""
        steps = self.progress.steps
        match event:
            case ev.Step():
                self._count(event.step, event.tokens_seen, event.samples_seen)
                self.last_loss = event.loss
                return msgspec.structs.replace(
                    event,
                    step=self.taken,
                    total_steps=steps + event.total_steps * (self.runs - current.index + 1),
                    tokens_seen=self.tokens,
                    samples_seen=self.samples,
                    run=current.index,
                )
            case ev.RunStarted() | ev.RunFinished() | ev.RunFailed() | ev.SettingsChosen():
                return None
            case ev.Evaluated() if event.base:
                return None
            case ev.PhaseChanged():
                where = f"run {current.index} of {self.runs}"
                detail = f"{where}: {event.detail}" if event.detail else where
                return msgspec.structs.replace(event, detail=detail)
        copied = msgspec.structs.replace(event)
        if isinstance(number := getattr(copied, "step", None), int):
            copied.step = steps + number  # type: ignore[attr-defined]
        return copied

    def _count(self, steps: int, tokens: int, samples: int) -> None:
        """How far the session is: what the present run has come to, added to those before it."""
        before = self.progress
        self.taken, self.tokens, self.samples = before.steps + steps, before.tokens + tokens, before.samples + samples

    def _loaded(self, current: _Current, session: Session, loaded: Loaded) -> None:
        """Before a run's first step: refuse what could not be merged, and score the base model for the first row."""
        self._require_mergeable(loaded, session.config)
        if not self.progress.cells:
            self._score_base(current, loaded)

    def _require_mergeable(self, loaded: Loaded, config: RunConfig) -> dict[str, Any]:
        facts = facts_of(loaded, config.mode)
        require_room_for_rank(loaded.model)
        require_same_adapter(self.progress.adapter, facts)
        return facts

    def _score_base(self, current: _Current, loaded: Loaded) -> None:
        self.emit(ev.PhaseChanged(phase="evaluating", detail="the untouched model, on the rows of every run"))
        sets = self._sets(loaded)
        with loaded.mode.base_answers(loaded.model):
            current.cells, rows = sets.score(loaded, 0, range(1, self.runs + 1))
        self._keep(0, rows)
        for cell in current.cells:
            self.emit(msgspec.structs.replace(cell))

    def _sets(self, loaded: Loaded) -> HeldOutSets:
        if self.sets is None:
            found = slices.read(self.data)
            assert found is not None
            now = datetime.fromtimestamp(self.record.created)
            self.sets = HeldOutSets(self.config, found, self.data, model=loaded.path, now=now, look=self._look)
        return self.sets

    # Merging.

    def _merge(self, current: _Current) -> None:
        """Merge a run that is done, or keep it out; then write where the session stands."""
        began, index = time.monotonic(), current.index
        loaded = current.loaded = current.loaded or self._load_result(current)
        facts = self._require_mergeable(loaded, current.config)
        if not self.progress.cells and not current.cells:  # its steps were taken before a stop
            self._score_base(current, loaded)
        self.emit(ev.PhaseChanged(phase="evaluating", detail=f"run {index} of {self.runs}, on the rows of every run"))
        tuned = merging.adapter_of(trained_parameters(loaded.model))
        try:
            new = merging.merge(self.state, tuned, current.directory.run_id, self.multi, self.config.seed + index)
        except SLAOMergeError as error:  # it has diverged: its own fault alone
            self._over(current, self._left_out(current, f"[{error.code}] {error.message}", failed=True), began)
            return
        sets, before = self._sets(loaded), self.state.result if self.state else None
        own = sets.score(loaded, index, only=index).cells
        put(loaded, new.result)
        cells, rows = sets.score(loaded, index, range(1, index + 1))
        merge = ev.MergeDone(
            index=index,
            run=current.directory.run_id,
            merged=True,
            count=new.count,
            step_size=step_size(new.count) if self.multi.merge_mode == "slao" else None,
            moved=merging.moved(before, new.result),
            similarity=similarity(before, tuned) if before else None,
            loss=next((cell.loss for cell in cells if cell.held_out == index), None),
            tuned_loss=own[0].loss if own else None,
        )
        if reason := self._gate(merge.similarity, cells):
            left_out = self._left_out(current, reason)
            scores = {name: getattr(merge, name) for name in ("similarity", "loss", "tuned_loss")}
            self._over(current, msgspec.structs.replace(left_out, **scores), began)
            return
        self._keep(self.taken, rows)
        self._save(current, merge, began, cells, state=new, facts=facts)

    def _load_result(self, current: _Current) -> Loaded:
        """The model with the result of a run that was done before this stretch began."""
        run = read_run(current.directory.path)
        current.config = msgspec.convert(run.config, RunConfig)
        path = fetch_model(current.config.model, self.emit)
        loaded = models.load(current.config, path, self.emit, datetime.fromtimestamp(current.record.created))
        result = msgspec.json.decode((current.directory.adapter / IDENTITY).read_bytes())
        store = CheckpointStore(current.directory.checkpoints, current.directory.run_id)
        load_weights(store.require_step(result["steps"]).path, loaded.model)
        return loaded

    def _gate(self, cosine: float | None, cells: list[ev.HeldOutScored]) -> str:
        """Why a run is kept out of the merge; empty where it is not. The first is always merged."""
        if self.state is None:
            return ""
        least, most = self.multi.min_similarity, self.multi.max_forgetting
        if least is not None and cosine is not None and cosine < least:
            return f"the cosine of its update to what was merged before is {cosine:.3f}, below {least:g}"
        if most is not None:
            table = Forgetting(cells=self.progress.cells)
            pairs = [(cell.loss, table.cell(self.progress.index, cell.held_out)) for cell in cells]
            merged = {each.index for each in self.progress.merges if each.merged}
            risen = [
                now - before.loss
                for now, before in pairs
                if now is not None and before is not None and before.loss is not None and before.held_out in merged
            ]
            if len(risen) < len(merged) or (risen and fmean(risen) > most):
                by = f"{fmean(risen):.3f}" if risen else "more than can be measured"
                return f"merging it raises the mean held-out loss of earlier runs by {by}, more than {most:g}"
        return ""

    def _left_out(self, current: _Current, reason: str, failed: bool = False) -> ev.MergeDone:
        return ev.MergeDone(
            index=current.index,
            run=current.directory.run_id,
            merged=False,
            reason=reason,
            failed=failed,
            count=len(self.progress.merged),
        )

    def _over(self, current: _Current, merge: ev.MergeDone, began: float) -> None:
        """A run is over and not merged: everything stays as it is, and its row of the table is the one before."""
        row = [each for each in self.progress.cells if each.after == self.progress.index and each.after]
        self._save(current, merge, began, [msgspec.structs.replace(each, after=current.index) for each in row])

    def _save(
        self,
        current: _Current,
        merge: ev.MergeDone,
        began: float,
        cells: list[ev.HeldOutScored],
        *,
        state: State | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        before, loaded = self.progress, current.loaded
        merge.seconds = time.monotonic() - began
        progress = msgspec.structs.replace(
            before,
            index=current.index,
            steps=self.taken,
            tokens=self.tokens,
            samples=self.samples,
            adapter=facts or before.adapter,
            merged=list(state.runs) if state else before.merged,
            scored=self.taken if state else before.scored,
            merges=[*before.merges, merge],
            cells=[*before.cells, *current.cells, *cells],
        )
        progress.over = current.index == self.runs or self._impatient(progress)
        self.emit(ev.PhaseChanged(phase="saving"))
        identity = self.checkpoint.manifest.identity if self.checkpoint else {}
        write = None
        if state is not None and loaded is not None:
            rows = hashlib.sha256((self.data / slices.INDEX).read_bytes()).hexdigest()
            identity = {
                "model": model_hashes(loaded.path),
                "tokens": rows,
                "config": settings_with_effect(current.config),
            }
            write = partial(self._write_adapters, current, progress.steps, state, identity)
        saved = self.store.save(progress, self.checkpoint, identity, state, write)
        took = time.monotonic() - began
        self.progress, self.checkpoint, self.state = progress, saved, state or self.state
        self.emit(
            ev.CheckpointSaved(
                step=saved.step,
                path=str(saved.path),
                seconds_blocked=took,
                bytes=saved.bytes,
                reason=saved.manifest.reason,
                seconds=took,
            )
        )
        for cell in cells:
            self.emit(msgspec.structs.replace(cell))
        self.emit(msgspec.structs.replace(merge))
        self._warn_of_forgetting()

    def _write_adapters(
        self, current: _Current, steps: int, state: State, identity: dict[str, Any], folder: Path
    ) -> None:
        assert current.loaded is not None
        for name, adapter in (("adapter-last", state.tuned), ("adapter", state.result)):
            put(current.loaded, adapter)
            save_result(
                current.loaded,
                folder / name,
                run_id=self.record.run_id,
                config=current.config,
                fingerprint=identity["tokens"],
                base=identity["model"],
                steps=steps,
            )

    def _impatient(self, progress: Progress) -> bool:
        """Whether the mean loss over all sets has not fallen for so many runs as the session waits for."""
        if self.multi.run_patience is None:
            return False
        table = Forgetting(cells=progress.cells)
        rows = [[each.loss for each in table.cells if each.after == row] for row in table.rows if row]
        means = [fmean(known) for row in rows if (known := [each for each in row if each is not None])]
        if not out_of_patience(means, self.multi.run_patience):
            return False
        message = f"no lower mean held-out loss in {self.multi.run_patience} runs: the session ends with this one"
        self.emit(ev.Warning(code="EARLY_STOPPING", message=message, hint=f"the lowest was {min(means):.4f}"))
        return True

    def _warn_of_forgetting(self) -> None:
        merged = [each.index for each in self.progress.merges if each.merged]
        risen = Forgetting(cells=self.progress.cells, learned=merged).averages(self.progress.index).backward
        if risen is not None and risen > FORGOTTEN and not self.multi.replay:
            message = f"the held-out loss of earlier runs has risen by {risen:.3f} since they were learned"
            hint = "a new session with --replay 0.125 shows each run some rows of those before it"
            self.emit(ev.Warning(code="FORGETTING", message=message, hint=hint))

    # The end.

    def _require_some(self) -> None:
        """Refuse to call it done where nothing came of it.

        Raises:
            TrainingError: all runs failed; it lists them.
        """
        failed = [each for each in self.progress.merges if each.failed]
        if failed and len(failed) == len(self.progress.merges):
            listed = "; ".join(f"run {each.index} ({each.run}): {each.reason}" for each in failed)
            raise TrainingError(
                f"all {len(failed)} runs failed: {listed}",
                hint="`backprop show-run RUN` shows one; put right what they say and start a new session",
            )

    def _finish(self, status: EndStatus) -> None:
        base, last = (evaluations.read(self.directory, step) for step in (0, self.progress.scored))
        known = status == "done" and base is not None and last is not None and self.progress.scored
        self.emit(
            ev.RunFinished(
                status=status,
                steps=self.taken,
                final_loss=self.last_loss,
                output_path=self.directory.result,
                duration_seconds=0.0,  # put in by whoever knows of earlier stretches
                samples_seen=self.samples,
                tokens_seen=self.tokens,
                verdict=compare(base.rows, last.rows) if known and base and last else None,
            )
        )

    def _keep(self, step: int, rows: list[EvaluatedRow]) -> None:
        """Keep what each row scored, for the verdict at the end."""
        found = Evaluation(source=self.record.run_id, step=step, rows=rows)
        try:
            evaluations.write(evaluations.step_file(self.directory, step), found)
        except OSError as error:
            message = f"the scores of step {step} row by row could not be kept: {error.strerror or error}"
            self.emit(ev.Warning(code="SCORES_NOT_KEPT", message=message))

    def _look(self) -> bool:
        """Take in what was asked while no run takes steps.

        Raises:
            _Stopped: the session is to end, in order.
            TrainingAbortedError: at once.
        """
        if self.steering.look():
            raise _Stopped
        return False


@torch.no_grad()
def put(loaded: Loaded, adapter: Adapter) -> None:
    """Give the model these factors."""
    weights = merging.parameters_of(adapter)
    for name, parameter in trained_parameters(loaded.model).items():
        parameter.copy_(weights[name])
