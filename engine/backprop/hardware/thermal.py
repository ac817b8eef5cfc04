"""Heat: how a reading of a card is judged, and what training does about it (rests between steps, a pause, an abort).

``ThermalGuard`` is a pure state machine without threads: fed with readings and the time, it answers with a
``Decision``. Temperatures below are the defaults (``Thresholds``); they are lowered together for a card that switches
itself off early.

========================  ====================================================================================
a card at 80 °C or more   rests after each step begin at half a second and grow by half every ten seconds while it is
                          not falling. From 75 to 80 °C they stay; below 75 °C they shrink by a fifth, until they end.
                          So the card settles in between instead of swinging between hot and cold, which wears it too.
at 90 °C                  pause at once, until every hot card has been read at 75 °C or less
at 95 °C, three times     abort with a checkpoint. Readings count when five seconds or more apart; one below resets.
                          Since the first of them pauses the run, this means: hot although nothing is training.
temperature unknown       reported once per loss. Training goes on as it was, rests included; a pause stays. It neither
                          counts as hot nor as cool: only a cool reading, or ``release``, ends a pause.
========================  ====================================================================================

When a sensor vanishes while the run is paused for its card, the run stays paused until the sensor is back and cool,
or a person resumes it (``release``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from backprop.core.errors import GPUTemperatureError, InvalidSettingError
from backprop.core.events import Event, Gpu, Pacing, Paused, Resumed
from backprop.core.events import Warning as WarningEvent
from backprop.core.settings import RunConfig

Level: TypeAlias = Literal["safe", "warm", "warning", "critical", "emergency", "unknown"]

_ORDER: tuple[Level, ...] = ("safe", "warm", "unknown", "warning", "critical", "emergency")
"""From best to worst. Not knowing is worse than warm: a missing sensor is never called safe."""

HYSTERESIS = 5.0
"""Degrees between where pacing begins and where it eases, and the least between pacing and pause."""
FIRST_REST = 0.5
SHORTEST_REST = 0.25
LONGEST_REST = 30.0
GROWTH, EASING = 1.5, 0.8
"""Not each other's inverse: repeated, they reach rests in between, so one is found that holds the temperature."""
ADJUST_SECONDS = 10.0
"""Rests change at most this often: a card needs that long to answer to the last change."""
HOT_READINGS = 3
HOT_SECONDS = 5.0
STEADY_READINGS = 10
"""A sensor that came back is trusted, and its next loss is news, after so many readings in a row."""


class Thresholds(Struct, frozen=True, kw_only=True):
    """Where the levels begin: degrees Celsius, and percent of the card's memory and power limit.

    Raises:
        InvalidSettingError: the temperatures, or the memory shares, are not in rising order.
    """

    warm: Annotated[float, Meta(description="degrees: worth a look")] = 70
    warning: Annotated[float, Meta(description="degrees: rests between steps begin")] = 80
    critical: Annotated[float, Meta(description="degrees: training pauses until the card has cooled")] = 90
    emergency: Annotated[float, Meta(description="degrees: saved and aborted when it stays this hot")] = 95
    shutdown_margin: Annotated[
        float, Meta(description="emergency this many degrees below the card's own switch-off")
    ] = 3
    memory_warning: float = 90
    memory_critical: float = 95
    power_warm: float = 95
    power_warning: float = 100

    def __post_init__(self) -> None:
        rising = [
            ("warm", "warning"),
            ("warning", "critical"),
            ("critical", "emergency"),
            ("memory_warning", "memory_critical"),
            ("power_warm", "power_warning"),
        ]
        for low, high in rising:
            if not getattr(self, low) < getattr(self, high):
                raise InvalidSettingError(
                    f"{low} ({getattr(self, low):g}) must be below {high} ({getattr(self, high):g})",
                    hint=f"the defaults are {low}={_DEFAULTS[low]:g} and {high}={_DEFAULTS[high]:g}",
                    details={"field": low},
                )

    def emergency_at(self, shutdown: float | None) -> float:
        """Degrees at which a card that turns itself off at ``shutdown`` is in an emergency.

        A card that switches off early takes the process along, so its emergency begins ``shutdown_margin`` degrees
        before that: with a switch-off at 91 °C it is 88 °C, although 88 °C is only a warning elsewhere.
        """
        return self.emergency if shutdown is None else min(self.emergency, shutdown - self.shutdown_margin)


def thresholds(config: RunConfig) -> Thresholds:
    """Pause at the temperature that the person set; the other levels keep their distance from it."""
    pause = config.gpu_max_temp
    return Thresholds(warm=pause - 20, warning=pause - 10, critical=pause, emergency=pause + 5)


