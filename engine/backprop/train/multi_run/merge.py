"""What becomes of a run of a session: merged, or kept out with the reason; scored, saved and told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from msgspec.structs import replace

from backprop.core import events as ev
from backprop.core.errors import SLAOMergeError
from backprop.core.events import Event, HeldOutScored, MergeDone
from backprop.core.files import sha256
from backprop.core.jobs import EvaluatedRow, Evaluation
from backprop.core.multi_run import FORGOTTEN, out_of_patience
from backprop.core.settings import MultiConfig, RunConfig, settings_with_effect
from backprop.data import slices
from backprop.runs import evaluations
from backprop.runs.checkpoints import Checkpoint
from backprop.runs.directory import RunDirectory
from backprop.runs.forgetting import Forgetting
from backprop.runs.model_files import model_hashes
from backprop.runs.record import RunRecord
from backprop.runs.state import read_run
from backprop.runs.verdict import compare
from backprop.train.checkpoint import trained_parameters
from backprop.train.model import Loaded
from backprop.train.multi_run import strategies as merging
from backprop.train.multi_run.held_out_sets import HeldOutSets
from backprop.train.multi_run.slao import Adapter, similarity, step_size
from backprop.train.multi_run.state import Progress, SessionStore, facts_of, require_same_adapter
from backprop.train.persistence.result import save_result

Counts = tuple[int, int, int]
"""Steps, tokens and samples of a session so far."""


class Merger:
    """Where a session stands, and how it goes on from run to run."""

    def __init__(
        self,
        directory: RunDirectory,
        record: RunRecord,
        runs: int,
        emit: Callable[[Event], None],
        look: Callable[[], bool],
    ) -> None:
        self.directory, self.record, self.runs, self.emit, self.look = directory, record, runs, emit, look
        self.multi = record.multi or MultiConfig()
        self.store = SessionStore(directory)
        self.checkpoint, self.progress, self.state = self.store.newest()
        self._sets: HeldOutSets | None = None
        self._base: list[HeldOutScored] = []
        """The row of the base model, until it is saved."""

    def tell_again(self) -> None:
        """Have the journal and the session's result say what the newest state says, whatever was lost between them."""
        self.store.publish(self.checkpoint)
        told = read_run(self.directory.path)
        known = {(each.after, each.held_out) for each in told.forgetting.cells}
        if any(each.index > self.progress.index for each in told.merges):
            self.emit(ev.Rewound(index=self.progress.index))
        self._tell([each for each in self.progress.cells if (each.after, each.held_out) not in known])
        self._tell(self.progress.merges[len(told.merges) :])

    def rewind(self, index: int) -> None:
        """Stand where the session stood after run ``index``."""
        self.store.rewind(index)
        self.checkpoint, self.progress, self.state = self.store.newest()
        self.store.publish(self.checkpoint)

    def start(self) -> str:
        """The folder with the weights that the next run starts from; empty for the usual start."""
        if self.state is None or self.checkpoint is None:
            return ""
        return str(self.store.write_start(self.checkpoint, merging.start(self.state, self.multi.merge_mode)))

    def check(self, loaded: Loaded, config: RunConfig) -> dict[str, Any]:
        """Refuse an adapter that could not be merged, before hours are spent; score the base model for the first row.

        Returns:
            What every run's adapter has in common.

        Raises:
            SLAOMergeError: another rank, scale or place than before, a rank above a layer's inputs, or something else
                is trained beside it.
        """
        facts, adapter = facts_of(loaded, config.mode), merging.adapter_of(trained_parameters(loaded.model))
        require_same_adapter(self.progress.adapter, facts)
        for layer, a in adapter.a.items():
            if len(a) > a.shape[1]:  # the next run could not begin
                what = f"{layer}: rank {len(a)} is more than the {a.shape[1]} inputs of the layer"
                raise SLAOMergeError(what, hint=f"--lora-r {a.shape[1]} is the most")
        if not self.progress.cells and not self._base:
            self.emit(ev.PhaseChanged(phase="evaluating", detail="the untouched model, on the rows of every run"))
            with loaded.mode.base_answers(loaded.model):
                self._base, rows = self._score(loaded, 0, self.runs)
            found = Evaluation(source=self.record.run_id, step=0, rows=rows)
            evaluations.write(evaluations.step_file(self.directory, 0), found)
            self._tell(self._base)
        return facts

    def merge(self, run_id: str, loaded: Loaded, config: RunConfig, counts: Counts) -> None:
        """Merge a run whose result ``loaded`` has, or keep it out; then write where the session stands."""
        began, index = time.monotonic(), self.progress.index + 1
        facts, tuned = self.check(loaded, config), merging.adapter_of(trained_parameters(loaded.model))
        self.emit(ev.PhaseChanged(phase="evaluating", detail=f"run {index} of {self.runs}, on the rows of every run"))
        try:
            new = merging.merge(self.state, tuned, run_id, self.multi, self.record.config.seed + index)
        except SLAOMergeError as error:  # it has diverged: its own fault alone
            self.leave_out(run_id, f"[{error.code}] {error.message}", counts, failed=True)
            return
        before = self.state.result if self.state else None
        own, _ = self._score(loaded, index, only=index)
        put(loaded, new.result)
        cells, rows = self._score(loaded, index, index)
        merge = MergeDone(
            index=index,
            run=run_id,
            merged=True,
            count=new.count,
            step_size=step_size(new.count) if self.multi.merge_mode == "slao" else None,
            moved=merging.moved(before, new.result),
            similarity=similarity(before, tuned) if before else None,
            loss=next((cell.loss for cell in cells if cell.held_out == index), None),
            tuned_loss=own[0].loss if own else None,
        )
        if reason := self._gate(merge.similarity, cells):
            self.leave_out(run_id, reason, counts, like=merge)
            return
        base = evaluations.read(self.directory, 0)
        progress = replace(self._counted(counts), adapter=facts, merged=list(new.runs))
        progress.verdict = compare(base.rows, rows) if base else None
        base_hashes, rows_hash = model_hashes(loaded.path), sha256(self.directory.path / "data" / slices.INDEX)
        identity = {"model": base_hashes, "tokens": rows_hash, "config": settings_with_effect(config)}

        def write(folder: Path) -> None:
            for name, adapter in (("adapter-last", new.tuned), ("adapter", new.result)):
                put(loaded, adapter)
                save_result(
                    loaded,
                    folder / name,
                    run_id=self.record.run_id,
                    config=config,
                    fingerprint=rows_hash,
                    base=base_hashes,
                    steps=progress.steps,
                )

        self._save(progress, merge, cells, began, lambda: self.store.save(progress, identity, new, write))
        self.state = new

    def leave_out(
        self, run_id: str, reason: str, counts: Counts, *, failed: bool = False, like: MergeDone | None = None
    ) -> None:
        """A run is over and not merged: everything stays as it is, and its row of the table is the one before.

        Args:
            like: what the merge would have been.
        """
        before = self.progress.index
        merge = replace(like or MergeDone(index=before + 1, run=run_id, merged=False), merged=False, reason=reason)
        merge.failed, merge.count, merge.step_size, merge.moved = failed, len(self.progress.merged), None, None
        row = [replace(each, after=before + 1) for each in self.progress.cells if each.after == before > 0]
        progress, began = self._counted(counts), time.monotonic()
        self._save(progress, merge, row, began, lambda: self.store.save_again(progress, self.checkpoint))

    def _counted(self, counts: Counts) -> Progress:
        steps, tokens, samples = counts
        return replace(self.progress, index=self.progress.index + 1, steps=steps, tokens=tokens, samples=samples)

    def _save(
        self,
        progress: Progress,
        merge: MergeDone,
        cells: list[HeldOutScored],
        began: float,
        save: Callable[[], Checkpoint],
    ) -> None:
        """Complete ``progress``, write it, and only then stand there."""
        self.emit(ev.PhaseChanged(phase="saving"))
        merge.seconds = time.monotonic() - began
        progress.merges = [*progress.merges, merge]
        progress.cells = [*progress.cells, *self._base, *cells]
        progress.over = merge.index == self.runs or self._impatient(progress.cells)
        self.checkpoint = saved = save()
        self.progress, self._base = progress, []
        took = time.monotonic() - began
        told = ev.CheckpointSaved(step=saved.step, path=str(saved.path), seconds_blocked=took, bytes=saved.bytes)
        self.emit(replace(told, reason=saved.manifest.reason, seconds=took))
        self._tell([*cells, merge])
        self._warn_of_forgetting()

    def _score(
        self, loaded: Loaded, after: int, answered: int = 0, only: int | None = None
    ) -> tuple[list[HeldOutScored], list[EvaluatedRow]]:
        if self._sets is None:
            self._sets = HeldOutSets(self.record, self.directory.path / "data", loaded.path, self.look)
        return self._sets.score(loaded, after, answered, only)

    def _gate(self, cosine: float | None, cells: list[HeldOutScored]) -> str:
        """Why a run is kept out of the merge; empty where it is not. The first is always merged."""
        least, most = self.multi.min_similarity, self.multi.max_forgetting
        if cosine is not None and least is not None and cosine < least:
            return f"the cosine of its update to what was merged before is {cosine:.3f}, below {least:g}"
        if self.state is None or most is None:
            return ""
        table, learned = self._table(), {each.index for each in self.progress.merges if each.merged}
        pairs = [(c.loss, table.cell(self.progress.index, c.held_out)) for c in cells if c.held_out in learned]
        risen = [now - old.loss for now, old in pairs if now is not None and old and old.loss is not None]
        if len(risen) == len(pairs) and (not risen or fmean(risen) <= most):
            return ""
        by = f"{fmean(risen):.3f}" if len(risen) == len(pairs) else "more than can be measured"
        return f"merging it raises the mean held-out loss of earlier runs by {by}, more than {most:g}"

    def _table(self) -> Forgetting:
        merged = [each.index for each in self.progress.merges if each.merged]
        return Forgetting(cells=self.progress.cells, learned=merged)

    def _impatient(self, cells: list[HeldOutScored]) -> bool:
        """Whether the mean loss over all sets has not fallen for so many runs as the session waits for."""
        patience, table = self.multi.run_patience, Forgetting(cells=cells)
        rows = [[each.loss for each in table.cells if each.after == row] for row in table.rows if row]
        means = [fmean(known) for row in rows if (known := [each for each in row if each is not None])]
        if patience is None or not out_of_patience(means, patience):
            return False
        message = f"no lower mean held-out loss in {patience} runs: the session ends with this one"
        self.emit(ev.Warning(code="EARLY_STOPPING", message=message, hint=f"the lowest was {min(means):.4f}"))
        return True

    def _warn_of_forgetting(self) -> None:
        risen = self._table().averages(self.progress.index).backward
        if risen is not None and risen > FORGOTTEN and not self.multi.replay:
            message = f"the held-out loss of earlier runs has risen by {risen:.3f} since they were learned"
            hint = "a new session with --replay 0.125 shows each run some rows of those before it"
            self.emit(ev.Warning(code="FORGETTING", message=message, hint=hint))

    def _tell(self, told: list[Any]) -> None:
        """Emit copies: those that are kept have no number of the journal's."""
        for each in told:
            self.emit(replace(each))


@torch.no_grad()
def put(loaded: Loaded, adapter: Adapter) -> None:
    """Give the model these factors."""
    weights = merging.parameters_of(adapter)
    for name, parameter in trained_parameters(loaded.model).items():
        parameter.copy_(weights[name])
