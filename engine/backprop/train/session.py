"""One run's story, read from top to bottom: find the model, prepare the data, load, sample, train, save, sample."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backprop.core import events
from backprop.core.events import BatchHalved, EndStatus, Event, PhaseChanged, RunFinished, Sample
from backprop.core.settings import RunConfig
from backprop.fetch.models import fetch_model
from backprop.hardware.thermal import Thresholds
from backprop.runs.checkpoints import Checkpoint, CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.retention import CheckpointPolicy
from backprop.train import model as models
from backprop.train.adapter import save_adapter
from backprop.train.callbacks import Callbacks, Reporter
from backprop.train.checkpoint import load_weights
from backprop.train.checkpointing import Saver
from backprop.train.dataset import Subset, prepare
from backprop.train.evaluate import Evaluator
from backprop.train.generate import generate
from backprop.train.gpu_guard import Guard
from backprop.train.methods import METHODS
from backprop.train.out_of_memory import MOST_HALVINGS, Recovery
from backprop.train.packing import Batching
from backprop.train.resume import Beginning, fork_notes, identity, require_same_identity
from backprop.train.steering import Commands, Steering
from backprop.train.trainer import Schedule, StepLoop

Emit = Callable[[Event], None]
EVALUATIONS = 10
"""Evaluations over a run whose configuration does not say how often."""


@dataclass
class Parts:
    """What a run works with, once it is loaded."""

    start: Beginning
    directory: RunDirectory
    emit: Emit
    steering: Steering
    trained: Subset
    held_out: Subset
    loaded: models.Loaded
    who: dict[str, Any]
    """Its identity: what a checkpoint depends on."""
    sampler: Sampler
    schedule: Schedule
    reporter: Reporter

    @property
    def config(self) -> RunConfig:
        """As resolved."""
        return self.start.config


def run(start: Beginning, directory: RunDirectory, emit: Emit, control: Commands) -> EndStatus:
    """Do one training run and emit all that happens, ``run_finished`` last; how it ended.

    ``run_started`` before it, and ``run_failed`` for whatever it raises, are the caller's.
    """
    began = time.monotonic()
    torch.set_grad_enabled(True)
    models.use_all_cores()
    steering = Steering(control, emit)
    parts = load(start, directory, emit, steering)
    loaded, reporter, sampler = parts.loaded, parts.reporter, parts.sampler

    if start.config.sample_prompts and not start.checkpoint:
        emit(PhaseChanged(phase="sampling", detail="the untouched model"))
        with loaded.mode.base_answers(loaded.model):
            sampler.answer(0, tuned=False)

    steps, tuned = start.resumed_from or 0, 0
    control.stepping = True
    with Guard(emit, loaded.device, thresholds(start.config)) as guard:
        steering.guard = guard
        if not steering.settle(steps):
            steps, tuned = train(parts, guard)
        energy = guard.energy
    control.stepping = False

    if start.config.sample_prompts and tuned:
        emit(PhaseChanged(phase="sampling", detail="the tuned model"))
        sampler.ended_early = lambda: False
        sampler.answer(tuned)

    stop = steering.stop
    status: EndStatus = "done" if stop is None else "interrupted" if stop.by == "signal" else "stopped"
    emit(
        RunFinished(
            status=status,
            steps=steps,
            final_loss=reporter.last_loss,
            output_path=directory.result,
            duration_seconds=time.monotonic() - began,
            samples_seen=reporter.samples_seen,
            tokens_seen=reporter.tokens_seen,
            energy=energy,
        )
    )
    return status


def load(start: Beginning, directory: RunDirectory, emit: Emit, steering: Steering) -> Parts:
    """Find the model, prepare the rows, load. A continued run is refused here if something is not as it was."""
    config = start.config
    emit(PhaseChanged(phase="loading_model", detail="looking for its files"))
    path = fetch_model(config.model, emit)

    emit(PhaseChanged(phase="preparing_data"))
    rows, trained, held_out = prepare(config, path, emit, steering.look)

    emit(PhaseChanged(phase="loading_model"))
    loaded = models.load(config, path, emit)
    who = identity(config, path, rows.fingerprint, held_out.fingerprint)
    if start.checkpoint:
        for note in require_same_identity(start.checkpoint, who, rows, directory, extended=start.extended):
            emit(note)
    if start.weights:
        load_weights(start.weights, loaded.model)
        for note in fork_notes(start.weights, who):
            emit(note)

    sampler = Sampler(config, loaded, emit)
    sampler.ended_early = steering.look
    steering.on_sample = sampler.answer
    schedule = Schedule.of(config, len(trained))
    return Parts(
        start=start,
        directory=directory,
        emit=emit,
        steering=steering,
        trained=trained,
        held_out=held_out,
        loaded=loaded,
        who=who,
        sampler=sampler,
        schedule=schedule,
        reporter=Reporter(emit, schedule, loaded.device),
    )


def train(parts: Parts, guard: Guard) -> tuple[int, int]:
    """Take the steps, then save the last checkpoint and the adapter.

    Returns:
        The number of steps taken, and the step whose weights are the result, which the model then has: the last, or
        the best of a run that stopped early.
    """
    start, config, directory, emit, steering = parts.start, parts.config, parts.directory, parts.emit, parts.steering
    emit(PhaseChanged(phase="training"))
    method = METHODS["sft"](parts.loaded.model)
    loop = StepLoop(
        parts.loaded,
        method,
        config,
        parts.trained,
        parts.schedule,
        between=steering.look,
        on_halved=lambda error: emit(halved(loop, error)),
    )
    for text in loop.notes:
        emit(events.Warning(code="SLOWER_PATH", message=text))
    recovery = Recovery(most=MOST_HALVINGS if config.oom_recovery else 0)
    callbacks = Callbacks(
        emit,
        loop,
        parts.reporter,
        steering=steering,
        guard=guard,
        evaluator=Evaluator(
            parts.loaded,
            method,
            parts.held_out,
            loop.batching,
            recovery=recovery,
            on_halved=lambda step, batching, error: emit(halved_evaluation(step, batching, error)),
        ),
        eval_steps=config.eval_steps or steps_between_evaluations(config, parts.schedule.steps, len(parts.held_out)),
        patience=config.early_stopping,
        sample=parts.sampler.answer,
    )
    if start.checkpoint:
        progress = loop.restore(start.checkpoint.path, new_end=start.extended)
        callbacks.restore(progress, new_end=start.extended)
        if start.extended:
            emit(new_curve(start.checkpoint, config, parts.schedule))
    store = CheckpointStore(directory.checkpoints, directory.run_id)
    saver = callbacks.saver = Saver(
        store,
        emit,
        lambda: loop.snapshot(callbacks.progress()),
        parts.who,
        every_steps=config.save_steps,
        every_minutes=config.save_minutes,
        policy=CheckpointPolicy(keep_best_n=config.keep_best, keep_last=2),
        in_use=[start.checkpoint.step] if start.checkpoint else [],
    )
    with closing(saver):
        saver.require_space(parts.loaded.model)
        steering.on_checkpoint = lambda step: saver.save(step, "requested")
        goes_on = callbacks.begin()
        parts.reporter.start_clock()
        steps = loop.run(callbacks.after_step) if goes_on else loop.step
        emit(PhaseChanged(phase="saving"))
        saver.finish(steps, "final" if steering.stop is None else "stopped")
    best = store.best(steps) if callbacks.stopped_early else None
    if best is None or best.step == steps:
        save_result(parts, directory.adapter, steps)
        shutil.rmtree(directory.last_adapter, ignore_errors=True)
        return steps, steps
    save_result(parts, directory.last_adapter, steps)
    load_weights(best.path, parts.loaded.model)
    save_result(parts, directory.adapter, best.step)
    emit(result_is_best(best, steps, directory))
    return steps, best.step


def save_result(parts: Parts, target: Path, step: int) -> None:
    """Write what the model is after ``step`` steps into ``target``.

    Raises:
        TrainingError: it cannot be written.
    """
    save_adapter(
        parts.loaded,
        target,
        run_id=parts.directory.run_id,
        config=parts.config,
        fingerprint=parts.who["tokens"],
        steps=step,
    )


def result_is_best(best: Checkpoint, last: int, directory: RunDirectory) -> events.Warning:
    """Which step's adapter is the result of a run that stopped early, and where the last one is."""
    return events.Warning(
        code="RESULT_IS_BEST",
        message=f"the result is the adapter of step {best.step}, the checkpoint with the lowest held-out loss "
        f"({best.val_loss:.4f}): {directory.adapter}",
        hint=f"that of the last step, {last}, is kept in {directory.last_adapter}",
    )


