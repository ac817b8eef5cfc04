"""What cannot be gone on with, or begun, is refused before anything of a run is changed or made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.cli.main import main
from backprop.runs import engine_client
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run


@pytest.fixture
def trained(backprop: Callable[..., Any], rows_file: Path, tiny_model: Path) -> RunDirectory:
    """A run of two steps that is done, on a model of its own."""
    shutil.copytree(tiny_model, rows_file.parent / "base")
    flags = ["--steps", "2", "--batch-size", "2", "--backend", "cpu", "--held-out", "none"]
    answer = backprop("train", "--model", str(rows_file.parent / "base"), "--data", str(rows_file), *flags)
    assert answer.code == 0, answer.err
    (path,) = (rows_file.parent / "output").iterdir()
    return RunDirectory(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_another_base_model_is_refused_before_anything_of_a_run_changes(
    trained: RunDirectory, backprop: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 77.0}))
    before = contents(trained.path)
    for words in (["extend", trained.run_id, "--steps", "5"], ["fork", trained.run_id], ["replay", trained.run_id]):
        refused = backprop(*words)
        assert (refused.code, "STATE_IDENTITY_MISMATCH" in refused.err) == (1, True), refused.err
        assert "the model's file config.json was changed" in refused.err
        assert contents(trained.path) == before
        assert list((tmp_path / "output").iterdir()) == [trained.path]
    scored = ["eval", trained.run_id, "--data", str(tmp_path / "rows.jsonl"), "--vs", "base", "--json"]
    gated = backprop(*scored, "--gate", "loss")
    assert (gated.code, gated.json["error"]["code"]) == (1, "STATE_IDENTITY_MISMATCH")
    told = backprop(*scored)
    assert (told.code, [each["code"] for each in told.json["warnings"]]) == (0, ["BASE_CHANGED"])
    shown = backprop("list-runs", "--json").json[0]
    assert (shown["status"], shown["steps"], shown["total_steps"]) == ("done", 2, 2)


def edit(rows: Path) -> None:
    rows.write_text(rows.read_text().replace(".", "!", 1))


@pytest.mark.parametrize(
    "cause", [(edit, "STATE_IDENTITY_MISMATCH", 2), (Path.unlink, "DATASET_NOT_FOUND", 1)], ids=["edited", "gone"]
)
def test_other_rows_leave_an_extended_run_what_it_was(
    trained: RunDirectory,
    backprop: Callable[..., Any],
    rows_file: Path,
    cause: tuple[Callable[[Path], None], str, int],
) -> None:
    change, code, status = cause
    record, curve = trained.read_record(), read_run(trained.path).curves.loss
    rows, before = rows_file.read_text(), backprop("show-run", trained.run_id, "--json").json
    change(rows_file)
    refused = backprop("extend", trained.run_id, "--steps", "5")
    assert (refused.code, code in refused.out) == (status, True), refused.err
    after = backprop("show-run", trained.run_id, "--json").json
    assert (before.pop("refused"), after.pop("refused")["code"]) == (None, code)
    assert after == before
    state = read_run(trained.path)
    assert (state.status, state.step, state.total_steps, state.config["steps"]) == ("done", 2, 2, 2)
    assert state.curves.loss == curve
    assert state.output_path == str(trained.adapter)
    assert trained.read_record() == record
    rows_file.write_text(rows)
    watched = engine_client.extend(trained.path, 3)
    while not watched.over:
        watched.read(1.0)
    assert (read_run(trained.path).status, read_run(trained.path).step) == ("done", 3)


NO_ROWS = {
    **{"nothing.jsonl": "", "blank.jsonl": "\n \n\n", "blank.txt": "\n\n", "list.json": "[]\n"},
    **{"header.csv": "question,answer\n", "header.tsv": "question\tanswer", "nothing/part-1.csv": "a,b\n"},
}

OTHERS = ("dpo", "orpo", "simpo", "kto")
PLAIN, PAIR = '{"prompt": "Say it", "completion": "it"}\n', '{"prompt": "Say", "chosen": "a", "rejected": "b"}\n'
OTHER_ROWS = {
    **{"plain.jsonl": "\n" + 2 * PLAIN, "mixed.jsonl": PAIR + PLAIN},
    **{"odd.jsonl": '{"a": 1}', "cut.jsonl": '{"prompt": "Say'},
    "labels.jsonl": '{"prompt": "Say", "completion": "it", "label": true}\n',
}


@pytest.mark.parametrize(
    "asked",
    [
        (["--held-out", "1.5"], "held_out: '1.5' is no share between 0 and 1"),
        (["--held-out", "0"], "held_out: '0' is no share between 0 and 1"),
        (["--held-out", "nan"], "held_out: 'nan' is no share"),
        (
            ["--target-modules", "q_proj,zzz"],
            "target_modules: the model has no linear layer called zzz\nhint: its layers:",
        ),
        (["--target-modules", "zzz", "--dry-run"], "the model has no linear layer called zzz"),
        (["--target-modules", "zzz", "-m", "phi-4-mini-3.8b"], "its layers: down_proj, gate_up_proj, o_proj, qkv_proj"),
        *((["--data", name], f"[DATASET_EMPTY] {{here}}/{name}: dataset is empty") for name in NO_ROWS),
        *((["--held-out", name], f"{name}: dataset is empty") for name in NO_ROWS),
        (["--data", "nothing", "--dry-run"], "nothing: dataset is empty"),
        (["--data", "array.jsonl"], "[DATASET_PARSE_FAILED] {here}/array.jsonl: line 1: the file holds one JSON array"),
        *((["--data", "plain.jsonl", "--method", name], "none of 2 rows can be trained (2 no_") for name in OTHERS),
        (["--data", "labels.jsonl", "--method", "dpo"], "hint: rows like these are learned from with --method kto"),
        (
            ["--data", "mixed.jsonl", "--method", "dpo"],
            "[DATASET_ROWS_UNUSABLE] {here}/mixed.jsonl: 1 of 2 rows would train nothing; line 2: ",
        ),
        (["--data", "odd.jsonl"], "[DATASET_FORMAT_UNKNOWN] {here}/odd.jsonl: no row has a known format (line 1: "),
        (["--held-out", "odd.jsonl", "--map", "input=a"], "odd.jsonl: no row has a known format"),
        (["--data", "cut.jsonl"], "cut.jsonl: none of 1 rows can be trained (1 broken_json); line 1: "),
        (["--data", "gone.jsonl"], "gone.jsonl is a link to moved/away.jsonl, which is gone"),
    ],
)
def test_what_can_be_known_before_a_run_is_made_makes_none(
    asked: tuple[list[str], str],
    rows_file: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags, said = asked
    monkeypatch.chdir(rows_file.parent)
    for name, text in {**NO_ROWS, **OTHER_ROWS, "array.jsonl": '[{"text": "a"}]'}.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    Path("gone.jsonl").symlink_to("moved/away.jsonl")
    usual = {"--data": str(rows_file), "-m": str(tiny_model)}
    words = [word for name, value in usual.items() if name not in flags for word in (name, value)]
    assert main(["train", *words, *flags]) == 1
    assert said.format(here=rows_file.parent) in capsys.readouterr().err
    assert not Path("output").exists()
