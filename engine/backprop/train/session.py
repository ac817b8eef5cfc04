"""One run's story, read from top to bottom: find the model, prepare the data, load, sample, train, save, sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from transformers import set_seed

from backprop.core import events
from backprop.core.events import BatchHalved, EndStatus, Event, PhaseChanged, RunFinished, Sample
from backprop.core.settings import RunConfig
from backprop.data import preprocess as tokens
from backprop.fetch.models import fetch_model
from backprop.hardware.thermal import Thresholds
from backprop.runs.checkpoints import Checkpoint, CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.retention import CheckpointPolicy
from backprop.train import generate
from backprop.train import model as models
from backprop.train.adapter import save_adapter
from backprop.train.callbacks import BetweenSteps
from backprop.train.checkpoint import load_weights, read_progress
from backprop.train.checkpointing import Saver
from backprop.train.dataset import Subset, divide, prepare
from backprop.train.evaluate import Evaluator
from backprop.train.gpu_guard import Guard
from backprop.train.identity import identity
from backprop.train.liveness import Liveness
from backprop.train.out_of_memory import MOST_HALVINGS, Recovery
from backprop.train.reporting import Reporter
from backprop.train.resume import Beginning, library_notes, require_same_identity
from backprop.train.steering import Commands, Steering
from backprop.train.trainer import Plan, StepTrainer, plan, rate_factor

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
    rows: tokens.Prepared
    trained: Subset
    held_out: Subset
    schedule: Plan
    loaded: models.Loaded
    who: dict[str, Any]
    """Its identity: what a checkpoint depends on."""
    sampler: Sampler
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
    reporter, sampler = parts.reporter, parts.sampler

    if start.config.sample_prompts and not start.checkpoint:
        emit(PhaseChanged(phase="sampling", detail="the untouched model"))
        with parts.loaded.model.disable_adapter():
            sampler.answer(0, tuned=False)

    steps = start.resumed_from or 0
    control.stepping = True
    with Guard(emit, parts.loaded.device, thresholds(start.config)) as guard:
        steering.guard = guard
        if not steering.settle(steps):
            steps = train(parts, guard)
        energy = guard.energy
    control.stepping = False

    if start.config.sample_prompts and steps:
        emit(PhaseChanged(phase="sampling", detail="the tuned model"))
        sampler.ended_early = lambda: False
        sampler.answer(steps)

    stop = steering.stop
    status: EndStatus = "done" if stop is None else "interrupted" if stop.by == "signal" else "stopped"
    emit(
        RunFinished(
            status=status,
            steps=steps,
            final_loss=reporter.last_loss,
            output_path=str(directory.adapter) if steps else "",
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
    rows = prepare(config, path, emit, steering.look)
    trained, held_out = divide(rows, config, path, emit, steering.look)
    schedule = plan(config, len(trained))

    emit(PhaseChanged(phase="loading_model"))
    loaded = models.load(config, path, emit)
    who = identity(config, path, loaded.tokenizer.chat_template, rows.key)
    if start.checkpoint:
        require_same_identity(start.checkpoint, who, extended=start.extended)
        for note in library_notes(start.checkpoint, who):
            emit(note)
    if start.weights:
        load_weights(start.weights, loaded.model)

    sampler = Sampler(config, loaded, emit)
    sampler.ended_early = steering.look
    steering.on_sample = sampler.answer
    reporter = Reporter(emit, schedule, loaded.device)
    return Parts(
        start=start,
        directory=directory,
        emit=emit,
        steering=steering,
        rows=rows,
        trained=trained,
        held_out=held_out,
        schedule=schedule,
        loaded=loaded,
        who=who,
        sampler=sampler,
        reporter=reporter,
    )


def train(parts: Parts, guard: Guard) -> int:
    """Take the steps, then save the last checkpoint and the adapter; the number of steps taken."""
    start, directory, emit, steering = parts.start, parts.directory, parts.emit, parts.steering
    emit(PhaseChanged(phase="training"))
    set_seed(parts.config.seed)
    trainer = StepTrainer(
        parts.loaded,
        parts.config,
        parts.trained,
        parts.schedule,
        directory.path,
        between_passes=steering.look,
        on_halved=lambda error: emit(halved(trainer, error)),
    )
    for text in trainer.notes:
        emit(events.Warning(code="SLOWER_PATH", message=text))
    between = between_steps(parts, trainer, guard)
    restore_progress(start, between, guard)
    trainer.add_callback(between)
    with closing(between.saver):
        between.saver.require_space()
        steering.on_checkpoint = lambda step: between.saver.save(step, "requested")
        parts.reporter.start_clock()
        trainer.train(resume_from_checkpoint=str(start.checkpoint.path) if start.checkpoint else None)
        steps = trainer.state.global_step
        emit(PhaseChanged(phase="saving"))
        between.saver.finish(steps, "final" if steering.stop is None else "stopped")
    save_adapter(
        parts.loaded,
        directory.adapter,
        run_id=directory.run_id,
        config=parts.config,
        data_key=parts.rows.key,
        steps=steps,
    )
    return steps


def thresholds(config: RunConfig) -> Thresholds:
    """Pause at the temperature that the person set; the other levels keep their distance from it."""
    pause = config.gpu_max_temp
    return Thresholds(warm=pause - 20, warning=pause - 10, critical=pause, emergency=pause + 5)


def halved(trainer: StepTrainer, error: BaseException) -> BatchHalved:
    size = trainer.spread.batch_size
    return BatchHalved(
        step=trainer.state.global_step + 1,
        batch_size=size,
        gradient_accumulation=-(-trainer.schedule.rows_per_step // size),
        message=str(error).splitlines()[0],
    )


def between_steps(parts: Parts, trainer: StepTrainer, guard: Guard) -> BetweenSteps:
    """The callback that evaluates, saves and obeys, with all that it needs.

    The checkpoint that the run goes on from is kept.
    """
    config, directory, emit, reporter = parts.config, parts.directory, parts.emit, parts.reporter
    evaluator = Evaluator(parts.loaded, parts.held_out, trainer.spread, plain_head=trainer.plain_head)
    evaluation_recovery = Recovery(most=MOST_HALVINGS if config.oom_recovery else 0)

    def progress() -> dict[str, Any]:
        return {
            "tokens_seen": reporter.tokens_seen,
            "samples_seen": reporter.samples_seen,
            "batch_size": trainer.spread.batch_size,
            "capacity": trainer.spread.capacity,
            "eval_batch_size": evaluator.spread.batch_size,
            "eval_capacity": evaluator.spread.capacity,
            "halvings": trainer.recovery.halvings,
            "best": evaluator.best,
            "since_best": evaluator.since_best,
            "energy": guard.energy,
        }

    saver = Saver(
        CheckpointStore(directory.checkpoints, directory.run_id),
        emit,
        trainer,
        parts.who,
        progress,
        every_steps=config.save_steps,
        every_minutes=config.save_minutes,
        policy=CheckpointPolicy(keep_best_n=config.keep_best, keep_last=2),
        in_use=[parts.start.checkpoint.step] if parts.start.checkpoint else [],
    )
    return BetweenSteps(
        emit=emit,
        trainer=trainer,
        reporter=reporter,
        steering=parts.steering,
        liveness=Liveness(parts.loaded.model),
        saver=saver,
        evaluator=evaluator,
        eval_recovery=evaluation_recovery,
        eval_steps=config.eval_steps or steps_between_evaluations(config, parts.schedule.steps, len(parts.held_out)),
        patience=config.early_stopping,
        sample=parts.sampler.answer,
    )


def steps_between_evaluations(config: RunConfig, steps: int, held_out: int) -> int:
    """Ten evaluations over the run, fewer where one would take more rows than were trained since the last."""
    rows_of_a_step = config.batch_size * config.gradient_accumulation
    return max(1, steps // EVALUATIONS, -(-held_out // rows_of_a_step))


def new_curve(checkpoint: Checkpoint, config: RunConfig, schedule: Plan) -> events.Warning:
    """What a new end does to the learning rate."""
    old = checkpoint.manifest.identity["config"]["steps"]
    factor = rate_factor(checkpoint.step, schedule.steps, schedule.warmup_steps, config.scheduler)
    return events.Warning(
        code="SCHEDULE_CHANGED",
        message=f"new end: {schedule.steps} steps"
        + (f" instead of {old}" if old else "")
        + f"; the learning rate goes on at {config.learning_rate * factor:.2e} on a {config.scheduler} curve to there",
    )


def restore_progress(start: Beginning, between: BetweenSteps, guard: Guard) -> None:
    """Put back what an earlier stretch of the run had come to; weights and optimizer are the trainer's business."""
    if start.checkpoint is None:
        return
    _, saved = read_progress(start.checkpoint.path)
    between.reporter.tokens_seen, between.reporter.samples_seen = saved["tokens_seen"], saved["samples_seen"]
    between.trainer.spread = between.trainer.spread.with_size(saved["batch_size"], saved["capacity"])
    between.evaluator.spread = between.evaluator.spread.with_size(saved["eval_batch_size"], saved["eval_capacity"])
    between.trainer.recovery.halvings = saved["halvings"]
    between.evaluator.best, between.evaluator.since_best = saved["best"], saved["since_best"]
    between.trainer.recompute_schedule = start.extended
    if start.extended:
        between.emit(new_curve(start.checkpoint, start.config, between.trainer.schedule))
    guard.earlier_energy = saved["energy"]


class Sampler:
    """Answers the configured prompts with the model as it is.

    ``ended_early`` is asked with every piece of text: the rest of the answers is left out once it says yes.
    """

    def __init__(self, config: RunConfig, loaded: models.Loaded, emit: Emit) -> None:
        self._config = config
        self._loaded = loaded
        self._emit = emit
        self.ended_early: Callable[[], bool] = lambda: False

    def answer(self, step: int, *, tuned: bool = True) -> None:
        for prompt in self._config.sample_prompts:
            text = generate.generate(
                self._loaded.model,
                self._loaded.chat,
                prompt,
                self._config.sample_tokens,
                stop_when=self.ended_early,
            )
            if self.ended_early():
                return
            self._emit(Sample(step=step, prompt=prompt, text=text, tuned=tuned))
