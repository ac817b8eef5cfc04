from __future__ import annotations

from typing import Any

import pytest
from backprop.core.definition import settings
from backprop.core.errors import ERROR_CODES, BackpropError, InvalidSettingError
from backprop.core.presets import get_preset
from backprop.core.resolve import config_from
from backprop.core.settings import RunConfig, override


def test_a_misspelt_setting_names_the_nearest_one() -> None:
    with pytest.raises(InvalidSettingError) as caught:
        config_from({"data": "x", "learning_rat": 1e-4})
    assert "'learning_rat'" in caught.value.message
    assert "'learning_rate'" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"learning_rate": 0}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"scheduler": "steps"}, "scheduler"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"steps": 0}, "steps"),
        ({"steps": 5, "epochs": 1}, "epochs"),
    ],
)
def test_a_value_outside_its_range_names_the_setting(values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        config_from({"data": "x", **values})
    assert caught.value.details["field"] == field
    assert field in caught.value.message
    assert caught.value.exit_code == 1


def test_every_setting_says_what_it_means() -> None:
    assert [name for name in RunConfig.__struct_fields__ if not settings()[name].help] == []


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InvalidSettingError) as caught:
        get_preset("blanced")
    assert "balanced" in caught.value.hint


def test_every_error_class_has_a_documented_code() -> None:
    pending, classes = [BackpropError], []
    while pending:
        kind = pending.pop()
        classes.append(kind)
        pending.extend(kind.__subclasses__())
    assert len(classes) > 20
    assert [kind for kind in classes if kind.code not in ERROR_CODES] == []


@pytest.mark.parametrize(
    ("far", "near", "steps", "epochs"),
    [
        ({"steps": 5}, {"epochs": 1.0}, None, 1.0),
        ({"epochs": 1.0}, {"steps": 5}, 5, "auto"),
        ({"steps": 5, "epochs": None}, {"epochs": 1.0, "steps": None}, None, 1.0),
        ({"steps": 5}, {"seed": 1}, 5, "auto"),
    ],
)
def test_the_length_named_nearer_replaces_the_other(
    far: dict[str, Any], near: dict[str, Any], steps: int | None, epochs: Any
) -> None:
    config = config_from({"data": "x", **override(far, near)})
    assert (config.steps, config.epochs) == (steps, epochs)


def test_two_lengths_named_at_once_are_refused() -> None:
    with pytest.raises(InvalidSettingError, match="both"):
        config_from({"data": "x", **override({}, {"steps": 5, "epochs": 1.0})})
