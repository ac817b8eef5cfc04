"""Every kind of run, ended at every kind of moment, resumed: equal to the run that nobody disturbed, bit for bit."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backprop.cli.main import main
from backprop.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUNTIME
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from commands import leftovers, sequence
from forked_engines import EngineHost
from run_outcome import differences, outcome
from tiny_language_model import write_judged, write_pairs, write_rows

SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
STEPS = 12
COMMON = [
    *("--batch-size", "2", "--gradient-accumulation", "1", "--lora-r", "2", "--lora-dropout", "0.05"),
    *("--sample-tokens", "3"),
]
SAMPLES = ["--sample-prompt", "Where is the harbour?", "--sample-prompt", "Who wrote?"]
FORKED = ["--steps", str(STEPS), "--lr", "0.002", "--seed", "7"]
TWELVE = ["--steps", str(STEPS), "--save-steps", "5"]
Moment = dict[str, Any]

KINDS: dict[str, list[str]] = {
    "train": [*TWELVE, "--held-out", "none"],
    "held-out file": [*TWELVE, "--held-out", "dev.jsonl", "--eval-steps", "4", *SAMPLES[:2]],
    "held-out share": [*TWELVE, "--held-out", "0.2", "--eval-steps", "4", *SAMPLES],
    "full": [*TWELVE, "--held-out", "0.2", "--eval-steps", "4", "--mode", "full"],
    "full in bf16": [*TWELVE, "--held-out", "none", "--mode", "full", "--weights-dtype", "bfloat16"],
    "epochs": ["--epochs", "1.4", "--save-steps", "7", "--held-out", "none"],
    "early stop": [
        *("--steps", "40", "--save-steps", "5", "--held-out", "0.2", "--eval-steps", "2", "--early-stopping", "2"),
        *("--lr", "0.1", *SAMPLES[:2]),
    ],
    "DoRA with rsLoRA": [*TWELVE, "--held-out", "none", "--use-dora", "--use-rslora", *SAMPLES[:2]],
    "PiSSA": [*TWELVE, "--held-out", "none", "--init-lora-weights", "pissa", *SAMPLES[:2]],
    "QLoRA with LoftQ": [
        *(*TWELVE, "--held-out", "none", "--mode", "qlora", "--init-lora-weights", "loftq"),
        *SAMPLES[:2],
    ],
}
"""Flags of ``backprop train`` for each kind of run; ``fork`` and ``extend`` start from ``held-out share``."""
METHODS = {"dpo": "pairs.jsonl", "orpo": "pairs.jsonl", "simpo": "pairs.jsonl", "kto": "judged.jsonl"}
"""Preference methods and the rows that they learn from."""
for _method, _rows in METHODS.items():
    _flags = ["--method", _method, "--data", _rows, "--steps", "8", "--save-steps", "3", "--eval-steps", "4"]
    KINDS[_method] = [*_flags, "--lr", "0.003", "--held-out", "0.2"]
    KINDS[f"{_method} padded"] = [*KINDS[_method], "--no-packing"]


@dataclass(frozen=True)
class Answer:
    """What a command came to: exit status and the lines of ``--json``."""

    status: int
    lines: list[dict[str, Any]]

    @property
    def code(self) -> str:
        """Of the error that it ended with, empty for none."""
        return str(self.error.get("code", "")) if self.error.get("type", "run_failed") == "run_failed" else ""

    @property
    def error(self) -> dict[str, Any]:
        """What it ended with: the run's last event, or what it was refused with before there was any."""
        last: dict[str, Any] = self.lines[-1] if self.lines else {}
        return last.get("error", last) or {}


