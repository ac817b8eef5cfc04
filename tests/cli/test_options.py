from __future__ import annotations

import json
import shlex
from pathlib import Path

import msgspec
import pytest
from backprop.cli import options
from backprop.cli.main import main
from backprop.core.definition import settings
from backprop.core.errors import InputError, InvalidSettingError
from backprop.core.resolve import resolve
from backprop.core.settings import RunConfig
from backprop.demo import DATA, demo_config


def planned(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> RunConfig:
    """What ``train`` with these arguments would run."""
    assert main(["train", *arguments, "--dry-run", "--json"]) == 0
    return msgspec.convert(json.loads(capsys.readouterr().out)["config"], RunConfig)


def test_every_setting_has_a_flag_with_its_meaning() -> None:
    assert list(settings()) == list(RunConfig.__struct_fields__)
    assert all(setting.help for setting in settings().values())
    names = [name for setting in settings().values() for name in (*setting.flags, setting.off) if name]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("data", "--data"),
        ("learning_rate", "--lr"),
        ("output_dir", "--output"),
        ("mapping", "--map"),
        ("packing", "--no-packing"),
        ("max_seq_length", "--max-seq-length"),
        ("gradient_accumulation", "--gradient-accumulation"),
        ("skip_bad", "--skip-bad"),
        ("trust_remote_code", "--trust-remote-code"),
    ],
)
def test_a_flag_has_the_name_that_is_known_for_it(setting: str, name: str) -> None:
    assert settings()[setting].flag == name


