"""Sessions of several runs by the command line and the library, with real engines: killed, failed, found again."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from backprop import Trainer
from backprop.cli.main import main
from backprop.core.errors import EXIT_OK, EXIT_PARTIAL, EXIT_RUNTIME, EXIT_USER
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from commands import leftovers, sequence
from forked_engines import EngineHost
from run_outcome import differences, outcome
from tiny_language_model import rows, write_rows

FIVE = [
    *("--data", "rows.jsonl", "--runs", "5", "--steps", "2", "--save-steps", "1", "--held-out", "0.1"),
    *("--replay", "0.125", "--batch-size", "2", "--gradient-accumulation", "1", "--lora-r", "2"),
    *("--lora-dropout", "0.05", "--no-eval-base", "--backend", "cpu"),
]


@dataclass
class Workshop:
    """One home, one model and engines from one host."""

    folder: Path
    model: Path
    host: EngineHost
    said: str = ""
    """What the last command said on standard error."""

    def command(self, *words: str, at: dict[str, Any] | None = None) -> tuple[int, Any]:
        """``backprop words --json``: its status, and its one document or its events."""
        self.host.moments = [at]
        printed, said = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            status = main([*words, "--json"])
        self.said = said.getvalue()
        text = printed.getvalue()
        with contextlib.suppress(ValueError):
            return status, json.loads(text)
        return status, [json.loads(line) for line in text.splitlines()]

    def multi_run(self, *words: str, output: str, at: dict[str, Any] | None = None) -> tuple[int, Any]:
        return self.command("multi-run", "--model", str(self.model), *words, "--output", output, at=at)

    def session(self, output: str) -> RunDirectory:
        (path,) = (self.folder / output).iterdir()
        return RunDirectory(path)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, engine_host: EngineHost) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("workshop")
    write_rows(folder / "rows.jsonl")
    long = [{"instruction": f"Number {i}?", "output": "and on " * 60} for i in range(20)]
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    with engine_host.in_use():
        yield Workshop(folder, tiny_model, engine_host)


@pytest.fixture(autouse=True)
def one_home(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CACHE", "DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(workshop.folder / "home" / name.lower()))


@pytest.fixture(scope="module")
def whole(workshop: Workshop) -> RunDirectory:
    """Five runs that nobody disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "DATA", "CONFIG", "STATE"):
            patch.setenv(f"XDG_{name}_HOME", str(workshop.folder / "home" / name.lower()))
        status, _ = workshop.multi_run(*FIVE, output="whole")
    assert status == EXIT_OK
    return workshop.session("whole")


