"""A run is continued only with the model, data and settings that it began with."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backprop.core.errors import CheckpointError
from backprop.core.events import DatasetPrepared, Step, Stop
from backprop.core.paths import token_cache
from backprop.core.settings import RunConfig
from backprop.data import preprocess
from backprop.runs import model_files
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.model_files import file_hash
from backprop.runs.result_files import changed_files, result_digest
from backprop.train.dataset import prepare
from backprop.train.model import resolved
from backprop.train.persistence.resume import fork_notes, identity, identity_differences, library_differences
from runs_in_process import go_on, of
from tiny_language_model import write_rows

CONFIG = RunConfig(data="rows.jsonl", batch_size=2)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "merges.txt"):
        (folder / name).write_bytes(name.encode() * 100)
    return folder


def made(model_path: Path, fingerprint: str = "tokens", **settings: Any) -> dict[str, Any]:
    return identity(msgspec.structs.replace(CONFIG, **settings), model_path, fingerprint)


def test_the_same_run_has_no_differences_even_through_json(model_path: Path) -> None:
    saved = msgspec.json.decode(msgspec.json.encode(made(model_path)))
    assert identity_differences(saved, made(model_path)) == []
    assert library_differences(saved, made(model_path)) == []


def test_settings_that_reach_the_weights_are_named_with_both_values(model_path: Path) -> None:
    now = made(model_path, learning_rate=3e-4, seed=7)
    assert identity_differences(made(model_path, learning_rate=2e-4), now) == [
        "learning_rate was 0.0002 and is 0.0003",
        "seed was 42 and is 7",
    ]


def test_settings_that_do_not_reach_the_weights_are_free(model_path: Path) -> None:
    now = made(model_path, run_name="again", output_dir="/elsewhere", sample_prompts=["Hello?"], data="moved.jsonl")
    assert identity_differences(made(model_path), now) == []


def test_changed_files_and_data_are_named(model_path: Path) -> None:
    saved = made(model_path)
    content = bytearray((model_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model_path / "model.safetensors").write_bytes(content)
    (model_path / "merges.txt").unlink()
    (model_path / "added.json").write_text("{}")
    assert identity_differences(saved, made(model_path, fingerprint="other")) == [
        "the model's file merges.txt is missing",
        "the model's file model.safetensors was changed",
        "the model's file added.json is new",
        "the data, or how it becomes tokens, was changed",
    ]


def test_other_held_out_rows_and_other_answers_of_the_untouched_model_are_named(model_path: Path) -> None:
    saved = identity(CONFIG, model_path, "tokens", "held out") | {"reference": "then"}
    assert identity_differences(saved, saved) == []
    assert identity_differences(saved, saved | {"held_out": "others"}) == ["the held-out rows were changed"]
    (found,) = identity_differences(saved, saved | {"reference": "now"})
    assert "log-probabilities of the rows are no longer those of then" in found


def test_a_fork_on_another_base_is_refused_and_another_tokenizer_is_its_own_affair(
    model_path: Path, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", "run-a")
    weights = store.save(3, lambda folder: None, identity=made(model_path)).path
    (model_path / "merges.txt").write_text("others")
    assert fork_notes(weights, made(model_path), "") == []
    (model_path / "model.safetensors").write_text("others")
    with pytest.raises(CheckpointError, match=r"on another model: the model's file model\.safetensors was changed$"):
        fork_notes(weights, made(model_path), "")


def test_a_setting_that_came_later_counts_as_its_default(model_path: Path) -> None:
    saved = made(model_path)
    del saved["config"]["packing"]
    assert identity_differences(saved, made(model_path)) == []
    assert identity_differences(saved, made(model_path, packing=False)) == ["packing was True and is False"]


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> RunConfig:
    """A run on a copy of the tiny model, so that its files can be changed."""
    folder = shutil.copytree(tiny_model, tmp_path / "tiny")
    return resolved(RunConfig(data=str(write_rows(tmp_path / "rows.jsonl", 20)), model=str(folder), backend="cpu"))


def of_run(config: RunConfig) -> dict[str, Any]:
    """The identity that a run with ``config`` has."""
    path = Path(config.model)
    rows, _, _ = prepare(config, path, lambda event: None, lambda: False)
    return identity(config, path, rows.fingerprint)


def test_a_comment_in_the_code_that_prepares_data_changes_nothing(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = of_run(config)
    prepared_before = set(token_cache().iterdir())
    edited = shutil.copytree(Path(preprocess.__file__).parent, tmp_path / "data")
    with (edited / "preprocess.py").open("a") as file:
        file.write("# A comment.\n")
    monkeypatch.setattr(preprocess, "__file__", str(edited / "preprocess.py"))

    assert identity_differences(before, of_run(config)) == []
    assert set(token_cache().iterdir()) > prepared_before, "the rows were not prepared again"


def test_a_run_writes_the_date_of_its_beginning_also_when_it_goes_on_later(config: RunConfig, tmp_path: Path) -> None:
    settings = Path(config.model) / "tokenizer_config.json"
    template = json.loads(settings.read_text())
    template["chat_template"] = "{{ strftime_now('Today is %d %b %Y.') }}" + template["chat_template"]
    settings.write_text(json.dumps(template))
    changes = {"steps": 6, "save_steps": 2, "held_out": "none", "output_dir": str(tmp_path / "out")}
    directory = RunDirectory.create(msgspec.structs.replace(config, **changes))
    directory.update_record(created=datetime(2021, 3, 4, 23, 59).timestamp())

    begun = go_on(directory, "start", ask=lambda seen: [Stop()] if len(of(seen, Step)) >= 2 else [])
    went_on = go_on(directory)

    for events in (begun, went_on):
        (prepared,) = of(events, DatasetPrepared)
        assert prepared.first_row[0].text.startswith("Today is 04 Mar 2021.")
    assert of(went_on, Step)[0].step == 3
    assert [rows.summary.cached for rows in (again(config, 4), again(config, 5))] == [True, False]


def again(config: RunConfig, day: int) -> preprocess.Prepared:
    """The rows prepared once more, in that month."""
    now = datetime(2021, 3, day, 11, 0)
    return preprocess.prepare(config.data, config.model, max_length=config.max_seq_length, now=now)


def change_word(config: RunConfig) -> RunConfig:
    path = Path(config.data)
    path.write_text(path.read_text().replace("The harbour of 0.", "The harbour of 1.", 1))
    return config


def change_weights(config: RunConfig) -> RunConfig:
    path = Path(config.model) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return config


def change_template(config: RunConfig) -> RunConfig:
    path = Path(config.model) / "tokenizer_config.json"
    path.write_text(path.read_text().replace("<|im_start|>' + message", "<|im_start|> ' + message"))
    return config


def change_mask(config: RunConfig) -> RunConfig:
    return msgspec.structs.replace(config, train_on_responses=False)


def change_steps_rows(config: RunConfig) -> RunConfig:
    return msgspec.structs.replace(config, gradient_accumulation=8)


DATA = "the data, or how it becomes tokens, was changed"


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        (change_word, [DATA]),
        (change_weights, ["the model's file model.safetensors was changed"]),
        (change_template, ["the model's file tokenizer_config.json was changed", DATA]),
        (change_mask, [DATA, "train_on_responses was True and is False"]),
        (change_steps_rows, ["gradient_accumulation was 16 and is 8"]),
    ],
)
def test_what_changes_a_run_changes_its_identity(change: Any, differences: list[str], config: RunConfig) -> None:
    before = of_run(config)

    assert identity_differences(before, of_run(change(config))) == differences


def test_another_version_of_a_library_is_said_but_no_difference_of_identity(model_path: Path) -> None:
    saved = made(model_path)
    saved["libraries"]["torch"] = "2.0.0"
    saved["libraries"]["a-library-that-is-no-longer-used"] = "1.0"
    assert identity_differences(saved, made(model_path)) == []
    (told,) = library_differences(saved, made(model_path))
    assert told.startswith("torch was '2.0.0' and is ")


def test_a_large_file_is_told_apart_by_length_beginning_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "WHOLE_FILE", 1000)
    path = tmp_path / "large.safetensors"
    hashes = set()
    for content in (bytes(300_000), bytes(300_001), b"\x01" + bytes(299_999), bytes(299_999) + b"\x01"):
        path.write_bytes(content)
        hashes.add(file_hash(path))
    assert len(hashes) == 4
    assert all(each.startswith("pieces:") for each in hashes)


def test_where_the_base_is_now_is_no_change_of_a_result_and_its_scale_is(tmp_path: Path) -> None:
    settings = {"base_model_name_or_path": "/then/model", "r": 8, "lora_alpha": 16}
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(settings))
    (tmp_path / "backprop.json").write_text(json.dumps({"files": {file.name: result_digest(file)}}))
    file.write_text(json.dumps(settings | {"base_model_name_or_path": "/now/model"}, indent=2))
    assert changed_files(tmp_path) == []
    file.write_text(json.dumps(settings | {"lora_alpha": 32}))
    assert changed_files(tmp_path) == [f"{file} is not the file that the run saved"]


def test_a_file_of_the_hub_cache_is_known_by_its_blobs_name(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert file_hash(link) == "sha256:" + "ab" * 32
