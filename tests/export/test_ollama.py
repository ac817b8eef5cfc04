"""Registering with Ollama: what is sent and shown, every refusal in its own words, answers compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import backprop
import msgspec
import pytest
from backprop.cli.main import main
from backprop.core.errors import InputError, OllamaRegistrationError
from backprop.core.events import RunStarted, Sample
from backprop.core.jobs import JobProgress, OllamaRequest, Registered
from backprop.core.settings import RunConfig
from backprop.export.ollama.api import OllamaServer, server_url, version_numbers
from backprop.export.ollama.register import register, require_name
from backprop.export.ollama.served import go_template
from backprop.runs.directory import RunDirectory
from bare_gguf import write_gguf
from msgspec.structs import replace
from ollama_double import Ollama, ollama_double
from tiny_language_model import CHATML


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ollama]:
    with ollama_double() as ollama:
        monkeypatch.setenv("OLLAMA_HOST", ollama.url)
        yield ollama


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny-f16.gguf")


def registered(file: Path, name: str = "captain", **asked: Any) -> Registered:
    return register(OllamaRequest(path=str(file), name=name, **asked), lambda message: None)


def test_the_model_is_sent_whole_and_what_ollama_shows_is_compared(ollama: Ollama, file: Path) -> None:
    said: list[Any] = []
    done = register(OllamaRequest(path=str(file), name="captain", prompt="Who?", expected="Ahoy."), said.append)

    (body,) = ollama.created
    assert body["model"] == "captain"
    assert body["files"] == {"model.gguf": f"sha256:{done.digest}"}
    assert ollama.blob(f"sha256:{done.digest}").read_bytes() == file.read_bytes()
    assert body["parameters"] == {
        "temperature": 0.7,
        "repeat_penalty": 1.0,
        "num_ctx": 2048,
        "stop": ["<|im_end|>", "<|endoftext|>"],
    }
    assert (body["system"], body["license"], body["requires"]) == ("", "apache-2.0", "0.30.0")
    assert "template" not in body
    assert (done.version, done.answer, done.same, done.notes) == ("0.33.0", "Ahoy.", True, [])
    size = file.stat().st_size
    ends = [each.doing for each in said if isinstance(each, JobProgress) and each.total == each.done == size]
    assert ends == [f"reading {file.name}", f"sending {file.name}"]


def test_a_file_is_sent_once_and_a_name_is_replaced_only_when_asked(ollama: Ollama, file: Path) -> None:
    registered(file)
    for taken in ("captain", "captain:latest", "Captain"):
        with pytest.raises(InputError, match=r"has a model .* already") as refused:
            registered(file, taken)
        assert f"`backprop ollama register {file} --name {taken} --replace`" in refused.value.hint
        assert refused.value.details == {"taken": taken}
    assert len(ollama.created) == 1
    assert registered(file, replace=True).notes == ["the model of that name was replaced"]
    assert sum(method == "POST" and "blobs" in path for method, path in ollama.asked) == 1


class _Run:
    """As much of a run as registering looks at."""

    config = {"max_seq_length": 1024}
    samples: list[Any] = []
    step = 4


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("disk", "its disk is full"),
        ("digest", "digest mismatch"),
        ("stream", "broke off before its end: its last word was 'writing manifest'"),
        ("errors", "Ollama refused: unsupported architecture$"),
        ("first", "Ollama refused: invalid file magic"),
        ("blob", "broke off before its end"),
        ("system", "would not answer as trained, so captain was removed again: the system text"),
        ("license", "captain was removed again: the licence is missing"),
        ("stop", r"captain was removed again: parameter stop is not '<\|endoftext\|>'$"),
        ("num_ctx", "captain was removed again: parameter num_ctx is not 2048"),
        ("load", "captain is registered, but does not answer: .*runner process has terminated"),
    ],
)
def test_what_goes_wrong_is_said_in_its_own_words(
    ollama: Ollama, file: Path, fault: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ollama.fault = fault
    monkeypatch.setattr("backprop.export.ollama.register.system_turn", lambda run: ("Be brief.", ""))
    monkeypatch.setattr("backprop.export.ollama.register.run_of", lambda path, named: _Run)
    with pytest.raises(OllamaRegistrationError, match=words) as error:
        registered(file, prompt="Who?")
    assert error.value.code == "DEP_OLLAMA_REGISTRATION_FAILED"
    assert error.value.hint
    assert set(ollama.models) == ({"captain:latest"} if fault == "load" else set())


def run_with(folder: Path, systems: list[str | None], answer: str) -> Path:
    """A run's directory whose rows begin with these system turns, and whose model said ``answer`` at its end."""
    rows = folder / "rows.jsonl"
    with rows.open("w") as file:
        for number, system in enumerate(systems):
            turns = [{"role": "user", "content": f"Who is {number}?"}, {"role": "assistant", "content": "I."}]
            said = [{"role": "system", "content": system}, *turns] if system is not None else turns
            file.write(json.dumps({"messages": said}) + "\n")
    directory = RunDirectory.create(RunConfig(data=str(rows), output_dir=str(folder / "out"), max_seq_length=512))
    config = msgspec.to_builtins(directory.read_record().config)
    events = [
        RunStarted(config=config, output_dir=str(directory.path), pid=1),
        Sample(step=0, prompt="Who?", text="A base.", tuned=False),
        Sample(step=0, prompt="Who?", text=answer, tuned=True),
    ]
    with closing(directory.open_journal(directory.run_id)) as journal:
        for number, event in enumerate(events, 1):
            journal.append(replace(event, seq=number, run_id=directory.run_id))
    (directory.path / "exports").mkdir()
    return directory.path


