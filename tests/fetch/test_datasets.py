"""Datasets of the hub: fetched by an engine process from a stand-in of the hub, into one file; refusals in words."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import pyarrow
import pytest
from backprop.core.datasets import find_fetched
from backprop.core.errors import (
    DatasetDownloadError,
    DatasetError,
    DatasetFormatError,
    DatasetNotFoundError,
    EngineCrashedError,
)
from backprop.core.jobs import Fetched, JobProgress, Message
from backprop.data.reader import open_source
from backprop.runs.engine_jobs import fetch_dataset
from pyarrow import parquet
from small_hub import COMMIT, CONVERTED, Hub, small_hub

NAME = "harbour/charts"
SECRET = "hf_aVerySecretTokenOfSomebody"


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)


def lines(first: int, count: int) -> bytes:
    rows = ({"instruction": f"Hold {i}?", "output": f"Barrel {i}"} for i in range(first, first + count))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(first: int, count: int, **more: list[object]) -> bytes:
    written = io.BytesIO()
    numbers = range(first, first + count)
    columns = {"instruction": [f"Hold {i}?" for i in numbers], "output": [f"Barrel {i}" for i in numbers], **more}
    parquet.write_table(pyarrow.table(columns), written)
    return written.getvalue()


def holds(found: Fetched) -> list[str]:
    with open_source(found.path) as source:
        return [row.value["instruction"] for row in source]  # type: ignore[index]


def test_one_file_is_fetched_as_it_is_and_never_asked_for_again(hub: Hub) -> None:
    hub.datasets[NAME] = {"README.md": b"# charts", "data/rows.jsonl": lines(0, 3), "LICENSE.txt": b"free"}
    seen: list[Message] = []
    found = fetch_dataset(NAME, seen.append)
    assert Path(found.path).read_bytes() == lines(0, 3)
    assert (found.split, found.files, found.revision, found.bytes) == ("train", 1, COMMIT, len(lines(0, 3)))
    assert seen[0] == JobProgress(doing=f"fetching {NAME}")
    asked = len(hub.asked)
    assert fetch_dataset(NAME) == found == find_fetched(NAME)
    assert len(hub.asked) == asked
    assert not list(Path(found.path).parent.glob("*download*"))


def test_shards_of_the_training_split_become_one_file_in_their_order(hub: Hub) -> None:
    names = [f"data/train-0000{i}-of-00003.parquet" for i in range(3)]
    hub.datasets[NAME] = {name: table(10 * i, 10) for i, name in enumerate(names)}
    hub.datasets[NAME]["data/test-00000-of-00001.parquet"] = table(900, 5)
    found = fetch_dataset(NAME)
    assert Path(found.path).name == "train.jsonl"
    assert holds(found) == [f"Hold {i}?" for i in range(30)]
    assert (found.files, found.split) == (3, "train")


def test_parquet_shards_whose_columns_differ_keep_every_row(hub: Hub) -> None:
    hub.datasets[NAME] = {"train-0.parquet": table(0, 2), "train-1.parquet": table(2, 2, note=["a", "b"])}
    found = fetch_dataset(NAME)
    assert Path(found.path).name == "train.jsonl"
    assert holds(found) == [f"Hold {i}?" for i in range(4)]


def test_packed_and_broken_lines_come_along(hub: Hub) -> None:
    packed = gzip.compress(lines(0, 2) + b'{"instruction": "half\n')
    hub.datasets[NAME] = {"train-0.jsonl.gz": packed, "train-1.jsonl.gz": gzip.compress(lines(2, 1))}
    found = fetch_dataset(NAME)
    with open_source(found.path) as source:
        rows = list(source)
    assert [row.error.code if row.error else "" for row in rows] == ["", "", "broken_json", ""]


def test_the_card_says_which_configuration_and_split(hub: Hub) -> None:
    hub.datasets[NAME] = {"a.jsonl": lines(0, 1), "b/x.jsonl": lines(1, 1), "b/y.jsonl": lines(2, 1)}
    files = [{"split": "train", "path": "b/*.jsonl"}, {"split": "test", "path": "a.jsonl"}]
    hub.configs[NAME] = [
        {"config_name": "small", "data_files": "a.jsonl"},
        {"config_name": "large", "data_files": files, "default": True},
    ]
    assert holds(fetch_dataset(NAME)) == ["Hold 1?", "Hold 2?"]


def test_several_configurations_are_listed_with_the_way_to_name_one(hub: Hub) -> None:
    hub.datasets[NAME] = {"a.jsonl": lines(0, 1), "b.jsonl": lines(1, 1)}
    hub.configs[NAME] = [{"config_name": name, "data_files": f"{name}.jsonl"} for name in "ab"]
    with pytest.raises(DatasetError, match="several configurations: a, b") as caught:
        fetch_dataset(NAME)
    assert f"{NAME}:a" in caught.value.hint
    assert holds(fetch_dataset(f"{NAME}:b")) == ["Hold 1?"]
    with pytest.raises(DatasetNotFoundError, match="no configuration 'c', but these: a, b"):
        fetch_dataset(f"{NAME}:c:train")


def test_a_split_and_a_revision_can_be_named(hub: Hub) -> None:
    hub.datasets[NAME] = {"valid.jsonl": lines(0, 1), "test.jsonl": lines(1, 1)}
    hub.branches[NAME, "v1"] = {"train.jsonl": lines(5, 1), "test.jsonl": lines(6, 1)}
    with pytest.raises(DatasetError, match="several splits and none for training: validation, test"):
        fetch_dataset(NAME)
    assert holds(fetch_dataset(f"{NAME}:test")) == ["Hold 1?"]
    with pytest.raises(DatasetNotFoundError, match="no split 'train', but these: validation, test"):
        fetch_dataset(f"{NAME}:train")
    assert holds(fetch_dataset(f"{NAME}@v1")) == ["Hold 5?"]
    named = fetch_dataset(f"{NAME}@v1:default:test")
    assert (holds(named), named.split) == (["Hold 6?"], "test")
    with pytest.raises(DatasetNotFoundError, match="no such revision"):
        fetch_dataset(f"{NAME}@v2")


def test_rows_behind_a_script_are_taken_from_the_hubs_parquet(hub: Hub) -> None:
    hub.datasets[NAME] = {"charts.py": b"pass", "README.md": b""}
    with pytest.raises(DatasetFormatError, match="no file of a known kind"):
        fetch_dataset(NAME)
    hub.branches[NAME, CONVERTED] = {"plain/train/0000.parquet": table(0, 2), "plain/test/0000.parquet": table(7, 1)}
    assert holds(fetch_dataset(NAME)) == ["Hold 0?", "Hold 1?"]


@pytest.mark.parametrize(
    ("refusal", "kind", "words", "hint"),
    [
        ((404, "RepoNotFound"), DatasetNotFoundError, "no dataset of that name", "HF_TOKEN"),
        ((401, "RepoNotFound"), DatasetNotFoundError, "or it is private", "HF_TOKEN"),
        ((403, "GatedRepo"), DatasetDownloadError, "agree to terms", "https://huggingface.co/datasets/harbour/charts"),
        ((500, ""), DatasetDownloadError, "500", "try again"),
    ],
)
def test_a_refusal_says_what_to_do_and_tells_no_token(
    hub: Hub, own_home: Path, *, refusal: tuple[int, str], kind: type[DatasetError], words: str, hint: str
) -> None:
    hub.refusals[NAME] = refusal
    with pytest.raises(kind, match=words) as caught:
        fetch_dataset(NAME)
    assert hint in caught.value.hint
    assert hub.tokens == {f"Bearer {SECRET}"}
    assert SECRET not in f"{caught.value.to_dict()} {caught.value.__cause__}"
    for file in own_home.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


def test_offline_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.datasets[NAME] = {"rows.jsonl": lines(0, 1)}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DatasetDownloadError, match="HF_HUB_OFFLINE forbids"):
        fetch_dataset(NAME)
    assert hub.asked == []


def test_without_a_network_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_hub() as gone:
        url = gone.url
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DatasetDownloadError, match="the hub cannot be reached") as caught:
        fetch_dataset(NAME)
    assert caught.value.retryable


def test_a_stopped_download_leaves_nothing_that_looks_whole(hub: Hub) -> None:
    hub.datasets[NAME] = {"rows.jsonl": lines(0, 5)}
    hub.holds.clear()

    def stop_in_the_middle() -> None:
        jobs = []
        fetch_dataset(NAME, lambda message: jobs[0].stop() if getattr(message, "total", 0) else None, jobs.append)

    with pytest.raises(EngineCrashedError):
        stop_in_the_middle()
    assert find_fetched(NAME) is None
    hub.holds.set()
    assert holds(fetch_dataset(NAME)) == [f"Hold {i}?" for i in range(5)]


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["a.jsonl", "b.jsonl"], [0, 1]),
        (["dev.jsonl", "train.jsonl", "extra.jsonl"], [1]),
        (["test.jsonl", ".hidden.jsonl", "dataset_infos.json"], [0]),
        (["train/a.jsonl", "train/b.jsonl", "train.csv"], [0, 1]),
        (["a[1].jsonl", "a1.jsonl"], [1, 0]),
    ],
)
def test_splits_are_read_from_paths_and_files_without_rows_are_left_alone(
    hub: Hub, files: list[str], taken: list[int]
) -> None:
    hub.datasets[NAME] = {file: lines(i, 1) if file.endswith("l") else b"{}" for i, file in enumerate(files)}
    assert holds(fetch_dataset(NAME)) == [f"Hold {i}?" for i in taken]


def test_nobody_but_the_hub_is_asked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "notes"
    monkeypatch.setenv("NOSY_NOTES", str(notes))
    fixtures = Path(__file__).parents[1] / "fixtures"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(fixtures / "nosy"), str(fixtures)]))
    hub.datasets[NAME] = {"train.jsonl": lines(0, 2), "test.jsonl": lines(2, 1)}
    assert holds(fetch_dataset(NAME)) == ["Hold 0?", "Hold 1?"]
    asked = [line for line in notes.read_text().splitlines() if line.startswith("socket")]
    assert asked == []
