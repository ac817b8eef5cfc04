"""Every source of settings: what wins, where a value comes from, and what a wrong key is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backprop.core.definition import OTHERS, all_settings, chosen_by_rule, nearest, settings
from backprop.core.errors import InputError, InvalidSettingError
from backprop.core.paths import config_dir
from backprop.core.resolve import Resolution, resolve
from backprop.core.saved_settings import names, path_of, save, write
from backprop.core.settings import SECTIONS, RunConfig
from backprop.core.settings_sources import settings_file

CHOSEN: dict[str, Any] = {
    "data": "rows.jsonl",
    "model": "smollm2-135m",
    "steps": 7,
    "learning_rate": 1e-4,
    "packing": False,
    "skip_bad": True,
    "target_modules": ["q_proj", "v_proj"],
    "mapping": {"instruction": "the question", "output": "reply"},
    "sample_prompts": ["Who's there?"],
    "held_out": "0.1",
    "lora_alpha": 12.5,
    "run_name": "two words # one",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def as_text(name: str, value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return ",".join(f"{key}={column}" for key, column in value.items())
        case list():
            return ",".join(value) if settings()[name].kind == "list" else json.dumps(value)
    return str(value)


def settings_text(text: str) -> None:
    settings_file().parent.mkdir(parents=True, exist_ok=True)
    settings_file().write_text(text)


def from_flags(values: dict[str, Any], patch: pytest.MonkeyPatch) -> Resolution:
    given: dict[str, Any] = {name: as_text(name, value) for name, value in values.items()}
    pairs = tuple(f"{key}={column}" for key, column in values.get("mapping", {}).items())
    several = {"mapping": pairs, "sample_prompts": tuple(values.get("sample_prompts", ()))}
    return resolve({**given, **{name: each for name, each in several.items() if each}})


def from_environment(values: dict[str, Any], patch: pytest.MonkeyPatch) -> Resolution:
    for name, value in values.items():
        patch.setenv(settings()[name].variable, as_text(name, value))
    return resolve()


def from_dotenv(values: dict[str, Any], patch: pytest.MonkeyPatch) -> Resolution:
    lines = [f"{settings()[name].variable}='''{as_text(name, value)}'''" for name, value in values.items()]
    quoted = [line.replace("'''", '"' if "'" in line.replace("'''", "") else "'") for line in lines]
    Path(".env").write_text("OTHER=1\n# a comment\nexport " + "\r\n".join(quoted))
    return resolve()


def from_settings_file(values: dict[str, Any], patch: pytest.MonkeyPatch) -> Resolution:
    write(settings_file(), values)
    return resolve()


def from_a_saved_configuration(values: dict[str, Any], patch: pytest.MonkeyPatch) -> Resolution:
    save("mine", values)
    return resolve(file="mine")


def from_a_file(values: dict[str, Any], patch: pytest.MonkeyPatch) -> Resolution:
    Path("run.json").write_text("\ufeff" + json.dumps(values))
    return resolve(file="run.json")


def from_a_screen(values: dict[str, Any], patch: pytest.MonkeyPatch) -> Resolution:
    return resolve({name: as_text(name, value) for name, value in values.items()}, kind="screen")


SOURCES: list[Callable[[dict[str, Any], pytest.MonkeyPatch], Resolution]] = [
    from_flags,
    from_environment,
    from_dotenv,
    from_settings_file,
    from_a_saved_configuration,
    from_a_file,
    from_a_screen,
]
by_source = pytest.mark.parametrize("source", SOURCES)


@by_source
def test_the_same_settings_from_any_source_are_the_same_run(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = source(CHOSEN, monkeypatch)
    assert msgspec.json.encode(found.config()) == msgspec.json.encode(RunConfig(**CHOSEN))
    assert found.given() == CHOSEN
    assert {found.origins[name].kind for name in CHOSEN} < {
        *("flag", "environment", ".env", "settings file", "configuration", "screen")
    }


PLACES = {
    "learning_rate": {
        from_flags: "--lr",
        from_environment: "BACKPROPAGATE_TRAINING__LEARNING_RATE",
        from_dotenv: "{here}/.env:3",
        from_settings_file: "{config}/settings.toml:4",
        from_a_saved_configuration: "{config}/configurations/mine.toml:4",
        from_a_file: "{here}/run.json:1",
        from_a_screen: "screen",
    }
}


@by_source
def test_the_place_of_a_value_is_kept(source: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = source({"learning_rate": 1e-4}, monkeypatch)
    place = PLACES["learning_rate"][source].format(here=here, config=config_dir())
    assert str(found.origins["learning_rate"]) == place
    assert found.notes() == {"learning_rate": place}


def test_nearer_sources_win(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    settings_text("seed = 1\n")
    order.append(resolve().values["seed"])
    Path(".env").write_text("BACKPROPAGATE_TRAINING__SEED=2\n")
    order.append(resolve().values["seed"])
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__SEED", "3")
    order.append(resolve().values["seed"])
    Path("c.toml").write_text("[training]\nseed = 4\n")
    order.append(resolve(file="c.toml").values["seed"])
    order.append(resolve({"seed": "5"}, file="c.toml").values["seed"])
    assert order == [1, 2, 3, 4, 5]


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__STEPS", "")
    assert resolve().values["steps"] is None


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("3", 3)])
def test_a_choice_is_given_back_to_the_rule(text: str, value: int | str) -> None:
    settings_text("warmup_steps = 9\n")
    assert resolve({"warmup_steps": text}).values["warmup_steps"] == value


@pytest.mark.parametrize(("far", "near"), [("steps", "epochs"), ("epochs", "steps")])
def test_the_nearer_length_wins(far: str, near: str) -> None:
    settings_text(f"{far} = 3\n")
    found = resolve({near: "2"})
    assert (found.values[far], found.values[near]) == (None if far == "steps" else "auto", 2)
    assert found.errors == []


# What a value looks like is what it means.


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("packing", '"false"', False),
        ("packing", "false", False),
        ("skip_bad", '"yes"', True),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", "1E-4", 1e-4),
        ("learning_rate", '"1E-4"', 1e-4),
        ("steps", '"7"', 7),
        ("batch_size", '"auto"', "auto"),
        ("batch_size", '"2"', 2),
        ("sample_prompts", '"one, and more"', ["one, and more"]),
        ("target_modules", '"q_proj, v_proj"', ["q_proj", "v_proj"]),
    ],
)
@pytest.mark.parametrize("form", ["toml", "json", "crlf", "bom", "variable"])
def test_a_value_means_what_it_looks_like(
    form: str, name: str, text: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, key = settings()[name].path.split(".")
    if form == "variable":
        monkeypatch.setenv(settings()[name].variable, text.strip('"'))
        found = resolve()
    elif form == "json":
        Path("x.json").write_text(f'{{"{section}": {{"{key}": {text}}}}}')
        found = resolve(file="x.json")
    else:
        lines = f"# mine\n[{section}]\n{key} = {text} # why\n"
        lines = lines.replace("\n", "\r\n") if form == "crlf" else "\ufeff" + lines if form == "bom" else lines
        Path("x.toml").write_bytes(lines.encode())
        found = resolve(file="x.toml")
    assert found.errors == []
    assert found.values[name] == value


# Wrong keys.

WRONG = [
    (("training", "learning_rat"), "learning_rate"),
    (("training", "learning-rate"), "learning_rate"),
    (("lora", "learning_rate"), "learning_rate"),
    (("training", "num_train_epochs"), "epochs"),
    (("trainig", "seed"), "training"),
    (("", "per_device_train_batch_size"), "batch_size"),
    (("", "r"), "lora_r"),
]


@pytest.mark.parametrize(("keys", "meant"), WRONG)
@pytest.mark.parametrize("source", ["settings file", "saved", "toml", "json", ".env", "environment", "argument"])
def test_a_wrong_key_is_named_with_its_place_and_the_right_one(
    source: str, keys: tuple[str, str], meant: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, key = keys
    table = f"# mine\n[{section}]\n{key} = 1\n" if section else f"# mine\n\n{key} = 1\n"
    variable = "BACKPROPAGATE_" + (f"{section}__{key}" if section else key).upper()
    right = settings().get(meant)
    place, file, given = f"{here}/x.toml:3", None, {}
    match source:
        case "settings file":
            settings_text(table)
            place = f"{settings_file()}:3"
        case "saved":
            path_of("mine").parent.mkdir(parents=True)
            path_of("mine").write_text(table)
            place, file = f"{path_of('mine')}:3", "mine"
        case "toml":
            Path("x.toml").write_text(table)
            file = "x.toml"
        case "json":
            values = {section: {key: 1}} if section else {key: 1}
            Path("x.json").write_text(json.dumps({"seed": 1} | values, indent=1))
            place, file = f"{here}/x.json:{4 if section else 3}", "x.json"
        case ".env":
            Path(".env").write_text(f"A=1\n\n{variable}=1\n")
            place = f"{here}/.env:3"
        case "environment":
            monkeypatch.setenv(variable, "1")
            place = variable
        case "argument":
            given, place = {key: 1}, key
    if section == "trainig" and source != "argument":
        place = place.replace("toml:3", "toml:2").replace("json:4", "json:3")
    found = resolve(given, kind="argument", file=file)
    if source == "argument" and keys == ("lora", "learning_rate"):
        assert found.errors == []
        return
    if source == "argument" and section == "trainig":
        assert found.errors == []
        return
    (error,) = found.errors
    assert isinstance(error, InvalidSettingError)
    assert error.exit_code == 1
    assert place in error.message
    if right is None or section == "trainig":
        assert ("TRAINING__SEED" if source in (".env", "environment") else "[training]") in error.hint
    elif source in (".env", "environment"):
        assert right.variable in error.hint
    elif source == "argument":
        assert meant in error.hint
    else:
        assert f"{right.key} in [{right.section}]" in error.hint


def test_everything_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__STEPS", "many")
    settings_text("[lora]\nr = 0\nbeta = 2\n")
    found = resolve({"learning_rate": "7", "scheduler": "cosin"})
    with pytest.raises(InvalidSettingError) as caught:
        found.config()
    fields = [error["details"]["field"] for error in caught.value.details["errors"]]
    assert sorted(fields) == ["learning_rate", "lora.beta", "lora_r", "scheduler", "steps"]
    for place in ("settings.toml:2", "settings.toml:3", "BACKPROPAGATE_TRAINING__STEPS", "--lr", "did you mean cosine"):
        assert place in caught.value.message


def test_trust_is_never_given_by_a_file_that_is_read_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("BACKPROPAGATE_MODEL__TRUST_REMOTE_CODE=true\n")
    (error,) = resolve().errors
    assert "--trust-remote-code" in error.hint
    Path(".env").unlink()
    assert resolve({"trust_remote_code": True}).values["trust_remote_code"] is True


def test_settings_that_were_saved_as_utf_16_are_not_passed_over() -> None:
    Path(".env").write_text("BACKPROPAGATE_LORA__R=7\n", encoding="utf-16")
    (error,) = resolve().errors
    assert error.message == f"{Path.cwd() / '.env'} cannot be read: it is no text in UTF-8"
    assert error.hint == "save it as UTF-8"


def test_the_line_of_a_key_is_found_however_it_is_written() -> None:
    lines = [
        "# seed = 9, lora.x = 1",
        "'seeds' = 1",
        "lora.x = 1",
        'training."z" = 1',
        "data = { y = 1 }",
        "[ safety ]",
    ]
    Path("x.toml").write_text("\n".join([*lines, "", "# q=1", "q=1"]))
    places = [error.message.split(": ")[0].rpartition(":")[2] for error in resolve(file="x.toml").errors]
    assert places == ["2", "3", "4", "5", "9"]


def test_a_setting_that_stands_twice_in_a_file_is_refused() -> None:
    Path("x.toml").write_text("seed = 1\n[training]\nseed = 2\n")
    (error,) = resolve(file="x.toml").errors
    assert "x.toml:3" in error.message
    assert "x.toml:1" in error.message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.yaml", "steps: 3\n", "YAML"),
        ("x.toml", "steps = = 3\n", "line 1"),
        ("x.json", "[1]", "holds no settings"),
        ("x.toml", "version = 9\n", "x.toml:1: a newer backprop wrote this file, in version 9 of its form"),
        ("x.json", '{"version": "one"}', "there is no version 'one' of its form; known is 1"),
        ("gone.toml", None, "gone.toml"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(name: str, content: str | None, said: str) -> None:
    if content is not None:
        Path(name).write_text(content)
    (error,) = resolve(file=name).errors
    assert isinstance(error, InputError)
    assert said in error.message


def test_the_names_of_other_trainers_are_known() -> None:
    assert all(nearest(name) == all_settings()[ours] for name, ours in OTHERS.items())
    assert not set(OTHERS) & set(all_settings())


def test_a_rule_chose_what_was_open_and_nothing_that_was_named() -> None:
    before = RunConfig(data="rows", model="somewhere")
    after = msgspec.structs.replace(before, model="/elsewhere", learning_rate=1e-4, max_seq_length=64)
    assert set(chosen_by_rule(before, after)) == {"learning_rate", "max_seq_length"}


def test_every_setting_has_a_place_of_its_own() -> None:
    every = list(all_settings().values())
    assert len({each.path for each in every}) == len({each.variable for each in every}) == len(every)
    assert {each.section for each in every} == {"", *SECTIONS}
    assert all(each.help and each.kind for each in every)
    assert [each.name for each in settings().values() if each.default in (None, "auto") and not each.rule] == [
        *("data", "samples", "lora_preset", "early_stopping", "save_steps", "run_name")
    ]


# Presets.


def test_a_preset_stands_below_the_other_values_of_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__LEARNING_RATE", "0.5")
    found = resolve({"preset": "quality", "lora_r": "4"})
    assert (found.values["learning_rate"], found.values["lora_r"]) == (1e-4, 4)
    assert str(found.origins["learning_rate"]) == "preset quality (--preset)"
    assert str(found.origins["lora_r"]) == "--lora-r"
    monkeypatch.setenv("BACKPROPAGATE_PRESET", "fast")
    assert resolve().values["learning_rate"] == 0.5
    assert resolve().values["lora_r"] == 8


@pytest.mark.parametrize(
    ("flags", "adapter"),
    [
        ({}, (None, 16, 32.0)),
        ({"lora_r": "4"}, (None, 4, 8.0)),
        ({"lora_alpha": "4"}, (None, 16, 4.0)),
        ({"lora_r": "4", "lora_alpha": "4"}, (None, 4, 4.0)),
        ({"lora_preset": "quality"}, ("quality", None, None)),
        ({"lora_preset": "quality", "lora_r": "4"}, ("quality", 4, None)),
    ],
)
def test_flags_win_over_the_adapter_of_a_preset(flags: dict[str, str], adapter: tuple[Any, ...]) -> None:
    found = resolve({"preset": "balanced", **flags})
    assert tuple(found.values[name] for name in ("lora_preset", "lora_r", "lora_alpha")) == adapter
    settings_text('preset = "balanced"\n')
    found = resolve(flags)
    assert tuple(found.values[name] for name in ("lora_preset", "lora_r", "lora_alpha")) == adapter


@pytest.mark.parametrize(
    ("flags", "passes"),
    [
        ({}, (2, 8)),
        ({"batch_size": "8"}, (8, 2)),
        ({"batch_size": "3"}, (3, 6)),
        ({"batch_size": "32"}, (32, 1)),
        ({"gradient_accumulation": "4"}, (2, 4)),
        ({"batch_size": "8", "gradient_accumulation": "4"}, (8, 4)),
    ],
)
def test_a_step_has_as_many_rows_as_the_preset_says_with_another_batch(
    flags: dict[str, str], passes: tuple[int, int]
) -> None:
    found = resolve({"preset": "balanced", **flags}).values
    assert (found["batch_size"], found["gradient_accumulation"]) == passes


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ({}, (16, 32.0, 2e-4)),
        ({"mode": "qlora"}, (16, 32.0, 2e-4)),
        ({"mode": "full"}, (None, None, None)),
        ({"method": "dpo"}, (16, 32.0, None)),
        ({"mode": "full", "learning_rate": "1e-5"}, (None, None, 1e-5)),
    ],
)
def test_a_preset_has_no_rate_and_no_adapter_for_what_it_is_not_for(
    flags: dict[str, str], kept: tuple[Any, ...]
) -> None:
    found = resolve({"preset": "balanced", **flags})
    assert tuple(found.values[name] for name in ("lora_r", "lora_alpha", "learning_rate")) == kept
    assert found.values["gradient_accumulation"] == 8


def test_an_unknown_preset_is_an_error_at_its_place() -> None:
    settings_text('preset = "qualty"\n')
    (error,) = resolve().errors
    assert "settings.toml:1" in error.message
    assert "did you mean quality?" in error.hint


# Writing.


def test_comments_stay_when_a_setting_is_written_and_taken_out() -> None:
    before = "# mine\nseed = 3  # lucky\n\n[training]\n# why\nsteps = 5\n"
    settings_text(before)
    write(settings_file(), {"learning_rate": 1e-4, "seed": 4})
    assert resolve().given() == {"seed": 4, "steps": 5, "learning_rate": 1e-4}
    text = settings_file().read_text()
    assert all(comment in text for comment in ("# mine", "# lucky", "# why"))
    write(settings_file(), {"learning_rate": None, "seed": 3})
    assert settings_file().read_text().replace("version = 1\n", "") == before


def test_a_configuration_is_saved_once_and_replaced_only_when_asked() -> None:
    save("a b", {"steps": 3})
    with pytest.raises(InputError, match="already"):
        save("a b", {"steps": 4})
    assert resolve(file="a b").given() == {"steps": 3}
    save("a b", {"seed": 4}, replace=True)
    assert resolve(file="a b").given() == {"seed": 4}
    assert names() == ["a b"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 99])
def test_a_name_that_no_configuration_can_have(name: str) -> None:
    with pytest.raises(InputError, match="no name"):
        save(name, {})
