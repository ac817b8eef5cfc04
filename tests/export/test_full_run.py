"""A run that trained every weight is exported, asked and uploaded as one that trained an adapter is."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from backprop.core.errors import BackpropError, CheckpointError
from backprop.core.jobs import ChatReady, ChatRequest, Exported, ExportRequest
from backprop.export import __main__ as job
from backprop.export.push import pack
from backprop.runs.conversation import CHAT
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_jobs import engine_job
from forked_engines import EngineHost
from safetensors.numpy import load_file, save_file
from tiny_language_model import write_model
from trained_runs import run_of_four_steps
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def full_once(tmp_path_factory: pytest.TempPathFactory, engine_host: EngineHost) -> RunDirectory:
    """A run whose base model is gone since."""
    folder = tmp_path_factory.mktemp("full")
    trainer, run = run_of_four_steps(folder, engine_host, mode="full", learning_rate=3e-3)
    copy = trainer.save(folder / "saved")
    assert trainer.save(copy) == copy  # a result is replaced
    assert {each.name for each in copy.iterdir()} == {each.name for each in run.model.iterdir()}
    shutil.rmtree(folder / "tiny")
    return run


@pytest.fixture
def full_run(full_once: RunDirectory, tmp_path: Path) -> RunDirectory:
    target = tmp_path / "runs" / full_once.run_id
    shutil.copytree(full_once.path, target, ignore=shutil.ignore_patterns("control", "exports"))
    return RunDirectory(target)


def export(tmp_path: Path, source: Path, form: str, **asked: Any) -> Exported:
    scratch = Path(tempfile.mkdtemp(dir=tmp_path))
    return job.export(ExportRequest(source=str(source), format=form, **asked), lambda message: None, scratch)


def test_gguf_and_merged_are_made_of_the_trained_weights_and_pass_their_checks(
    full_run: RunDirectory, tmp_path: Path
) -> None:
    gguf = export(tmp_path, full_run.path, "gguf", precision="f16")
    assert gguf.check.passed
    assert {"tensors", "vocabulary"} <= {each.name for each in gguf.check.compared}
    assert Path(gguf.path) == full_run.path / "exports" / "tiny-f16.gguf"

    merged = export(tmp_path, full_run.path, "merged", precision="f32")
    assert merged.check.passed
    assert merged.check.kl == 0.0
    assert "base and trained" not in merged.check.compared[1].detail
    trained, written = (load_file(folder / "model.safetensors") for folder in (full_run.model, Path(merged.path)))
    assert trained.keys() == written.keys()
    assert all((trained[name] == written[name]).all() for name in trained)


def test_a_checkpoint_is_exported_as_the_model_it_was(full_run: RunDirectory, tmp_path: Path) -> None:
    base = write_model(
        Path(full_run.read_record().config.model)
    )  # a checkpoint has neither configuration nor tokenizer
    last, earlier = (
        export(tmp_path, full_run.path, "merged", precision="f32", step=step, answers=False) for step in (4, 2)
    )
    shutil.rmtree(base)
    result, at_end, before = (
        load_file(Path(folder) / "model.safetensors") for folder in (full_run.model, last.path, earlier.path)
    )
    assert all((result[name] == at_end[name]).all() for name in result)
    assert all((result[name] != before[name]).any() for name in result)
    assert AutoModelForCausalLM.from_pretrained(earlier.path).dtype == torch.float32


@pytest.mark.parametrize("form", ["lora", "lora-gguf"])
def test_an_adapter_is_refused_with_the_reason(full_run: RunDirectory, tmp_path: Path, form: str) -> None:
    with pytest.raises(BackpropError, match="is a whole model: it has no adapter"):
        export(tmp_path, full_run.path, form)
    assert not (full_run.path / "exports").exists()


def test_weights_that_are_not_those_that_the_run_saved_are_refused(full_run: RunDirectory, tmp_path: Path) -> None:
    weights = load_file(full_run.model / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, full_run.model / "model.safetensors", {"format": "pt"})
    for source in (full_run.path, full_run.model):
        with pytest.raises(CheckpointError, match="not the file that the run saved"):
            export(tmp_path, source, "merged")


def test_the_card_says_that_every_weight_was_trained(full_run: RunDirectory) -> None:
    parcel = pack(full_run.path, "me/name")
    assert "every weight was trained" in parcel.card
    assert '"lora"' not in parcel.card
    assert {"model.safetensors", "config.json", "tokenizer.json", "backprop.json"} <= parcel.files.keys()
    assert all(str(full_run.path).encode() not in each for each in parcel.files.values() if isinstance(each, bytes))


def test_it_is_talked_to_alone(full_run: RunDirectory, engine_host: EngineHost) -> None:
    with engine_host.in_use(), engine_job(CHAT, ChatRequest(source=str(full_run.path)), stays=True) as work:
        ready = next(message for message in work.messages() if isinstance(message, ChatReady))
    assert not ready.has_base
