"""``backprop chat``: lines from a pipe, commands, one document for programs, and a terminal with its Ctrl+C."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE


@pytest.fixture
def chat(nosy_run: Any, backprop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs ``backprop chat`` on a finished run, with lines on its standard input."""

    def run(lines: str, *arguments: str) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return backprop("chat", *arguments, **nosy_run.environment)

    return run


def test_each_line_of_a_pipe_is_a_turn_and_commands_are_obeyed(
    chat: Callable[..., Any], nosy_run: Any, tmp_path: Path, backprop: Callable[..., Any]
) -> None:
    said_first = ["/system Be short.", "One?", "/base", "Two?", "/agian", "/again", "/save talk", "/save talk"]
    lines = [*said_first, "/new", "/save other", "/quit", "Three?"]
    done = chat("\n".join(lines), str(nosy_run.run), "--max-tokens", "6")
    assert done.code == 0, done.err
    said = done.out.splitlines()
    assert [line for line in said if line.startswith("> ")][-1] == "> /quit", "nothing is asked after /quit"
    assert sum(line.startswith("tuned: ") for line in said) == 2
    assert sum(line.startswith("base: ") for line in said) == 2
    assert sum(line.startswith("identical on ") and line.endswith(" of 1") for line in said) == 2
    for words in (
        "system prompt: Be short.",
        "did you mean /again?",
        f"saved: {tmp_path / 'talk.jsonl'}",
        "exists already",
        "nothing was answered yet",
    ):
        assert words in done.err, words
    (row,) = (json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines())
    assert [each["role"] for each in row["messages"]] == ["system", *("user", "assistant") * 2]
    checked = backprop("validate", "talk.jsonl", "--json")
    assert checked.code == 0, checked.out
    found = {problem["severity"] for problem in checked.json["problems"]}  # the tiny model's words are no words
    assert (checked.json["rows"], found - {"warning"}) == (1, set()), checked.out


def test_a_conversation_outlives_a_killed_process_and_the_next_one_says_where_it_is(
    chat: Callable[..., Any], nosy_run: Any
) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-P", "-m", "backprop.cli.main", "chat", str(nosy_run.run), "--max-tokens", "6"],
        env={**os.environ, **nosy_run.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert killed.stdin is not None
    assert killed.stderr is not None
    killed.stdin.write("What is kept?\n/new\n")
    killed.stdin.flush()
    while "a new conversation" not in (line := killed.stderr.readline()):
        assert line
    killed.kill()
    killed.wait()
    done = chat("", str(nosy_run.run))
    path = Path(done.err.partition("is kept for some days: ")[2].partition("\n")[0])
    row = json.loads(path.read_text())
    assert [each["role"] for each in row["messages"]] == ["user", "assistant"]
    assert row["messages"][0]["content"] == "What is kept?"


def test_one_document_for_programs(chat: Callable[..., Any], nosy_run: Any) -> None:
    done = chat("One?\n" + "long " * 700 + "\n", str(nosy_run.run), "--json", "--base", "--max-tokens", "6")
    told = json.loads(done.out)
    answered, refused = told["turns"]
    assert done.code == 3, "one of the turns was refused"
    assert answered["prompt"] == "One?"
    assert answered["identical"] == (answered["tuned"] == answered["base"])
    assert told["compared"] == 1
    assert refused["error"]["code"] == "INPUT_VALIDATION_FAILED"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody"], "RUN_NOT_FOUND"),
        (["RUN", "--step", "77"], "no good checkpoint of step 77"),
        (["RUN", "--temperature", "9"], "--temperature"),
        (["EMPTY"], "RUN_NOT_FOUND"),
    ],
)
def test_what_cannot_be_talked_to_is_said(
    chat: Callable[..., Any], nosy_run: Any, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "EMPTY").mkdir()
    done = chat("", *(str(nosy_run.run) if word == "RUN" else word for word in arguments))
    assert done.code in (1, 2)
    assert words in done.err


def test_on_a_terminal_ctrl_c_stops_the_reply_and_then_leaves(nosy_run: Any, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "backprop.cli.main", "chat", str(nosy_run.run), "--max-tokens", "480"],
        cwd=tmp_path,
        env={**os.environ, **nosy_run.environment, "TERM": "dumb"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    shown = b""

    def until(words: bytes, *, or_gone: bool = False) -> None:
        nonlocal shown
        while words not in shown:
            ready, _, _ = select.select([leader], [], [], PATIENCE)
            assert ready, shown
            try:
                shown += os.read(leader, 4096)
            except OSError:
                assert or_gone, shown
                return
        shown = shown.partition(words)[2]

    def interrupted(words: bytes) -> None:
        """Press Ctrl+C; one that comes just before the prompt waits for a key is seen with the next only."""
        nonlocal shown
        while process.poll() is None and not (words and words in shown):
            os.killpg(process.pid, signal.SIGINT)
            while select.select([leader], [], [], 2)[0]:
                try:
                    shown += os.read(leader, 4096)
                except OSError:  # it is gone
                    return
                if words and words in shown:
                    return

    try:
        until(b"Ctrl+D leaves")
        until(b"> ")
        os.write(leader, b"One?\n")
        until(b"One?\r\n")
        while not shown.strip():
            shown += os.read(leader, 1)
        os.killpg(process.pid, signal.SIGINT)
        until(b"(stopped)")
        until(b"> ")
        interrupted(b"Ctrl+C again leaves")
        until(b"> ", or_gone=True)  # one that was pressed again because the first was slow has left already
        interrupted(b"")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)
