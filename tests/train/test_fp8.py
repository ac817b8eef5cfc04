"""Products in 8-bit floats where the run and the card can; Unsloth, which is not used, is said not to be."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from backprop.core import extras, rules
from backprop.core.errors import InvalidSettingError, MissingDependencyError
from backprop.core.events import Warning as Said
from backprop.core.settings import RunConfig
from backprop.train import model as models
from backprop.train import run
from backprop.train.loss import traits_of
from backprop.train.modes.full import multiply_in_8_bits
from msgspec.structs import replace
from runs_in_process import of, train


@pytest.mark.parametrize(
    ("mode", "capability", "why"),
    [
        ("full", (8, 9), ""),
        ("full", (9, 0), ""),
        ("full", (12, 0), ""),
        ("full", (8, 6), "capability 8.6"),
        ("full", (7, 5), "capability 7.5"),
        ("full", None, "no NVIDIA card"),
        ("lora", (9, 0), "mode lora"),
        ("qlora", (9, 0), "mode qlora"),
    ],
)
def test_which_runs_can(mode: str, capability: tuple[int, int] | None, why: str) -> None:
    problem = rules.fp8_problem(mode, capability)
    assert why in problem
    assert bool(problem) is bool(why)


@pytest.mark.parametrize(("mode", "why"), [("full", "no NVIDIA card"), ("auto", "mode lora")])
def test_others_are_refused_before_the_model_is_loaded(mode: str, why: str, tiny_config: RunConfig) -> None:
    with pytest.raises(InvalidSettingError, match=why) as refused:
        models.resolved(replace(tiny_config, mode=mode, fp8=True))
    assert refused.value.code == "CONFIG_INVALID_SETTING"


def test_without_torchao_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as missing:
        models._require_fp8("full", (9, 0))
    assert "backprop-tui[fp8]" in missing.value.hint


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_layers_below_the_head_multiply_in_8_bits_and_keep_names_weights_and_rows_apart(tiny_model: Path) -> None:
    """In torchao's emulation: the device of a test has no such numbers."""
    ids = torch.arange(3, 80)[None]

    def loaded() -> torch.nn.Module:
        return models.load_base(tiny_model, torch.device("cpu"), torch.float32)

    plain, narrow = loaded(), loaded()
    assert multiply_in_8_bits(narrow, emulate=True) == 14
    assert [(name, each.dtype) for name, each in narrow.named_parameters()] == [
        (name, each.dtype) for name, each in plain.named_parameters()
    ]
    traits = traits_of(narrow.eval())
    assert traits.keeps_rows_apart
    assert not traits.sees_what_follows
    losses = [model(input_ids=ids, labels=ids).loss for model in (plain, narrow)]
    assert 0 < float((losses[0] - losses[1]).detach().abs()) < 0.05
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss = narrow(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < float(losses[1].detach()) - 0.5


@pytest.mark.parametrize("asked", [True, False])
def test_unsloth_is_said_not_to_be_used_unless_that_line_is_not_wanted(
    *, asked: bool, tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: object() if name == "unsloth" else None)
    happened, _ = train(replace(tiny_config, steps=1, held_out="none", use_unsloth=asked), [])
    assert ("UNSLOTH_NOT_USED" in {each.code for each in of(happened, Said)}) is asked
