"""One run's story, read from top to bottom: find the model, prepare the data, load, sample, train, save, sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, set_seed

from backprop.core import events
from backprop.core.errors import DatasetValidationError
from backprop.core.events import Event, PhaseChanged, RunFinished, Sample
from backprop.core.settings import RunConfig
from backprop.data import tokens
from backprop.runs.directory import RunDirectory
from backprop.train import model as models
from backprop.train import sampling
from backprop.train.liveness import Liveness
from backprop.train.objectives import StepTrainer, plan
from backprop.train.reporting import Reporter
from backprop.train.result import save_adapter
from backprop.train.steering import Commands, Steering

Emit = Callable[[Event], None]
PROGRESS_SECONDS = 0.5


def run(config: RunConfig, directory: RunDirectory, emit: Emit, control: Commands) -> None:
    """Do one training run and emit all that happens, ``run_finished`` last.

    ``run_started`` before it, and ``run_failed`` for whatever it raises, are the caller's.
    """
    began = time.monotonic()
    torch.set_grad_enabled(True)
    models.use_all_cores()
    steering = Steering(control, emit)

    emit(PhaseChanged(phase="loading_model", detail="looking for its files"))
    path = models.find(config.model, emit)

    emit(PhaseChanged(phase="preparing_data"))
    rows = prepare(config, path, emit, steering.look)
    schedule = plan(config, len(rows))

    emit(PhaseChanged(phase="loading_model"))
    loaded = models.load(config, path, emit)

    reporter = Reporter(emit, schedule, loaded.device)
    sampler = Sampler(config, loaded, emit)
    steering.on_sample = sampler.answer
    sampler.ended_early = steering.look

    if config.sample_prompts:
        emit(PhaseChanged(phase="sampling", detail="the untouched model"))
        with loaded.model.disable_adapter():
            sampler.answer(0, tuned=False)

    steps = 0
    control.stepping = True
    if not steering.settle(0):
        emit(PhaseChanged(phase="training"))
        set_seed(config.seed)
        trainer = StepTrainer(loaded, config, rows, schedule, directory.path, between_passes=steering.look)
        for note in trainer.notes:
            emit(events.Warning(code="SLOWER_PATH", message=note))
        trainer.add_callback(_BetweenSteps(trainer, reporter, steering, Liveness(loaded.model)))
        reporter.start_clock()
        trainer.train()
        steps = trainer.state.global_step

        emit(PhaseChanged(phase="saving"))
        save_adapter(loaded, directory.adapter, run_id=directory.run_id, config=config, data_key=rows.key, steps=steps)
    control.stepping = False

    if config.sample_prompts and steps:
        emit(PhaseChanged(phase="sampling", detail="the tuned model"))
        sampler.ended_early = lambda: False
        sampler.answer(steps)

    stop = steering.stop
    emit(
        RunFinished(
            status="done" if stop is None else "interrupted" if stop.by == "signal" else "stopped",
            steps=steps,
            final_loss=reporter.last_loss,
            output_path=str(directory.adapter) if steps else "",
            duration_seconds=time.monotonic() - began,
            samples_seen=reporter.samples_seen,
            tokens_seen=reporter.tokens_seen,
        )
    )


def prepare(config: RunConfig, model_path: Path, emit: Emit, look: Callable[[], bool]) -> tokens.Prepared:
    """The tokenised rows, after ``dataset_prepared`` has said what was kept and what was not.

    Raises:
        DatasetValidationError: some rows would train nothing and ``skip_bad`` is off; it names the first of them.
        DatasetError, ModelLoadError: as ``tokens.prepare``.
    """
    length = config.max_seq_length
    fits = models.context_length(model_path)
    if fits is not None and length > fits:
        emit(events.Warning(code="CONTEXT_SHORTER", message=f"the model reads at most {fits} tokens of a row"))
        length = fits
    said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        look()
        if time.monotonic() - said > PROGRESS_SECONDS:
            said = time.monotonic()
            emit(PhaseChanged(phase="preparing_data", detail=f"{100 * done // max(1, total)} %"))

    rows = tokens.prepare(
        config.data,
        model_path,
        max_length=length,
        train_on_responses=config.train_on_responses,
        mapping=config.mapping or None,
        samples=config.samples,
        progress=progress,
    )
    summary = rows.summary
    emit(summary)
    if (bad := summary.dropped + summary.answer_lost) and not config.skip_bad:
        shown = [problem for problem in summary.problems if problem.severity == "error"][:3]
        raise DatasetValidationError(
            f"{summary.path}: {bad} of {summary.rows} rows would train nothing; "
            + "; ".join(f"line {problem.line}: {problem.message}" for problem in shown),
            hint="train on the others with --skip-bad, or repair them: `backprop validate` lists them all",
            details={"path": summary.path, "rows": bad, "lines": [problem.line for problem in shown]},
        )
    return rows


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
            text = sampling.generate(
                self._loaded.model,
                self._loaded.chat,
                prompt,
                self._config.sample_tokens,
                stop_when=self.ended_early,
            )
            if self.ended_early():
                return
            self._emit(Sample(step=step, prompt=prompt, text=text, tuned=tuned))


class _BetweenSteps(TrainerCallback):
    """After each optimizer step: report it, see that it learned, do what was asked."""

    def __init__(self, trainer: StepTrainer, reporter: Reporter, steering: Steering, liveness: Liveness) -> None:
        self._trainer = trainer
        self._reporter = reporter
        self._steering = steering
        self._liveness = liveness

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        measured = self._trainer.measured
        self._reporter.step(state.global_step, measured)
        self._liveness.check(state.global_step, measured)
        if self._steering.settle(state.global_step):
            control.should_training_stop = True
        self._reporter.start_clock()
        return control
