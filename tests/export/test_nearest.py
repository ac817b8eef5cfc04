"""A QLoRA run is merged into the weights that give the model nearest to the trained one, and the export says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from backprop.core.jobs import Exported, ExportRequest
from backprop.core.models import settings_of, weight_files
from backprop.export import __main__ as job
from backprop.export import nearest
from backprop.export.merge import Adapter, MergedWeights
from backprop.export.weights import StoredWeights
from backprop.runs.directory import RunDirectory
from backprop.train.generate import load_model
from forked_engines import EngineHost
from gguf import GGUFReader
from pinned_machine import within
from trained_runs import run_of_four_steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, engine_host: EngineHost) -> RunDirectory:
    folder = tmp_path_factory.mktemp("in-4-bits")
    return run_of_four_steps(folder, engine_host, 24, load_in_4bit=True, lora_r=4)[1]


def export(folder: Path, run: RunDirectory, form: str, precision: str = "", answers: bool = True) -> Exported:
    (folder / "scratch").mkdir(exist_ok=True)
    request = ExportRequest(
        source=str(run.path), format=form, precision=precision, output=str(folder / "made"), answers=answers
    )
    try:
        return job.export(request, lambda message: None, folder / "scratch")
    finally:
        shutil.rmtree(folder / "scratch")


def test_the_three_models_are_measured_and_the_nearest_is_written(trained: RunDirectory, tmp_path: Path) -> None:
    done = export(tmp_path, trained, "merged", "f32")

    said = done.check.compared[0]
    assert (said.name, said.passed) == ("base", True)
    assert "held-out rows: loss" in said.detail
    assert said.detail.endswith("Merged into the dequantised weights")
    base = Path(str(trained.read_record().config.model))
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        as_trained, written, beside_16_bits = (
            model.eval()(ids).logits
            for model in (
                load_model(base, trained.adapter, "cpu", nf4=True),
                load_model(tmp_path / "made", None, "cpu"),
                load_model(base, trained.adapter, "cpu"),
            )
        )
    far = (beside_16_bits - as_trained).abs().mean()
    assert (written - as_trained).abs().mean() < within(1e-4, bf16=0.5) * within(1.0, bf16=float(far))
    assert far > 0.01


def test_where_the_original_weights_are_nearer_the_adapter_goes_there(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had not been trained in 4 bits: then the original weights are the nearest, and the proof holds too."""

    def load_with_both(source: nearest.Source) -> object:
        assert source.adapter is not None
        model = load_model(source.base, source.adapter.folder, "cpu", nf4=True)
        plain = load_model(source.base, source.adapter.folder, "cpu")
        model.forward = plain.forward
        return model

    monkeypatch.setattr(nearest, "load_trained", load_with_both)
    done = export(tmp_path, trained, "gguf", "f32")

    assert done.check.compared[0].detail.endswith("Merged into the original weights")
    assert done.check.compared[1].passed
    base = Path(str(trained.read_record().config.model))
    weights = MergedWeights(StoredWeights(weight_files(base)), Adapter(trained.adapter), settings_of(base))
    (written,) = (each.data for each in GGUFReader(done.path).tensors if each.name == "blk.0.ffn_up.weight")
    assert np.abs(written - weights.read("model.layers.0.mlp.up_proj.weight")).max() < 1e-6


def test_an_adapter_alone_is_said_to_belong_beside_4_bits(trained: RunDirectory, tmp_path: Path) -> None:
    done = export(tmp_path, trained, "lora")
    assert any("beside its base in 4 bits" in note for note in done.notes)


def test_unasked_it_goes_into_what_it_was_trained_beside(trained: RunDirectory, tmp_path: Path) -> None:
    done = export(tmp_path, trained, "gguf", "q4_k_m", answers=False)
    assert "merged into the dequantised weights" in done.check.compared[0].detail
