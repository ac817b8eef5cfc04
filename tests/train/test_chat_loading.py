"""A model that the chat job cannot load, or not as it was trained; and a job that dies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backprop.core.errors import CheckpointError, EngineCrashedError, ModelLoadError
from backprop.core.events import Warning  # noqa: A004
from backprop.core.jobs import ChatReady, ChatRequest, Message
from backprop.core.settings import RunConfig
from backprop.runs.conversation import CHAT
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_jobs import ask_engine, engine_job
from backprop.runs.state import read_run
from backprop.trainer import Trainer
from safetensors.numpy import load_file, save_file
from tiny_language_model import write_model, write_rows

pytestmark = pytest.mark.usefixtures("shared_start")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The directory of a short run on the tiny model."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "DATA", "CONFIG"):
            patch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
        trainer = Trainer(str(write_model(folder / "tiny")), lora_r=4, backend="cpu", output_dir=str(folder / "out"))
        run = trainer.train(write_rows(folder / "rows.jsonl", 8), steps=1)
    return RunDirectory(Path(run.output_path).parent)


def loaded(directory: RunDirectory, **asked: Any) -> list[Message]:
    """What the job says until the model is loaded."""
    told: list[Message] = []
    with engine_job(CHAT, ChatRequest(source=str(directory.path), **asked), stays=True) as job:
        for message in job.messages():
            told.append(message)
            if isinstance(message, ChatReady):
                break
    return told


def test_a_checkpoint_that_is_not_there_is_an_error_that_names_it(trained: RunDirectory) -> None:
    with pytest.raises(CheckpointError, match="no good checkpoint of step 77"):
        loaded(trained, step=77)


def test_a_truncated_adapter_is_an_error_that_names_it(trained: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(trained.path, tmp_path / "copy", ignore=shutil.ignore_patterns("control"))
    copy = RunDirectory(tmp_path / "copy")
    weights = copy.adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="adapter"):
        loaded(copy)


def test_another_base_and_another_adapter_answer_with_a_warning(trained: RunDirectory, tmp_path: Path) -> None:
    def warned(directory: RunDirectory, **asked: Any) -> list[tuple[str, str]]:
        messages = loaded(directory, **asked)
        return [(each.code, each.message) for each in messages if isinstance(each, Warning)]

    assert warned(trained) == []
    model = Path(str(read_run(trained.path).config["model"]))
    other = shutil.copytree(model, tmp_path / "other")
    assert warned(trained, model=str(other)) == []
    weights = load_file(other / "model.safetensors")
    save_file({name: each * 2 for name, each in weights.items()}, other / "model.safetensors", {"format": "pt"})
    ((code, said),) = warned(trained, model=str(other))
    assert (code, "the model's file model.safetensors was changed" in said) == ("BASE_CHANGED", True)

    copy = RunDirectory(tmp_path / trained.run_id)
    shutil.copytree(trained.path, copy.path, ignore=shutil.ignore_patterns("control"))
    file = copy.adapter / "adapter_model.safetensors"
    save_file({name: each * 0 for name, each in load_file(file).items()}, file, {"format": "pt"})
    ((code, said),) = warned(copy)
    assert (code, str(file) in said) == ("ADAPTER_CHANGED", True)
    assert copy.changed_result() == [said]


def test_a_base_model_that_is_gone_is_an_error_that_names_it(trained: RunDirectory, tmp_path: Path) -> None:
    directory = RunDirectory.create(RunConfig(data="d", model=str(tmp_path / "gone"), output_dir=str(tmp_path)))
    with pytest.raises(ModelLoadError, match="gone"):
        loaded(directory)


def test_a_job_that_dies_is_a_crash_with_its_last_words() -> None:
    class Nothing(msgspec.Struct):
        pass

    with pytest.raises(EngineCrashedError, match="No module named"):
        ask_engine("backprop.nothing", Nothing(), ChatReady)
