"""Sessions of several runs on the tiny model: what is merged, and that no stop, crash or failure changes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from backprop.cli.options import forked_config
from backprop.core import events as ev
from backprop.core.errors import (
    BatchOperationError,
    CheckpointError,
    EngineCrashedError,
    SLAOMergeError,
    TrainingError,
)
from backprop.core.events import Event
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs import engine_client
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from backprop.train import model as models
from backprop.train.checkpoint import trained_parameters
from backprop.train.multi_run import held_out_sets
from backprop.train.multi_run import merge as session_merge
from backprop.train.multi_run import strategies as merging
from backprop.train.multi_run.merge import Merger
from backprop.train.multi_run.session import MultiRun
from backprop.train.multi_run.slao import Adapter, State, merge, orthonormal_rows
from backprop.train.persistence.resume import fork_notes
from backprop.worker.commands import Control
from runs_in_process import of
from safetensors.torch import load_file
from sessions_in_process import create, settings, work, write_tasks

STEPS = 3


class Killed(BaseException):
    """The engine is gone."""


class Session(NamedTuple):
    directory: RunDirectory
    events: list[Event]
    starts: list[Adapter]
    """The adapter that each run had in memory before its first step."""


def multi(folder: Path, **others: Any) -> MultiConfig:
    return MultiConfig(tasks=write_tasks(folder), **{"replay": 0.125, **others})


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Three runs that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    starts: list[Adapter] = []

    def ask(event: Event, control: Control) -> None:
        if isinstance(event, ev.Step) and event.step == 5:
            for command in (ev.CheckpointNow(), ev.Pause(), ev.Resume()):
                control.put(command)

    real = Merger.check

    def noted(self: Merger, loaded: Any, config: Any) -> Any:
        if len(starts) == self.progress.index:
            held = merging.adapter_of(trained_parameters(loaded.model))
            starts.append(Adapter(*({name: each.clone() for name, each in part.items()} for part in held)))
        return real(self, loaded, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Merger, "check", noted)
        for name in ("CACHE", "DATA", "CONFIG"):
            patch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
        directory = create(settings(tiny_model, folder), multi(folder))
        return Session(directory, work(directory, after=ask), starts)


@pytest.fixture(autouse=True)
def no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are compared in the undisturbed session alone: they take as long as all the rest."""
    monkeypatch.setattr(held_out_sets, "SHORT", 0)


def adapter(folder: Path) -> Adapter:
    """The factors in an adapter's file, by the names that a model in memory has."""
    tensors = load_file(folder / "adapter_model.safetensors")
    parts = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        layer, _, rest = name.partition(".lora_")
        parts[rest[0]][layer] = tensor
    return Adapter(parts["A"], parts["B"])


def same(one: Adapter, other: Adapter) -> bool:
    return all(
        x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) for x, y in zip(one, other, strict=True)
    )


def runs_of(directory: RunDirectory) -> list[RunDirectory]:
    """The directories of a session's runs, in order."""
    return [RunDirectory(directory.path / "runs" / each.run) for each in read_run(directory.path).runs]


def merged(adapters: list[Adapter]) -> State:
    state = None
    for number, each in enumerate(adapters):
        state = merge(state, each, str(number))
    assert state is not None
    return state


def test_the_result_is_the_last_tuned_a_with_the_merged_b_and_the_tuned_adapter_lies_beside_it(whole: Session) -> None:
    tuned = [adapter(run.adapter) for run in runs_of(whole.directory)]
    result = adapter(whole.directory.adapter)
    assert same(result, merged(tuned).result)
    assert all(torch.equal(result.a[name], tuned[-1].a[name]) for name in result.a)
    assert same(adapter(whole.directory.last_adapter), tuned[-1])
    assert not same(result, tuned[-1])
    assert whole.directory.changed_result() == []


def test_each_run_starts_from_an_orthonormal_a_and_the_last_tuned_b(whole: Session) -> None:
    tuned = [adapter(run.adapter) for run in runs_of(whole.directory)]
    for before, start in zip(tuned, whole.starts[1:], strict=False):
        assert all(torch.equal(start.a[name], orthonormal_rows(a)) for name, a in before.a.items())
        assert all(torch.equal(start.b[name], b) for name, b in before.b.items())
    assert all(not b.any() for b in whole.starts[0].b.values())


def test_the_result_loads_in_peft(whole: Session, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), whole.directory.adapter)
    held = merging.adapter_of({name: each for name, each in loaded.named_parameters() if "lora_" in name})
    assert same(held, adapter(whole.directory.adapter))


