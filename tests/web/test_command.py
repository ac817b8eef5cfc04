"""``backprop ui`` before it serves: who it serves, where it lets write, and what is refused with which code."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from backprop.cli.main import main

from backprop_tui.web import command, guard, server


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the server is started with, and the seconds that were waited before."""
    monkeypatch.chdir(tmp_path)
    found: list[Any] = []

    class Recorded:
        def __init__(self, *arguments: Any) -> None:
            found.append(arguments)

        async def run(self, ready: Any) -> None:
            ready(7862)

    monkeypatch.setattr(server, "Server", Recorded)
    monkeypatch.setattr(command.time, "sleep", found.append)
    return found


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--host", "0.0.0.0"], "INPUT_AUTH_REQUIRED", "--auth user:password"),
        (["--share"], "INPUT_AUTH_REQUIRED", "--auth user:password"),
        (["--host", "no.such.address.invalid"], "INPUT_VALIDATION_FAILED", "an address of this machine"),
        (["--auth", "me"], "INPUT_VALIDATION_FAILED", "a colon between"),
        (["--auth", "me:"], "INPUT_VALIDATION_FAILED", "a colon between"),
        (["--auth", "@nowhere"], "INPUT_VALIDATION_FAILED", "nowhere cannot be read"),
        (["--output", "/etc/backprop"], "UI_OUTPUT_DIR_FORBIDDEN", "because of /etc"),
        (["--output", "/"], "UI_OUTPUT_DIR_FORBIDDEN", "writing to / "),
        (["--output", "~"], "UI_OUTPUT_DIR_FORBIDDEN", "because of"),
        (["--output", "~/.ssh/keys"], "UI_OUTPUT_DIR_FORBIDDEN", ".ssh"),
        (["--output", "link/runs"], "UI_OUTPUT_DIR_FORBIDDEN", "because of /usr"),
    ],
)
def test_what_is_not_served_has_a_code_and_exit_code_1(arguments: list[str], code: str, said: str, capsys: Any) -> None:
    Path("link").symlink_to("/usr/share")
    assert main(["ui", *arguments]) == 1
    told = capsys.readouterr()
    assert f"[{code}]" in told.err
    assert said in told.err
    assert told.out == ""


def test_a_port_that_is_taken_is_named(capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 1
    assert f"127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_a_server_that_would_not_ask_is_not_served(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    async def everybody(*_: object) -> bool:
        return True

    monkeypatch.setattr(guard.Guard, "_is_known", everybody)
    assert main(["ui", "--port", "0", "--auth", "me:secret"]) == 2
    told = capsys.readouterr()
    assert "[RUNTIME_UI_AUTH_NOT_ENFORCED]" in told.err
    assert "the application is at" not in told.out


def test_the_opt_out_serves_everybody_after_five_seconds_of_a_warning(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("BACKPROPAGATE_SECURITY__REQUIRE_AUTH_FOR_SHARE", "false")
    assert main(["ui", "--share"]) == 130
    assert asked[0] == 5.0
    assert asked[1][:3] == ("0.0.0.0", 7862, None)
    warned = capsys.readouterr().err
    assert "WARNING: everybody who reaches 0.0.0.0 can read your files" in warned
    assert "(BACKPROPAGATE_SECURITY__REQUIRE_AUTH_FOR_SHARE)" in warned


@pytest.mark.parametrize(
    ("arguments", "variable", "warned"),
    [(["--auth", "me:secret"], "", True), (["--auth", "@file"], "", False), ([], "me:secret", False)],
    ids=("flag", "file", "variable"),
)
def test_a_password_is_taken_from_three_places_and_shown_in_none(
    arguments: list[str], variable: str, warned: bool, asked: list[Any], capsys: Any
) -> None:
    Path("file").write_text("me:secret\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACKPROPAGATE_UI__AUTH", variable)
        patch.setenv("BACKPROPAGATE_UI__OUTPUT_DIR", "here")
        assert main(["ui", "--host", "0.0.0.0", *arguments]) == 130
    assert asked == [("0.0.0.0", 7862, "me:secret", Path("here").absolute())]
    told = capsys.readouterr()
    assert "secret" not in told.out + told.err
    assert ("--auth @FILE keeps the password" in told.err) == warned


def test_without_its_packages_the_command_that_installs_them_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "textual_serve", None)
    assert main(["ui"]) == 1
    assert "[DEP_MISSING] the application in a browser needs textual_serve" in (told := capsys.readouterr().err)
    assert 'pip install "backprop-tui[web]"' in told