_DEFAULTS: dict[str, float] = {
    f.name: f.default for f in msgspec.structs.fields(Thresholds) if isinstance(f.default, int | float)
}


def condition(reading: Gpu, thresholds: Thresholds) -> Level:
    """The level of one reading: the worst of temperature, memory and power.

    The level is for people to look at; what training does about heat is decided by ``ThermalGuard`` from the
    temperature alone. A full card memory is "critical" and yet no reason to stop: training is meant to fill it.

    Without a temperature the level is "unknown", or worse where memory is. A missing memory or power sensor alone
    does not make a card unknown: laptops and small boards have none.
    """
    heat = _level(
        reading.temperature,
        warm=thresholds.warm,
        warning=thresholds.warning,
        critical=thresholds.critical,
        emergency=thresholds.emergency_at(reading.shutdown_temperature),
    )
    memory = _level(
        _percent(reading.memory_used, reading.memory_total),
        warning=thresholds.memory_warning,
        critical=thresholds.memory_critical,
    )
    power = _level(
        _percent(reading.power, reading.power_limit), warm=thresholds.power_warm, warning=thresholds.power_warning
    )
    return worst([heat or "unknown", memory or "safe", power or "safe"])


def worst(levels: Sequence[Level]) -> Level:
    """The worst level; "unknown" where there is none."""
    return max(levels, key=_ORDER.index, default="unknown")


def _level(value: float | None, **starts: float) -> Level | None:
    """The worst level whose start ``value`` has reached; "safe" below all, ``None`` for an unknown value."""
    if value is None:
        return None
    return worst(["safe", *(level for level in _ORDER if level in starts and value >= starts[level])])


def _percent(part: float | None, whole: float | None) -> float | None:
    return 100 * part / whole if part is not None and whole else None


class Limits(Struct, frozen=True):
    """Degrees Celsius at which the guard acts on one card."""

    ease: float
    pace: float
    pause: float
    emergency: float


_Known: TypeAlias = tuple[Gpu, float, Limits]
"""A reading with a temperature, that temperature, and where the guard acts on its card."""


class Decision(Struct, kw_only=True):
    """What training is to do now, and the news to write to the journal."""

    rest: float
    """Seconds to rest after each step."""
    paused: bool
    """Hold after the step in progress; ask again with the next reading."""
    abort: GPUTemperatureError | None = None
    """Save a checkpoint and end with this error."""
    events: list[Event]
    """``Pacing``, ``Paused``, ``Resumed`` and ``Warning``, only when something changed."""


class _Watched(Struct):
    """What the guard remembers of a card. ``temperature`` is ``None`` while it is unknown."""

    name: str
    temperature: float | None = None
    hot_readings: int = 0
    last_hot: float = 0.0
    holds: bool = False
    """The run is paused for this card."""
    loss_reported: bool = False
    steady: int = 0


