import pytest
from backprop.core.events import Gpu
from backprop.hardware.thermal import ThermalGuard


class Oven:
    """Feeds one guard with temperatures, two seconds apart, and keeps what it said."""

    def __init__(self):
        self.guard = ThermalGuard()
        self.now = 0.0
        self.said = []

    def __call__(self, *degrees, after=2.0, shutdown=None):
        self.now += after
        cards = [
            Gpu(index=i, name=f"card {i}", temperature=t, shutdown_temperature=shutdown) for i, t in enumerate(degrees)
        ]
        decision = self.guard.update(cards, self.now, step=7)
        self.said += decision.events
        return decision

    @property
    def kinds(self):
        return [event.type for event in self.said]


@pytest.fixture
def oven():
    return Oven()


def test_a_cool_card_is_left_alone(oven):
    for degrees in (30, 60, 79, 79):
        decision = oven(degrees, after=20)
        assert (decision.rest, decision.paused, decision.abort) == (0, False, None)
    assert oven.said == []


def test_rests_begin_at_80_and_grow_while_the_card_does_not_cool(oven):
    rests = [oven(degrees, after=10).rest for degrees in (79, 80, 80, 82, 81, 81)]
    assert rests == [0, 0.5, 0.75, 1.12, 1.12, 1.68]
    assert oven.kinds == ["pacing"] * 4
    assert oven.said[0].step == 7
    assert "80 °C" in oven.said[0].reason


def test_rests_change_at_most_every_ten_seconds(oven):
    assert [oven(85, after=2).rest for _ in range(11)] == [0.5] * 5 + [0.75] * 5 + [1.12]


def test_rests_stay_between_75_and_80_and_end_only_below(oven):
    oven(81, after=10)
    rests = [oven(degrees, after=10).rest for degrees in (79, 76, 75, 74, 76, 74, 74, 74, 74)]
    assert rests == [0.5, 0.5, 0.5, 0.4, 0.4, 0.32, 0.26, 0, 0]


def test_rests_have_a_longest(oven):
    assert [oven(85, after=10).rest for _ in range(15)][-1] == 30


def test_a_simulated_card_settles_below_critical_without_swinging(oven):
    """First-order heating towards 110 °C under full load, 30 °C idle, time constant 60 s, steps of one second."""
    degrees, rest, history = 40.0, 0.0, []
    for _ in range(1800):
        load = 1.0 / (1.0 + rest)
        degrees += (30 + 80 * load - degrees) * 2.0 / 60.0
        decision = oven(round(degrees))
        assert not decision.paused
        rest = decision.rest
        history.append(degrees)
    settled = history[-600:]
    assert max(history) < 90
    assert max(settled) - min(settled) < 8
    assert oven.kinds.count("pacing") < 10


def test_at_90_the_run_pauses_and_goes_on_only_when_cooled_to_75(oven):
    assert not oven(89).paused
    assert oven(90).paused
    assert [oven(degrees).paused for degrees in (88, 80, 76)] == [True, True, True]
    decision = oven(75)
    assert not decision.paused
    assert decision.rest >= 0.5
    events = [e for e in oven.said if e.type in ("paused", "resumed")]
    assert [e.type for e in events] == ["paused", "resumed"]
    assert "90 °C" in events[0].reason
    assert "75 °C" in events[1].reason


def test_three_emergency_readings_five_seconds_apart_abort(oven):
    assert oven(95, after=5).abort is None
    assert oven(96, after=5).abort is None
    error = oven(97, after=5).abort
    assert error is not None
    assert error.code == "RUNTIME_GPU_TEMPERATURE_CRITICAL"
    assert error.retryable
    assert "97 °C" in error.message
    assert oven.kinds.count("paused") == 1


def test_readings_closer_than_five_seconds_count_once(oven):
    assert [oven(95, after=1).abort is None for _ in range(10)] == [True] * 10
    assert oven(95, after=1).abort is not None  # seconds 1, 6 and 11 count


def test_one_cooler_reading_resets_the_abort(oven):
    for degrees in (95, 95, 94, 95, 95):
        assert oven(degrees, after=5).abort is None
    assert oven(95, after=5).abort is not None


def test_an_unknown_reading_neither_counts_nor_resets(oven):
    for degrees in (95, None, 95, None, None):
        assert oven(degrees, after=5).abort is None
    assert oven(95, after=5).abort is not None


def test_a_card_that_switches_off_early_is_paused_and_aborted_earlier(oven):
    assert not oven(82, after=5, shutdown=91).paused
    assert oven(83, after=5, shutdown=91).paused
    for _ in range(2):
        assert oven(88, after=5, shutdown=91).abort is None
    assert "88 °C" in oven(88, after=5, shutdown=91).abort.message
    assert "91 °C" in next(e for e in oven.said if e.type == "paused").reason


def test_a_lost_sensor_is_said_once_and_training_goes_on_as_it_was(oven):
    oven(81, after=10)
    decisions = [oven(None, after=10) for _ in range(5)]
    assert {d.rest for d in decisions} == {0.5}
    assert not any(d.paused for d in decisions)
    assert oven.kinds == ["pacing", "warning"]
    assert "unknown" in oven.said[1].message
    assert oven.said[1].code == "DEP_GPU_MONITORING_FAILED"


def test_a_flickering_sensor_is_one_loss_and_a_later_loss_is_another(oven):
    for degrees in (60, None, 60, None, 60, None):
        oven(degrees)
    assert oven.kinds == ["warning"]
    for _ in range(10):
        oven(60)
    oven(None)
    assert oven.kinds == ["warning", "warning"]


def test_a_pause_outlives_the_sensor_and_ends_with_a_cool_reading(oven):
    oven(91)
    assert all(oven(None).paused for _ in range(50))
    assert "stays paused" in oven.said[-1].message
    assert oven(80).paused
    assert not oven(74).paused


def test_a_card_that_is_no_longer_listed_counts_as_unknown(oven):
    oven(91)
    assert oven().paused
    assert oven.kinds == ["paused", "warning"]


def test_a_person_can_end_a_pause_whose_sensor_is_lost(oven):
    oven(91)
    oven(None)
    decision = oven.guard.release(step=8)
    assert not decision.paused
    assert [(e.type, e.step) for e in decision.events] == [("resumed", 8)]
    assert not oven(None).paused
    assert oven(91).paused


def test_a_person_cannot_end_a_pause_while_the_card_is_known_to_be_hot(oven):
    oven(91)
    oven(85)
    decision = oven.guard.release(step=8)
    assert decision.paused
    assert "85 °C" in decision.events[0].message


def test_the_run_waits_for_every_hot_card(oven):
    oven(91, 92)
    assert oven(70, 85).paused
    assert oven(70, None).paused
    assert not oven(88, 70).paused  # the first has cooled before: warm again is pacing, not pausing
    assert oven.kinds.count("paused") == 1


def test_a_cool_cards_lost_sensor_does_not_hold_the_run(oven):
    oven(91, None)
    assert not oven(70, None).paused


def test_without_any_card_nothing_is_decided_or_said(oven):
    decision = oven()
    assert (decision.rest, decision.paused, decision.abort, decision.events) == (0, False, None, [])
