"""The library on a tiny model: what a person's script sees."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from backprop import Trainer, TrainingCallback, TrainingRun
from backprop.core.errors import (
    BackpropError,
    DatasetError,
    DatasetFormatError,
    DatasetNotFoundError,
    DatasetValidationError,
    InputError,
    InvalidSettingError,
    ModelLoadError,
)
from backprop.core.resolve import config_from
from backprop.data.spool import spool
from backprop.runs import engine_client
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from tiny_language_model import rows, write_model, write_rows

pytestmark = pytest.mark.usefixtures("shared_start")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def trainer(model: Path, tmp_path: Path) -> Trainer:
    return Trainer(str(model), lora_r=4, batch_size=2, backend="cpu", output_dir=str(tmp_path / "out"))


def test_no_lora_preset_is_not_the_preset_auto() -> None:
    assert config_from({"data": "d", "lora_preset": None}).lora_preset is None
    assert config_from({"data": "d", "epochs": None}).epochs == "auto"


def test_load_in_4bit_is_the_mode_qlora() -> None:
    assert Trainer("m", load_in_4bit=True).config.mode == "qlora"
    assert Trainer("m", load_in_4bit=False).config.mode == "auto"
    with pytest.raises(InvalidSettingError, match="load_in_4bit=True is the mode qlora, and mode is 'lora'"):
        Trainer("m", load_in_4bit=True, mode="lora")


def test_the_data_is_named_when_a_run_starts_and_not_passed_over_before() -> None:
    with pytest.raises(InvalidSettingError, match="data: it is named when a run starts"):
        Trainer("m", data="rows.jsonl")


class Rows:
    """Walks and quacks like ``datasets.Dataset``: rows come one at a time, some values are arrays."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Any:
        yield from rows(self._count)


def test_three_lines_train_and_save(trainer: Trainer, tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []
    callback = TrainingCallback(
        on_step=lambda step, loss: told.append(("step", (step, loss))),
        on_epoch=lambda epoch: told.append(("epoch", epoch)),
        on_save=lambda path: told.append(("save", path)),
        on_complete=lambda run: told.append(("complete", run)),
    )
    run = trainer.train(write_rows(tmp_path / "rows.jsonl", 16), steps=5, callback=callback)
    saved = trainer.save(tmp_path / "my-adapter")

    assert isinstance(run, TrainingRun)
    assert (run.steps, run.status, len(run.loss_history)) == (5, "done", 5)
    assert run.final_loss == run.loss_history[-1]
    assert run.samples_seen > 16
    assert run.duration_seconds > 0
    assert [value for kind, value in told if kind == "step"] == list(enumerate(run.loss_history, 1))
    assert [value for kind, value in told if kind == "epoch"][:1] == [1]
    assert told[-2:] == [("save", run.output_path), ("complete", run)]
    assert (saved / "adapter_config.json").read_bytes() == Path(run.output_path, "adapter_config.json").read_bytes()
    state = read_run(Path(run.output_path).parent)
    assert (state.run_id, state.final_loss) == (run.run_id, run.final_loss)

    exported = trainer.export("gguf", quantization="Q8_0", answers=False)  # as llama.cpp writes it
    assert Path(exported.path).parent == Path(run.output_path).parent / "exports"
    assert (exported.quantization, exported.check.passed) == ("q8_0", True)
    with pytest.raises(InputError, match="exists already"):
        trainer.export("gguf", quantization="q8_0")

    trainer.save(tmp_path / "my-adapter")  # again: it replaces the adapter
    with pytest.raises(InputError, match="that is no run's result"):
        trainer.save(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="holds something that is no run's result"):
        trainer.save(tmp_path / "file")
    with pytest.raises(BackpropError, match=r"could not be saved in .*: Not a directory") as refused:
        trainer.save(tmp_path / "file" / "below")
    assert refused.value.code == "RUNTIME_IO_FAILED"
    assert (tmp_path / "rows.jsonl").exists()


def test_a_dataset_object_is_kept_in_the_run_s_directory(trainer: Trainer) -> None:
    run = trainer.train(Rows(12), samples=8, steps=1)
    state = read_run(Path(run.output_path).parent)
    data = Path(state.config["data"])
    assert data.parent == Path(run.output_path).parent
    assert [json.loads(line) for line in data.read_text().splitlines()] == rows(12)
    assert state.dataset is not None
    assert state.dataset.kept == 8


def test_a_failed_run_raises_the_engine_s_error(trainer: Trainer, tmp_path: Path) -> None:
    told: list[BackpropError] = []
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(rows(1)[0]) + "\n" + json.dumps({"instruction": "Say nothing.", "output": ""}) + "\n")
    with pytest.raises(DatasetValidationError, match="line 2") as raised:
        trainer.train(data, steps=1, callback=TrainingCallback(on_error=told.append))
    assert raised.value.code == "DATASET_ROWS_UNUSABLE"
    assert "--skip-bad" in raised.value.hint
    assert told == [raised.value]


