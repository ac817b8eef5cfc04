"""The library: ``Trainer`` runs the same engine process as the command line and the application.

trainer = Trainer("smollm2-135m")
run = trainer.train("my_data.jsonl", steps=100)
trainer.export("gguf", quantization="q4_k_m")
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import msgspec

from backprop.core import events as ev
from backprop.core import log
from backprop.core.errors import BackpropError, InputError, InvalidSettingError
from backprop.core.files import new_folder
from backprop.core.jobs import Exported, ExportRequest, Message, OllamaRequest, Registered
from backprop.core.locate import locate
from backprop.core.models import require_model
from backprop.core.multi_run import KIND, advice, require_mergeable
from backprop.core.paths import expand
from backprop.core.presets import default_model
from backprop.core.refused import refusal
from backprop.core.resolve import config_from, direct, merge, resolve, standing
from backprop.core.settings import MultiConfig, RunConfig, override
from backprop.data.spool import spool
from backprop.data.startable import require_rows
from backprop.runs import engine_client
from backprop.runs.describe import describe
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_client import EngineClient
from backprop.runs.engine_jobs import OLLAMA, ask_engine, export_model
from backprop.runs.forgetting import Forgetting
from backprop.runs.index import RunIndex
from backprop.runs.result_files import IDENTITY
from backprop.runs.sessions import unfinished
from backprop.runs.state import RunState

_LOOK = 0.5
"""Seconds to wait for an event before looking again whether the engine lives."""
_IN_MEMORY = "rows from memory"
"""Stands for the path until the rows are in the run's directory."""


@dataclass(frozen=True)
class TrainingRun:
    """What a run came to. A loss that was not finite is ``None``."""

    run_id: str
    steps: int
    final_loss: float | None
    loss_history: list[float | None]
    """One a step: the mean over the supervised tokens of the whole step."""
    output_path: str
    """The directory of the adapter or the whole model; empty where nothing was saved."""
    duration_seconds: float
    samples_seen: int
    status: str = "done"
    """``done``, or ``stopped`` or ``interrupted`` where somebody ended it early."""
    merges: list[ev.MergeDone] = field(default_factory=list)
    """Of several runs in sequence: what became of each."""
    forgetting: Forgetting = field(default_factory=Forgetting)
    """Of these: the loss on every run's held-out rows after each; ``averages()`` has AA and BWT."""


@dataclass(frozen=True)
class TrainingCallback:
    """Called while a run goes on, in the thread that called ``train``; each one is optional. ``on_error`` is called too
    where a run could not begin, for its data is not there for example.

    An exception raised in one of them stops the run after the step in progress and comes out of ``train``.
    """

    on_step: Callable[[int, float | None], object] | None = None
    on_epoch: Callable[[int], object] | None = None
    """An epoch was finished; they count from 1."""
    on_save: Callable[[str], object] | None = None
    on_complete: Callable[[TrainingRun], object] | None = None
    on_error: Callable[[BackpropError], object] | None = None


