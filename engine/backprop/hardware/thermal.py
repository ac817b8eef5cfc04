"""What training does about heat: rests between steps, a pause, an abort. A pure state machine without threads.

It is fed with readings and the time, and answers with a ``Decision``. Temperatures below are the defaults
(``hardware.condition.Thresholds``); they are lowered together for a card that switches itself off early.

========================  ====================================================================================
a card at 80 °C or more   rests after each step begin at half a second and grow by half every ten seconds while it is
                          not falling. From 75 to 80 °C they stay; below 75 °C they shrink by a fifth, until they end.
                          So the card settles in between instead of swinging between hot and cold, which wears it too.
at 90 °C                  pause at once, until every hot card has been read at 75 °C or less
at 95 °C, three times     abort with a checkpoint. Readings count when five seconds or more apart; one below resets.
                          Since the first of them pauses the run, this means: hot although nothing is training.
temperature unknown       said once per loss. Training goes on as it was, rests included; a pause stays. It neither
                          counts as hot nor as cool: only a cool reading, or ``release``, ends a pause.
========================  ====================================================================================

When a sensor vanishes while the run is paused for its card, the run stays paused until the sensor is back and cool,
or a person resumes it (``release``).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from backprop.core.errors import GPUTemperatureError
from backprop.core.events import Event, Gpu, Pacing, Paused, Resumed
from backprop.core.events import Warning as WarningEvent
from backprop.hardware.condition import Thresholds

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


class Limits(Struct, frozen=True):
    """Degrees Celsius at which the guard acts on one card."""

    ease: float
    pace: float
    pause: float
    emergency: float


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


class _Card(Struct):
    """What the guard remembers of a card. ``temperature`` is ``None`` while it is unknown."""

    name: str
    temperature: float | None = None
    hot_readings: int = 0
    last_hot: float = 0.0
    holds: bool = False
    """The run is paused for this card."""
    loss_said: bool = False
    steady: int = 0


class ThermalGuard:
    """Guards the cards that a run uses; feed it these alone (``GPUMonitor(uuids=…)``)."""

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self._cards: dict[int, _Card] = {}
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
        events: list[Event] = []
        abort: GPUTemperatureError | None = None
        for reading in readings:
            card = self._cards.setdefault(reading.index, _Card(reading.name))
            self._note(card, reading, step, events)
            if reading.temperature is not None:
                abort = self._count_hot(card, reading, now) or abort
        seen = {reading.index for reading in readings}
        for index, card in self._cards.items():
            if index not in seen:
                silent = Gpu(index=index, name=card.name, detail="nothing is heard of it")
                self._note(card, silent, step, events)
        was_paused = self._paused
        self._pause_or_resume(readings, step, events)
        if not self._paused:
            self._pace(readings, now, step, resumed=was_paused, events=events)
        return Decision(rest=self._rest, paused=self._paused, abort=abort, events=events)

    def release(self, step: int) -> Decision:
        """A person wants to go on. Granted where no card that holds the run is known to be hot."""
        events: list[Event] = []
        holding = {index: card for index, card in self._cards.items() if card.holds}
        hot = {index: card for index, card in holding.items() if card.temperature is not None}
        if self._paused and hot:
            index, card = next(iter(hot.items()))
            events.append(
                WarningEvent(
                    code="RUNTIME_GPU_TEMPERATURE_CRITICAL",
                    message=f"GPU {index} is still at {card.temperature:g} °C: the run stays paused",
                    hint="it goes on by itself when the card has cooled",
                )
            )
        elif self._paused:
            for card in holding.values():
                card.holds = False
            self._paused = False
            events.append(Resumed(step=step, reason="by hand, with the temperature unknown"))
        return Decision(rest=self._rest, paused=self._paused, events=events)

    def _note(self, card: _Card, reading: Gpu, step: int, events: list[Event]) -> None:
        """Remember the temperature; say once when it is lost."""
        card.temperature = reading.temperature
        if reading.temperature is not None:
            card.steady += 1
            if card.steady >= STEADY_READINGS:
                card.loss_said = False
            return
        card.steady = 0
        if card.loss_said:
            return
        card.loss_said = True
        why = f" ({reading.detail})" if reading.detail else ""
        held = card.holds
        events.append(
            WarningEvent(
                code="DEP_GPU_MONITORING_FAILED",
                message=f"the temperature of GPU {reading.index} ({reading.name}) is unknown{why}: "
                + ("the run stays paused" if held else "training goes on without protection against heat"),
                hint="resume by hand if you know that the card is cool" if held else "see what `nvidia-smi` says",
            )
        )

    def _count_hot(self, card: _Card, reading: Gpu, now: float) -> GPUTemperatureError | None:
        assert reading.temperature is not None
        limits = self.limits(reading.shutdown_temperature)
        if reading.temperature < limits.emergency:
            card.hot_readings = 0
            return None
        if card.hot_readings == 0 or now - card.last_hot >= HOT_SECONDS:
            card.hot_readings += 1
            card.last_hot = now
        if card.hot_readings < HOT_READINGS:
            return None
        return GPUTemperatureError(
            f"GPU {reading.index} ({reading.name}) stayed at {reading.temperature:g} °C although training was paused "
            f"(limit {limits.emergency:g} °C)",
            hint="look at fans, dust and other programs on the card; `backprop resume` goes on at the checkpoint",
            details={"gpu": reading.index, "temperature": reading.temperature, "limit": limits.emergency},
        )

    def _pause_or_resume(self, readings: Sequence[Gpu], step: int, events: list[Event]) -> None:
        """Pause for every card that is critical; resume when each of them has been read cool."""
        reasons = []
        for reading in readings:
            if reading.temperature is None:
                continue
            card = self._cards[reading.index]
            limits = self.limits(reading.shutdown_temperature)
            if reading.temperature >= limits.pause:
                card.holds = True
                reasons.append(_pause_reason(reading, limits))
            elif card.holds and reading.temperature <= limits.ease:
                card.holds = False
                reasons.append(f"GPU {reading.index} has cooled to {reading.temperature:g} °C")
        held = any(card.holds for card in self._cards.values())
        if held and not self._paused:
            events.append(Paused(step=step, reason="; ".join(reasons)))
        elif self._paused and not held:
            events.append(Resumed(step=step, reason="; ".join(reasons)))
        self._paused = held

    def _pace(self, readings: Sequence[Gpu], now: float, step: int, *, resumed: bool, events: list[Event]) -> None:
        """Lengthen, keep or shorten the rests, by the card that is nearest to its limit."""
        known = [
            (reading.temperature - self.limits(reading.shutdown_temperature).pace, reading)
            for reading in readings
            if reading.temperature is not None
        ]
        if not known:
            return
        margin, hottest = max(known, key=lambda pair: pair[0])
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
            reason = f"GPU {hottest.index} at {hottest.temperature:g} °C"
            events.append(Pacing(step=step, rest=rest, reason=reason))


def _pause_reason(reading: Gpu, limits: Limits) -> str:
    early = f"; it switches itself off at {reading.shutdown_temperature:g} °C" if reading.shutdown_temperature else ""
    return f"GPU {reading.index} at {reading.temperature:g} °C, goes on at {limits.ease:g} °C{early}"
