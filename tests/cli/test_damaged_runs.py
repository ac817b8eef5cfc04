"""A run's directory with each of its files damaged in each way, under every command that looks at runs.

No command waits, calls it a defect, deletes or rewrites anything, or lets a control character out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
from backprop.cli import generate as generate_command
from backprop.cli.main import main
from backprop.core import events as ev
from backprop.core.errors import BackpropError
from backprop.core.jobs import ChatRequest
from backprop.core.redaction import CONTROLS
from backprop.core.settings import RunConfig
from backprop.runs import engine_client, index
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.describe import describe
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_client import EngineClient
from backprop.runs.state import read_run
from backprop.worker.commands import Control
from made_events import started, step
from patience import PATIENCE

from backprop_tui.main import headless

CHECKPOINT = "checkpoints/step-00000002"
FILES = (
    "run.json",
    "events.jsonl",
    "engine.log",
    "lock",
    "control",
    "checkpoints",
    CHECKPOINT,
    f"{CHECKPOINT}/manifest.json",
    f"{CHECKPOINT}/weights.safetensors",
    "adapter",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)
EVIL = "\x1b[31m\x07\x9b2J\u202e\u2066\r\n\x7fend"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in the file's place."""

    def damage(path: Path) -> None:
        remove(path)
        make(path)

    return damage


def rewritten(change: Callable[[str], str]) -> Callable[[Path], None]:
    """The file's text, changed; what is no text becomes the change of an empty one."""

    def damage(path: Path) -> None:
        text = path.read_text() if stat.S_ISREG(path.stat().st_mode) else ""
        remove(path)
        path.write_text(change(text))

    return damage


def numbers(by: str) -> Callable[[str], str]:
    return lambda text: re.sub(r"(?<=: )-?\d[\d.e-]*|(?<=:)-?\d[\d.e-]*", by, text) or by


def deeper(text: str) -> str:
    return text.replace("{", '{"deep":' + "[" * 100_000 + "]" * 100_000 + ",", 1) or "[" * 100_000