class Trainer:
    """Fine-tunes one model; every ``train`` is a run with a directory of its own.

    Args:
        model: preset, local directory or Hugging Face name. None: the default model where a GPU can be used, else the
            embedded small one; the choice is printed.
        settings: any setting of ``backprop.core.settings.RunConfig`` by its name: ``lora_r``, ``learning_rate``,
            ``batch_size``, ``gradient_accumulation``, ``max_seq_length``, ``output_dir``, ``seed`` …; ``preset`` for a
            training preset; ``load_in_4bit=True`` for the mode ``qlora``. What is not named is what the user's settings
            file, ``.env`` or the environment say.

    Raises:
        InvalidSettingError: a setting that does not exist (the nearest is named) or is out of its range.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        if "data" in settings:
            hint, details = "train(dataset) takes it", {"field": "data"}
            raise InvalidSettingError("data: it is named when a run starts", hint=hint, details=details)
        if settings.pop("load_in_4bit", False) and settings.setdefault("mode", "qlora") != "qlora":
            what = f"load_in_4bit=True is the mode qlora, and mode is {settings['mode']!r}"
            raise InvalidSettingError(what, hint="name one of the two", details={"field": "mode"})
        named = settings if model is None else {"model": model, **settings}
        found = resolve({"data": _IN_MEMORY, **named}, kind="argument")
        self.config = found.config()
        """The settings of every run; its data is named when it starts."""
        log.choose(found.app())
        self._origins = {name: place for name, place in found.notes().items() if name != "data"}
        if found.origins["model"].kind == "default":
            self.config = _with_default_model(self.config)
        self.last_run: TrainingRun | None = None

    def train(
        self,
        dataset: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
        *,
        steps: int | None = None,
        epochs: float | None = None,
        samples: int | None = None,
        callback: TrainingCallback | None = None,
    ) -> TrainingRun:
        """Train on ``dataset`` and wait for the end.

        Args:
            dataset: a file, a ``datasets.Dataset``, or any iterable of rows.
            steps: optimizer steps; without ``steps`` and ``epochs``, here and in the settings, three passes over data
                of fewer than 1,000 rows, two below 10,000, else one.
            samples: use the first ``samples`` usable rows only.

        Raises:
            BackpropError: the run failed; the class, code, message and hint are the engine's own.
            KeyboardInterrupt: Ctrl+C; the run has finished its step and saved by then.
        """
        given = {"steps": steps, "epochs": epochs, "samples": samples}
        chosen = {name: value for name, value in given.items() if value is not None}
        config = config_from(override(msgspec.to_builtins(self.config), chosen))
        replaced = {"steps": "epochs", "epochs": "steps"}
        kept = {name: place for name, place in self._origins.items() if replaced.get(name) not in chosen}
        origins = kept | dict.fromkeys(chosen, "argument")
        return self._follow(lambda: _start(config, dataset, origins), callback)

    def multi_run(
        self,
        dataset: str | os.PathLike[str] | Iterable[Any],
        *,
        num_runs: int | None = None,
        steps_per_run: int | None = None,
        samples_per_run: int | None = None,
        merge_mode: str = "slao",
        callback: TrainingCallback | None = None,
        **settings: Any,
    ) -> TrainingRun:
        """Learn one dataset after another, or parts of one, and merge the runs into one adapter; wait for the end.

        A session of the same settings that is not finished in the output directory is continued.

        Args:
            dataset: a file, a list of files, each learned by a run of its own, or rows as in ``train``.
            num_runs: how many runs take a part of one dataset each.
            samples_per_run: rows of a run; what is there by default.
            merge_mode: ``slao``, ``linear``, ``ties`` or ``dare``.
            settings: others of ``core.settings.MultiConfig`` by name: ``replay``, ``run_patience`` …

        Raises:
            InvalidSettingError: something that cannot be merged was asked for; InputError: an unfinished session in
                the output directory is of other settings.
            BackpropError: all runs failed, or something that ends them all. Some that failed are in ``merges``.
        """
        given = {"steps": steps_per_run, "samples": samples_per_run}
        chosen = {name: value for name, value in given.items() if value is not None}
        config = config_from(override(msgspec.to_builtins(self.config), chosen))
        named = {"runs": num_runs, "merge_mode": merge_mode, **settings}
        found = merge([*standing(), direct({name: v for name, v in named.items() if v is not None}, "argument")])
        multi, origins = found.multi(), {**self._origins, **dict.fromkeys(chosen, "argument")}
        several = (
            dataset if isinstance(dataset, list) and all(isinstance(x, str | os.PathLike) for x in dataset) else None
        )
        files = several or ([dataset] if isinstance(dataset, str | os.PathLike) else [])

        def start() -> EngineClient:
            multi.tasks = [_located(config, each).data for each in files]
            require_mergeable(config, multi)
            for line in advice(multi):
                print(line, file=sys.stderr)
            if not files:
                return _start(config, dataset, origins, multi)
            first = _located(config, multi.tasks[0])
            before = unfinished(first, multi)
            return _start(first, first.data, origins, multi) if before is None else engine_client.resume(before)

        return self._follow(start, callback)

    def _follow(self, start: Callable[[], EngineClient], callback: TrainingCallback | None) -> TrainingRun:
        callback = callback or TrainingCallback()
        try:
            engine = start()
        except BackpropError as error:
            if callback.on_error:
                callback.on_error(error)
            raise
        print(f"run_started run_id={engine.run_id}", file=sys.stderr)
        return _Watch(engine, callback, self._remember).to_the_end()

    def _remember(self, run: TrainingRun) -> None:
        self.last_run = run

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Copy the result of the last run, an adapter or a whole model, to ``path``; a result there is replaced.

        Raises:
            InputError: nothing was trained yet, or ``path`` holds something that no run saved.
            BackpropError: it cannot be written (``RUNTIME_IO_FAILED``, ``RUNTIME_DISK_FULL``).
        """
        if self.last_run is None or not self.last_run.output_path:
            raise InputError("there is no result to save yet", hint="call train() first")
        target = expand(path)
        theirs = not any((target / name).is_file() for name in (IDENTITY, "adapter_config.json"))
        if target.exists() and theirs and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{target} holds something that is no run's result", hint="save into a new folder")
        try:
            with new_folder(target) as folder:
                shutil.copytree(self.last_run.output_path, folder, dirs_exist_ok=True)
        except OSError as error:
            raise refusal(error, f"the result could not be saved in {target}", BackpropError) from error
        return target

    def export(
        self,
        format: str = "gguf",
        *,
        quantization: str = "",
        output: str | os.PathLike[str] = "",
        step: int | None = None,
        answers: bool = True,
    ) -> Exported:
        """Write the last run's model in another format; it is opened again and compared with what was trained.

        Args:
            format: a word of ``core.exports.FORMATS``: ``lora``, ``merged``, ``gguf`` or ``lora-gguf``.
            quantization: a word of ``core.exports.PRECISIONS``, such as ``q4_k_m``; the format's usual one by default.
            output: the file or folder to write, which must not exist; inside the run's directory by default.
            step: the checkpoint to export; the run's result by default.
            answers: whether answers are compared too, for which the model is loaded.

        Raises:
            InputError: nothing was trained yet, there is no such format, or something is at ``output``.
            BackpropError: as the engine's; nothing is left of an export that failed.
        """
        if self.last_run is None or not self.last_run.output_path:
            raise InputError("there is nothing to export yet", hint="call train() first")
        request = ExportRequest(
            source=str(Path(self.last_run.output_path).parent),
            format=format,
            precision=quantization,
            output=str(expand(output)) if output else "",
            step=step,
            answers=answers,
        )

        def report(message: Message) -> None:
            if isinstance(message, ev.Warning):
                print(describe(message), file=sys.stderr)

        return export_model(request, report)