def test_a_model_that_is_none_raises_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    trainer = Trainer(str(tmp_path / "empty"), backend="cpu", output_dir=str(tmp_path / "out"))
    with pytest.raises(ModelLoadError, match="empty"):
        trainer.train(write_rows(tmp_path / "rows.jsonl"), steps=1)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_stops_the_run_keeps_the_result_and_comes_out(trainer: Trainer, tmp_path: Path) -> None:
    def press(step: int, loss: float | None) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(write_rows(tmp_path / "rows.jsonl"), steps=100_000, callback=TrainingCallback(on_step=press))
    (path,) = (tmp_path / "out").iterdir()
    state = read_run(path)
    assert state.status == "interrupted"
    assert Path(state.output_path, "adapter_config.json").is_file()
    assert not engine_client.attach(path).alive()
    assert trainer.last_run is not None
    assert (trainer.last_run.run_id, trainer.last_run.status) == (state.run_id, "interrupted")
    assert (trainer.save(tmp_path / "kept") / "adapter_config.json").is_file()


def test_the_result_is_known_before_a_callback_is_called_and_survives_its_error(
    trainer: Trainer, tmp_path: Path
) -> None:
    def save_and_fail(run: TrainingRun) -> None:
        trainer.save(tmp_path / run.run_id)
        raise InputError("not what I wanted")

    with pytest.raises(InputError, match="not what I wanted"):
        trainer.train(
            write_rows(tmp_path / "rows.jsonl"), steps=2, callback=TrainingCallback(on_complete=save_and_fail)
        )
    assert trainer.last_run is not None
    assert (tmp_path / trainer.last_run.run_id / "adapter_config.json").is_file()


def test_a_known_error_raised_in_a_callback_stops_the_run(trainer: Trainer, tmp_path: Path) -> None:
    def refuse(step: int, loss: float | None) -> None:
        raise InputError("enough")

    with pytest.raises(InputError, match="enough"):
        trainer.train(write_rows(tmp_path / "rows.jsonl"), steps=100_000, callback=TrainingCallback(on_step=refuse))
    (path,) = (tmp_path / "out").iterdir()
    assert read_run(path).status == "interrupted"
    trainer.save(tmp_path / "kept")


def test_settings_are_checked_when_the_trainer_is_made() -> None:
    with pytest.raises(InvalidSettingError, match="learning_rat") as told:
        Trainer("smollm2-135m", learning_rat=1e-4)
    assert "learning_rate" in told.value.hint
    with pytest.raises(InvalidSettingError, match="lora_dropout"):
        Trainer("smollm2-135m", lora_dropout=1.5)