class ThermalGuard:
    """Guards the cards that a run uses; feed it these alone (``GPUMonitor(uuids=…)``)."""

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self._cards: dict[int, _Watched] = {}
        self._rest = 0.0
        self._paused = False
        self._adjusted: float | None = None
        self._adjusted_at_margin = 0.0

    def limits(self, shutdown: float | None) -> Limits:
        """Where the guard acts on a card that switches itself off at ``shutdown`` degrees (``None``: not known)."""
        emergency = self.thresholds.emergency_at(shutdown)
        pause = self.thresholds.critical - (self.thresholds.emergency - emergency)
        pace = min(self.thresholds.warning, pause - HYSTERESIS)
        return Limits(ease=pace - HYSTERESIS, pace=pace, pause=pause, emergency=emergency)

    def update(self, readings: Sequence[Gpu], now: float, step: int) -> Decision:
        """Take one reading of all cards.

        Args:
            readings: one per card. A card known from earlier and not among them counts as unknown, so an empty
                list says that nothing has been heard for too long.
            now: seconds, never going back.
            step: the last finished step, for the events.
        """
        for reading in readings:
            self._cards.setdefault(reading.index, _Watched(reading.name))
        silent = self._cards.keys() - {reading.index for reading in readings}
        unheard = [Gpu(index=i, name=self._cards[i].name, detail="nothing is heard of it") for i in sorted(silent)]
        events: list[Event] = []
        known: list[_Known] = []
        abort: GPUTemperatureError | None = None
        for reading in [*readings, *unheard]:
            card = self._cards[reading.index]
            card.temperature = reading.temperature
            if reading.temperature is None:
                events += _note_loss(card, reading)
                continue
            card.steady += 1
            if card.steady >= STEADY_READINGS:
                card.loss_reported = False
            limits = self.limits(reading.shutdown_temperature)
            known.append((reading, reading.temperature, limits))
            abort = _count_hot(card, known[-1], now) or abort
        was_paused = self._paused
        events += self._pause_or_resume(known, step)
        if known and not self._paused:
            events += self._pace(known, now, step, resumed=was_paused)
        return Decision(rest=self._rest, paused=self._paused, abort=abort, events=events)

    def release(self, step: int) -> Decision:
        """A person wants to go on. Granted where no card that holds the run is known to be hot."""
        events: list[Event] = []
        holding = {index: card for index, card in self._cards.items() if card.holds}
        hot = next((index for index, card in holding.items() if card.temperature is not None), None)
        if hot is not None:
            events.append(
                WarningEvent(
                    code="RUNTIME_GPU_TEMPERATURE_CRITICAL",
                    message=f"GPU {hot} is still at {holding[hot].temperature:g} °C: the run stays paused",
                    hint="it goes on by itself when the card has cooled",
                )
            )
        elif self._paused:
            for card in holding.values():
                card.holds = False
            self._paused = False
            events.append(Resumed(step=step, reason="by hand, with the temperature unknown"))
        return Decision(rest=self._rest, paused=self._paused, events=events)

    def _pause_or_resume(self, known: Sequence[_Known], step: int) -> Iterator[Event]:
        """Pause for every card that is critical; resume when each of them has been read cool."""
        reasons = []
        for reading, degrees, limits in known:
            card = self._cards[reading.index]
            if degrees >= limits.pause:
                card.holds = True
                shutdown = reading.shutdown_temperature
                early = f"; it switches itself off at {shutdown:g} °C" if shutdown else ""
                reasons.append(f"GPU {reading.index} at {degrees:g} °C, goes on at {limits.ease:g} °C{early}")
            elif card.holds and degrees <= limits.ease:
                card.holds = False
                reasons.append(f"GPU {reading.index} has cooled to {degrees:g} °C")
        held = any(card.holds for card in self._cards.values())
        if held != self._paused:
            self._paused = held
            yield (Paused if held else Resumed)(step=step, reason="; ".join(reasons))

    def _pace(self, known: Sequence[_Known], now: float, step: int, *, resumed: bool) -> Iterator[Event]:
        """Lengthen, keep or shorten the rests, by the card that is nearest to its limit."""
        hottest, degrees, limits = max(known, key=lambda each: each[1] - each[2].pace)
        margin = degrees - limits.pace
        rest = self._rest
        if resumed:
            rest = max(rest, FIRST_REST)  # full speed is what made it hot
        elif self._adjusted is not None and now - self._adjusted < ADJUST_SECONDS:
            return
        elif margin >= 0 and (rest == 0 or margin >= self._adjusted_at_margin):
            rest = min(max(round(GROWTH * rest, 2), FIRST_REST), LONGEST_REST)
        elif margin < -HYSTERESIS:
            rest = round(EASING * rest, 2)
            rest = rest if rest >= SHORTEST_REST else 0.0
        if rest != self._rest or resumed or margin >= 0:
            self._adjusted, self._adjusted_at_margin = now, margin
        if rest != self._rest:
            self._rest = rest
            yield Pacing(step=step, rest=rest, reason=f"GPU {hottest.index} at {degrees:g} °C")


def _note_loss(card: _Watched, reading: Gpu) -> Iterator[Event]:
    """Report once that the temperature is lost."""
    card.steady = 0
    if card.loss_reported:
        return
    card.loss_reported = True
    why = f" ({reading.detail})" if reading.detail else ""
    so = "the run stays paused" if card.holds else "training goes on without protection against heat"
    yield WarningEvent(
        code="DEP_GPU_MONITORING_FAILED",
        message=f"the temperature of GPU {reading.index} ({reading.name}) is unknown{why}: {so}",
        hint="resume by hand if you know that the card is cool" if card.holds else "see what `nvidia-smi` says",
    )


def _count_hot(card: _Watched, known: _Known, now: float) -> GPUTemperatureError | None:
    reading, degrees, limits = known
    if degrees < limits.emergency:
        card.hot_readings = 0
        return None
    if card.hot_readings == 0 or now - card.last_hot >= HOT_SECONDS:
        card.hot_readings += 1
        card.last_hot = now
    if card.hot_readings < HOT_READINGS:
        return None
    return GPUTemperatureError(
        f"GPU {reading.index} ({reading.name}) stayed at {degrees:g} °C although training was paused "
        f"(limit {limits.emergency:g} °C)",
        hint="look at fans, dust and other programs on the card; `backprop resume` goes on at the checkpoint",
        details={"gpu": reading.index, "temperature": degrees, "limit": limits.emergency},
    )
