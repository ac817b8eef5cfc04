"""However a command ends: its exit code, one error with a code and a hint, and no secret in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from backprop.cli.main import main
from backprop.core import errors
from backprop.core.errors import ERROR_CODES, BackpropError, ConfigurationError, ModelLoadError, error_for


def failing(error: BaseException) -> click.Command:
    """A command that raises ``error``, run through the real edge."""

    @click.command
    @click.option("--json", "as_json", is_flag=True)
    @click.option("--verbose", "-v", is_flag=True)
    def fail(as_json: bool, verbose: bool) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train"], "INPUT_VALIDATION_FAILED", "--data"),
        (["train", "--data", "nothing-here.jsonl"], "DATASET_NOT_FOUND", "nothing-here.jsonl"),
        (["train", "--data", "{rows}", "--lr", "7"], "CONFIG_INVALID_SETTING", "--lr: above 0, at most 1, not 7.0"),
        (["train", "--data", "{rows}", "--model", ""], "CONFIG_INVALID_SETTING", "--model: it is empty"),
        (["train", "--data", "{rows}", "--model", "{rows}"], "DEP_MODEL_LOAD_FAILED", "is a file, no model directory"),
        (["train", "--data", "{rows}", "--model", "."], "DEP_MODEL_LOAD_FAILED", "no config.json"),
        (["validate", f"{'x' * 300}.jsonl"], "DATASET_NOT_FOUND", "shorten the name"),
        (["data", "split", "{rows}", "--held-out", "2"], "INPUT_VALIDATION_FAILED", "did you mean --held-out-file?"),
        (["tell", "feed"], "INPUT_VALIDATION_FAILED", "Choose from: pause, go-on,"),
        (["chat", "gone.gguf"], "RUN_NOT_FOUND", "there is no file gone.gguf"),
        (["train", "--data", "{rows}", "--lr", "fast"], "CONFIG_INVALID_SETTING", "takes a number"),
        (["train", "--data", "{rows}", "--scheduler", "cosin"], "CONFIG_INVALID_SETTING", "did you mean cosine?"),
        (["train", "--data", "{rows}", "--steps", "0"], "CONFIG_INVALID_SETTING", "--steps"),
        (["train", "--data", "{rows}", "--steps", "3", "--epochs", "1"], "CONFIG_INVALID_SETTING", "one of --steps"),
        (["train", "--data", "{rows}", "--map", "instruction"], "CONFIG_INVALID_SETTING", "instruction=question"),
        (["train", "--data", "{rows}", "--config", "no.json"], "INPUT_VALIDATION_FAILED", "no.json"),
        (["train", "--stepz", "3"], "INPUT_VALIDATION_FAILED", "did you mean --steps?"),
        (["train", "rows.jsonl"], "INPUT_VALIDATION_FAILED", "train --help"),
        (["trian"], "INPUT_VALIDATION_FAILED", "backprop train"),
        (["show-run", "feed"], "RUN_NOT_FOUND", "list-runs"),
        (["show-run"], "INPUT_VALIDATION_FAILED", "show-run --help"),
        (["list-runs", "--status", "gone"], "INPUT_VALIDATION_FAILED", "done"),
        (["list-runs", "--limit", "0"], "INPUT_VALIDATION_FAILED", "--limit"),
        (["generate", "feed"], "INPUT_VALIDATION_FAILED", "--prompt"),
    ],
)
def test_a_user_error_has_a_code_a_hint_and_exit_code_1(
    arguments: list[str], code: str, said: str, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [word.replace("{rows}", str(rows_file)) for word in arguments]
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert f"error [{code}]" in told.err
    assert "hint: " in told.err
    assert said in told.err
    assert told.out == ""
    assert "Traceback" not in told.err

    assert main([*arguments, "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert set(error) >= {"code", "message", "hint", "retryable"}


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (ConfigurationError("a"), 1, "CONFIG_INVALID"),
        (ModelLoadError("a"), 2, "DEP_MODEL_LOAD_FAILED"),
        (ZeroDivisionError("a"), 2, "RUNTIME_INTERNAL"),
        (click.UsageError("a"), 1, "INPUT_VALIDATION_FAILED"),
    ],
)
def test_the_exit_code_follows_the_class_of_the_error(
    error: Exception, exit_code: int, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], failing(error)) == exit_code
    told = capsys.readouterr()
    assert f"[{code}]" in told.err
    assert "Traceback" not in told.err


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_verbose_shows_the_traceback_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--verbose", "--json"], failing(ValueError("odd"))) == 2
    told = capsys.readouterr()
    assert "Traceback" in told.err
    assert "test_errors.py" in told.err
    assert json.loads(told.out)["error"]["code"] == "RUNTIME_INTERNAL"


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--verbose"], ["--json", "--verbose"]])
def test_no_secret_is_ever_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    secret = "hf_abcdefghijklmnop"
    try:
        raise RuntimeError(f"cause with token={secret}")
    except RuntimeError as cause:
        error = BackpropError(
            f'got 401 for {secret} and password=pa"ss', hint=f"Bearer {secret}", details={"header": f"Bearer {secret}"}
        )
        error.__cause__ = cause
    main(arguments, failing(error))
    told = capsys.readouterr()
    assert secret not in told.out + told.err
    assert "[redacted]" in told.out + told.err
    if "--json" in arguments:
        assert json.loads(told.out)["error"]["message"].startswith("got 401 for [redacted]")


def test_a_terminal_with_ascii_alone_reads_a_minus_as_one() -> None:
    code = "from backprop.cli import output; output.prepare_streams(); output.line('\u22120.42 \u2026 \xe9')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == rb"-0.42 ... \xe9" + b"\n"


def test_help_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    told = capsys.readouterr()
    assert "list-runs" in told.out
    assert told.err == ""


FAMILIES: dict[type[BackpropError], set[str]] = {
    errors.ConfigurationError: {"InvalidSettingError"},
    errors.DatasetError: {f"Dataset{kind}Error" for kind in ("NotFound", "Parse", "Validation", "Format")},
    errors.TrainingError: {"ModelLoadError", "TrainingAbortedError", "CheckpointError"},
    errors.ExportError: {"LoRAExportError", "GGUFError", "MergeError", "OllamaRegistrationError"},
    errors.GPUError: {f"GPU{kind}Error" for kind in ("NotAvailable", "Memory", "Temperature", "Monitoring")},
    errors.SLAOError: {"SLAOMergeError", "SLAOCheckpointError"},
    errors.BatchOperationError: set(),
}


def test_errors_can_be_caught_by_their_family() -> None:
    for family, kinds in FAMILIES.items():
        assert kinds <= {kind.__name__ for kind in family.__subclasses__()}
        assert issubclass(family, BackpropError)
    assert issubclass(errors.SLAOCheckpointError, errors.CheckpointError)
    merging, batch = error_for("RUNTIME_SLAO_MERGE_FAILED", "x"), error_for("RUNTIME_BATCH_FAILED", "x")
    assert (type(merging), type(batch)) == (errors.SLAOMergeError, errors.BatchOperationError)


def test_codes_that_scripts_know_are_kept() -> None:
    kept = """INPUT_VALIDATION_FAILED INPUT_AUTH_REQUIRED CONFIG_INVALID CONFIG_INVALID_SETTING DEP_GPU_NOT_AVAILABLE
    DEP_MODEL_LOAD_FAILED DEP_OLLAMA_REGISTRATION_FAILED RUNTIME_GPU_OOM RUNTIME_GPU_TEMPERATURE_CRITICAL
    RUNTIME_FULL_FT_MODEL_TOO_LARGE RUNTIME_GGUF_EXPORT_FAILED RUNTIME_UI_AUTH_NOT_ENFORCED STATE_CHECKPOINT_INVALID
    UI_OUTPUT_DIR_FORBIDDEN"""
    assert set(kept.split()) <= set(ERROR_CODES)


@pytest.mark.parametrize("code", ERROR_CODES)
def test_an_error_without_a_hint_of_its_own_says_what_to_do_about_its_code(code: str) -> None:
    assert BackpropError("what", code=code).to_dict()["hint"] == errors.REMEDIES[code] != ""
    assert error_for(code, "what").hint == errors.REMEDIES[code]
    assert BackpropError("what", code=code, hint="do this").hint == "do this"


@pytest.mark.parametrize("code", ERROR_CODES)
def test_an_engine_error_comes_back_as_its_class(code: str) -> None:
    error = error_for(code, "what", "do this", True)
    assert (error.code, error.message, error.hint, error.retryable) == (code, "what", "do this", True)
    user = code.startswith(("INPUT_", "CONFIG_", "DATASET_", "RUN_")) or code == "DEP_MISSING"
    assert (error.exit_code == 1) == (user or code == "UI_OUTPUT_DIR_FORBIDDEN") or error.exit_code in (2, 130)


def test_a_code_from_a_newer_engine_is_kept_in_the_message() -> None:
    assert "[NEW_CODE] what" in str(error_for("NEW_CODE", "what"))


def test_a_reader_that_leaves_is_no_error(backprop_process: Callable[..., Any], tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-P", "-m", "backprop.cli.main", "info", "--error-codes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