def test_a_missing_dataset_is_noticed_before_an_engine_starts(trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="nothing"):
        trainer.train(tmp_path / "nothing.jsonl", steps=1)
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_rows_is_noticed_before_an_engine_starts(trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "header.csv").write_text("question,answer\n")
    called_back: list[BackpropError] = []
    for begin in (trainer.train, trainer.multi_run):
        with pytest.raises(DatasetError, match=r"header\.csv: dataset is empty") as told:
            begin(tmp_path / "header.csv", callback=TrainingCallback(on_error=called_back.append))
        assert told.value.code == "DATASET_EMPTY"
        assert called_back[-1] is told.value
    assert len(called_back) == 2
    assert not (tmp_path / "out").exists()


def test_nothing_can_be_saved_before_training(trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no result to save yet"):
        trainer.save(tmp_path / "a")


def test_which_model_is_taken_when_none_is_named_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert Trainer(backend="cpu").config.model == "smollm2-135m"
    assert "taking smollm2-135m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ({"train": [], "test": []}, "several datasets"),
        ({"instruction": "a", "output": "b"}, "one row"),
        ({"instruction": ["a", "b"], "output": ["c"]}, "instruction 2, output 1"),
        ([{"a": 1}, "text"], "row 2"),
        ([{"a": object()}], "row 1"),
        (None, "NoneType is no dataset"),
        (7, "int is no dataset"),
        ([], "no row was given"),
    ],
)
def test_what_is_no_dataset_is_refused_in_words(dataset: Any, said: str, trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=said):
        trainer.train(dataset, steps=1)
    assert not list((tmp_path / "out").glob("*"))


def test_arrays_in_rows_become_lists(tmp_path: Path) -> None:
    import numpy as np

    spool([{"text": "a", "scores": np.array([1.5, 2.0]), "n": np.int64(3)}], tmp_path / "rows.jsonl")
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"text": "a", "scores": [1.5, 2.0], "n": 3}


def test_bytes_in_rows_are_text_or_refused(tmp_path: Path) -> None:
    row = {"instruction": b"hello", "output": [{"text": "é".encode()}], "price": Decimal("1.50"), "n": 2**70}
    spool([row], tmp_path / "rows.jsonl")
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {
        "instruction": "hello",
        "output": [{"text": "é"}],
        "price": "1.50",
        "n": 2**70,
    }
    with pytest.raises(DatasetFormatError, match="row 2 cannot be written as JSON: bytes that are not UTF-8"):
        spool([row, {"text": b"\xff"}], tmp_path / "other.jsonl")


def test_columns_are_rows(tmp_path: Path) -> None:
    columns = {"instruction": ["a", "b"], "extra": [{"n": 1}, None]}
    assert [json.loads(line) for line in spool(columns, tmp_path / "x").read_text().splitlines()] == [
        {"instruction": "a", "extra": {"n": 1}},
        {"instruction": "b", "extra": None},
    ]


def test_a_table_says_how_its_rows_are_passed(tmp_path: Path) -> None:
    import pyarrow

    with pytest.raises(DatasetFormatError) as told:
        spool(pyarrow.table({"a": [1]}), tmp_path / "x")
    assert "to_pylist()" in told.value.hint


def test_paths_may_be_path_objects_and_are_made_absolute(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def launch(directory: RunDirectory, *how: str) -> None:
        raise Stop

    monkeypatch.setattr(engine_client, "launch", launch)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    relative = Path("..") / "tiny"
    relative.symlink_to(model)
    trainer = Trainer(relative, output_dir=Path("out"), epochs=2)
    with pytest.raises(Stop):
        trainer.train(rows(4), steps=3)
    (made,) = (tmp_path / "work" / "out").iterdir()
    config = RunDirectory(made).read_record().config
    assert Path(config.model).is_absolute()
    assert Path(config.model).samefile(model)
    assert config.output_dir == str(tmp_path / "work" / "out")
    assert (config.steps, config.epochs) == (3, "auto")
    assert RunDirectory(made).read_record().origins == {**dict.fromkeys(("model", "output_dir", "steps"), "argument")}