@dataclass
class Workshop:
    """Where the runs of this file are made: one home, one model, one set of rows, engines from one host."""

    folder: Path
    model: Path
    host: EngineHost
    known: dict[str, RunDirectory] = field(default_factory=dict)
    """Undisturbed runs by their kind."""

    def command(self, *words: str, folder: Path | None = None, at: Moment | None = None) -> Answer:
        """``backprop words --json`` in ``folder``; ``at`` is a moment in the life of its engine."""
        self.host.moments = [at]
        printed = io.StringIO()
        with contextlib.chdir(folder or self.folder), contextlib.redirect_stdout(printed):
            status = main([*words, "--json"])
        return Answer(status, [json.loads(line) for line in printed.getvalue().splitlines()])

    def undisturbed(self, kind: str) -> RunDirectory:
        if kind not in self.known:
            directory, answer = self.begin(kind, self.folder / "undisturbed" / kind.replace(" ", "-"), None)
            assert answer.status == EXIT_OK, answer.lines[-1]
            self.known[kind] = directory
        return self.known[kind]

    def parent(self, output: Path) -> Path:
        """A copy in ``output`` of the run that others go on from."""
        parent = self.undisturbed("held-out share")
        return Path(shutil.copytree(parent.path, output / parent.run_id, ignore=shutil.ignore_patterns("control")))

    def begin(
        self, kind: str, output: Path, at: Moment | None, folder: Path | None = None
    ) -> tuple[RunDirectory, Answer]:
        """Start a run of ``kind`` in ``output``: its directory, and what the command came to.

        Args:
            folder: has the rows; the workshop's own where none is given.
        """
        if kind == "extend":
            path = self.parent(output)
            return RunDirectory(path), self.command("extend", str(path), "--steps", str(STEPS + 9), at=at)
        if kind == "fork":
            words = ["fork", str(self.parent(output.with_name("parents"))), *FORKED]
        else:
            words = ["train", "--model", str(self.model), *COMMON, *KINDS[kind]]
            words += [] if "--data" in KINDS[kind] else ["--data", "rows.jsonl"]
        answer = self.command(*words, "--output", str(output), folder=folder, at=at)
        (path,) = output.iterdir()
        return RunDirectory(path), answer


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, engine_host: EngineHost) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("workshop")
    write_rows(folder / "rows.jsonl")
    write_pairs(folder / "pairs.jsonl")
    write_judged(folder / "judged.jsonl")
    write_rows(folder / "dev.jsonl", 50).write_text("".join((folder / "dev.jsonl").open().readlines()[40:]))
    with engine_host.in_use():
        yield Workshop(folder, tiny_model, engine_host)


