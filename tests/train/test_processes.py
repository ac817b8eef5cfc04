"""Several processes, one run: the same numbers as one, and one end for all of them."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from backprop.core import events as ev
from backprop.core.errors import CheckpointError, ConfigurationError, GPUNotAvailableError, TrainingError
from backprop.core.events import BatchHalved, CheckpointNow, Evaluated, Pause, Paused, Resume, Step, StepSkipped
from backprop.core.settings import RunConfig
from backprop.runs import engine_client
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.train import model as models
from backprop.train import ranks, sharding
from backprop.train.checkpoint import TENSORS, add_optimizer_part
from backprop.train.methods import sft
from backprop.train.ranks import Leader, Ranks
from backprop.train.sharding import shares
from forked_engines import EngineHost
from msgspec.structs import replace
from patience import PATIENCE
from pinned_machine import within
from processes import living
from runs_in_process import Asking, go_on, of, train
from safetensors.torch import load_file


@pytest.fixture
def forked(engine_host: EngineHost) -> Iterator[None]:
    """The other processes of this test share one start."""
    with engine_host.in_use():
        yield


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has something happen in the second process: ``faults(_3="oom")``."""

    def choose(**faults: str) -> None:
        monkeypatch.setattr(ranks, "FOLLOWER", "faulty_follower")
        monkeypatch.setenv("TESTS_FAULTS", json.dumps({name.lstrip("_"): fault for name, fault in faults.items()}))

    return choose


class Held(Asking):
    """Pauses the run after a step, has it saved meanwhile, and lets it go on."""

    def __init__(self, events: list[Any], step: int) -> None:
        super().__init__(events, self.answer)
        self._step = step

    def answer(self, events: list[Any]) -> list[Any]:
        if of(events, Paused) or len(of(events, Step)) < self._step:
            return []
        return [Pause(), CheckpointNow()]

    def wait(self, timeout: float | None = None) -> Any:
        return Resume()


def numbers(events: list[Any]) -> list[tuple[Any, ...]]:
    return [(each.loss, each.grad_norm, each.trained_tokens, each.tokens_seen) for each in of(events, Step)]


def children() -> list[psutil.Process]:
    return living(psutil.Process().children(recursive=True), "follower")


