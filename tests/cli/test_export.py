"""``backprop export``: what a person and a script see of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.cli import export as command
from backprop.cli import train
from backprop.cli.main import main
from backprop.core.errors import OllamaRegistrationError
from backprop.core.jobs import Check, Comparison, Exported, ExportRequest, OllamaRequest, Registered
from backprop.core.settings import RunConfig
from backprop.demo import demo_config
from backprop.runs.directory import RunDirectory
from msgspec.structs import replace

DONE = Exported(
    path="/runs/a1/exports/tiny model-q4_k_m.gguf",
    format="gguf",
    quantization="q4_k_m",
    bytes=1_500_000,
    check=Check(passed=True, compared=[Comparison(name="tensors", passed=True, detail="all of them")], kl=0.01),
    notes=["something to say"],
)


def test_a_run_is_exported_and_proved(nosy_run: Any, backprop: Callable[..., Any], tmp_path: Path) -> None:
    journal = (nosy_run.run / "events.jsonl").read_bytes()
    asked = ("export", nosy_run.run.name[:8], "--format", "merged", "-q", "f16", "--output", "mine")

    done = backprop(*asked, "--json", **nosy_run.environment)

    assert done.code == 0, done.err
    answer = done.json
    assert {"path", "format", "quantization", "bytes", "check"} <= answer.keys()
    assert (answer["path"], answer["format"], answer["quantization"]) == (str(tmp_path / "mine"), "merged", "f16")
    assert answer["bytes"] == sum(path.stat().st_size for path in (tmp_path / "mine").iterdir())
    assert answer["check"]["passed"]
    assert [each["name"] for each in answer["check"]["compared"]] == ["tensors", "logits"]
    assert 0 <= answer["check"]["kl"] < 0.02
    assert (nosy_run.run / "events.jsonl").read_bytes() == journal

    again = backprop(*asked, "--json", **nosy_run.environment)
    assert (again.code, again.json["error"]["code"]) == (1, "INPUT_VALIDATION_FAILED")
    assert "mine exists already" in again.json["error"]["message"]

    shown = backprop("export", "./mine", "--format", "merged", "--no-answers", **nosy_run.environment)
    assert shown.code == 0, shown.err
    assert "mine-merged-bf16" in shown.out
    assert "tensors: 20 tensors opened again" in shown.out
    assert "answers are not compared: not asked for" in shown.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "RUN_NOT_FOUND"),
        (["{file}"], "is a file, no run and no folder with a model"),
        (["{folder}", "--format", "exe"], "there is no format 'exe'"),
        (["{folder}", "--quantization", "q9"], "gguf is not written in 'q9'"),
    ],
)
def test_what_cannot_be_exported_is_the_persons_to_mend(
    words: list[str], said: str, tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")

    code = main(["export", *(word.format(file=file, folder=tiny_model) for word in words)])

    assert code == 1
    assert said in capfd.readouterr().err


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an engine would answer, and the request that it got."""
    exchange: dict[str, Any] = {"answer": DONE}

    def answer(request: ExportRequest, report: Any) -> Exported:
        exchange["request"] = request
        result: Exported = exchange["answer"]
        return result

    monkeypatch.setattr(command, "export_model", answer)
    return exchange


def test_a_gguf_is_shown_with_its_proof_and_what_comes_next(
    tiny_model: Path, written: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tiny_model), "-q", "q4_k_m", "--step", "3", "--no-answers", "-o", "x.gguf"]) == 0

    asked = written["request"]
    assert (asked.source, asked.format, asked.precision, asked.step) == (str(tiny_model), "gguf", "q4_k_m", 3)
    assert (asked.answers, asked.output) == (False, str(Path("x.gguf").absolute()))
    out = capfd.readouterr().out
    assert "1.5 MB, gguf in q4_k_m" in out
    assert "same  tensors: all of them" in out
    assert "note: something to say" in out
    assert "backprop ollama register '/runs/a1/exports/tiny model-q4_k_m.gguf' --name tiny-model-q4_k_m" in out


@pytest.mark.parametrize(("kept", "code"), [(0.49, 3), (0.5, 0), (None, 0)])
def test_a_fine_tune_that_is_lost_is_said_and_is_exit_code_3(
    tiny_model: Path, written: dict[str, Any], capfd: pytest.CaptureFixture[str], kept: float | None, code: int
) -> None:
    written["answer"] = replace(DONE, check=replace(DONE.check, tuning_kept=kept))

    assert main(["export", str(tiny_model)]) == code
    assert ("the fine-tune is lost at q4_k_m" in capfd.readouterr().out) == (code == 3)

    assert main(["export", str(tiny_model), "--json"]) == code
    assert json.loads(capfd.readouterr().out)["check"]["tuning_kept"] == kept


REGISTERED = Registered(
    name="captain:latest", url="http://o", version="0.30.1", digest="d", parameters={"temperature": 0.7}, system=""
)


@pytest.mark.parametrize("words", [["--ollama-name", "captain"], ["--ollama-name", "admiral"], ["--ollama"]])
def test_an_export_that_ollama_does_not_take_stands_and_is_exit_code_3(
    written: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    fails = "captain" not in words
    run = str(RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path))).path)
    asked: list[OllamaRequest] = []

    def register(request: OllamaRequest, answer: type[Registered]) -> Registered:
        asked.append(request)
        if fails:
            raise OllamaRegistrationError("nothing answers at http://o", hint="start it: ollama serve")
        return REGISTERED

    monkeypatch.setattr(command, "run_ollama", register)

    assert main(["export", run, *words]) == (3 if fails else 0)
    name = words[1] if len(words) > 1 else "tiny-model-q4_k_m"
    assert (asked[0].path, asked[0].name, asked[0].run) == (DONE.path, name, run)
    out, err = capfd.readouterr()
    assert "1.5 MB, gguf in q4_k_m" in out
    assert ("captain:latest" in out) == (not fails)
    assert ("[DEP_OLLAMA_REGISTRATION_FAILED] nothing answers" in err) == fails
    assert (f"next: backprop ollama register '{DONE.path}' --name {name}\n" in out) == fails

    assert main(["export", run, "--json", *words]) == (3 if fails else 0)
    answer = json.loads(capfd.readouterr().out)
    assert answer["path"] == DONE.path
    if fails:
        assert answer["ollama"]["error"]["code"] == "DEP_OLLAMA_REGISTRATION_FAILED"
    else:
        assert answer["ollama"]["name"] == "captain:latest"


def test_only_a_gguf_goes_to_ollama(tiny_model: Path, written: dict[str, Any]) -> None:
    assert main(["export", str(tiny_model), "--format", "merged", "--ollama"]) == 1
    assert "request" not in written


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["lines", "json"])
def test_the_demo_ends_with_a_gguf_and_its_proof(
    words: list[str],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def small(output_dir: str) -> RunConfig:
        return replace(demo_config(output_dir), model=str(tiny_model), steps=1, sample_tokens=4, backend="cpu")

    monkeypatch.setattr(train, "demo_config", small)

    assert main(["demo", "--output", str(tmp_path / "out"), *words]) == 0

    (file,) = (tmp_path / "out").glob("*/exports/*-q4_k_m.gguf")
    out, err = capfd.readouterr()
    shown, events = (err, out.splitlines()) if words else (out, [])
    assert f"{file}  " in shown
    assert "same  tokenization: " in shown
    assert [json.loads(line)["type"] for line in events][-1:] == ["run_finished"][: len(words)]
