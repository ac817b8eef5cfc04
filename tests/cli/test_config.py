"""``config``, the references made from the one definition, and wrong settings on the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from backprop.cli.main import backprop, main
from backprop.core.definition import Setting, all_settings, settings
from backprop.core.saved_settings import path_of
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


def test_the_variables_that_scripts_set_are_there(references: dict[str, str]) -> None:
    names = ["MODEL__NAME", "TRAINING__LEARNING_RATE", "LORA__R", "UI__OUTPUT_DIR", "LOG_LEVEL", "LOG_JSON", "LOG_FILE"]
    for name in (*names, "SECURITY__REQUIRE_AUTH_FOR_SHARE"):
        assert f"BACKPROPAGATE_{name} " in references["variables"]


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


def commands(group: click.Group, *path: str) -> list[tuple[str, ...]]:
    with click.Context(group) as context:
        known = {name: group.get_command(context, name) for name in group.list_commands(context)}
    found = [path]
    for name, command in known.items():
        found += commands(command, *path, name) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("words", commands(backprop), ids=" ".join)
def test_every_command_has_its_help_by_both_names(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert [said([*words, flag], capsys) for flag in ("-h", "--help")] == 2 * [said([*words, "--help"], capsys)]


def test_lists_and_objects_are_shown_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in {"mapping": '{"output": "réply"}', "target_modules": '["q_proj", "v_proj"]'}.items():
        said(["config", "set", name, text], capsys)
        assert said(["config", "get", name], capsys) == text


def test_common_settings_are_first_in_help(references: dict[str, str]) -> None:
    listed = references["help"].partition("Common settings:")[2]
    order = [listed.index(f"{each.flags[0]} ") for each in settings().values() if each.common]
    assert max(order) < listed.index("Data: ")
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


WRONG = {"training": ("learnig_rate", "learning_rate"), "checkpoints": ("keep-best", "keep_best"), "lora": ("seed", "")}
"""A typo, a hyphen for an underscore, and a key that is right in another section."""
WRONG_FLAGS = {"--learnig-rate": "--lr", "--keep_best": "--keep-best", "--lora.seed": "--seed"}


@pytest.mark.parametrize("source", [".env", "settings", "saved", "toml", "json", "environment", *WRONG_FLAGS])
def test_wrong_keys_end_with_their_places_and_the_right_ones_before_torch_is_imported(source: str, here: Path) -> None:
    table = "".join(f"[{section}]\n{key} = 1\n" for section, (key, _) in WRONG.items())
    variables = {f"BACKPROPAGATE_{section}__{key}".upper(): "1" for section, (key, _) in WRONG.items()}
    saved, lines, options = path_of("mine"), (2, 4, 6), []
    file = {"settings": settings_file(), "saved": saved, "toml": here / "x.toml", "json": here / "x.json"}.get(source)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(table)
        options = [] if source == "settings" else ["--config", "mine" if source == "saved" else str(file)]
    if source == "json":
        (here / "x.json").write_text(json.dumps({section: {key: 1} for section, (key, _) in WRONG.items()}, indent=1))
        lines = (3, 6, 9)
    if source == ".env":
        file, lines = here / ".env", (1, 2, 3)
        file.write_text("".join(f"{name}=1\n" for name in variables))
    if source in WRONG_FLAGS:
        options = [f"{source}=1"]
    program = (
        "import sys; from backprop.cli.main import main\n"
        f"code = main({['train', '--data', 'rows.jsonl', *options]!r})\n"
        "sys.exit(code if not {'torch', 'textual', 'numpy', 'transformers'} & set(sys.modules) else 9)"
    )
    environment = {**os.environ, **(variables if source == "environment" else {})}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    said = " ".join(done.stderr.split())
    assert done.returncode == 1, said
    if source in WRONG_FLAGS:
        assert f"there is no option {source}" in said
        assert f"did you mean {WRONG_FLAGS[source]}?" in said
        return
    assert "[CONFIG_INVALID_SETTING] 3 things are wrong" in said
    places = list(variables) if file is None else [f"{file}:{line}" for line in lines]
    as_variable = file is None or source == ".env"
    for place, right in zip(places, ("learning_rate", "keep_best", "seed"), strict=True):
        setting = settings()[right]
        mean = setting.variable if as_variable else f"{setting.key} in [{setting.section}]"
        assert re.search(f"{re.escape(place)}: .*?did you mean {re.escape(mean)}\\?", said), (place, said)


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


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (("mode", "full"), ("use_dora", "true"), "use_dora: mode full trains the weights themselves"),
        (("use_dora", "true"), ("mode", "full"), "use_dora: mode full trains the weights themselves"),
        (("processes", "2"), ("backend", "mlx"), "backend mlx trains LoRA by sft, in one process: processes 2"),
        (("init_lora_weights", "pissa"), ("mode", "qlora"), "init_lora_weights pissa: the 4-bit weights stay"),
        (("epochs", "2"), ("steps", "100"), "steps and"),
    ],
)
def test_a_value_that_contradicts_one_that_stands_is_refused_where_it_is_set(
    first: tuple[str, str], second: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(["config", "set", *first], capsys)
    before = settings_file().read_text()
    refused = answer(["config", "set", *second], capsys, code=1)["error"]
    assert (refused["code"], said in refused["message"]) == ("CONFIG_INVALID_SETTING", True), refused
    assert settings_file().read_text() == before
    answer(["config", "unset", first[0]], capsys)
    answer(["config", "set", *second], capsys)


def test_a_value_that_contradicts_a_variable_is_refused_too_and_what_was_wrong_before_is_put_right_one_by_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKPROPAGATE_MODEL__MODE", "full")
    assert answer(["config", "set", "use_dora", "true"], capsys, code=1)["error"]["code"] == "CONFIG_INVALID_SETTING"
    settings_file().parent.mkdir(parents=True, exist_ok=True)
    settings_file().write_text("[lora]\nuse_dora = true\nuse_rslora = true\n")
    answer(["config", "set", "seed", "7"], capsys)
    answer(["config", "unset", "use_dora"], capsys)
    answer(["config", "unset", "use_rslora"], capsys)
    assert answer(["config", "set", "use_rslora", "true"], capsys, code=1)["error"]["message"].startswith("use_rslora")
