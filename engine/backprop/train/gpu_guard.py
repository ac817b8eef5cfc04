"""The run's watch over the graphics cards: readings into the journal, heat into what happens between two steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import torch

from backprop.core.events import Event, Gpu
from backprop.hardware.gpu import GPUMonitor
from backprop.hardware.thermal import Decision, ThermalGuard, Thresholds

INTERVAL = 2.0
"""Seconds between two readings."""
SILENCE = 30.0
"""Seconds without a reading after which the sensors count as lost: a driver can hang."""
QUIET = 10.0
"""Seconds after which a reading is written even where it says nothing new."""


class Guard:
    """Reads the cards in the background and says between steps what their heat asks for.

    A run on CUDA looks at the cards it uses. A run on the CPU looks at all of them: they heat the same box.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        device: torch.device,
        thresholds: Thresholds,
        interval: float = INTERVAL,
        cards: int = 1,
    ) -> None:
        # Of several processes each has the card of its number.
        used = [device] if cards == 1 else list(range(cards))
        uuids = [str(torch.cuda.get_device_properties(each).uuid) for each in used] if device.type == "cuda" else None
        self._emit = emit
        self._monitor = GPUMonitor(interval, self._take, thresholds=thresholds, uuids=uuids)
        self._thermal = ThermalGuard(thresholds)
        self._lock = threading.Lock()
        self._readings: Sequence[Gpu] = ()
        self._read_at: float | None = None
        self._judged_at: float | None = None
        self._told: dict[int, tuple[float, tuple[object, ...]]] = {}
        self._decision = Decision(rest=0.0, paused=False, events=[])
        self.earlier_energy: float | None = None
        """Watt-hours of earlier stretches of the run."""

    def __enter__(self) -> Guard:
        self._monitor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._monitor.close()

    @property
    def energy(self) -> float | None:
        """Watt-hours that the cards used for the run; ``None`` where no card tells."""
        with self._lock:
            known = [reading.energy for reading in self._readings if reading.energy is not None]
        earlier = self.earlier_energy
        return sum(known) + (earlier or 0.0) if known else earlier

    def decide(self, step: int) -> Decision:
        """What heat asks for after ``step``. News in it is emitted; the same reading is judged once."""
        with self._lock:
            readings, read_at = self._readings, self._read_at
        now = time.monotonic()
        if read_at is None:
            return self._decision
        silent = now - read_at > SILENCE
        if read_at != self._judged_at or silent:
            self._judged_at = read_at
            self._decided(self._thermal.update([] if silent else readings, now, step))
        return self._decision

    def release(self, step: int) -> None:
        """A person wants to go on after a pause for heat."""
        self._decided(self._thermal.release(step))

    def _decided(self, decision: Decision) -> None:
        self._decision = decision
        for event in decision.events:
            self._emit(event)

    def _take(self, readings: list[Gpu]) -> None:
        """In the monitor's thread: keep the readings, and write those that say something new."""
        if not readings:
            return
        now = time.monotonic()
        with self._lock:
            self._readings, self._read_at = readings, now
        for reading in readings:
            shown = _shown(reading)
            told_at, told = self._told.get(reading.index, (-QUIET, ()))
            if shown != told or now - told_at >= QUIET:
                self._told[reading.index] = (now, shown)
                self._emit(reading)


def _shown(reading: Gpu) -> tuple[object, ...]:
    """What of a reading a person would see change: whole degrees and percents, steps of 5 W and of 64 MiB."""
    units = (
        (reading.temperature, 1),
        (reading.utilization, 5),
        (reading.memory_used, 2**26),
        (reading.power, 5),
        (reading.fan, 5),
    )
    coarse = [None if value is None else round(value / unit) for value, unit in units]
    return (reading.level, tuple(reading.throttle), reading.detail, *coarse)