def evil(text: str) -> str:
    told = json.dumps(EVIL)[1:-1]
    shown = "data|model|output_dir|run_name|message|code|prompt|text|hint|kind"
    text = text.replace('"run_name": null', '"run_name": "x"') or EVIL
    return re.sub(rf'("({shown})": ?")', lambda found: found[0] + told, text)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": remove,
    "empty": instead(Path.touch),
    "directory": instead(Path.mkdir),
    "full directory": instead(lambda path: (path / "deeper").mkdir(parents=True)),
    "pipe": instead(os.mkfifo),
    "loop": instead(lambda path: path.symlink_to(path.name)),
    "dangling": instead(lambda path: path.symlink_to("nowhere")),
    "device": instead(lambda path: path.symlink_to("/dev/zero")),
    "garbage": instead(lambda path: path.write_bytes(bytes(range(256)) * 64)),
    "NULs": instead(lambda path: path.write_bytes(bytes(1 << 20))),
    "2^63": rewritten(numbers(str(2**63))),
    "300 digits": rewritten(numbers("9" * 300)),
    "1e308": rewritten(numbers("1e308")),
    "1e400": rewritten(numbers("1e400")),
    "negative": rewritten(numbers("-7")),
    "deep": rewritten(deeper),
    "other schema": rewritten(
        lambda text: text.replace('"schema":1', '"schema":99').replace('"schema": 1', '"schema": 99')
    ),
    "other run": rewritten(lambda text: re.sub(r'("run_id": ?")\w+', r"\1another", text)),
    "control characters": rewritten(evil),
}


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that crashed after a checkpoint, with every file that a run can have."""
    config = RunConfig(data="/d/rows.jsonl", model="m", output_dir=str(tmp_path_factory.mktemp("whole")), steps=9)
    directory = RunDirectory.create(config)
    events = [started(config=msgspec.to_builtins(config)), step(1), step(2), step(3), ev.Warning(code="X", message="m")]
    events.append(ev.Sample(step=3, prompt="p", text="t", tuned=True))
    with directory.journal.open("ab") as file:
        for number, event in enumerate(events, 1):
            event.run_id, event.seq, event.time = directory.run_id, number, 1.7e9 + number
            file.write(ev.encode(event))
    with directory.hold_lock():
        CheckpointStore(directory.checkpoints, directory.run_id).save(
            2, lambda folder: (folder / "weights.safetensors").write_bytes(b"w" * 100), val_loss=1.5
        )
    directory.log.write_text("a library printed\n")
    directory.adapter.mkdir()
    (directory.adapter / "adapter_config.json").write_text('{"r": 1}')
    (directory.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    return directory.path


def snapshot(path: Path) -> dict[str, tuple[int, bytes | str]]:
    """Every name below ``path`` with its kind and its content."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for each in sorted(path.rglob("*")):
        kind = stat.S_IFMT(each.lstat().st_mode)
        content: bytes | str = str(each.readlink()) if stat.S_ISLNK(kind) else ""
        found[str(each.relative_to(path))] = (kind, each.read_bytes() if stat.S_ISREG(kind) else content)
    return found


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it takes longer than {PATIENCE:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class LaunchedError(BackpropError):
    """Instead of an engine process: it was started, and could begin its work."""

    exit_code = 0


def begin_in_process(directory: RunDirectory, *how: str, **known: Any) -> EngineClient:
    """What an engine process does with the directory before it loads anything."""
    directory.open_log().close()
    with directory.hold_lock():
        directory.restore_record()
        run_id = directory.read_record().run_id
        directory.open_journal(run_id).close()
        read_run(directory.path)
        Control().listen(directory)
        CheckpointStore(directory.checkpoints, run_id).newest_valid()
    raise LaunchedError("launched")


def answer_in_process(module: str, request: ChatRequest, *, stays: bool) -> Any:
    directory = RunDirectory(Path(request.source))
    read_run(directory.path)
    for path in directory.adapter.iterdir():
        path.read_bytes()  # as the libraries do
    raise LaunchedError("launched")


COMMANDS = (
    ["list-runs", "--output", "{output}"],
    ["list-runs", "--output", "{output}", "--json"],
    ["show-run", "{run}"],
    ["show-run", "{run}", "--json"],
    ["--attach", "{run}"],
    ["--attach", "{run}", "--json"],
    ["generate", "{run}", "--prompt", "p", "--json"],
    ["fork", "{run}", "--steps", "5", "--data", "{output}/rows.jsonl", "--model", "m", "--json"],
    ["extend", "{run}", "--steps", "50"],
    ["resume", "{run}"],
    ["resume", "{run}", "--json"],
)


@pytest.fixture
def engines_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a fork goes whose parent's output directory is no absolute path any more
    monkeypatch.setattr(engine_client, "launch", begin_in_process)
    monkeypatch.setattr(generate_command, "engine_job", answer_in_process)


@pytest.mark.usefixtures("engines_in_process")
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_said_and_nothing_else_happens(
    name: str, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, (kind, damage) in enumerate(DAMAGES.items()):
        output = tmp_path / str(number)
        output.mkdir()
        (output / "rows.jsonl").touch()
        path = output / whole.name
        copied(whole, path)
        damage(path / name)
        before = snapshot(path)
        for command in COMMANDS:
            words = [word.format(output=output, run=path) for word in command]
            told = f"{kind} {name}: {' '.join(command)}"
            with no_waiting():
                code = headless(words) if words[0] == "--attach" else main(words)
            said = capfd.readouterr()
            assert code in (0, 1, 2, 3), told
            assert "defect" not in said.err + said.out, f"{told}: {said.err}{said.out}"
            assert "Traceback" not in said.err, told
            assert not CONTROLS.search(re.sub(r"[\n\t]", "", said.out + said.err)), told
            if "--json" in words:
                documents(said.out)
            after = snapshot(path)
            for file, content in before.items():
                # A file that may be written is continued, or says who the engine is: no more than that.
                if file == "lock" or (
                    file in ("events.jsonl", "engine.log") and content[1] == after[file][1][: len(content[1])]
                ):
                    continue
                assert after.get(file) == content, f"{told}: {file} was changed"


def documents(text: str) -> list[Any]:
    """Every JSON document in ``text``, one after the other."""
    found: list[Any] = []
    while text := text.lstrip():
        document, end = json.JSONDecoder().raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def copied(whole: Path, path: Path) -> None:
    """A copy of the run; ``copytree`` makes no pipes."""
    shutil.copytree(whole, path, ignore=lambda folder, names: [name for name in names if name == "control"])
    os.mkfifo(path / "control")


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each value inside ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


WRONG: tuple[Any, ...] = (None, True, "", EVIL, [], {}, [[1]], {"a": {}}, -1, 0, 2**63, -(2**70), 1e308, -1e308, 1e-320)


@pytest.mark.parametrize("name", ["run.json", "events.jsonl"])
def test_any_value_may_be_any_other(name: str, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / whole.name
    copied(whole, path)
    lines = (path / name).read_bytes().split(b"\n") if name == "events.jsonl" else [(path / name).read_bytes()]
    for number, line in enumerate(lines):
        for place in places(json.loads(line or b"{}")):
            for wrong in WRONG:
                changed = json.loads(line)
                inner = changed
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = wrong
                spoilt = [*lines[:number], json.dumps(changed).encode(), *lines[number + 1 :]]
                (path / name).write_bytes(b"\n".join(spoilt))
                state = read_run(path)
                summary = msgspec.json.decode(msgspec.json.encode(index.summarise(state)), type=index.RunSummary)
                assert summary.run_id == state.run_id, (place, wrong)
                for event in state.notable:
                    describe(event)
                assert state.eta_seconds is None or isinstance(state.eta_seconds, float)


@pytest.mark.parametrize(
    "damage",
    [
        ("lock", "garbage", "launched"),
        ("run.json", "missing", "launched"),
        ("events.jsonl", "missing", "launched"),
        ("control", "missing", "launched"),
        ("run.json", "garbage", "move it away"),
        ("run.json", "other schema", "newer version"),
        ("run.json", "pipe", "named pipe, not a file"),
        ("run.json", "deep", "inside each other"),
        ("run.json", "1e400", "out of range"),
        ("events.jsonl", "other run", "belongs to run another"),
        ("events.jsonl", "directory", "is a directory"),
        ("engine.log", "pipe", "engine.log cannot be used"),
        ("lock", "directory", "lock cannot be used"),
        ("control", "empty", "no named pipe"),
    ],
)
@pytest.mark.usefixtures("engines_in_process")
def test_resume_goes_on_or_says_what_is_damaged(
    damage: tuple[str, str, str], whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, kind, says = damage
    path = tmp_path / whole.name
    copied(whole, path)
    DAMAGES[kind](path / name)
    code = main(["resume", str(path)])
    said = capfd.readouterr().err
    assert says in said
    assert code == (0 if says == "launched" else 1)
    if says == "launched":
        assert RunDirectory(path).read_record().config.steps == 9