@pytest.fixture(autouse=True)
def one_home(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs outlast the test that made them, and so do the index and the tokenised rows."""
    for name in ("CACHE", "DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(workshop.folder / "home" / name.lower()))


def after(event: str, nth: int = 1, **more: Any) -> Moment:
    return {"event": event, "nth": nth, **more}


def phase(name: str, nth: int = 1) -> Moment:
    return after("phase_changed", nth, phase=name)


def file(folder: str, nth: int) -> Moment:
    return {"files": folder, "nth": nth}


@dataclass(frozen=True)
class Case:
    """One row of the matrix: a kind of run, the moments at which its engines are ended, what happens in between."""

    name: str
    kind: str
    moments: tuple[Moment, ...]
    moved: bool = False
    """The run's directory is somewhere else afterwards."""
    elsewhere: bool = False
    """It is resumed from another working directory."""


CASES = [
    Case("train", "train", (after("step", 7),)),
    Case("full", "full", (after("step", 7),)),
    Case("full, inside the last save", "full", (file(".model", 2),)),
    Case("full in bf16", "full in bf16", (after("step", 7),)),
    Case("fork", "fork", (after("step", 7),)),
    Case("fork, before its first save", "fork", (after("step", 3),)),
    Case("extend", "extend", (after("step", 5),)),
    Case("extend, before its first save", "extend", (after("step", 1),)),
    Case("extend, while it loads", "extend", (phase("loading_model", 2),)),
    Case("early stop, before it", "early stop", (after("step", 5),)),
    Case("early stop, after it", "early stop", (after("warning", code="EARLY_STOPPING"),)),
    Case("early stop, in the last samples", "early stop", (phase("sampling", 2),)),
    Case("held-out file", "held-out file", (after("step", 7),)),
    Case("held-out share", "held-out share", (after("step", 7),)),
    Case("held-out share, between an evaluation and its samples", "held-out share", (after("evaluated", 3),)),
    Case("held-out share, between two samples", "held-out share", (after("sample", 5),)),
    Case("epochs", "epochs", (after("step", 16),)),
    Case("epochs, at the end of one", "epochs", (after("step", 20),)),
    Case("from another directory", "held-out file", (after("step", 7),), elsewhere=True),
    Case("moved output", "held-out share", (after("step", 7),), moved=True),
    Case("moved output of a fork", "fork", (after("step", 3),), moved=True),
    Case("before the first save", "train", (after("step", 3),)),
    *(Case(f"inside a save, file {nth}", "train", (file("checkpoints/", nth),)) for nth in (1, 4, 9, 14, 20, 30)),
    *(Case(f"inside the last save, file {nth}", "train", (file(".adapter", nth),)) for nth in (2, 6)),
    Case("during a resume, loading", "train", (after("step", 7), phase("loading_model", 2))),
    Case("during a resume, before its first step", "train", (after("step", 7), phase("training"))),
    Case("during a resume, after a save", "train", (after("step", 7), after("checkpoint_saved"), after("step"))),
    *(
        Case(f"in {name.replace('_', ' ')} {nth}", "held-out share", (phase(name, nth),))
        for name, nth in [
            *(("loading_model", 1), ("preparing_data", 1), ("loading_model", 2), ("sampling", 1), ("training", 1)),
            *(("evaluating", 1), ("training", 2), ("evaluating", 3), ("saving", 1), ("sampling", 2)),
        ]
    ),
    Case("while libraries are imported", "train", ({"import": "peft", "nth": 1},)),
    Case("in the first samples, between two", "held-out share", (after("sample", 1),)),
    Case("in the last samples, between two", "held-out share", (after("sample", 9),)),
]


TERMINATED = ("train", "while libraries are imported", "in loading model 1", "inside the last save, file 2")
"""Cases that are ended by SIGTERM too, which has the handler of SIGINT: how that is put in place may differ."""
ENDS = [(case, way) for case in CASES for way in SIGNALS if way != "SIGTERM" or case.name in TERMINATED]


@pytest.mark.parametrize(("case", "way"), ENDS, ids=[f"{case.name}-{way}" for case, way in ENDS])
def test_a_run_that_was_ended_and_resumed_equals_the_one_that_was_not(
    case: Case, way: str, workshop: Workshop, tmp_path: Path
) -> None:
    expected = outcome(workshop.undisturbed(case.kind))
    first, *others = ({**moment, "signal": int(SIGNALS[way])} for moment in case.moments)

    directory, answer = workshop.begin(case.kind, tmp_path / "out", first)
    require_ended(way, answer, directory)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if case.moved:
        directory = RunDirectory(Path(shutil.move(directory.path, elsewhere)))
    for moment in others:
        if read_run(directory.path).status == "done":  # the signal came after the last step
            break
        answer = workshop.command("resume", str(directory.path), at=moment)
        require_ended(way, answer, directory)
    if read_run(directory.path).status != "done":
        answer = workshop.command("resume", str(directory.path), folder=elsewhere if case.elsewhere else None)

    assert answer.status == EXIT_OK, answer.lines[-1]
    assert differences(directory, expected) == {}
    assert leftovers(directory) == []
    assert sequence(directory) == list(range(1, len(sequence(directory)) + 1))
    store = CheckpointStore(directory.checkpoints, directory.run_id)
    assert all(store.verify(each.path) == [] for each in store.checkpoints())


@pytest.mark.parametrize("kind", ["DoRA with rsLoRA", "PiSSA", "QLoRA with LoftQ"])
def test_a_run_of_another_kind_of_adapter_that_was_killed_goes_on_exactly(
    kind: str, workshop: Workshop, tmp_path: Path
) -> None:
    expected = outcome(workshop.undisturbed(kind))
    directory, answer = workshop.begin(kind, tmp_path / "out", after("step", 7, signal=int(signal.SIGKILL)))
    require_ended("kill -9", answer, directory)

    answer = workshop.command("resume", str(directory.path))

    assert answer.status == EXIT_OK, answer.lines[-1]
    assert differences(directory, expected) == {}


def references(workshop: Workshop) -> list[Path]:
    """What is kept of the untouched model's answers."""
    return list((workshop.folder / "home" / "cache").rglob("reference-*"))


@pytest.mark.parametrize("spread", ["", " padded"], ids=["packed", "padded"])
@pytest.mark.parametrize("method", METHODS)
def test_a_preference_method_learns_and_goes_on_exactly_after_a_kill(
    method: str, spread: str, workshop: Workshop, tmp_path: Path
) -> None:
    expected = outcome(workshop.undisturbed(method + spread))
    losses = [loss for _, loss, *_ in expected["evaluations"]]
    assert losses[-1] < losses[0]
    kept = references(workshop)
    assert (method in ("dpo", "kto")) <= bool(kept)

    killed = after("step", 5, signal=int(signal.SIGKILL))
    directory, answer = workshop.begin(method + spread, tmp_path / "out", killed)
    require_ended("kill -9", answer, directory)
    for file in kept:
        file.unlink()  # the untouched model is asked again, and answers the same
    answer = workshop.command("resume", str(directory.path))

    assert answer.status == EXIT_OK, answer.lines[-1]
    assert differences(directory, expected) == {}


def test_a_run_killed_while_the_untouched_model_is_asked_begins_again(workshop: Workshop, tmp_path: Path) -> None:
    expected = outcome(workshop.undisturbed("dpo"))
    for file in references(workshop):
        file.unlink()
    killed = phase("reference") | {"signal": int(signal.SIGKILL)}
    directory, _ = workshop.begin("dpo", tmp_path / "out", killed)
    assert workshop.command("resume", str(directory.path)).status == EXIT_OK
    assert differences(directory, expected) == {}


def test_a_run_that_the_untouched_model_answers_otherwise_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    workshop.undisturbed("dpo")
    killed = after("checkpoint_saved", signal=int(signal.SIGKILL))
    directory, _ = workshop.begin("dpo", tmp_path / "out", killed)
    kept = {file: file.read_bytes() for file in references(workshop)}
    for file, content in kept.items():
        file.write_bytes((np.frombuffer(content) + 1e-9).tobytes())

    refused = workshop.command("resume", str(directory.path))
    assert refused.code == "STATE_IDENTITY_MISMATCH"
    assert "the untouched model's log-probabilities" in refused.lines[-1]["message"]
    for file, content in kept.items():
        file.write_bytes(content)
    assert workshop.command("resume", str(directory.path)).status == EXIT_OK
    assert differences(directory, outcome(workshop.undisturbed("dpo"))) == {}


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("lantern", "pilot"))