def thresholds(config: RunConfig) -> Thresholds:
    """Pause at the temperature that the person set; the other levels keep their distance from it."""
    pause = config.gpu_max_temp
    return Thresholds(warm=pause - 20, warning=pause - 10, critical=pause, emergency=pause + 5)


def halved(loop: StepLoop, error: BaseException) -> BatchHalved:
    size = loop.batching.batch_size
    return BatchHalved(
        step=loop.step + 1,
        batch_size=size,
        gradient_accumulation=-(-loop.schedule.rows_per_step // size),
        message=str(error).splitlines()[0],
    )


def halved_evaluation(step: int, batching: Batching, error: BaseException) -> BatchHalved:
    return BatchHalved(
        step=step,
        batch_size=batching.batch_size,
        gradient_accumulation=1,
        message=str(error).splitlines()[0],
        where="evaluation",
    )


def steps_between_evaluations(config: RunConfig, steps: int, held_out: int) -> int:
    """Ten evaluations over the run, fewer where one would take more rows than were trained since the last."""
    assert config.batch_size != "auto"
    rows_of_a_step = config.batch_size * config.gradient_accumulation
    return max(1, steps // EVALUATIONS, -(-held_out // rows_of_a_step))


def new_curve(checkpoint: Checkpoint, config: RunConfig, schedule: Schedule) -> events.Warning:
    """What a new end does to the learning rate."""
    old = checkpoint.manifest.identity["config"]["steps"]
    rate = config.learning_rate * schedule.factor(checkpoint.step)
    return events.Warning(
        code="SCHEDULE_CHANGED",
        message=f"new end: {schedule.steps} steps"
        + (f" instead of {old}" if old else "")
        + f"; the learning rate goes on at {rate:.2e} on a {config.scheduler} curve to there",
    )


class Sampler:
    """Answers the configured prompts with the model as it is.

    ``ended_early`` is asked with every piece of text: the rest of the answers is left out once it says yes.
    """

    def __init__(self, config: RunConfig, loaded: models.Loaded, emit: Emit) -> None:
        self._config = config
        self._loaded = loaded
        self._emit = emit
        self.ended_early: Callable[[], bool] = lambda: False

    def answer(self, step: int, *, tuned: bool = True) -> bool:
        """Answer the prompts after ``step`` steps; whether all of them were."""
        for prompt in self._config.sample_prompts:
            text = generate(
                self._loaded.model,
                self._loaded.chat,
                prompt,
                self._config.sample_tokens,
                stop_when=self.ended_early,
            )
            if self.ended_early():
                return False
            self._emit(Sample(step=step, prompt=prompt, text=text, tuned=tuned))
        return True