MOMENTS = {
    "in the steps of a run": {"event": "step", "nth": 5},
    "as a state is written": {"files": "checkpoints/", "nth": 9},
    "between a merge and its adapter": {"files": ".adapter.partial", "nth": 3},
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_session_killed_with_9_is_found_by_the_same_command_and_ends_the_same(
    moment: str, workshop: Workshop, whole: RunDirectory
) -> None:
    output = moment.replace(" ", "-")
    status, _ = workshop.multi_run(*FIVE, output=output, at={**MOMENTS[moment], "signal": int(signal.SIGKILL)})
    directory = workshop.session(output)
    assert status == EXIT_RUNTIME
    assert read_run(directory.path).status == "crashed"
    status, _ = workshop.multi_run(*FIVE, output=output)
    assert status == EXIT_OK
    assert "which is not finished" in workshop.said
    assert differences(directory, outcome(whole)) == {}
    assert leftovers(directory) == []
    assert sequence(directory) == list(range(1, len(sequence(directory)) + 1))


def test_an_unfinished_session_of_other_settings_is_not_mixed_with_new_ones(
    workshop: Workshop, whole: RunDirectory
) -> None:
    workshop.multi_run(*FIVE, output="other", at={"event": "step", "nth": 1, "signal": int(signal.SIGKILL)})
    before = workshop.session("other")
    others = ((["--lora-r", "4"], "lora_r was 2 and is 4"), (["--replay", "0.5"], "replay was 0.125 and is"))
    for words, changed in others:
        at = FIVE.index(words[0])
        status, answer = workshop.multi_run(*FIVE[:at], *words, *FIVE[at + 2 :], output="other")
        assert status == EXIT_USER
        assert answer["error"]["code"] == "STATE_IDENTITY_MISMATCH"
        assert changed in answer["error"]["message"]
    assert workshop.session("other").path == before.path


def test_a_session_is_one_line_of_the_history_and_its_runs_are_found_by_their_ids(
    workshop: Workshop, whole: RunDirectory
) -> None:
    _, listed = workshop.command("list-runs", "--output", "whole", "--status", "done")
    assert [(run["run_id"], run["kind"]) for run in listed if run["path"].startswith(str(whole.path))] == [
        (whole.run_id, "multi_run")
    ]
    _, shown = workshop.command("show-run", whole.run_id)
    assert [merge["count"] for merge in shown["merges"]] == [1, 2, 3, 4, 5]
    assert len(shown["forgetting"]["cells"]) == 6 * len({cell["held_out"] for cell in shown["forgetting"]["cells"]})
    assert shown["forgetting"]["backward"] is not None
    assert shown["multi_run"]["runs"] == 5
    inner = shown["merges"][2]["run"]
    status, run = workshop.command("show-run", inner[:8])
    assert status == EXIT_OK
    assert (run["run_id"], run["status"], run["parent"]) == (inner, "done", "")
    for words in (["extend", whole.run_id, "--steps", "99"], ["replay", whole.run_id]):
        status, answer = workshop.command(*words)
        assert status == EXIT_USER
        assert "session of several runs" in answer["error"]["message"]
    for words in (["rewind", inner, "--to", "0"], ["rewind", whole.run_id, "--to", "6"]):
        assert workshop.command(*words)[0] == EXIT_USER
    assert read_run(whole.path).status == "done"


def test_some_runs_that_fail_end_it_with_3_and_all_of_them_with_2(workshop: Workshop) -> None:
    at = FIVE.index("--replay")  # the rows of the run that fails are not to be in the other one
    one = ["--max-seq-length", "80", *FIVE[4:at], *FIVE[at + 2 :]]
    status, events = workshop.multi_run("--data", "long.jsonl", "--data", "rows.jsonl", *one, output="some")
    assert status == EXIT_PARTIAL, events[-1]
    state = read_run(workshop.session("some").path)
    assert [(merge.merged, merge.failed) for merge in state.merges] == [(False, True), (True, False)]
    assert f"run 1 ({state.merges[0].run}) failed: [DATASET_" in workshop.said
    assert [event["count"] for event in events if event["type"] == "merge_done"] == [0, 1]
    assert events[-1]["output_path"] == str(workshop.session("some").adapter)
    status, events = workshop.multi_run("--data", "long.jsonl", "--data", "long.jsonl", *one, output="all")
    assert status == EXIT_RUNTIME
    assert events[-1]["type"] == "run_failed"
    assert "all 2 runs failed: run 1 " in events[-1]["message"]


def test_the_library_trains_rows_from_memory_in_several_runs(workshop: Workshop) -> None:
    workshop.host.moments = []
    settings = {"lora_r": 2, "batch_size": 2, "gradient_accumulation": 1, "held_out": "0.2", "backend": "cpu"}
    trainer = Trainer(str(workshop.model), output_dir=str(workshop.folder / "library"), **settings)
    run = trainer.multi_run(rows(40), num_runs=2, steps_per_run=2, samples_per_run=10, merge_mode="ties", replay=0.25)
    assert (run.steps, run.status, [each.merged for each in run.merges]) == (4, "done", [True, True])
    assert Path(run.output_path, "adapter_config.json").is_file()
    assert run.forgetting.averages().backward is not None
    state = read_run(Path(run.output_path).parent)
    assert (state.multi["merge_mode"], [each.rows for each in state.runs]) == ("ties", [10, 10])
    assert trainer.last_run.run_id == run.run_id