@dataclass(frozen=True)
class Refusal:
    """What happens to ``file`` after a run was killed, once it had saved or before, and what its resume says."""

    kind: str
    saved: bool
    file: str
    change: Callable[[Path], object]
    code: str
    message: str


REFUSALS = {
    "data edited": Refusal("train", True, "rows.jsonl", edit, "STATE_IDENTITY_MISMATCH", "the data, or how it becomes"),
    "held-out rows edited": Refusal(
        "held-out file", True, "dev.jsonl", edit, "STATE_IDENTITY_MISMATCH", "the held-out rows were changed"
    ),
    "held-out rows gone": Refusal(
        "held-out file", True, "dev.jsonl", Path.unlink, "DATASET_NOT_FOUND", "there is no file of held-out rows"
    ),
    "parent and its weights gone": Refusal(
        "fork",
        False,
        "parents",
        lambda parents: [shutil.rmtree(each) for each in (parents, *parents.parent.glob("out/*/origin"))],
        "STATE_CHECKPOINT_INVALID",
        "was forked from is gone",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_run_that_cannot_go_on_exactly_is_refused_with_the_reason(
    refusal: Refusal, workshop: Workshop, tmp_path: Path
) -> None:
    for name in ("rows.jsonl", "dev.jsonl"):
        shutil.copy(workshop.folder / name, tmp_path)
    killed = {**(after("checkpoint_saved") if refusal.saved else after("step", 3)), "signal": int(signal.SIGKILL)}
    directory, _ = workshop.begin(refusal.kind, tmp_path / "out", killed, folder=tmp_path)
    refusal.change(tmp_path / refusal.file)

    answer = workshop.command("resume", str(directory.path))

    assert answer.status != EXIT_OK
    assert answer.code == refusal.code
    assert refusal.message in answer.lines[-1]["message"]


@pytest.mark.parametrize("moment", [after("step", 3), after("checkpoint_saved")], ids=["before a save", "after one"])
def test_a_fork_needs_its_parent_no_more(moment: Moment, workshop: Workshop, tmp_path: Path) -> None:
    directory, _ = workshop.begin("fork", tmp_path / "out", {**moment, "signal": int(signal.SIGKILL)})
    shutil.rmtree(tmp_path / "parents")

    assert workshop.command("resume", str(directory.path)).status == EXIT_OK
    assert not directory.origin.exists()
    assert differences(directory, outcome(workshop.undisturbed("fork"))) == {}


def test_a_run_goes_on_where_its_model_is_now_and_with_no_other(workshop: Workshop, tmp_path: Path) -> None:
    model, moved, other = (tmp_path / name for name in ("model", "moved", "other"))
    for copy in (model, other):
        shutil.copytree(workshop.model, copy)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-4}))
    words = ["train", "--data", "rows.jsonl", "--model", str(model), *COMMON, *KINDS["train"]]
    killed = after("checkpoint_saved", signal=int(signal.SIGKILL))
    workshop.command(*words, "--output", str(tmp_path / "out"), at=killed)
    (path,) = (tmp_path / "out").iterdir()
    model.rename(moved)

    gone = workshop.command("resume", str(path))
    assert (gone.code, "--model NEW_PATH" in gone.error["hint"]) == ("DEP_MODEL_LOAD_FAILED", True)
    refused = workshop.command("resume", str(path), "--model", str(other))
    assert refused.code == "STATE_IDENTITY_MISMATCH"
    assert "the model's file config.json was changed" in refused.error["message"]
    assert RunDirectory(path).read_record().config.model == str(model)
    assert workshop.command("resume", str(path), "--model", str(moved)).status == EXIT_OK
    assert RunDirectory(path).read_record().config.model == str(moved)
    assert differences(RunDirectory(path), outcome(workshop.undisturbed("train"))) == {}
    assert workshop.command("extend", str(path), "--steps", "14").status == EXIT_OK

    refused = workshop.command("fork", str(path), *FORKED, "--model", str(other), "--output", str(tmp_path / "forks"))
    assert refused.code == "STATE_IDENTITY_MISMATCH"
    assert "trained on another model: the model's file config.json was changed" in refused.error["message"]
    assert not (tmp_path / "forks").exists()


@pytest.mark.parametrize(("flags", "said"), [((), False), (("--held-out", "0.5"), True)], ids=["as the parent", "more"])
def test_a_fork_is_evaluated_on_rows_that_its_parent_was_not_trained_on_or_says_so(
    flags: tuple[str, ...], said: bool, workshop: Workshop, tmp_path: Path
) -> None:
    parent = workshop.parent(tmp_path)
    answer = workshop.command("fork", str(parent), *FORKED, *flags, "--output", str(tmp_path / "out"))
    assert answer.status == EXIT_OK
    assert ("HELD_OUT_OVERLAP" in [line.get("code") for line in answer.lines]) == said


def require_ended(way: str, answer: Answer, directory: RunDirectory) -> None:
    """The command and the run say how it was ended. A signal after the last step may find nothing left to interrupt."""
    state = read_run(directory.path)
    if way == "kill -9":
        assert (answer.status, answer.code) == (EXIT_RUNTIME, "RUNTIME_ENGINE_CRASHED")
        assert state.status == "crashed"
        return
    assert (answer.status, state.status) in [(EXIT_INTERRUPTED, "interrupted"), (EXIT_OK, "done")]
    assert state.output_path == directory.result
    assert state.finished is not None
    assert state.finished.steps == state.step