def test_the_journal_has_one_curve_the_merges_and_the_whole_table(whole: Session) -> None:
    state = read_run(whole.directory.path)
    assert state.journal_status == "done"
    assert list(state.curves.step) == list(range(1, 3 * STEPS + 1))
    assert [each.run for each in of(whole.events, ev.Step)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [each.total_steps for each in of(whole.events, ev.Step)] == 9 * [9]
    assert [(each.index, each.merged, each.count) for each in state.merges] == [
        (1, True, 1),
        (2, True, 2),
        (3, True, 3),
    ]
    assert [round(each.step_size, 4) for each in state.merges] == [1.0, 0.7071, 0.5774]
    assert (state.forgetting.rows, state.forgetting.columns) == ([0, 1, 2, 3], [1, 2, 3])
    assert all(each.low < each.loss < each.high for each in state.forgetting.cells)
    assert state.forgetting.averages().backward is not None
    answered = {(each.after, each.held_out) for each in state.forgetting.cells if each.exact is not None}
    assert answered == {(0, 1), (0, 2), (0, 3), (1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)}
    assert state.merges[0].loss == state.merges[0].tuned_loss
    assert [each.step for each in state.runs] == [0, 3, 6]
    assert [each.replayed for each in state.runs] == [0, *(round(each.rows * 0.125) for each in state.runs[1:])]
    assert state.finished.verdict.rows == sum(each.held_out for each in state.runs)
    assert state.finished.output_path == str(whole.directory.adapter)
    for run in runs_of(whole.directory):
        own = read_run(run.path)
        assert (own.status, own.step, own.parent) == ("done", STEPS, "")


def test_a_row_that_parts_of_a_dataset_hold_out_in_common_counts_once(tiny_model: Path, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path, 10)
    config = settings(tiny_model, tmp_path, data=tasks[0], samples=4, steps=1)
    directory = create(config, MultiConfig(runs=3))
    work(directory)
    state = read_run(directory.path)
    held_out = len((directory.path / "data" / "held-out.jsonl").read_text().splitlines())
    assert sum(each.held_out for each in state.runs) > held_out
    assert state.finished is not None
    assert state.finished.verdict is not None
    assert state.finished.verdict.rows == held_out
    last = [cell.rows for cell in state.forgetting.cells if cell.after == 3]
    assert last == [each.held_out for each in state.runs]


def test_commands_reach_the_run_that_works_and_are_answered_in_the_sessions_steps(whole: Session) -> None:
    second = runs_of(whole.directory)[1]
    saved = [each for each in of(whole.events, ev.CheckpointSaved) if each.step == 5]
    assert [(each.step, each.path) for each in saved] == [(5, str(second.checkpoints / "step-00000002"))]
    assert [each.step for kind in (ev.Paused, ev.Resumed) for each in of(whole.events, kind)] == [5, 5]
    assert [each.step for each in read_run(second.path).notable if isinstance(each, ev.Paused)] == [2]


def test_no_run_trains_a_row_that_any_run_holds_out(whole: Session) -> None:
    data = whole.directory.path / "data"
    held_out = {line for file in data.glob("held-out-*.jsonl") for line in file.open()}
    trained = [set(file.open()) for file in sorted(data.glob("run-*.jsonl"))]
    assert len(held_out) == len((data / "held-out.jsonl").open().readlines())
    assert not any(held_out & rows for rows in trained)
    assert trained[1] & trained[0]


def stop_at(kind: type[Event], number: int, **fields: Any) -> Callable[[Event, Control], object]:
    left = number

    def look(event: Event, control: Control) -> None:
        nonlocal left
        if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items()):
            left -= 1
            if left == 0:
                control.put(ev.Stop())

    return look


def killed_at(kind: type[Event], number: int, **fields: Any) -> Callable[[Event, Control], object]:
    stopping = stop_at(kind, number, **fields)

    def look(event: Event, control: Control) -> None:
        stopping(event, control)
        if control.take():
            raise Killed

    return look


