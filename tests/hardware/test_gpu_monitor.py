"""The real NVML bindings over a compiled library that plays a script (tests/fixtures/nvml/stand_in.c)."""

import pytest
from backprop.core.errors import GPUMonitoringError
from backprop.hardware import nvml
from backprop.hardware.gpu import Energy, check_gpu_safe

READ = """
from backprop.hardware.gpu import GPUMonitor
monitor = GPUMonitor(clock=clock)
readings = []
for _ in range({count}):
    readings.append(monitor.read())
    clock.now += {seconds}
answer([readings, monitor.problem])
"""

GUARDED = """
from backprop.hardware.gpu import GPUMonitor
from backprop.hardware.thermal import ThermalGuard
monitor, guard, seen = GPUMonitor(clock=clock), ThermalGuard(), []
for _ in range({count}):
    readings = monitor.read()
    decision = guard.update(readings, clock.now, step=1)
    seen.append([readings[0].level, decision.paused, decision.abort is not None, [e.type for e in decision.events]])
    clock.now += {seconds}
answer(seen)
"""


def read(play, script, count, seconds=2, **options):
    return play(script, READ.format(count=count, seconds=seconds), **options)


def test_every_sensor_is_read_in_the_units_of_the_event(play):
    (reading,), *_ = read(
        play,
        "name RTX Test\nshutdown 97\n"
        "71 util=88 memory=25 fan=40 power=210 limit=300 clock=1725 throttle=0x24 others=2 energy=5000\n",
        1,
    )[0]
    assert reading["name"] == "RTX Test"
    assert reading["index"] == 0
    assert reading["temperature"] == 71
    assert reading["level"] == "warm"
    assert reading["utilization"] == 88
    assert reading["memory_total"] == 16 * 2**30
    assert round(100 * reading["memory_used"] / reading["memory_total"]) == 25
    assert (reading["power"], reading["power_limit"]) == (210, 300)
    assert (reading["fan"], reading["clock"]) == (40, 1725)
    assert reading["throttle"] == ["power_cap", "software_thermal"]
    assert reading["other_processes"] == 2
    assert reading["shutdown_temperature"] == 97
    assert reading["energy"] == 0


def test_a_sensor_that_is_not_there_is_none_and_the_others_go_on(play):
    script = (
        "shutdown none\n60 fan=none power=none limit=none util=none memory=none clock=none throttle=none others=none\n"
    )
    (reading,), *_ = read(play, script, 1)[0]
    names = ("utilization", "memory_used", "memory_total", "power", "power_limit", "fan", "clock", "other_processes")
    assert {reading[name] for name in (*names, "energy", "shutdown_temperature")} == {None}
    assert (reading["temperature"], reading["level"], reading["throttle"]) == (60, "safe", [])


def test_the_script_of_a_hot_afternoon_gives_these_levels(play):
    readings, problem = read(play, "79\n80\n90\n95\n70\nlost\n70\n", 7)
    assert [r[0]["level"] for r in readings] == ["warm", "warning", "critical", "emergency", "warm", "unknown", "warm"]
    assert readings[5][0]["temperature"] is None
    assert readings[5][0]["utilization"] == 50
    assert "sensor" in readings[5][0]["detail"]
    assert problem is None


def test_a_broken_sensors_nonsense_is_not_taken_for_a_temperature(play):
    readings, _ = read(play, "0\n255\n", 2)
    assert [(r[0]["temperature"], r[0]["level"]) for r in readings] == [(None, "unknown")] * 2


def test_a_driver_that_goes_away_leaves_the_card_unknown_and_comes_back(play):
    # 70, then gone: noticed by the temperature call; the first new attempt fails, the second finds the driver again.
    readings, problem = read(play, "70\ngone x2\n72\n", 5, seconds=20)
    assert [r[0]["level"] for r in readings] == ["warm", "unknown", "unknown", "unknown", "warm"]
    gone = readings[2][0]
    assert gone["name"] == "Stand-in GPU"
    assert gone["temperature"] is gone["memory_used"] is gone["power"] is None
    assert "driver" in gone["detail"]
    assert problem is None


def test_a_driver_that_stays_away_is_looked_for_a_bounded_number_of_times(play):
    script = "70\ngone x6\n72\n"  # six lines: the call that notices it, and five attempts
    readings, problem = read(play, script, 40, seconds=31)
    assert [r[0]["level"] for r in readings] == ["warm"] + ["unknown"] * 39
    assert problem["cause"] == "driver_not_loaded"


def test_a_driver_that_comes_back_only_to_fail_again_uses_up_its_attempts(play):
    # Each attempt to open plays a 60, each reading after it the next "gone"; a sixth attempt would reach the 72.
    readings, problem = read(play, "70\n" + "gone\n60\n" * 6 + "72\n", 20, seconds=31)
    assert [r[0]["level"] for r in readings] == ["warm"] + ["unknown"] * 19
    assert problem["cause"] == "gone"


def test_one_lost_card_leaves_the_other_one_readable(play):
    readings, problem = read(play, "cards 2\n70\ngone=1 70\n", 4, seconds=31)
    assert [[card["level"] for card in r] for r in readings] == [["warm", "warm"]] + [["warm", "unknown"]] * 3
    assert problem["cause"] == "gone"
    assert "GPU 1" in problem["message"]


def test_cards_can_be_chosen_so_that_another_ones_heat_does_not_count(play):
    code = """
from backprop.hardware.gpu import GPUMonitor
answer([r.index for r in GPUMonitor(uuids=["00000000-0000-0000-0000-000000000001"]).read()])
"""
    assert play("cards 3\n60\n", code) == [1]


