"""Every setting from every source with every kind of wrong value: refused with code and name, or kept as it is."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from backprop import Trainer
from backprop.cli.main import main
from backprop.core.definition import settings
from backprop.core.errors import InvalidSettingError, RunError
from backprop.core.redaction import CONTROLS
from backprop.core.resolve import config_from
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.record import RunRecord

SETTINGS = RunConfig.__struct_fields__
CODES = {
    *("CONFIG_INVALID_SETTING", "CONFIG_INVALID", "INPUT_VALIDATION_FAILED"),
    *("DATASET_NOT_FOUND", "DEP_MODEL_LOAD_FAILED"),
}
LONG = 5000

TEXTS = (
    *("", " ", "nan", "-inf", "infinity", "1e400", "1e-400", "-1", "0", "-0.0", "1e3", "0x10", "1_0", " 7", "7 "),
    *("٣", "३.५", "²", "true", "null", "none", "auto", "[]", "{}", "=", ",", "a=", "=b", "a=b=c", "~nobody-at-all/x"),
    *(
        "9" * 20,
        "9" * 400,
        "9" * LONG,
        "x" * LONG,
        "x/" * LONG,
        "\x1b[31m",
        "\x9b2J",
        "\u202e",
        "a\nb",
        "a\0b",
        "\udcff",
    ),
)
DOCUMENTS = (
    *(
        "null",
        "true",
        '""',
        '" "',
        "[]",
        "{}",
        "[null]",
        '[""]',
        '{"": ""}',
        '{"a": 1}',
        "-1",
        "0",
        "-0.0",
        "0.5",
        "1e3",
    ),
    *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "9007199254740993", "1" + "0" * 30, "9" * LONG),
    *('"nan"', '"7"', '"٣"', '"\\u0000"', '"\\u001b[31m"', '"\\u202e"', '"\\ud800"', '["\\ud800"]', '{"a": "\\ud800"}'),
    *("[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000, '"' + "x" * LONG + '"', "2026-01-01", "{"),
)
LOOPED: list[Any] = []
LOOPED.append(LOOPED)
OBJECTS: tuple[Any, ...] = (
    *(None, True, "", " ", b"bytes", bytearray(b"x"), [], {}, (), set(), [None], [""], {"": ""}, {1: 2}, object(), len),
    *(float("nan"), float("inf"), -float("inf"), -1, 0, -0.0, 2**53 + 1, 2**63, 10**30, 10**LONG, -(10**LONG), 1j),
    *(Decimal("NaN"), Decimal(3), Fraction(1, 3), np.float64(0.25), np.float32("inf"), np.int64(3), np.array([1])),
    *(
        "\ud800",
        ["\ud800"],
        {"a": "\ud800"},
        "a\0b",
        {"a\0": "b"},
        "\x1b[31m\u202e",
        "x" * LONG,
        "٣",
        LOOPED,
        Path("rows"),
    ),
)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings that could train, from a place where nothing else lies."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return {"data": str(rows), "model": "smollm2-135m"}


def reads_back(config: RunConfig) -> None:
    """``run.json`` gives back what was written, and the command line that is shown gives it too."""
    record = RunRecord(run_id="r", created=1.0, config=config)
    assert msgspec.json.decode(msgspec.json.encode(record), type=RunRecord) == record
    assert msgspec.json.encode(msgspec.convert(msgspec.to_builtins(config), RunConfig)) == msgspec.json.encode(config)


def refused(error: dict[str, Any], setting: str) -> None:
    assert error["code"] in CODES, error
    assert len(error["message"]) < 6 * LONG
    named = (setting, settings()[setting].flag, *settings()[setting].flags, error.get("details", {}).get("field"))
    assert any(name and name in error["message"] for name in named) or setting == error["details"].get("field"), error


@pytest.mark.parametrize("setting", [name for name in SETTINGS if settings()[name].kind != "switch"])
def test_flags(setting: str, base: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    flag = settings()[setting]
    rest = [word for name, value in base.items() if name != setting for word in (f"--{name}", value)]
    for text in TEXTS:
        code = main(["train", *rest, flag.flags[0], text, "--dry-run", "--json"])
        said = capfd.readouterr()
        assert not CONTROLS.search((said.out + said.err).replace("\n", "")), repr(text)
        answer = json.loads(said.out)
        if code == 0:
            reads_back(msgspec.convert(answer["config"], RunConfig))
        else:
            assert code == 1, (text[:50], answer)
            refused(answer["error"], setting)


@pytest.mark.parametrize("ending", ["json", "toml"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_files(
    setting: str, ending: str, base: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"settings.{ending}"
    rest = {name: json.dumps(value) for name, value in base.items() if name != setting}
    for document in DOCUMENTS:
        if ending == "json":
            file.write_text("{" + ", ".join(f'"{k}": {v}' for k, v in (*rest.items(), (setting, document))) + "}")
        else:
            document = document.replace("NaN", "nan").replace("Infinity", "inf").replace('": ', '" = ')
            file.write_text("".join(f"{k} = {v}\n" for k, v in (*rest.items(), (setting, document))))
        code = main(["train", "--config", str(file), "--dry-run", "--json"])
        said = capfd.readouterr()
        assert not CONTROLS.search((said.out + said.err).replace("\n", "")), document[:50]
        answer = json.loads(said.out)
        if code == 0:
            reads_back(msgspec.convert(answer["config"], RunConfig))
        else:
            assert code == 1, (document[:50], answer)
            if file.name not in answer["error"]["message"]:
                refused(answer["error"], setting)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_library(setting: str, base: dict[str, Any]) -> None:
    for value in OBJECTS:
        given = {"model": "smollm2-135m", setting: value}
        try:
            trainer = Trainer(**{name: each for name, each in given.items() if name != "data"})
            config = config_from({**base, setting: value})
        except InvalidSettingError as error:
            refused(error.to_dict(), setting)
        else:
            reads_back(config)
            reads_back(trainer.config)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_engine_s_run_json(setting: str, base: dict[str, Any], tmp_path: Path) -> None:
    directory = RunDirectory.create(RunConfig(**{**base, "output_dir": str(tmp_path / "out")}))
    document = json.loads(directory.record.read_bytes())
    document["config"][setting] = "THE VALUE"
    text = json.dumps(document)
    for value in DOCUMENTS:
        directory.record.write_text(text.replace('"THE VALUE"', value))
        damage = None
        try:
            record = directory.read_record()
        except RunError as error:
            damage = error.to_dict()
        if damage is None:
            reads_back(record.config)
            directory.update_record(kind="again")
            assert directory.read_record().config == record.config
        else:
            assert damage["code"] == "RUN_DAMAGED"
            assert "run.json" in damage["message"]


def test_numbers_of_numerical_libraries_are_numbers(base: dict[str, Any]) -> None:
    config = config_from({**base, "steps": np.int64(3), "learning_rate": np.float64(0.25), "output_dir": Path("out")})
    assert (config.steps, config.learning_rate, config.output_dir) == (3, 0.25, "out")


def test_a_setting_that_a_file_gives_twice_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"steps": 3, "steps": 4}')
    assert main(["train", "--config", str(file)]) == 1
    assert "'steps' is given twice" in capfd.readouterr().err