def register_with_ollama(
    path: str | os.PathLike[str], name: str, *, replace: bool = False, prompt: str = "", expected: str = ""
) -> Registered:
    """Register the GGUF file ``path`` with the Ollama server that ``OLLAMA_HOST`` names, as it was trained.

    Args:
        name: what it is called there, with or without ``:tag``.
        replace: whether a model of that name may be replaced.
        prompt: asked of it afterwards; the first sample prompt of the run in whose ``exports`` the file is by default.
        expected: the trained model's greedy answer to ``prompt``, to compare with.

    Raises:
        InputError: the name is not allowed or taken, or there is no such GGUF file.
        OllamaRegistrationError: Ollama is not there, too old, or did not take the model.
    """
    file = str(expand(path).absolute())
    request = OllamaRequest(path=file, name=name, replace=replace, prompt=prompt, expected=expected)
    return ask_engine(OLLAMA, request, Registered)


def _with_default_model(config: RunConfig) -> RunConfig:
    from backprop.hardware.devices import info

    model, why = default_model(config.backend, gpu=info().gpu_problem is None)
    print(f"no model was named: taking {model} ({why})", file=sys.stderr)
    return msgspec.structs.replace(config, model=model)


def _start(
    config: RunConfig,
    dataset: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    origins: dict[str, str],
    multi: MultiConfig | None = None,
) -> EngineClient:
    """Start an engine; rows from memory are written into the run's directory first."""
    require_model(config.model)
    kind = "train" if multi is None else KIND
    if isinstance(dataset, str | os.PathLike):
        directory = RunDirectory.create(_located(config, dataset), kind, origins=origins, multi=multi)
    else:
        config = locate(config, rows_in_memory=True)
        directory = RunDirectory.create(config, kind, origins=origins, multi=multi)
        try:
            rows = spool(dataset, directory.path / "data.jsonl")
        except BaseException:  # rows may come from anybody's generator: whatever it raises, no half of a run stays
            shutil.rmtree(directory.path, ignore_errors=True)
            raise
        directory.update_record(config=msgspec.structs.replace(config, data=str(rows)))
    with RunIndex() as index:
        index.add(directory.path)
        if index.trouble:
            print(index.trouble, file=sys.stderr)
    return engine_client.launch(directory)


