"""Out of memory in the middle of a run: smaller passes, the same steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backprop.core.errors import GPUMemoryError
from backprop.core.events import BatchHalved, Evaluated, Event, RunFinished, Step, Stop
from backprop.core.settings import RunConfig
from backprop.train.methods import sft
from backprop.train.out_of_memory import Recovery, is_out_of_memory
from backprop.train.packing import Batching
from backprop.worker.setup import failure
from msgspec.structs import replace
from pinned_machine import within
from runs_in_process import go_on, of, train


class Device:
    """A device with room for ``room`` in one micro-batch, measured by ``size``, from the ``begin``-th on.

    It counts those of training, or those of evaluation.
    """

    def __init__(self, what: str, monkeypatch: pytest.MonkeyPatch, room: float, size: Any, begin: int = 1) -> None:
        self.room, self.size, self.begin = room, size, begin
        self.taken: list[Any] = []
        name = "summed_loss" if what == "training" else "row_losses"
        self._plain = getattr(sft, name)
        monkeypatch.setattr(sft, name, self)

    def __call__(self, model: Any, one: Any, *, plain_head: bool) -> Any:
        self.taken.append(self.size(one))
        if len(self.taken) >= self.begin and self.size(one) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB free.")
        return self._plain(model, one, plain_head=plain_head)


def rows(one: Any) -> int:
    return int(one.rows)


def cells(one: Any) -> int:
    return int(one.input_ids.numel())


def curve(events: list[Event]) -> tuple[list[int], Any, list[float], list[int]]:
    steps = of(events, Step)
    return (
        [step.step for step in steps],
        pytest.approx([step.loss for step in steps], rel=within(1e-6, bf16=1e-3)),
        [step.learning_rate for step in steps],
        [step.samples_seen for step in steps],
    )


def losses(events: list[Event]) -> list[float]:
    return [step.loss for step in of(events, Step)]


@pytest.fixture
def config(tiny_config: RunConfig) -> RunConfig:
    """Two passes of four rows in a step. Without dropout, whose masks depend on the form of a pass."""
    return replace(tiny_config, steps=6, batch_size=4, gradient_accumulation=2, packing=False, lora_dropout=0.0)


def assert_same_run(found: list[Event], plain: list[Event]) -> None:
    steps, expected_losses, rates, samples = curve(plain)
    assert [step.step for step in of(found, Step)] == steps
    assert losses(found) == expected_losses
    assert [step.learning_rate for step in of(found, Step)] == rates
    assert [step.samples_seen for step in of(found, Step)] == samples


def test_memory_that_runs_out_in_a_steps_second_pass_changes_no_loss_and_no_learning_rate(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = train(config, [])
    device = Device("training", monkeypatch, 2, rows, begin=6)

    found, _ = train(config, [])

    assert_same_run(found, plain)
    halved = of(found, BatchHalved)
    assert [(each.step, each.batch_size, each.gradient_accumulation, each.where) for each in halved] == [
        (3, 2, 4, "training")
    ]
    assert "out of memory" in halved[0].message
    assert "\n" not in halved[0].message
    assert device.taken == [4, 4, 4, 4, 4, 4, *[2] * 16]


def test_one_long_batch_is_taken_in_pieces_and_the_run_goes_on(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "The ferry waits for nobody, and the keeper of the light knows it. " * 6
    with Path(config.data).open("a") as file:
        turns = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": long[:150]}]
        file.write(json.dumps({"messages": turns}) + "\n")
    config = replace(config, steps=None, epochs=1.0)
    usual = Device("training", monkeypatch, float("inf"), cells)
    plain, _ = train(config, [])
    second, largest = sorted(usual.taken)[-2:]
    assert second < largest
    monkeypatch.undo()
    Device("training", monkeypatch, largest - 1, cells)

    found, _ = train(config, [])

    assert_same_run(found, plain)
    assert len(of(found, BatchHalved)) == 1


def test_packed_passes_are_halved_by_tokens(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = replace(config, packing=True)
    usual = Device("training", monkeypatch, float("inf"), cells)
    plain, _ = train(packed, [])
    monkeypatch.undo()
    device = Device("training", monkeypatch, max(usual.taken) * 0.6, cells)

    found, _ = train(packed, [])

    assert_same_run(found, plain)
    assert of(found, BatchHalved)
    assert max(device.taken[-6:]) <= device.room


def test_the_batch_is_halved_down_to_single_rows_and_then_the_error_says_what_to_do(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Device("training", monkeypatch, 0, rows, begin=3)
    events: list[Event] = []

    with pytest.raises(GPUMemoryError, match="after the batch was halved 2 times") as caught:
        train(config, events)

    assert caught.value.code == "RUNTIME_GPU_OOM"
    assert "--max-seq-length" in caught.value.hint
    assert [(each.batch_size, each.gradient_accumulation) for each in of(events, BatchHalved)] == [(2, 4), (1, 8)]
    assert len(of(events, Step)) == 1


def test_a_run_halves_three_times_and_no_more(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    Device("training", monkeypatch, 1, rows)
    events: list[Event] = []

    with pytest.raises(GPUMemoryError, match="halved 3 times"):
        train(replace(config, batch_size=16, gradient_accumulation=1), events)

    assert [each.batch_size for each in of(events, BatchHalved)] == [8, 4, 2]


def test_with_recovery_off_the_first_failure_is_the_error(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    Device("training", monkeypatch, 2, rows)
    events: list[Event] = []

    with pytest.raises(GPUMemoryError, match=r"out of memory: CUDA out of memory"):
        train(replace(config, oom_recovery=False), events)

    assert of(events, BatchHalved) == []


def test_an_evaluation_that_does_not_fit_is_halved_and_training_is_not(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, held_out="0.2", eval_steps=3, eval_base=False)
    plain, _ = train(config, [])
    training = Device("training", monkeypatch, float("inf"), rows)
    Device("evaluation", monkeypatch, 2, rows)

    found, _ = train(config, [])

    assert_same_run(found, plain)
    assert [each.loss for each in of(found, Evaluated)] == pytest.approx(
        [each.loss for each in of(plain, Evaluated)], rel=within(1e-6, bf16=1e-3)
    )
    assert [(each.step, each.batch_size, each.where) for each in of(found, BatchHalved)] == [(3, 2, "evaluation")]
    assert max(training.taken[-6:]) == 4


def test_the_halved_size_is_kept_over_a_resume(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = train(config, [])
    device = Device("training", monkeypatch, 2, rows)
    events: list[Event] = []
    _, directory = train(config, events, lambda seen: [Stop()] if len(of(seen, Step)) == 2 else [])
    assert [each.batch_size for each in of(events, BatchHalved)] == [2]
    device.taken.clear()

    rest = go_on(directory)

    assert of(rest, BatchHalved) == []
    assert max(device.taken) == 2
    assert isinstance(rest[-1], RunFinished)
    assert_same_run([*of(events, Step), *of(rest, Step)], plain)


def test_the_halved_evaluation_is_kept_over_a_resume(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    Device("evaluation", monkeypatch, 2, rows)
    config = replace(config, held_out="0.2", eval_steps=1, eval_base=False)
    events: list[Event] = []
    _, directory = train(config, events, lambda seen: [Stop()] if len(of(seen, Evaluated)) == 1 else [])
    assert [each.where for each in of(events, BatchHalved)] == ["evaluation"]

    rest = go_on(directory)

    assert of(rest, Evaluated)
    assert of(rest, BatchHalved) == []


def test_halvings_before_a_resume_count(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("training", monkeypatch, 4, rows)
    events: list[Event] = []
    wide = replace(config, batch_size=16, gradient_accumulation=1)
    _, directory = train(wide, events, lambda seen: [Stop()] if len(of(seen, Step)) == 2 else [])
    assert [each.batch_size for each in of(events, BatchHalved)] == [8, 4]
    device.room = 1

    with pytest.raises(GPUMemoryError, match="halved 3 times"):
        go_on(directory)


def test_an_attempt_that_is_made_again_draws_the_same_random_numbers() -> None:
    drawn: list[float] = []

    def work() -> float:
        drawn.append(float(torch.rand(())))
        if len(drawn) < 3:
            raise torch.OutOfMemoryError("full")
        return drawn[-1]

    cleared: list[bool] = []
    recovery = Recovery()
    recovery.attempt(work, lambda: cleared.append(True), lambda: Batching(True, 1, 1), lambda smaller, error: None)

    assert len(set(drawn)) == 1
    assert cleared == [True, True]
    assert recovery.halvings == 2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    ],
)
def test_these_are_out_of_memory(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        RuntimeError("shape mismatch: [4, 8] and [8, 8]"),
        KeyboardInterrupt("out of memory"),
    ],
)
def test_these_are_not_and_are_raised_as_they_are(error: BaseException) -> None:
    def work() -> None:
        raise error

    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught:
        Recovery().attempt(work, lambda: None, lambda: Batching(True, 1, 1), lambda smaller, error: None)
    assert caught.value is error


@pytest.mark.parametrize(
    ("values", "smaller", "remedy"),
    [
        ({"batch_size": 8, "gradient_accumulation": 2}, True, {"batch_size": 1, "gradient_accumulation": 16}),
        ({"max_seq_length": 2048}, False, {"max_seq_length": 1024}),
        ({"max_seq_length": 32}, False, {"lora_preset": "fast"}),
        ({"mode": "full", "weights_dtype": "float32"}, False, {"weights_dtype": "bfloat16"}),
        ({"mode": "full", "weights_dtype": "bfloat16", "max_seq_length": 16}, False, {}),
    ],
)
def test_a_run_that_does_not_fit_names_smaller_settings(
    values: dict[str, object], smaller: bool, remedy: dict[str, object]
) -> None:
    def work() -> None:
        raise torch.OutOfMemoryError("full")

    recovery = Recovery(RunConfig(data="d", **values))
    recovery.halvings = recovery.most if smaller else 0
    halved = Batching(True, 1, 1) if smaller else None
    with pytest.raises(GPUMemoryError) as caught:
        recovery.attempt(work, lambda: None, lambda: halved, lambda smaller, error: None)
    assert caught.value.details == {"remedy": remedy}
    assert failure(caught.value).details == {"remedy": remedy}


def test_without_recovery_nothing_is_halved_and_the_batch_is_what_is_named() -> None:
    assert Recovery(RunConfig(data="d", oom_recovery=False)).most == 0
