import pytest
from backprop.core.errors import InvalidSettingError
from backprop.core.events import Gpu
from backprop.hardware.thermal import Thresholds, condition, worst


def level(**sensors):
    return condition(Gpu(index=0, name="card", **sensors), Thresholds())


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (69, "safe"),
        (70, "warm"),
        (79, "warm"),
        (80, "warning"),
        (89, "warning"),
        (90, "critical"),
        (94, "critical"),
        (95, "emergency"),
    ],
)
def test_each_level_begins_at_its_temperature(degrees, expected):
    assert level(temperature=degrees) == expected


@pytest.mark.parametrize(("percent", "expected"), [(89, "safe"), (90, "warning"), (94, "warning"), (95, "critical")])
def test_a_full_card_memory_raises_the_level(percent, expected):
    assert level(temperature=50, memory_used=percent, memory_total=100) == expected


@pytest.mark.parametrize(("watts", "expected"), [(94, "safe"), (95, "warm"), (99, "warm"), (100, "warning")])
def test_power_at_its_limit_raises_the_level(watts, expected):
    assert level(temperature=50, power=watts, power_limit=100) == expected


@pytest.mark.parametrize(("degrees", "expected"), [(87, "warning"), (88, "emergency")])
def test_an_emergency_begins_before_the_card_switches_itself_off(degrees, expected):
    assert level(temperature=degrees, shutdown_temperature=91) == expected


def test_a_late_switch_off_does_not_move_the_emergency_up():
    assert level(temperature=95, shutdown_temperature=110) == "emergency"


def test_the_worst_of_all_sensors_wins():
    assert level(temperature=81, memory_used=99, memory_total=100) == "critical"
    assert level(temperature=91, memory_used=10, memory_total=100, power=100, power_limit=100) == "critical"


def test_a_card_without_temperature_is_unknown_and_never_safe():
    assert level() == "unknown"
    assert level(memory_used=10, memory_total=100, power=96, power_limit=100) == "unknown"
    assert level(memory_used=96, memory_total=100) == "critical"


def test_a_card_without_power_and_memory_sensors_is_judged_by_its_temperature():
    assert level(temperature=50) == "safe"


def test_no_reading_at_all_is_unknown():
    assert worst([]) == "unknown"
    assert worst(["safe", "unknown", "warm"]) == "unknown"


@pytest.mark.parametrize("wrong", [{"warning": 90.0}, {"critical": 96.0}, {"warm": 80.0}, {"memory_warning": 95.0}])
def test_thresholds_out_of_order_are_refused_by_name(wrong):
    with pytest.raises(InvalidSettingError, match="must be below"):
        Thresholds(**wrong)
