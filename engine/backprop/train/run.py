"""One run's story, read from top to bottom: find the model, prepare the data, load, sample, train, save, sample."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from importlib.util import find_spec

import msgspec
import torch

from backprop.core import events, rules
from backprop.core.events import BATCH_SETTLED, BatchHalved, EndStatus, Event, PhaseChanged, RunFinished, Sample
from backprop.core.jobs import Sampling
from backprop.core.methods import METHODS
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.fetch.models import fetch_model
from backprop.hardware.thermal import thresholds
from backprop.runs.checkpoints import REQUESTED, Checkpoint, CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.retention import CheckpointPolicy
from backprop.train import ahead
from backprop.train import model as models
from backprop.train.baseline import Baseline
from backprop.train.batch_probe import card_of, settle
from backprop.train.callbacks import Callbacks, Reporter
from backprop.train.checkpoint import load_weights
from backprop.train.dataset import Subset, prepare_run
from backprop.train.evaluate import Evaluator
from backprop.train.generate import on_texts, reply
from backprop.train.gpu_guard import Guard
from backprop.train.methods import Method, method_named
from backprop.train.optimizers import require_optimizer
from backprop.train.out_of_memory import Recovery
from backprop.train.packing import Batching, epoch_order
from backprop.train.persistence.checkpointing import Saver, expected_bytes
from backprop.train.persistence.output import Output
from backprop.train.persistence.replay import keep_source, require_same_source
from backprop.train.persistence.result import save_result
from backprop.train.persistence.resume import Beginning, fork_notes, identity, require_same_identity
from backprop.train.ranks import Leader, Ranks
from backprop.train.reference import Scorer, fingerprint, name_of
from backprop.train.steering import Steering
from backprop.train.trainer import StepLoop
from backprop.worker.commands import Control

Emit = Callable[[Event], None]
EVALUATIONS = 10
"""Evaluations over a run whose configuration does not say how often."""


class Run:
    """One stretch of a run, with all that it works with."""

    def __init__(self, start: Beginning, directory: RunDirectory, emit: Emit, control: Control) -> None:
        self.start = start
        self.config = start.config
        self.directory = directory
        self.emit = emit
        self.control = control
        self.steering = Steering(control, emit)
        self.ranks: Ranks | None = None
        self.verdict: events.Verdict | None = None
        self.on_loaded: Callable[[models.Loaded], object] = lambda loaded: None
        """Called with the model before the first step of a stretch, with the weights that it starts with."""
        self.output = Output(directory, self.config, self.steering)

    def run(self) -> EndStatus:
        """Train and emit all that happens, ``run_finished`` last; how it ended.

        ``run_started`` before it, and ``run_failed`` for whatever it raises, are the caller's.
        """
        if self.config.processes == 1:
            return self._run()
        with Leader(self.config.processes, self.control.give_up) as self.ranks:
            return self._run()

    def _run(self) -> EndStatus:
        began = time.monotonic()
        torch.set_grad_enabled(True)
        models.use_all_cores(self.config.processes)
        self.load()
        self.on_loaded(self.loaded)
        if isinstance(self.ranks, Leader):
            self.assign(self.ranks)
        if not self.start.checkpoint:
            forked = self.start.weights and self.config.mode == "full"  # whose base is not in memory any more
            self.sample(0, "the weights it was forked from" if forked else "the untouched model", tuned=False)

        steps, tuned = self.start.resumed_from or 0, 0
        self.control.stepping = True
        with Guard(self.emit, self.loaded.device, thresholds(self.config), cards=self.config.processes) as guard:
            self.steering.guard = guard
            if not self.steering.settle(steps):
                steps, tuned = self.train(guard)
            energy = guard.energy
        self.control.stepping = False

        if tuned:
            self.sample(tuned, "the tuned model")
        stop = self.steering.stop
        status: EndStatus = "done" if stop is None else "interrupted" if stop.by == "signal" else "stopped"
        self.emit(
            RunFinished(
                status=status,
                steps=steps,
                final_loss=self.reporter.last_loss,
                output_path=self.directory.result,
                duration_seconds=time.monotonic() - began,
                samples_seen=self.reporter.samples_seen,
                tokens_seen=self.reporter.tokens_seen,
                energy=energy,
                verdict=self.verdict,
            )
        )
        return status

    def assign(self, ranks: Leader) -> None:
        """Have the other ranks load what was loaded here."""
        checkpoint, now = self.start.checkpoint, self.start.now
        ranks.assign(
            directory=str(self.directory.path),
            config=self.config,
            prepared=self.start.config,
            checkpoint=str(checkpoint.path) if checkpoint else None,
            extended=self.start.extended,
            now=now.timestamp() if now else None,
            split=self.start.split,
        )

    def follow(self, ranks: Ranks) -> None:
        """Be a rank other than 0: load, then take the steps that rank 0 begins, until it ends this process."""
        self.ranks = ranks
        models.use_all_cores(self.config.processes)
        self.load()
        self.train(Guard(self.emit, self.loaded.device, thresholds(self.config)))

    def load(self) -> None:
        """Find the model, prepare the rows, load. A continued run is refused here if something is not as it was."""
        config, start, emit = self.config, self.start, self.emit
        require_optimizer(config, models.choose_device(config.backend))
        if config.use_unsloth and find_spec("unsloth") is not None:
            message = "Unsloth is installed and not used: it changes transformers for the whole process, and masks, "
            message += "packing and exact resume are this program's own"
            emit(events.Warning(code="UNSLOTH_NOT_USED", message=message, hint="--no-unsloth leaves this line out"))
        emit(PhaseChanged(phase="loading_model", detail="looking for its files"))
        path = fetch_model(config.model, emit)

        emit(PhaseChanged(phase="preparing_data"))
        recorded = self.directory.read_record().config
        planned = prepare_run(
            config,
            path,
            emit,
            self.steering.look,
            asked=recorded,
            prepared=start.prepared,
            split=start.split,
            now=start.now,
        )
        config, rows = planned.config, planned.rows
        self.config = config
        self.trained, self.held_out, self.evaluated = planned.trained, planned.held_out, planned.evaluated
        self.schedule, self.as_text = planned.schedule, on_texts(rows.summary)

        held_out = self.held_out.fingerprint
        self.identity = identity(config, path, rows.fingerprint, held_out, start.split, hashes=start.model_hashes)
        for note in require_same_source(start.replays, self.identity, rows) if start.replays else ():
            emit(note)
        emit(PhaseChanged(phase="loading_model"))
        self.loaded = ahead.load(config, path, emit, start.now)
        for each in (rows, self.held_out.rows):
            models.require_known_tokens(self.loaded.model, each.ids, self.loaded.chat)
        unlearned = models.untrained_tokens(self.loaded.model, rows.ids, self.loaded.chat)
        if unlearned and config.mode != "full":
            message = (
                f"the model never learned {', '.join(unlearned)}, which the rows are written with: the embeddings "
            )
            message += "are empty, and adapters do not change them"
            hint = "use the instruct version of the model, or a chat template without these tokens"
            emit(events.Warning(code="TOKENS_UNTRAINED", message=message, hint=hint))
        if METHODS[config.method].reference:
            self.compare_with_untouched()
        if start.checkpoint:
            notes = require_same_identity(
                start.checkpoint, self.identity, rows, self.directory, extended=start.extended
            )
            for note in notes:
                emit(note)
        if start.weights:
            load_weights(start.weights, self.loaded.model, any_dtype=True)
            for note in fork_notes(start.weights, self.identity, self.directory.read_record().forked_from):
                emit(note)
        keep_source(self.directory, self.identity, rows, self.held_out.rows)
        if recorded.model != config.model:
            self.directory.update_record(config=msgspec.structs.replace(recorded, model=config.model))
        if not start.checkpoint:
            for note in rules.without_effect(
                config, self.schedule.steps, len(self.trained), len(self.held_out), len(self.evaluated)
            ):
                emit(note)
        self.reporter = Reporter(emit, self.schedule, self.loaded, self.config.learning_rate or 0.0)
        self.steering.on_sample = self.answer

    def compare_with_untouched(self) -> None:
        """Give the rows that will be taken what the untouched model makes of them, which becomes part of the identity.

        Nothing is changed where somebody asks the run to end meanwhile: it ends before its first step.
        """
        emit, schedule = self.emit, self.schedule
        emit(PhaseChanged(phase="reference"))
        scorer = Scorer(
            self.loaded,
            self.config,
            name_of(self.loaded, self.config, self.identity["model"]),
            look=self.steering.look,
            on_halved=lambda batching, error: emit(halved(0, batching, error)),
            on_progress=lambda done, total: emit(PhaseChanged(phase="reference", detail=f"{100 * done // total} %")),
        )
        # All rows of an epoch, or the first ones of a shorter run: later epochs have the same in another order.
        order = epoch_order(len(self.trained), self.config.seed, 0)
        taken, evaluated = min(len(order), schedule.steps * schedule.rows_per_step), range(len(self.evaluated))
        trained = scorer.attach(self.trained, order, taken)
        held_out: Subset | None = self.evaluated
        if trained and evaluated:
            held_out = scorer.attach(self.evaluated, evaluated, len(evaluated))
        if trained is None or held_out is None:
            return
        self.identity["reference"] = fingerprint(trained, order, taken) + fingerprint(
            held_out, evaluated, len(evaluated)
        )
        self.trained, self.evaluated = trained, held_out

    def train(self, guard: Guard) -> tuple[int, int]:
        """Take the steps, then save the last checkpoint and the result.

        Returns:
            The number of steps taken, and the step whose weights are the result, which the model then has: the last,
            or the best of a run that stopped early.
        """
        config, emit, steering = self.config, self.emit, self.steering
        emit(PhaseChanged(phase="training"))
        method = method_named(config.method)(config, self.trained)
        loop = StepLoop(
            self.loaded,
            method,
            config,
            self.trained,
            self.schedule,
            between=steering.look,
            on_halved=lambda error: emit(halved(loop.step + 1, loop.batching, error, self.schedule.rows_per_step)),
            ranks=self.ranks,
        )
        for text in loop.notes:
            emit(events.Warning(code="SLOWER_PATH", message=text))
        for text in method.notes:
            emit(events.Warning(code="ROWS_WEIGHTED", message=text))
        if self.start.open_batch:
            self.settle_batch(loop)
        baseline = Baseline(
            self.start, config, self.directory, self.loaded, evaluated=self.evaluated, steering=steering
        )
        callbacks = self.callbacks_of(loop, method, guard, baseline)
        checkpoint = self.start.checkpoint
        if checkpoint:
            progress = loop.restore(checkpoint.path, new_end=self.start.extended)
            callbacks.restore(progress, new_end=self.start.extended)
            if self.start.extended:
                emit(new_curve(checkpoint, config, self.schedule))
        if self.ranks is not None:
            self.ranks.join(self.loaded.device, self.loaded.model)
            if self.ranks.rank:
                return loop.run(lambda step: False), loop.step
        store = CheckpointStore(self.directory.checkpoints, self.directory.run_id)
        with closing(self.saver_of(loop, callbacks, store)) as saver:
            saver.require_space(expected_bytes(self.loaded.model, config))
            steering.on_checkpoint = lambda step: saver.save(step, REQUESTED)
            baseline.score(callbacks.evaluator)
            goes_on = callbacks.begin()
            self.reporter.start_clock()
            steps = loop.run(callbacks.after_step) if goes_on else loop.step
            emit(PhaseChanged(phase="saving"))
            self.output.require_place(steps, saver)
            finish = partial(saver.finish, steps, "final" if steering.stop is None else "stopped")
            finish()
            shutil.rmtree(self.directory.origin, ignore_errors=True)
            write = partial(
                save_result,
                self.loaded,
                run_id=self.directory.run_id,
                config=config,
                fingerprint=self.identity["tokens"],
                base=self.identity["model"],
                on_texts=self.as_text,
            )
            best = store.best(steps) if callbacks.stopped_early else None
            result = self.output.save(steps, best, write, finish, self.loaded.model)
            self.verdict = baseline.judge(result, callbacks.evaluator)
        return steps, result

    def saver_of(self, loop: StepLoop, callbacks: Callbacks, store: CheckpointStore) -> Saver:
        """What writes the checkpoints of ``loop``, told by ``callbacks`` when."""
        config, checkpoint = self.config, self.start.checkpoint
        callbacks.saver = Saver(
            store,
            self.emit,
            lambda: loop.snapshot(callbacks.progress()),
            self.identity,
            every_steps=config.save_steps,
            every_minutes=config.save_minutes,
            policy=CheckpointPolicy(keep_best_n=config.keep_best, keep_last=2),
            in_use=[checkpoint.step] if checkpoint else [],
        )
        return callbacks.saver

    def settle_batch(self, loop: StepLoop) -> None:
        """Have the longest row measured where a card tells its memory; another batch than the estimated one is said."""
        card = card_of(self.loaded.device)
        if card is None:
            return
        before = loop.batching.batch_size
        settle(loop, card)
        if (after := loop.batching.batch_size) != before:
            message = f"{after} instead of {before} rows a pass were measured to fit; a step has as many rows as before"
            self.emit(events.Warning(code=BATCH_SETTLED, message=message))

    def callbacks_of(self, loop: StepLoop, method: Method, guard: Guard, baseline: Baseline) -> Callbacks:
        """What happens between two steps of ``loop``: reports, evaluations, checkpoints, commands."""
        config, emit = self.config, self.emit
        return Callbacks(
            emit,
            loop,
            self.reporter,
            steering=self.steering,
            guard=guard,
            evaluator=Evaluator(
                self.loaded,
                method,
                self.evaluated,
                loop.batching,
                recovery=Recovery(config),
                on_scored=baseline.remember,
                on_halved=lambda step, batching, error: emit(halved(step, batching, error)),
                on_progress=lambda done, total: emit(
                    PhaseChanged(phase="evaluating", detail=f"{100 * done // total} %")
                ),
            ),
            eval_steps=int(config.eval_steps or 0)  # 0: in the record of an earlier version
            or steps_between_evaluations(self.schedule.steps, self.schedule.rows_per_step, len(self.evaluated)),
            patience=config.early_stopping,
            sample=self.answer,
            output=self.output,
        )

    def sample(self, step: int, what: str, *, tuned: bool = True) -> None:
        """Before the first step and after the last: answer the configured prompts, as a phase of its own."""
        if self.config.sample_prompts:
            self.emit(PhaseChanged(phase="sampling", detail=what))
            with nullcontext() if tuned else self.loaded.mode.base_answers(self.loaded.model):
                self.answer(step, tuned=tuned)

    def answer(self, step: int, *, tuned: bool = True) -> bool:
        """Answer the configured prompts with the model as it is; whether all of them were answered.

        While there are steps to take, a wish to end the run ends the answers too.
        """
        for prompt in self.config.sample_prompts:
            ended = self.steering.look if self.control.stepping or not tuned else None
            greedy = Sampling(max_tokens=self.config.sample_tokens)
            model, chat = self.loaded.model, self.loaded.chat
            text = reply(model, chat, prompt, greedy, stop_when=ended, as_text=self.as_text).text
            if ended and ended():
                return False
            self.emit(Sample(step=step, prompt=prompt, text=text, tuned=tuned))
        return True


def halved(step: int, batching: Batching, error: BaseException, rows_per_step: int | None = None) -> BatchHalved:
    """The event for smaller micro-batches: in a step of ``rows_per_step`` rows, or in an evaluation."""
    return BatchHalved(
        step=step,
        batch_size=batching.batch_size,
        gradient_accumulation=-(-rows_per_step // batching.batch_size) if rows_per_step else 1,
        message=str(error).splitlines()[0],
        where="training" if rows_per_step else "evaluation",
    )


def steps_between_evaluations(steps: int, rows_per_step: int, held_out: int) -> int:
    """What earlier versions chose: ten over the run, none with more rows than were trained since the one before."""
    return max(1, steps // EVALUATIONS, -(-held_out // rows_per_step))


def new_curve(checkpoint: Checkpoint, config: RunConfig, schedule: Schedule) -> events.Warning:
    """What a new end does to the learning rate."""
    old = checkpoint.manifest.identity["config"]["steps"]
    rate = (config.learning_rate or 0.0) * schedule.factor(checkpoint.step)
    message = f"new end: {schedule.steps} steps" + (f" instead of {old}" if old else "")
    message += f"; the learning rate goes on at {rate:.2e} on a {config.scheduler} curve to there"
    return events.Warning(code="SCHEDULE_CHANGED", message=message)
