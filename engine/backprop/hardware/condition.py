"""How a reading of a card is judged: thresholds and levels.

The level is for people to look at; what training does about heat is decided in ``hardware.thermal``, from the
temperature alone. A full card memory is a "critical" level and yet no reason to stop: training is meant to fill it.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from backprop.core.errors import InvalidSettingError
from backprop.core.events import Gpu

Level: TypeAlias = Literal["safe", "warm", "warning", "critical", "emergency", "unknown"]

_ORDER: tuple[Level, ...] = ("safe", "warm", "unknown", "warning", "critical", "emergency")
"""From best to worst. Not knowing is worse than warm: a missing sensor is never called safe."""


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


_DEFAULTS: dict[str, float] = {
    f.name: f.default for f in msgspec.structs.fields(Thresholds) if isinstance(f.default, int | float)
}


def condition(reading: Gpu, thresholds: Thresholds) -> Level:
    """The level of one reading: the worst of temperature, memory and power.

    Without a temperature the level is "unknown", or worse where memory is. A missing memory or power sensor alone
    does not make a card unknown: laptops and small boards have none.
    """
    levels = [
        _temperature_level(reading, thresholds),
        _step(
            _percent(reading.memory_used, reading.memory_total),
            ("warning", thresholds.memory_warning),
            ("critical", thresholds.memory_critical),
        ),
        _step(
            _percent(reading.power, reading.power_limit),
            ("warm", thresholds.power_warm),
            ("warning", thresholds.power_warning),
        ),
    ]
    return worst([level for level in levels if level is not None])


def worst(levels: list[Level]) -> Level:
    """The worst level; "unknown" where there is none."""
    return max(levels, key=_ORDER.index, default="unknown")


def _temperature_level(reading: Gpu, thresholds: Thresholds) -> Level:
    if reading.temperature is None:
        return "unknown"
    if reading.temperature >= thresholds.emergency_at(reading.shutdown_temperature):
        return "emergency"
    steps: tuple[tuple[Level, float], ...] = (
        ("warm", thresholds.warm),
        ("warning", thresholds.warning),
        ("critical", thresholds.critical),
    )
    return _step(reading.temperature, *steps) or "safe"


def _step(value: float | None, *steps: tuple[Level, float]) -> Level | None:
    """The last of ``steps`` (rising) that ``value`` has reached; "safe" below all, ``None`` for an unknown value."""
    if value is None:
        return None
    reached: Level = "safe"
    for level, start in steps:
        if value >= start:
            reached = level
    return reached


def _percent(part: float | None, whole: float | None) -> float | None:
    return 100 * part / whole if part is not None and whole else None
