"""Runs that must give the same numbers: however rows share passes and processes, and wherever a run was interrupted.

What one pass, one gradient or one piece of the vocabulary gives is compared in ``test_loss`` and ``test_preference``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from backprop.core import events as ev
from backprop.core.events import Evaluated, Step, Stop
from backprop.core.methods import METHODS
from backprop.core.settings import RunConfig
from backprop.train.trainer import MIXES_ROWS
from forked_engines import EngineHost
from msgspec.structs import replace
from pinned_machine import within
from runs_in_process import go_on, of, train
from safetensors.torch import load_file
from tiny_language_model import write_judged, write_pairs, write_rows

STEPS = 5
WRITE = {"sft": (write_rows, 24), "kto": (write_judged, 27)}
"""Of which 21 are trained, eight a step: the third step takes five, two processes unequal numbers of them."""


@pytest.fixture(scope="module", params=list(METHODS))
def config(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp(request.param)
    write, count = WRITE.get(request.param, (write_pairs, 24))
    return RunConfig(
        data=str(write(folder / "rows.jsonl", count)),
        model=str(tiny_model),
        method=request.param,
        backend="cpu",
        steps=STEPS,
        batch_size=8,
        gradient_accumulation=1,
        learning_rate=1e-3,
        lora_r=4,
        lora_dropout=0.0,
        packing=False,
        held_out="0.125",
        eval_steps=STEPS,
        output_dir=str(folder / "out"),
    )


def numbers(events: list[Any]) -> list[float]:
    """Loss and norm of the gradient of every step, then the losses of the evaluations."""
    assert of(events, Step)[2].samples_seen == 21
    assert MIXES_ROWS not in [each.message for each in of(events, ev.Warning)]
    values = [value for each in of(events, Step) for value in (each.loss, each.grad_norm)]
    return values + [each.loss for each in of(events, Evaluated)]


@pytest.fixture(scope="module")
def plain(config: RunConfig) -> list[float]:
    return numbers(train(config, [])[0])


@pytest.mark.parametrize(
    ("way", "tolerance"),
    [
        ({"batch_size": 4, "gradient_accumulation": 2}, 1e-6),
        ({"batch_size": 1, "gradient_accumulation": 8}, 1e-6),
        ({"packing": True}, 1e-5),
        ({"packing": True, "batch_size": 2, "gradient_accumulation": 4}, 1e-5),
        ({"gradient_checkpointing": True}, 1e-6),
        ({"processes": 2}, 1e-5),
    ],
    ids=["4x2", "1x8", "packed", "packed 2x4", "checkpointed", "two processes"],
)
def test_how_a_step_is_computed_changes_no_number(
    way: dict[str, Any], tolerance: float, config: RunConfig, plain: list[float], engine_host: EngineHost
) -> None:
    with engine_host.in_use():
        found = numbers(train(replace(config, **way), [])[0])
    assert found == pytest.approx(plain, rel=within(tolerance, bf16=1e-2), abs=within(tolerance, bf16=1e-2))


def test_a_run_that_was_stopped_and_resumed_ends_on_the_last_bit(config: RunConfig) -> None:
    config = replace(config, lora_dropout=0.1)  # so that random states matter
    whole, directory = train(config, [])

    def stop(events: list[Any]) -> list[Any]:
        return [Stop()] if len(of(events, Step)) == 2 else []

    begun, other = train(config, [], stop)
    rest = go_on(other)

    assert 0 < len(of(begun, Step)) < STEPS
    taken = [(each.step, each.loss, each.grad_norm) for each in of(begun + rest, Step)]
    assert taken == [(each.step, each.loss, each.grad_norm) for each in of(whole, Step)]
    ends = [load_file(each.path / "adapter" / "adapter_model.safetensors") for each in (directory, other)]
    assert ends[0].keys() == ends[1].keys()
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])