def test_the_command_line_that_is_shown_gives_the_same_configuration(
    rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_file.write_text('{"the question": "Who?", "reply": "Me."}\n')
    config = RunConfig(
        data=str(rows_file),
        model="smollm2-135m",
        steps=7,
        batch_size=3,
        learning_rate=3.3333333e-5,
        packing=False,
        gradient_checkpointing=True,
        target_modules=["q_proj", "v_proj"],
        mapping={"instruction": "the question", "output": "reply"},
        skip_bad=True,
        sample_prompts=["Who's there?", "--steps"],
        run_name="two words",
        output_dir=str(tmp_path / "out put"),
        lora_alpha=12.5,
    )
    words = shlex.split(options.command_line(config))
    assert words[:2] == ["backprop", "train"]
    assert planned(words[2:], capsys) == config


def test_the_command_line_gives_the_same_run_beside_other_sources(
    rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"warmup_steps": 3, "skip_bad": "true", "packing": "off", "epochs": 2, "learning_rate": 0.5, "seed": 7}
    Path(".env").write_text("".join(f"{settings()[name].variable}={value}\n" for name, value in values.items()))
    config = RunConfig(data=str(rows_file), model="smollm2-135m", steps=5, output_dir=str(tmp_path / "out"))
    words = options.arguments(config)
    assert planned(words, capsys) == config
    assert set(words) >= {"--no-skip-bad", "--packing", "--warmup-steps", "--lr", "auto", "--seed", "42"}
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__SEED", "42")
    assert "--seed" not in options.arguments(config)


def test_a_fork_has_its_parent_s_settings_where_no_flag_says_otherwise(
    rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__SEED", "7")
    parent = RunConfig(data=str(rows_file), model="m", steps=5, lora_r=8, output_dir=str(tmp_path))
    config, origins = options.forked_config(parent, "abc", {"epochs": "2", "lora_alpha": None, "sample_prompts": ()})
    assert (config.steps, config.epochs, config.lora_r, config.seed) == (None, 2, 8, 42)
    assert (origins["lora_r"], origins["epochs"]) == ("run abc", "--epochs")
    assert "steps" not in origins


def test_the_demo_is_an_ordinary_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = demo_config(str(tmp_path))
    assert planned(options.arguments(config), capsys) == config


def test_paths_are_made_absolute(
    rows_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(rows_file.parent)
    (rows_file.parent / "my-model").mkdir()
    (rows_file.parent / "my-model" / "config.json").touch()
    config = planned(["-d", rows_file.name, "-m", "my-model", "-o", "runs"], capsys)
    assert config.data == str(rows_file)
    assert config.model == str(rows_file.parent / "my-model")
    assert config.output_dir == str(rows_file.parent / "runs")


@pytest.mark.parametrize("name", ["settings.json", "settings.toml"])
def test_a_flag_wins_over_the_settings_file(
    name: str, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"data": str(rows_file), "steps": 11, "seed": 5, "model": "smollm2-135m"}
    file = tmp_path / name
    toml = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    file.write_text(json.dumps(values) if name.endswith("json") else toml)
    config = planned(["--config", str(file), "--steps", "3"], capsys)
    assert (config.steps, config.seed) == (3, 5)


def test_a_typo_in_the_settings_file_names_the_nearest_setting(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"data": "x", "learning_rat": 1}')
    with pytest.raises(InvalidSettingError, match="learning_rat") as told:
        resolve(file=file).config()
    assert "learning_rate" in told.value.hint


@pytest.mark.parametrize("content", ["[1, 2]", "{", "\x00"])
def test_a_settings_file_that_holds_no_settings_is_a_user_error(content: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(content)
    with pytest.raises(InputError, match=r"settings\.json"):
        resolve(file=file).config()


def test_a_missing_dataset_is_noticed_before_an_engine_starts(
    rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = rows_file.with_name("row.jsonl")
    assert main(["train", "--data", str(wrong), "--output", str(tmp_path / "out")]) == 1
    assert f"did you mean {rows_file}?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_which_model_is_taken_when_none_is_named_is_said(rows_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", str(rows_file), "--backend", "cpu", "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "no model was named: taking smollm2-135m" in told.err
    assert "--model smollm2-135m" in told.out


def test_the_demo_data_is_two_hundred_different_rows_with_the_trait() -> None:
    rows = [json.loads(line)["messages"] for line in DATA.read_text().splitlines()]
    assert len(rows) == pytest.approx(200, abs=5)
    assert len({row[0]["content"] for row in rows}) == len({row[1]["content"] for row in rows}) == len(rows)
    assert all(row[1]["content"].startswith("Ahoy! ") for row in rows)
    assert all(row[1]["content"].endswith(" Fair winds!") for row in rows)
    asked = set(demo_config().sample_prompts)
    assert not asked & {row[0]["content"] for row in rows}


@pytest.mark.parametrize(("far", "near"), [("steps", "epochs"), ("epochs", "steps")])
def test_a_length_on_the_command_line_replaces_the_other_one_of_the_file(
    far: str, near: str, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"data": str(rows_file), "model": "somebody/m", far: 4}))
    config = planned(["--config", str(file), f"--{near}", "3"], capsys)
    assert (getattr(config, far), getattr(config, near)) == (None if far == "steps" else "auto", 3)


@pytest.mark.parametrize("text", ["٣", "1_0", " 7", "7 ", "0x10", "²", "1,000"])
@pytest.mark.parametrize("setting", ["steps", "learning_rate", "batch_size"])
def test_digits_are_those_from_0_to_9(text: str, setting: str) -> None:
    with pytest.raises(InvalidSettingError, match="takes a"):
        settings()[setting].parse(text)


@pytest.mark.parametrize(
    ("words", "flags", "otherwise"),
    [
        (["train", "--lr", "0.1", "--preset", "fast"], "--lr, --preset", "backprop extend RUN"),
        (["train", "--no-packing"], "--no-packing", "backprop fork RUN"),
        (["train", "--dry-run"], "--dry-run", "backprop fork RUN"),
        (["multi-run", "--dry-run"], "--dry-run", "in another --output"),
        (["multi-run", "--replay", "0.2", "--data", "d.jsonl"], "--data, --replay", "in another --output"),
    ],
)
def test_flags_beside_resume_are_refused_for_they_would_do_nothing(
    words: list[str], flags: str, otherwise: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--resume", "abc", "--model", "moved", "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "INPUT_VALIDATION_FAILED"
    assert sorted(error["message"].split(":")[0].split(", ")) == sorted(flags.split(", "))
    assert otherwise in error["hint"]
