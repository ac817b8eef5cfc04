"""Heat between the steps of a run: rests, pauses and the way out, with a monitor that says what a test tells it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backprop.core import events as ev
from backprop.core.errors import GPUTemperatureError, TrainingAbortedError
from backprop.core.events import (
    Abort,
    CheckpointSaved,
    Event,
    Gpu,
    Pacing,
    Pause,
    Paused,
    Resume,
    Resumed,
    RunFinished,
    SampleNow,
    Step,
    Stop,
)
from backprop.core.settings import RunConfig
from backprop.hardware.thermal import Thresholds, thresholds
from backprop.runs.checkpoints import CheckpointStore
from backprop.train import gpu_guard as guards
from backprop.train.gpu_guard import QUIET, SILENCE, Guard
from backprop.train.steering import HEAT_SECONDS, Steering
from msgspec.structs import replace
from runs_in_process import go_on, of, train


class Room:
    """One card and the time. ``read`` is what the monitor's thread does every few seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.on_reading: Callable[[list[Gpu]], None] = lambda readings: None
        self.first: list[Gpu] = []
        self.closed = False

    def monitor(self, interval: float, on_reading: Any, **_: Any) -> SimpleNamespace:
        self.on_reading = on_reading
        return SimpleNamespace(start=lambda: on_reading(self.first), close=lambda: setattr(self, "closed", True))

    def read(self, temperature: float | None, seconds: float = 2.0, **sensors: Any) -> None:
        self.now += seconds
        self.on_reading([card(temperature, **sensors)])


def card(temperature: float | None, **sensors: Any) -> Gpu:
    return Gpu(index=0, name="Made-up card", temperature=temperature, **sensors)