def test_two_processes_are_one_through_a_pause_a_bad_step_and_running_out_of_memory(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, faults: Any
) -> None:
    # 37 rows in steps of twelve: the fourth has one, and the other rank none.
    data = Path(tiny_config.data)
    data.write_text(data.read_text() + data.read_text().splitlines()[0].replace("0: ", "40: ") + "\n")
    config = replace(
        tiny_config, steps=8, batch_size=12, gradient_accumulation=1, lora_dropout=0.0, held_out="auto", packing=False
    )
    plain, passes = sft.summed_loss, 0

    def sixth_is_bad(model: Any, batch: Any, *, plain_head: bool) -> torch.Tensor:
        nonlocal passes
        passes += torch.is_grad_enabled()
        bad = torch.is_grad_enabled() and passes == 6
        return plain(model, batch, plain_head=plain_head) * (float("nan") if bad else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(sft, "summed_loss", sixth_is_bad)
        alone, _ = train(config, [])
    faults(_1="oom", _5="nan")
    events: list[ev.Event] = []

    train(replace(config, processes=2), events, control=Held(events, 3))

    assert [each.samples_seen for each in of(events, Step)][2:4] == [36, 37]
    assert len(of(alone, StepSkipped)) == len(of(events, StepSkipped)) == 1
    for one, two in zip(numbers(alone), numbers(events), strict=True):
        assert two == (pytest.approx(one, rel=within(1e-5, bf16=1e-2), nan_ok=True) if one[1] else one)
    losses = [[each.loss for each in of(found, Evaluated)] for found in (alone, events)]
    assert len(losses[0]) == 5  # that of the untouched model first
    assert losses[1] == pytest.approx(losses[0], rel=within(1e-5, bf16=1e-2))
    (smaller,) = of(events, BatchHalved)
    assert (smaller.step, smaller.batch_size < 6, smaller.where) == (2, True, "training")
    assert [each.step for each in of(events, Paused)] == [3]
    assert 3 in [each.step for each in of(events, ev.CheckpointSaved)]
    assert children() == []


def test_a_rank_that_dies_ends_the_run_by_name_and_the_run_goes_on_exactly(
    tiny_config: RunConfig, faults: Any, capfd: pytest.CaptureFixture[str], forked: None
) -> None:
    config = replace(tiny_config, processes=2, save_steps=2)  # with dropout on both ranks
    expected, _ = train(config, [])
    faults(_3="kill")
    events: list[ev.Event] = []

    with pytest.raises(TrainingError, match=r"^rank 1 of 2 is gone \(killed by SIGKILL\)"):
        train(config, events)

    (directory,) = (each for each in map(RunDirectory, Path(config.output_dir).iterdir()) if not each.adapter.exists())
    record = json.loads((directory.path / "run.json").read_text())
    record["config"]["processes"] = 1
    (directory.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="processes was 2 and is 1"):
        go_on(directory)
    record["config"]["processes"] = 2
    (directory.path / "run.json").write_text(json.dumps(record))
    faults()
    again = go_on(directory)
    assert [each.step for each in of(again, Step)] == [3, 4]
    assert numbers(events)[:2] + numbers(again) == numbers(expected)


def test_an_engine_that_is_killed_leaves_no_process(tiny_config: RunConfig) -> None:
    engine = engine_client.start(replace(tiny_config, processes=2, steps=100_000))
    while not of(engine.read(60.0), Step):
        assert not engine.over
    found = [each for each in children() if psutil.Process(each.pid).ppid() == engine._pid()]
    assert len(found) == 1

    os.kill(engine._pid(), signal.SIGKILL)

    _, alive = psutil.wait_procs(found, timeout=PATIENCE)
    assert alive == []


@pytest.mark.parametrize(
    ("ends", "named"),
    [
        ("print('the reason'); sys.exit(3)", r"rank 1 of 3 is gone \(exit status 3\); its last line: the reason"),
        ("os.kill(os.getpid(), 9)", r"rank 1 of 3 is gone \(killed by SIGKILL\)$"),
    ],
)
def test_a_death_ends_a_run_that_does_not_notice_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], ends: str, named: str
) -> None:
    (tmp_path / "mortal.py").write_text(
        f"import json, os, sys\nif json.loads(sys.stdin.readline())['rank'] == 1: {ends}\nsys.stdin.read()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(ranks, "FOLLOWER", "mortal")
    monkeypatch.setattr(ranks, "GRACE", 0.0)
    ended, errors = threading.Event(), []

    def give_up(error: BaseException) -> None:
        errors.append(error)
        ended.set()

    with Leader(3, give_up) as leader:
        config = RunConfig(data="d")
        leader.assign(
            directory="", config=config, prepared=config, checkpoint=None, extended=False, now=None, split=None
        )
        assert ended.wait(60)
    (error,) = errors
    with pytest.raises(TrainingError, match=named):
        raise error
    assert [process.poll() is not None for process in leader.processes] == [True, True]
    if "reason" in ends:
        assert "[rank 1] the reason" in capfd.readouterr().err


def state_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Of the optimizer, without the tables of 8-bit numbers, which all weights of a rank share."""
    names = [name for name in tensors if name.startswith("state.optimizer") and "qmap" not in name]
    return sum(tensors[name].nbytes for name in names)


@pytest.mark.parametrize(
    "case",
    [
        ({}, 1e-5, 0.02),
        ({"weights_dtype": "bfloat16"}, 2e-2, 0.02),
        # Below 4096 numbers bitsandbytes keeps the moments in float32: of this model's weights some are, some are not.
        ({"optim": "adamw_8bit"}, 1e-4, 0.2),
    ],
    ids=["float32", "bf16", "8 bits"],
)
def test_each_rank_keeps_half_of_the_optimizers_state_and_a_checkpoint_all_of_it(
    tiny_config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    faults: Any,
    case: tuple[dict[str, Any], float, float],
    forked: None,
) -> None:
    form, rel, uneven = case
    config = replace(tiny_config, mode="full", lora_r=None, lora_dropout=None, batch_size=3, save_steps=2, **form)
    handed: list[int] = []
    whole: list[int] = []

    def note(snapshot: Any, kept: Any, tensors: dict[str, torch.Tensor]) -> None:
        assert not tensors.keys() & snapshot.tensors.keys()
        add_optimizer_part(snapshot, kept, tensors)
        handed.append(state_bytes(tensors))
        whole.append(state_bytes(snapshot.tensors))

    monkeypatch.setattr(sharding, "add_optimizer_part", note)
    alone, one = train(config, [])
    expected, two = train(replace(config, processes=2), [])
    for plain, shared in zip(numbers(alone), numbers(expected), strict=True):
        assert shared == pytest.approx(plain, rel=within(rel, bf16=2e-2))
    (learned, shared_out) = (load_file(each.model / "model.safetensors") for each in (one, two))
    apart = sum(float((shared_out[name].float() - weight.float()).square().sum()) for name, weight in learned.items())
    # The last step alone moves the weights by a tenth of their length.
    assert apart < 0.02**2 * sum(float(weight.float().square().sum()) for weight in learned.values())
    stores = [CheckpointStore(each.checkpoints, each.run_id) for each in (one, two)]
    states = (load_file(store.checkpoints()[-1].path / TENSORS) for store in stores)
    whole_state, gathered = ({name: each.shape for name, each in state.items()} for state in states)
    assert gathered == whole_state

    faults(_3="kill")
    events: list[ev.Event] = []
    with pytest.raises(TrainingError, match=r"^rank 1 of 2 is gone"):
        train(replace(config, processes=2), events)
    (path,) = {each.path for each in of(events, ev.CheckpointSaved)}
    faults()
    again = go_on(RunDirectory(Path(path).parents[1]))
    assert numbers(events)[:2] + numbers(again) == numbers(expected)
    assert len(handed) == 4  # two of each undisturbed run, one before the kill, and one after
    parts = [part / complete for part, complete in zip(handed, whole, strict=True)]
    assert parts == pytest.approx([0.5] * 4, abs=uneven)


def test_weights_are_shared_evenly_but_none_is_divided() -> None:
    assert shares([5, 90, 30, 30, 31, 4], 3) == [[1], [0, 4, 5], [2, 3]]
    assert shares([7], 2) == [[0], []]


def batches_of(*tokens: int) -> list[Any]:
    return [SimpleNamespace(tokens=each) for each in tokens]


def test_every_micro_batch_has_one_rank_and_ranks_have_about_equal_tokens() -> None:
    batches = batches_of(5, 90, 30, 30, 31, 4)
    shares = [Ranks(rank, 3, 0).share(batches) for rank in range(3)]
    assert sorted(id(each) for share in shares for each in share) == sorted(map(id, batches))
    assert sorted(sum(each.tokens for each in share) for share in shares) == [40, 60, 90]
    assert [Ranks(rank, 2, 0).share(batches_of(7)) == [] for rank in range(2)] == [False, True]


def test_a_pass_over_all_rows_is_divided_so_that_every_rank_has_work() -> None:
    def halves(batches: list[Any]) -> list[Any] | None:
        return batches_of(*(each.tokens / 2 for each in batches for _ in range(2))) if len(batches) < 64 else None

    batches = batches_of(60)
    Ranks(0, 3, 0).deal(batches, halves)  # 1, 2 and 4 are no thirds; 8 are nearly
    assert [each.tokens for each in batches] == [7.5] * 8
    single = batches_of(60)
    Ranks(0, 3, 0).deal(single, lambda batches: None)
    assert [each.tokens for each in single] == [60]


def test_more_processes_than_cards_are_refused_with_both_numbers(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_device_and_memory", lambda config: (torch.device("cuda"), 2**33))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert models.resolved(replace(tiny_config, processes=2)).processes == 2
    with pytest.raises(GPUNotAvailableError, match="3 processes, which need a card each, and 2 can be used"):
        models.resolved(replace(tiny_config, processes=3))


def test_copies_that_a_launcher_started_are_refused(tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigurationError, match="started this 4 times") as caught:
        engine_client.start(tiny_config)
    assert "--processes 4" in caught.value.hint
    assert not Path(tiny_config.output_dir).exists()
