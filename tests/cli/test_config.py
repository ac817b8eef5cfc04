"""``config``, the references made from the one definition, and wrong settings on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from backprop.cli.main import main
from backprop.core.definition import Setting, all_settings, settings
from backprop.core.settings_sources import settings_file


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command answers to people, in one line: how it is wrapped is another matter."""
    assert main(arguments) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture
def references(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("COLUMNS", "120")
    words = {"help": ["train", "--help"], "config": ["config"], "variables": ["info", "--env"]}
    return {name: said(command, capsys) for name, command in words.items()}


def test_help_config_and_variables_say_of_every_setting_what_the_definition_says(references: dict[str, str]) -> None:
    def needs(setting: Setting) -> dict[str, list[str]]:
        meaning = [" ".join(setting.help.split())]
        limits = [setting.range] if setting.range else []
        rule = [setting.rule] if setting.rule else []
        default = [] if setting.default in (None, [], {}) or setting.rule else [setting.shown_default]
        found = {"config": [setting.key, *meaning, *limits, *rule, *default]}
        if not setting.per_run:
            found["variables"] = [setting.variable, *meaning, *limits, *rule, *default]
        if setting.name in settings():
            takes = [] if setting.kind == "switch" else [setting.metavar]
            found["help"] = [*setting.flags, setting.off or setting.flags[0], *meaning, *rule, *takes]
        return found

    missing = [
        (where, setting.name, text)
        for setting in all_settings().values()
        for where, texts in needs(setting).items()
        for text in texts
        if " ".join(text.split()) not in references[where]
    ]
    assert missing == []


def test_common_settings_are_first_in_help(references: dict[str, str]) -> None:
    order = [references["help"].index(each.flags[0]) for each in settings().values() if each.common]
    assert max(order) < references["help"].index("Data: ")
    assert order == sorted(order)


def test_a_value_is_set_shown_with_its_line_and_taken_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["config", "path"], capsys) == {"path": str(settings_file())}
    assert answer(["config", "set", "training.learning_rate", "1E-4"], capsys)["value"] == 1e-4
    assert answer(["config", "set", "packing", "off"], capsys)["value"] is False
    got = answer(["config", "get", "learning_rate"], capsys)
    assert (got["value"], got["origin"]) == (1e-4, f"{settings_file()}:4")
    assert [each["value"] for each in answer(["config"], capsys) if each["name"] == "packing"] == [False]
    answer(["config", "unset", "learning_rate"], capsys)
    assert answer(["config", "get", "learning_rate"], capsys)["origin"].startswith("default")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["config", "set", "training.learning-rate", "1"], "training.learning_rate"),
        (["config", "get", "num_train_epochs"], "training.epochs"),
        (["config", "set", "seed", "-1"], "at least 0"),
        (["config", "set", "trust_remote_code", "true"], "--trust-remote-code"),
        (["config", "gte", "seed"], "config get"),
        (["train", "--learning-rate", "1e-4"], "--lr"),
        (["train", "--num_train_epochs", "1"], "--epochs"),
        (["train", "--batch_size", "1"], "--batch-size"),
        (["train", "--per-device-train-batch-size=1"], "--batch-size"),
        (["train", "--preset", "qualty"], "did you mean quality?"),
    ],
)
def test_a_wrong_name_or_value_ends_in_one_error(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = answer(arguments, capsys, code=1)["error"]
    assert hint in error["hint"], error
    assert not settings_file().exists()


@pytest.mark.parametrize("source", [".env", "settings", "environment", "file", "flag"])
def test_a_wrong_key_ends_before_torch_is_imported(source: str, here: Path) -> None:
    command = ["train", "--data", "rows.jsonl"]
    match source:
        case ".env":
            (here / ".env").write_text("BACKPROPAGATE_TRAINING__LEARNIG_RATE=1\n")
        case "settings":
            settings_file().parent.mkdir(parents=True)
            settings_file().write_text("[training]\nlearning-rate = 1\n")
        case "file":
            (here / "x.toml").write_text("[lora]\nlearning_rate = 1\n")
            command += ["--config", "x.toml"]
        case "flag":
            command += ["--learning-rate", "1"]
    program = (
        "import sys; from backprop.cli.main import main\n"
        f"code = main({command!r})\n"
        "sys.exit(code if not {'torch', 'textual', 'numpy', 'transformers'} & set(sys.modules) else 9)"
    )
    import os

    variables = {**os.environ}
    if source == "environment":
        variables["BACKPROPAGATE_LEARNING_RATE"] = "1"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, env=variables, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "CONFIG_INVALID_SETTING" in done.stderr or source == "flag"
    assert any(right in done.stderr for right in ("learning_rate in [training]", "TRAINING__LEARNING_RATE", "--lr"))


def completed(words: str, where: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> set[str]:
    monkeypatch.setenv("_BACKPROP_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(where))
    assert main([]) == 0
    return {line.split(",", 1)[1] for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize(
    ("words", "where", "offered"),
    [
        ("backprop tra", 1, {"train"}),
        ("backprop train --max-s", 2, {"--max-seq-length"}),
        ("backprop train --model smollm2", 3, {"smollm2-135m"}),
        ("backprop train --preset ", 3, {"fast-3b", "fast", "balanced", "quality"}),
        ("backprop train --scheduler co", 3, {"cosine", "constant"}),
        ("backprop config get training.le", 3, {"training.learning_rate"}),
    ],
)
def test_the_shell_completes(
    words: str, where: int, offered: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completed(words, where, monkeypatch, capsys) == offered


def test_the_shell_completes_files_and_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from backprop.core.settings import RunConfig
    from backprop.runs.directory import RunDirectory
    from backprop.runs.index import RunIndex

    run = RunDirectory.create(RunConfig(data="d", output_dir=str(here)))
    with RunIndex() as index:
        index.add(run.path)
    assert completed(f"backprop resume {run.run_id[:3]}", 2, monkeypatch, capsys) == {run.run_id}
    monkeypatch.setenv("COMP_WORDS", "backprop train --data ro")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert main([]) == 0
    assert capsys.readouterr().out == "file,ro\n"