def _located(config: RunConfig, dataset: str | os.PathLike[str]) -> RunConfig:
    return require_rows(locate(msgspec.structs.replace(config, data=os.fspath(dataset))))


class _Watch:
    """Follows one run for ``train``."""

    def __init__(
        self, engine: EngineClient, callback: TrainingCallback, remember: Callable[[TrainingRun], None]
    ) -> None:
        self._engine = engine
        self._callback = callback
        self._remember = remember
        self._state = RunState(run_id=engine.run_id, path=str(engine.directory.path), alive=True)
        self._epochs = 0

    def to_the_end(self) -> TrainingRun:
        """Wait for the end, calling the callbacks on the way."""
        try:
            while not self._engine.over:
                for event in self._engine.read(_LOOK):
                    self._state.apply(event)
                    self._call_back(event)
            run = self._result()
            self._remember(run)
        except BaseException as error:  # of a callback, or Ctrl+C: the run saves first
            self._stop()
            if isinstance(error, BackpropError) and self._callback.on_error:
                self._callback.on_error(error)
            raise
        if self._callback.on_complete:
            self._callback.on_complete(run)
        return run

    def _call_back(self, event: ev.AnyEvent) -> None:
        callback = self._callback
        match event:
            case ev.Step():
                if callback.on_step:
                    callback.on_step(event.step, event.loss)
                while self._epochs < int(event.epoch + 1e-9):
                    self._epochs += 1
                    if callback.on_epoch:
                        callback.on_epoch(self._epochs)
            case ev.CheckpointSaved() if callback.on_save:
                callback.on_save(event.path)
            case ev.RunFinished() if callback.on_save and event.output_path:
                callback.on_save(event.output_path)
            case ev.Warning():
                print(describe(event), file=sys.stderr)
            case _:
                pass

    def _result(self) -> TrainingRun:
        """What came of it.

        Raises:
            BackpropError: the run failed, or its engine is gone without an end.
        """
        state = self._state
        state.alive = False
        if (failed := state.last_failure) is not None:
            raise failed.error() from RuntimeError(failed.traceback)
        if state.finished is None:
            raise self._engine.crash()
        return TrainingRun(
            run_id=state.run_id,
            steps=state.finished.steps,
            final_loss=state.finished.final_loss,
            loss_history=[None if isnan(loss) else loss for loss in state.curves.loss],
            output_path=state.finished.output_path,
            duration_seconds=state.finished.duration_seconds,
            samples_seen=state.finished.samples_seen,
            status=state.finished.status,
            merges=state.merges,
            forgetting=state.forgetting,
        )

    def _stop(self) -> None:
        """Have the engine finish its step and save, and know the result; a second Ctrl+C kills it."""
        try:
            self._engine.interrupt()
            while not self._engine.over:
                for event in self._engine.read(_LOOK):
                    self._state.apply(event)
        except KeyboardInterrupt:
            self._engine.kill()
            raise
        if self._state.finished is not None:
            self._remember(self._result())