class Person:
    """Commands given while the run waits: ``turns`` are called one after the other, each gives a command or nothing."""

    def __init__(self, *turns: Callable[[], Any]) -> None:
        self.turns = list(turns)
        self.waited: list[float | None] = []
        self.stepping = False

    def take(self) -> list[Any]:
        return []

    def wait(self, timeout: float | None = None) -> Any:
        self.waited.append(timeout)
        return self.turns.pop(0)() if self.turns else None


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    made = Room()
    monkeypatch.setattr(guards, "GPUMonitor", made.monitor)
    monkeypatch.setattr(guards, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture
def guard(room: Room, events: list[Event]) -> Guard:
    return Guard(events.append, torch.device("cpu"), Thresholds())


def steered(guard: Guard, events: list[Event], person: Person) -> Steering:
    steering = Steering(person, events.append)
    steering.guard = guard
    return steering


def test_a_cool_card_holds_nothing(guard: Guard, room: Room, events: list[Event]) -> None:
    person = Person()
    room.read(79)

    assert not steered(guard, events, person).settle(1)

    assert person.waited == []
    assert [type(event) for event in events] == [Gpu]


def test_a_warm_card_gets_rests_after_each_step(guard: Guard, room: Room, events: list[Event]) -> None:
    person = Person()
    steering = steered(guard, events, person)
    room.read(80)
    steering.settle(1)
    steering.settle(2)
    room.read(82, seconds=12)
    steering.settle(3)

    assert person.waited == [0.5, 0.5, 0.75]
    assert [(event.step, event.rest) for event in of(events, Pacing)] == [(1, 0.5), (3, 0.75)]


def test_a_rest_is_cut_short_by_a_command_and_an_abort_in_it_is_at_once(
    guard: Guard, room: Room, events: list[Event]
) -> None:
    room.read(80)
    assert steered(guard, events, Person(Stop)).settle(1)
    with pytest.raises(TrainingAbortedError):
        steered(guard, events, Person(Abort)).settle(2)


def test_a_hot_card_holds_the_run_until_it_has_cooled(guard: Guard, room: Room, events: list[Event]) -> None:
    person = Person(lambda: room.read(85), lambda: room.read(76), lambda: room.read(75))
    room.read(90)

    assert not steered(guard, events, person).settle(7)

    assert person.waited == [*[HEAT_SECONDS] * 3, 0.5]
    (paused,), (resumed,) = of(events, Paused), of(events, Resumed)
    assert (paused.step, resumed.step) == (7, 7)
    assert "90 °C" in paused.reason
    assert "75 °C" in resumed.reason


def test_commands_are_carried_out_while_a_run_is_held_for_heat(guard: Guard, room: Room, events: list[Event]) -> None:
    done: list[str] = []
    person = Person(ev.CheckpointNow, SampleNow, Pause, Resume, Stop)
    steering = steered(guard, events, person)
    steering.on_checkpoint = lambda step: done.append(f"saved {step}")
    steering.on_sample = lambda step: done.append(f"sampled {step}")
    room.read(91)

    assert steering.settle(4)

    assert done == ["saved 4", "sampled 4"]
    assert [event.reason == "requested" for event in of(events, Paused)] == [False, True]


def test_abort_ends_a_pause_for_heat_at_once(guard: Guard, room: Room, events: list[Event]) -> None:
    room.read(91)
    with pytest.raises(TrainingAbortedError):
        steered(guard, events, Person(Abort)).settle(4)


def test_a_person_cannot_resume_onto_a_hot_card(guard: Guard, room: Room, events: list[Event]) -> None:
    person = Person(Resume, lambda: room.read(70))
    room.read(91)

    assert not steered(guard, events, person).settle(4)

    (warning,) = of(events, ev.Warning)
    assert warning.code == "RUNTIME_GPU_TEMPERATURE_CRITICAL"
    assert "still at 91" in warning.message
    (resumed,) = of(events, Resumed)
    assert "70 °C" in resumed.reason


def test_a_person_can_resume_when_the_sensor_was_lost_in_the_pause(
    guard: Guard, room: Room, events: list[Event]
) -> None:
    person = Person(lambda: room.read(None, detail="lost"), Resume)
    room.read(91)

    assert not steered(guard, events, person).settle(4)

    assert [warning.code for warning in of(events, ev.Warning)] == ["DEP_GPU_MONITORING_FAILED"]
    assert [resumed.reason for resumed in of(events, Resumed)] == ["by hand, with the temperature unknown"]


def test_a_driver_that_hangs_is_unknown_and_does_not_end_a_pause(guard: Guard, room: Room, events: list[Event]) -> None:
    def silence() -> None:
        room.now += SILENCE + 1

    room.read(91)

    assert steered(guard, events, Person(silence, Stop)).settle(4)

    (warning,) = of(events, ev.Warning)
    assert warning.code == "DEP_GPU_MONITORING_FAILED"
    assert "stays paused" in warning.message
    assert of(events, Resumed) == []


def test_a_driver_that_hangs_lets_a_cool_run_go_on_and_is_said_once(
    guard: Guard, room: Room, events: list[Event]
) -> None:
    person = Person()
    steering = steered(guard, events, person)
    room.read(60)
    steering.settle(1)
    room.now += SILENCE + 1
    for step in range(2, 6):
        steering.settle(step)
        room.now += 1

    assert [warning.code for warning in of(events, ev.Warning)] == ["DEP_GPU_MONITORING_FAILED"]
    assert person.waited == []


def test_a_card_that_stays_too_hot_ends_the_run_after_a_save(guard: Guard, room: Room, events: list[Event]) -> None:
    saved: list[int] = []
    person = Person(lambda: room.read(96, 5), lambda: room.read(97, 5))
    steering = steered(guard, events, person)
    steering.on_checkpoint = saved.append
    room.read(95)

    with pytest.raises(GPUTemperatureError, match="97 °C"):
        steering.settle(9)

    assert saved == [9]


def test_a_machine_without_cards_is_left_alone(guard: Guard, room: Room, events: list[Event]) -> None:
    room.on_reading([])

    decision = guard.decide(1)

    assert (decision.rest, decision.paused, events) == (0.0, False, [])
    assert guard.energy is None


def test_a_reading_is_written_when_it_says_something_new_or_after_a_while(
    guard: Guard, room: Room, events: list[Event]
) -> None:
    for temperature in (60, 60.2, 59.9, 61, 61):
        room.read(temperature, seconds=1)
    assert [reading.temperature for reading in of(events, Gpu)] == [60, 61]
    room.read(61, seconds=QUIET)
    assert len(of(events, Gpu)) == 3
    room.read(61, seconds=1, throttle=["power cap"])
    assert len(of(events, Gpu)) == 4


def test_energy_of_earlier_stretches_is_added(guard: Guard, room: Room) -> None:
    guard.earlier_energy = 2.5
    assert guard.energy == 2.5
    room.read(60, energy=1.25)
    assert guard.energy == 3.75


def test_a_run_that_goes_on_counts_the_energy_of_its_earlier_stretch(
    tiny_config: RunConfig, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guard, "energy", property(lambda guard: (guard.earlier_energy or 0.0) + 1.0))
    _, directory = train(tiny_config, events, lambda seen: [Stop()] if of(seen, Step) else [])
    assert [each.energy for each in of([*events, *go_on(directory)], RunFinished)] == [1.0, 2.0]


def test_the_temperature_that_a_person_set_is_where_the_run_pauses(tiny_config: RunConfig) -> None:
    assert thresholds(tiny_config) == Thresholds()
    lower = thresholds(replace(tiny_config, gpu_max_temp=80))
    assert (lower.warning, lower.critical, lower.emergency) == (70, 80, 85)


def test_a_run_ended_by_heat_leaves_a_checkpoint_of_its_last_step(
    room: Room, tiny_config: RunConfig, events: list[Event]
) -> None:
    room.first = [card(60)]
    config = replace(tiny_config, steps=50)

    class Heating(Person):
        def take(self) -> list[Any]:
            if len(of(events, Step)) == 3 and not of(events, Paused):
                room.read(96)
            return []

    person = Heating(lambda: room.read(96, 5), lambda: room.read(96, 5))

    with pytest.raises(GPUTemperatureError) as caught:
        train(config, events, control=person)

    assert caught.value.code == "RUNTIME_GPU_TEMPERATURE_CRITICAL"
    last = of(events, Step)[-1].step
    assert 3 <= last < 6
    (saved,) = of(events, CheckpointSaved)
    assert (saved.step, saved.reason) == (last, "requested")
    (path,) = (each for each in (tiny_output(config)) if each.name.startswith("step-"))
    store = CheckpointStore(path.parent, path.parents[1].name)
    assert store.newest_valid() == (store.read(path), [])
    assert room.closed


def tiny_output(config: RunConfig) -> list[Any]:
    from pathlib import Path

    return list(Path(config.output_dir).glob("*/checkpoints/*"))
