"""The generate job as a process: its stream, and how it fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from backprop.core.errors import CheckpointError, EngineCrashedError, ModelLoadError
from backprop.core.events import Sample, Warning  # noqa: A004
from backprop.core.jobs import Delta, GenerateRequest
from backprop.core.settings import RunConfig
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_jobs import start_job
from backprop.runs.state import read_run
from backprop.trainer import Trainer
from safetensors.numpy import load_file, save_file
from tiny_language_model import write_model, write_rows

JOB = "backprop.train.generate"


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


def request(directory: RunDirectory) -> GenerateRequest:
    return GenerateRequest(run=str(directory.path), prompts=["One?", "Two?"], base=True, max_tokens=6)


def test_pieces_come_before_the_whole_and_make_it_up(trained: RunDirectory) -> None:
    pieces: dict[tuple[int, bool], str] = {}
    samples: list[Sample] = []
    for message in start_job(JOB, trained, request(trained)).messages():
        if isinstance(message, Delta):
            key = (message.index, message.tuned)
            pieces[key] = pieces.get(key, "") + message.text
        elif isinstance(message, Sample):
            samples.append(message)
    assert [(s.prompt, s.tuned) for s in samples] == [("One?", False), ("One?", True), ("Two?", False), ("Two?", True)]
    told = {(request(trained).prompts.index(s.prompt), s.tuned): s.text for s in samples}
    assert {key: text.strip() for key, text in pieces.items() if text.strip()} == {k: t for k, t in told.items() if t}


def test_a_checkpoint_answers_as_the_result_that_was_made_of_it(trained: RunDirectory) -> None:
    (step,) = [each.step for each in CheckpointStore(trained.checkpoints, trained.run_id).checkpoints()]
    plain = request(trained)
    of_step = msgspec.structs.replace(plain, step=step)
    answers = [
        [message for message in start_job(JOB, trained, asked).messages() if isinstance(message, Sample)]
        for asked in (plain, of_step)
    ]
    assert answers[0] == answers[1]

    with pytest.raises(CheckpointError, match="no good checkpoint of step 77"):
        list(start_job(JOB, trained, msgspec.structs.replace(plain, step=77)).messages())


def test_a_truncated_adapter_is_an_error_that_names_it(trained: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(trained.path, tmp_path / "copy", ignore=shutil.ignore_patterns("control"))
    copy = RunDirectory(tmp_path / "copy")
    weights = copy.adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="adapter"):
        list(start_job(JOB, copy, request(copy)).messages())


def test_another_base_and_another_adapter_answer_with_a_warning(trained: RunDirectory, tmp_path: Path) -> None:
    def warned(directory: RunDirectory, asked: GenerateRequest) -> list[tuple[str, str]]:
        messages = start_job(JOB, directory, asked).messages()
        return [(each.code, each.message) for each in messages if isinstance(each, Warning)]

    plain = msgspec.structs.replace(request(trained), prompts=["One?"], base=False, max_tokens=1)
    assert warned(trained, plain) == []
    model = Path(str(read_run(trained.path).config["model"]))
    other = shutil.copytree(model, tmp_path / "other")
    assert warned(trained, msgspec.structs.replace(plain, model=str(other))) == []
    weights = load_file(other / "model.safetensors")
    save_file({name: each * 2 for name, each in weights.items()}, other / "model.safetensors", {"format": "pt"})
    ((code, said),) = warned(trained, msgspec.structs.replace(plain, model=str(other)))
    assert (code, "the model's file model.safetensors was changed" in said) == ("BASE_CHANGED", True)

    copy = RunDirectory(tmp_path / trained.run_id)
    shutil.copytree(trained.path, copy.path, ignore=shutil.ignore_patterns("control"))
    file = copy.adapter / "adapter_model.safetensors"
    save_file({name: each * 0 for name, each in load_file(file).items()}, file, {"format": "pt"})
    ((code, said),) = warned(copy, msgspec.structs.replace(plain, run=str(copy.path)))
    assert (code, str(file) in said) == ("ADAPTER_CHANGED", True)
    assert copy.changed_result() == [said]


def test_a_base_model_that_is_gone_is_an_error_that_names_it(trained: RunDirectory, tmp_path: Path) -> None:
    directory = RunDirectory.create(RunConfig(data="d", model=str(tmp_path / "gone"), output_dir=str(tmp_path)))
    with pytest.raises(ModelLoadError, match="gone"):
        list(start_job(JOB, directory, request(directory)).messages())


def test_a_job_that_dies_is_a_crash_with_its_last_words(tmp_path: Path) -> None:
    directory = RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path)))

    class Nothing(msgspec.Struct):
        pass

    with pytest.raises(EngineCrashedError, match="No module named"):
        list(start_job("backprop.nothing", directory, Nothing()).messages())