def test_guard_paces_pauses_resumes_and_stays_calm_through_the_script(play):
    script = "79\n80\n90\n95\n85\n75\nlost x3\n70\n"
    seen = play(script, GUARDED.format(count=10, seconds=6))
    assert [level for level, *_ in seen] == [
        "warm", "warning", "critical", "emergency", "warning", "warm", "unknown", "unknown", "unknown", "warm",
    ]  # fmt: skip
    assert [paused for _, paused, *_ in seen] == [False, False, True, True, True, False, False, False, False, False]
    assert not any(abort for _, _, abort, _ in seen)
    happened = [kind for *_, kinds in seen for kind in kinds]
    assert happened == ["pacing", "paused", "resumed", "warning", "pacing"]


def test_guard_aborts_when_pausing_does_not_cool_the_card(play):
    seen = play("79\n90\n95 x3\n", GUARDED.format(count=5, seconds=6))
    assert [abort for _, _, abort, _ in seen] == [False, False, False, False, True]


def test_guard_stays_paused_when_the_driver_goes_away_in_a_pause(play):
    seen = play("91\ngone x3\n70\n", GUARDED.format(count=8, seconds=31))
    assert [paused for _, paused, *_ in seen] == [True] * 4 + [False] * 4
    happened = [kind for *_, kinds in seen for kind in kinds]
    assert happened[:4] == ["paused", "warning", "resumed", "pacing"]
    assert set(happened[4:]) == {"pacing"}  # easing, as the card is cool


def test_watching_in_the_background_calls_back_from_a_thread_of_its_own(play):
    code = """
import threading
from backprop.hardware.gpu import GPUMonitor
enough, seen = threading.Event(), []
def take(readings):
    seen.append([threading.current_thread() is threading.main_thread(), readings[0].temperature])
    if len(seen) == 3: enough.set()
monitor = GPUMonitor(0.01, take)
monitor.start()
assert enough.wait(30)
monitor.close()
answer([seen[:3], [t.name for t in threading.enumerate() if t.name == "gpu-monitor"]])
"""
    assert play("61\n62\n63\n", code) == [[[False, 61], [False, 62], [False, 63]], []]


def test_without_a_library_there_is_no_reading_and_the_reason_is_said(play, no_library):
    readings, problem = read(play, "", 3, library=no_library)
    assert readings == [[], [], []]
    assert problem["cause"] in {"no_card", "no_driver", "no_library"}
    assert "NVIDIA" in problem["message"]


def test_a_driver_that_is_not_running_is_told_from_no_card(play):
    readings, problem = read(play, "gone x9\n", 2)
    assert readings == [[], []]
    assert problem["cause"] == "driver_not_loaded"
    assert problem["hint"]


def test_a_driver_without_any_card_says_so(play):
    readings, problem = read(play, "cards 0\n60\n", 1)
    assert readings == [[]]
    assert problem["cause"] == "no_card"


def test_the_thread_ends_after_one_empty_reading_where_there_is_no_card(play, no_library):
    code = """
import threading
from backprop.hardware.gpu import GPUMonitor
seen = []
monitor = GPUMonitor(0.01, seen.append)
monitor.start()
[t.join(30) for t in threading.enumerate() if t.name == "gpu-monitor"]
answer([seen, monitor.problem is not None])
"""
    assert play("", code, library=no_library) == [[[]], True]


SAFE = "from backprop.hardware.gpu import check_gpu_safe\nanswer(check_gpu_safe())"


def test_check_gpu_safe_is_true_below_80_degrees_only(play):
    assert [play(script, SAFE) for script in ("79\n", "80\n", "lost\n", "60 memory=95\n")] == [
        True,
        False,
        False,
        False,
    ]


def test_check_gpu_safe_without_a_card_is_an_error_that_says_why(play, no_library):
    code = """
from backprop.core.errors import GPUNotAvailableError
from backprop.hardware.gpu import check_gpu_safe
try: check_gpu_safe()
except GPUNotAvailableError as error: answer(error.to_dict())
"""
    error = play("", code, library=no_library)
    assert error["code"] == "DEP_GPU_NOT_AVAILABLE"
    assert "NVIDIA" in error["message"]


def test_check_gpu_safe_tells_a_driver_that_does_not_answer_from_no_card(monkeypatch):
    def lost():
        raise nvml.CardGoneError("GPU is lost")

    monkeypatch.setattr(nvml, "open_cards", lost)
    with pytest.raises(GPUMonitoringError, match="GPU is lost"):
        check_gpu_safe()


def test_energy_is_the_cards_own_counter_where_it_has_one(play):
    readings, _ = read(play, "60 energy=1000\n60 energy=4600\n60 energy=11800\n", 3)
    assert [r[0]["energy"] for r in readings] == [0, 1, 3]


def test_energy_is_summed_from_power_where_there_is_no_counter(play):
    readings, _ = read(play, "60 power=100\n60 power=200\n60 power=200\n", 3, seconds=3600)
    assert [r[0]["energy"] for r in readings] == [0, 150, 350]


def test_energy_leaves_out_time_in_which_nothing_was_known():
    energy = Energy()
    values = [energy.add(t, None, p) for t, p in ((0, 100), (3600, 100), (7200, None), (10800, 100), (14400, 100))]
    assert values == [0, 100, 100, 100, 200]


def test_energy_survives_a_counter_that_starts_anew():
    energy = Energy()
    assert [energy.add(0, joules, None) for joules in (7200, 10800, 3600, 7200)] == [0, 1, 2, 3]


def test_energy_is_unknown_without_counter_and_power():
    assert Energy().add(0, None, None) is None