@pytest.mark.parametrize(
    ("systems", "sent"),
    [(["Be brief."] * 3, "Be brief."), (["Be brief.", "Be long."], ""), (["Be brief.", None], ""), ([None, None], "")],
)
def test_the_system_turn_and_the_answer_of_the_run_that_a_file_is_from(
    ollama: Ollama, tmp_path: Path, systems: list[str | None], sent: str
) -> None:
    run = run_with(tmp_path, systems, "Ahoy. I am the captain")
    done = registered(write_gguf(run / "exports" / "tiny.gguf"))
    assert (ollama.created[0]["system"], done.system) == (sent, sent)
    assert (done.prompt, done.answer, done.same) == ("Who?", "Ahoy.", None if sent else True)
    checkpoint = write_gguf(run / "exports" / "tiny-step-2.gguf")
    assert registered(checkpoint, replace=True).same is None
    assert registered(checkpoint, replace=True, step=0).same is (None if sent else True)
    (tmp_path / "rows.jsonl").unlink()
    ollama.says = "Good day."
    again = registered(write_gguf(tmp_path / "moved.gguf"), run=str(run), replace=True)
    assert (again.system, again.same) == ("", False)
    assert "data cannot be read any more" in again.notes[0]


def test_what_a_file_does_not_say_is_told(ollama: Ollama, tmp_path: Path) -> None:
    notes = registered(write_gguf(tmp_path / "silent.gguf", silent=True)).notes
    assert ["no licence" in notes[0], "answers may not stop" in notes[1]] == [True, True]
    assert not {"license", "stop"} & {*ollama.created[0], *ollama.created[0]["parameters"]}


def test_a_real_ollama_takes_or_refuses_a_file(tmp_path: Path) -> None:
    server = OllamaServer()
    try:
        server.version()
    except OllamaRegistrationError as error:
        pytest.skip(f"no Ollama here: {error.message}")
    with suppress(OllamaRegistrationError):  # a version that looks at tensors refuses a file without any
        registered(write_gguf(tmp_path / "bare.gguf"), "backprop-test", replace=True)
        server.remove("backprop-test")
    assert "backprop-test:latest" not in [each["name"] for each in server.models()]


def test_a_template_that_ollama_takes_for_its_own_is_not_left_there(ollama: Ollama, tmp_path: Path) -> None:
    with pytest.raises(OllamaRegistrationError, match="it took another chat template"):
        registered(write_gguf(tmp_path / "bare.gguf", template=CHATML))
    assert ollama.models == {}


@pytest.mark.parametrize(
    ("sign", "part"),
    [
        ("<|im_start|>", "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"),
        ("<|start_header_id|>", "<|eot_id|>"),
        ("[INST]", "[INST] {{ if .System }}"),
        ("<|assistant|> <|end|>", "<|{{ .Role }}|>\n{{ .Content }}<|end|>"),
        ("<start_of_turn>", "<start_of_turn>model\n{{ .Response }}<end_of_turn>"),
    ],
)
def test_an_older_ollama_gets_the_turns_in_its_own_language(
    ollama: Ollama, tmp_path: Path, sign: str, part: str
) -> None:
    ollama.version = "0.29.9"
    done = registered(write_gguf(tmp_path / "old.gguf", template=f"{sign} of some template"))
    (body,) = ollama.created
    assert body["template"] == go_template(sign)
    assert part in body["template"]
    assert "requires" not in body
    assert "cannot render the trained chat template" in done.notes[-1]


