"""The card, and what is done to keep it cool."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import field

from backprop.core.events.base import Count, Event


class Gpu(Event):
    """One reading of one card. ``None`` where the sensor is missing or failed: unknown, never assumed safe."""

    index: Count
    name: str
    level: Literal["safe", "warm", "warning", "critical", "emergency", "unknown"] = "unknown"
    temperature: float | None = None
    utilization: float | None = None
    memory_used: Count | None = None
    memory_total: Count | None = None
    power: float | None = None
    power_limit: float | None = None
    fan: float | None = None
    clock: float | None = None
    """Streaming-multiprocessor clock in MHz."""
    throttle: list[str] = field(default_factory=list)
    other_processes: Count | None = None
    energy: float | None = None
    """Watt-hours used since the run started."""
    shutdown_temperature: float | None = None
    """Degrees at which the card turns itself off, where it says so."""
    detail: str = ""
    """Why the card cannot be read, in words; empty while it answers."""


class Pacing(Event):
    """Rests between steps to hold the temperature: ``rest`` seconds after each step, 0 when it ended."""

    step: Count
    rest: float
    reason: str


MachineEvent: TypeAlias = Gpu | Pacing