MOMENTS = {
    "steps are taken": killed_at(ev.Step, 5),
    "a run is done and nothing is merged": killed_at(
        ev.PhaseChanged, 1, phase="evaluating", detail="run 2 of 3, on the rows of every run"
    ),
    "it is written and not told": killed_at(ev.CheckpointSaved, 1, reason="after run 2"),
    "the table is half told": killed_at(ev.HeldOutScored, 5),
    "asked to stop in a run": stop_at(ev.Step, 4),
    "asked to stop while it scores": stop_at(ev.PhaseChanged, 1, detail="run 1 of 3, on the rows of every run"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_whenever_a_session_ends_early_it_goes_on_to_the_same_result(
    moment: str, whole: Session, tiny_model: Path, tmp_path: Path
) -> None:
    directory = create(settings(tiny_model, tmp_path), multi(tmp_path))
    if moment.startswith("asked"):
        assert of(work(directory, after=MOMENTS[moment]), ev.RunFinished)[0].status == "stopped"
    else:
        with pytest.raises(Killed):
            work(directory, after=MOMENTS[moment])
    work(directory)
    for name in ("adapter", "adapter-last"):
        assert same(adapter(directory.path / name), adapter(whole.directory.path / name))
    told, expected = read_run(directory.path), read_run(whole.directory.path)
    assert list(told.curves.loss) == list(expected.curves.loss)
    assert [each.step for each in told.runs] == [each.step for each in expected.runs]
    assert [(each.merged, each.moved, each.loss) for each in told.merges] == [
        (each.merged, each.moved, each.loss) for each in expected.merges
    ]
    assert [(each.after, each.held_out, each.loss) for each in told.forgetting.cells] == [
        (each.after, each.held_out, each.loss) for each in expected.forgetting.cells
    ]
    assert told.finished.steps == 3 * STEPS
    assert (told.finished.samples_seen, told.finished.tokens_seen) == (
        expected.finished.samples_seen,
        expected.finished.tokens_seen,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_session_is_rewound_to_any_merge_bit_for_bit_and_goes_on_from_there(
    whole: Session, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out" / whole.directory.run_id
    shutil.copytree(whole.directory.path, path, ignore=shutil.ignore_patterns("control"))
    directory = RunDirectory(path)
    before = {name: files_of(path / name) for name in ("adapter", "adapter-last")}
    step_3 = files_of(path / "checkpoints" / "step-00000003" / "adapter")
    whole_loss = read_run(path).curves.loss[2]
    work(directory, rewind=1)
    state = read_run(path)
    assert files_of(directory.adapter) == step_3
    assert (state.step, state.journal_status, [each.index for each in state.merges]) == (3, "stopped", [1])
    assert state.forgetting.rows == [0, 1]
    assert max(each.step for each in state.checkpoints) == 3
    assert state.finished.final_loss == state.final_loss == whole_loss
    first = read_run(path / "runs" / state.merges[0].run)
    assert first.samples_seen > 0
    assert (state.samples_seen, state.tokens_seen) == (first.samples_seen, first.tokens_seen)
    assert (state.dataset.tokens, state.dataset.path) == (first.dataset.tokens, first.dataset.path)
    work(directory)
    assert same(adapter(directory.adapter), adapter(whole.directory.adapter))
    assert {file: content for file, content in files_of(directory.adapter).items() if file != "backprop.json"} == {
        file: content for file, content in before["adapter"].items() if file != "backprop.json"
    }
    assert len(list((path / "runs").iterdir())) == 5
    shutil.rmtree(directory.adapter)  # killed after the last state was written, before the result was put in place
    work(directory)
    assert same(adapter(directory.adapter), adapter(whole.directory.adapter))
    work(directory, rewind=0)
    assert not directory.adapter.exists()
    assert not directory.result
    state = read_run(path)
    assert (state.merges, state.dataset, state.final_loss, state.tokens_seen) == ([], None, None, 0)


def test_a_session_is_trained_on_the_cpu_where_mlx_would_be_chosen(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = models.resolved

    def on_apple(config: RunConfig) -> RunConfig:
        return real(config) if config.backend == "cpu" else msgspec.structs.replace(real(config), backend="mlx")

    monkeypatch.setattr(models, "resolved", on_apple)
    directory = create(settings(tiny_model, tmp_path, backend="auto"), multi(tmp_path))
    assert MultiRun(directory, lambda event: None, Control()).config.backend == "cpu"


def test_a_fork_of_the_session_says_that_its_held_out_rows_may_have_been_trained_and_its_own_runs_do_not(
    whole: Session,
) -> None:
    newest, _ = CheckpointStore(whole.directory.checkpoints, whole.directory.run_id).newest_valid()
    assert newest is not None
    now = {**newest.manifest.identity, "held_out": "of other rows"}
    assert [each.code for each in fork_notes(newest.path, now, str(newest.path))] == ["HELD_OUT_OVERLAP"]
    start = str(whole.directory.path / "starts" / "step-00000003")
    assert [each.code for each in fork_notes(newest.path, now, start)] == []
    assert read_run(whole.directory.path).status == "done"
    assert "HELD_OUT_OVERLAP" not in {each.code for each in of(whole.events, ev.Warning)}


def test_a_fork_of_a_session_s_run_is_beside_the_session_and_has_a_name_of_its_own(whole: Session) -> None:
    run = read_run(whole.directory.path).runs[1].run
    own = RunDirectory(whole.directory.path / "runs" / run).read_record()
    config, _ = forked_config(own.config, run, {})
    assert (config.output_dir, config.run_name, config.report_to) == (str(whole.directory.path.parent), None, None)
    assert (config.data, config.held_out) == (own.config.data, own.config.held_out)
    with pytest.raises(EngineCrashedError) as caught:
        raise engine_client.attach(whole.directory.path / "runs" / run).crash()
    assert caught.value.hint.startswith(f"`backprop resume {whole.directory.run_id}` goes on")


def fail_in(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs from number ``run`` on fail as they begin."""
    real = Merger.check

    def failing(self: Merger, loaded: Any, config: Any) -> Any:
        found = real(self, loaded, config)
        if run in (self.progress.index + 1, 0):
            raise TrainingError("the cat sat on the keyboard")
        return found

    monkeypatch.setattr(Merger, "check", failing)


def test_a_run_that_fails_is_left_out_and_does_not_count(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in(2, monkeypatch)
    directory = create(settings(tiny_model, tmp_path), multi(tmp_path))
    work(directory)
    state = read_run(directory.path)
    assert state.journal_status == "done"
    assert [(each.merged, each.failed, each.count) for each in state.merges] == [
        *((True, False, 1), (False, True, 1), (True, False, 2))
    ]
    assert "the cat sat on the keyboard" in state.merges[1].reason
    assert round(state.merges[2].step_size, 4) == 0.7071
    tuned = [adapter(run.adapter) for run in runs_of(directory) if run.result]
    assert same(adapter(directory.adapter), merged(tuned).result)
    assert [each.loss for each in state.forgetting.cells if each.after == 2] == [
        each.loss for each in state.forgetting.cells if each.after == 1
    ]
    assert state.forgetting.learned == [1, 3]


def test_a_session_fails_where_all_its_runs_do(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in(0, monkeypatch)
    directory = create(settings(tiny_model, tmp_path), multi(tmp_path))
    with pytest.raises(BatchOperationError, match=r"all 3 runs failed.*run 1 .*cat sat.*run 3 "):
        work(directory)
    assert not directory.result


def test_a_run_that_diverged_is_not_merged(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Merger.merge

    def broken(self: Merger, run_id: str, loaded: Any, *others: Any) -> None:
        if self.progress.index == 1:
            next(iter(trained_parameters(loaded.model).values())).data[0, 0] = float("nan")
        real(self, run_id, loaded, *others)

    monkeypatch.setattr(Merger, "merge", broken)
    directory = create(settings(tiny_model, tmp_path), multi(tmp_path))
    work(directory, after=stop_at(ev.MergeDone, 2))
    state = read_run(directory.path)
    assert state.merges[1].failed
    assert "not finite" in state.merges[1].reason
    assert same(adapter(directory.adapter), adapter(runs_of(directory)[0].adapter))


@pytest.mark.parametrize(
    ("gate", "reason"),
    [({"min_similarity": 1.0}, "the cosine of its update"), ({"max_forgetting": 0.0}, "raises the mean held-out loss")],
    ids=["drift", "evaluation"],
)
def test_a_gate_keeps_a_run_out_with_the_reason(
    gate: dict[str, float], reason: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "max_forgetting" in gate:  # this little training forgets nothing by itself
        monkeypatch.setattr(session_merge, "fmean", lambda values: 0.5)
    directory = create(settings(tiny_model, tmp_path), multi(tmp_path, **gate))
    work(directory, after=stop_at(ev.MergeDone, 2))
    state = read_run(directory.path)
    assert [each.merged for each in state.merges] == [True, False]
    assert reason in state.merges[1].reason
    assert not state.merges[1].failed
    assert same(adapter(directory.adapter), adapter(runs_of(directory)[0].adapter))


@pytest.mark.parametrize(("mode", "weight"), [("linear", 1.0), ("dare", None)], ids=["the last alone", "dare"])
def test_other_ways_of_merging_go_on_from_the_last_runs_own_adapter(
    mode: str, weight: float | None, tiny_model: Path, tmp_path: Path
) -> None:
    asked = multi(tmp_path, merge_mode=mode, merge_weight=weight)
    directory = create(settings(tiny_model, tmp_path), asked)
    work(directory, after=stop_at(ev.MergeDone, 2))
    first, second = (adapter(run.adapter) for run in runs_of(directory))
    start = load_file(next((directory.path / "starts").iterdir()) / "weights.safetensors")
    assert same(merging.adapter_of(start), first)
    result = adapter(directory.adapter)
    assert same(result, second) == (weight == 1.0)
    before = State(1, first, first.b, ("x",))
    assert same(result, merging.merge(before, second, "y", asked, 42 + 2).result)


def test_a_rank_above_a_layers_inputs_is_refused_before_a_step(tiny_model: Path, tmp_path: Path) -> None:
    directory = create(settings(tiny_model, tmp_path, lora_r=48), multi(tmp_path))
    with pytest.raises(SLAOMergeError, match="rank 48 is more than the 32 inputs"):
        work(directory)
    assert read_run(directory.path).step == 0


def test_another_base_model_between_two_runs_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    directory = create(settings(model, tmp_path), multi(tmp_path))
    work(directory, after=stop_at(ev.MergeDone, 1))
    changed = {**json.loads((model / "config.json").read_bytes()), "rms_norm_eps": 1e-6}
    (model / "config.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=r"another model: the model's file config\.json was changed"):
        work(directory)
    assert [each.index for each in read_run(directory.path).merges] == [1]


def test_another_rank_scale_or_place_is_refused_by_name() -> None:
    from backprop.train.multi_run.state import require_same_adapter

    facts = {"mode": "lora", "lora_r": 4, "lora_alpha": 8.0, "use_rslora": False, "target_modules": ["q_proj"]}
    require_same_adapter({}, facts)
    require_same_adapter(facts, dict(facts))
    for name, other in {"lora_r": 8, "lora_alpha": 4.0, "use_rslora": True, "target_modules": ["v_proj"]}.items():
        with pytest.raises(SLAOMergeError, match=f"{name} was .* and is "):
            require_same_adapter(facts, {**facts, name: other})


def test_a_session_without_its_last_tuned_adapter_is_refused(
    whole: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backprop.train.multi_run.state import SessionStore
    from safetensors.torch import save_file

    path = tmp_path / whole.directory.run_id
    shutil.copytree(whole.directory.path, path, ignore=shutil.ignore_patterns("control"))
    store = SessionStore(RunDirectory(path))
    checkpoint, _, _ = store.newest()
    tensors = {n: t for n, t in load_file(checkpoint.path / "state.safetensors").items() if not n.startswith("tuned.B")}
    save_file(tensors, checkpoint.path / "state.safetensors")
    assert store.newest()[1].index == 2  # it does not verify, and the state before it is taken
    monkeypatch.setattr(CheckpointStore, "verify", lambda self, path: [])
    with pytest.raises(CheckpointError, match="the last fine-tuned adapter is not in it"):
        store.newest()


def test_a_state_does_not_grow_with_the_number_of_runs(whole: Session) -> None:
    sizes = [
        (each / "state.safetensors").stat().st_size + (each / "weights.safetensors").stat().st_size
        for each in sorted((whole.directory.path / "checkpoints").iterdir())
    ]
    assert len(sizes) == 3
    assert len(set(sizes)) == 1


def test_patience_ends_a_session_and_rates_fall_from_run_to_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_merge, "out_of_patience", lambda losses, patience: len(losses) == patience + 1)
    asked = multi(tmp_path, run_patience=1, final_lr=1e-3)
    directory = create(settings(tiny_model, tmp_path), asked)
    events = work(directory)
    state = read_run(directory.path)
    assert (state.journal_status, len(state.merges)) == ("done", 2)
    assert "EARLY_STOPPING" in [each.code for each in of(events, ev.Warning)]
    assert [read_run(run.path).config["learning_rate"] for run in runs_of(directory)] == [1e-2, pytest.approx(5.5e-3)]


def test_its_settings_come_back_from_the_journal_where_run_json_is_gone(whole: Session, tmp_path: Path) -> None:
    path = tmp_path / whole.directory.run_id
    path.mkdir()
    shutil.copy(whole.directory.journal, path)
    record = RunDirectory(path).find_record()
    assert record.kind == "multi_run"
    assert msgspec.to_builtins(record.multi) == msgspec.to_builtins(whole.directory.read_record().multi)