def test_an_ollama_that_cannot_serve_the_model_is_said(ollama: Ollama, tmp_path: Path) -> None:
    ollama.version = "0.29.9"
    with pytest.raises(OllamaRegistrationError, match="no other form of it is known"):
        registered(write_gguf(tmp_path / "strange.gguf", template="<<{{ messages }}>>"))
    ollama.version = "0.5.4"
    with pytest.raises(OllamaRegistrationError, match=r"0\.5\.4 is too old"):
        registered(write_gguf(tmp_path / "plain.gguf"))
    assert ollama.created == []


def test_what_is_no_model_is_refused_before_anything_is_sent(ollama: Ollama, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not one")
    cut = write_gguf(tmp_path / "cut.gguf")
    cut.write_bytes(cut.read_bytes()[:200])
    for path, words in (
        (tmp_path / "none.gguf", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "text.gguf", "no GGUF file"),
        (cut, "no GGUF file"),
        (write_gguf(tmp_path / "lora.gguf", kind="adapter"), "adapter alone"),
    ):
        with pytest.raises(InputError, match=words):
            registered(path)
    assert ollama.asked == []


@pytest.mark.parametrize("name", ["my-model:latest", "a", "A_1.b", "a" * 80 + ":" + "b" * 47])
def test_names_that_ollama_allows(name: str) -> None:
    assert require_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-x", ".x", "a b", "a/b", "a\n", "é", "a:", "a:b:c", "a" * 81, "a" * 80 + ":" + "b" * 48]
)
def test_names_that_it_does_not(name: str) -> None:
    with pytest.raises(InputError, match="is no name for a model"):
        require_name(name)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        (":8080", "http://127.0.0.1:8080"),
        ("box", "http://box:11434"),
        (" 'box:99' ", "http://box:99"),
        ("box:banana", "http://box:11434"),
        ("http://box", "http://box:80"),
        ("https://box", "https://box:443"),
        ("https://box:8443/ollama/", "https://box:8443/ollama"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("::1", "http://[::1]:11434"),
        ("[::]", "http://[::1]:11434"),
    ],
)
def test_the_host_is_read_as_ollama_reads_it(host: str, url: str) -> None:
    assert server_url(host) == url


@pytest.mark.parametrize("host", ["a box", "bo\tx", "http://box/a b", "ftp://box"])
def test_a_host_that_is_none_is_named(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    with pytest.raises(OllamaRegistrationError, match="OLLAMA_HOST does not name a server"):
        OllamaServer()


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("0.33.0-rc2", (0, 33, 0)), ("v0.5", (0, 5, 0)), ("0.0.0", (9999, 0, 0)), ("head", (9999, 0, 0))],
)
def test_versions(version: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(version) == numbers


def test_the_command_registers_lists_and_removes(
    ollama: Ollama, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(["ollama", *words])
        return code, *capsys.readouterr()

    code, out, err = run("register", str(file), "--name", "captain", "--prompt", "Who?", "--json")
    assert code == 0, err
    assert json.loads(out)["answer"] == "Ahoy."
    code, out, _ = run("register", str(file), "--name", "captain", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (1, "INPUT_VALIDATION_FAILED")
    assert "captain:latest" in run("list")[1]
    assert run("rm", "captain")[:2] == (0, "removed captain:latest\n")
    assert run("rm", "captain")[0] == 1
    code, out, _ = run("register", str(file), "--name", "captain")
    assert code == 0
    assert "next: ollama run captain" in out


def test_the_library_registers(ollama: Ollama, file: Path) -> None:
    done = backprop.register_with_ollama(file, "captain", prompt="Who?", expected="Ahoy.")
    assert (done.name, done.url, done.same) == ("captain", ollama.url, True)


def test_a_daemon_that_is_down_is_said(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ollama_double() as gone:
        pass
    monkeypatch.setenv("OLLAMA_HOST", gone.url)
    assert main(["ollama", "register", str(file), "--name", "captain", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "DEP_OLLAMA_REGISTRATION_FAILED"
    assert f"does not answer at {gone.url}" in error["message"]
    assert "ollama serve" in error["hint"]
