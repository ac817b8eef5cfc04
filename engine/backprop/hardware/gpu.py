"""Watching the NVIDIA cards: readings for the screen, the journal and the thermal guard.

    monitor = GPUMonitor(interval=2.0, on_reading=print)
    monitor.start()                       # a thread of its own; training never waits for a sensor
    ...
    monitor.stop()

Without an NVIDIA card or driver there is nothing to read and ``monitor.problem`` says why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from contextlib import closing

from backprop.core.errors import GPUMonitoringError, GPUNotAvailableError
from backprop.core.events import Gpu
from backprop.hardware import nvml
from backprop.hardware.nvml import GPUProblem
from backprop.hardware.thermal import Thresholds, condition, worst

NO_CARD = GPUProblem("no_card", "the NVIDIA driver runs but finds no card", "see what `nvidia-smi -L` says")
REOPEN_ATTEMPTS = 5
"""How often a lost card is looked for again before it is given up."""
REOPEN_SECONDS = 30.0
_STOP_SECONDS = 5.0  # a driver that hangs must not keep the program from ending
_JOULES_PER_WATT_HOUR = 3600.0


class Energy:
    """Watt-hours that one card used since watching began.

    From the card's own counter where it has one, else summed from its power (trapezoids between readings; time in
    which the power was unknown is not counted). Use one of the two for a whole run: the counter wins at the first
    reading that has it.
    """

    def __init__(self) -> None:
        self._joules: float | None = None
        self._counter: float | None = None
        self._power: tuple[float, float] | None = None

    def add(self, now: float, counter: float | None, power: float | None) -> float | None:
        """Take a reading at ``now`` (seconds): ``counter`` in joules, ``power`` in watts. Returns watt-hours so far."""
        used = 0.0
        if counter is not None:
            if self._counter is not None:
                # A counter that went back was reset with the driver: what it shows was used since.
                used = counter - self._counter if counter >= self._counter else counter
            self._counter = counter
        elif self._counter is None and power is not None and self._power is not None:
            earlier, watts = self._power
            used = (now - earlier) * (watts + power) / 2
        self._power = None if power is None else (now, power)
        if counter is not None or (self._counter is None and power is not None):
            self._joules = (self._joules or 0.0) + used
        return None if self._joules is None else self._joules / _JOULES_PER_WATT_HOUR


class GPUMonitor:
    """Reads the NVIDIA cards, on demand (``read``) or every ``interval`` seconds in a thread (``start``, ``stop``).

    Args:
        interval: seconds between readings of the thread.
        on_reading: called from that thread with each reading, one ``Gpu`` per card; with an empty list, once, where
            there is no card. What it raises ends the thread.
        thresholds: where the levels begin.
        uuids: watch these cards only (any part of NVML's uuid that ends it, so torch's form without ``GPU-`` fits):
            a run is not paused for a card that it does not use.
        clock: seconds, never going back.

    A card that stops answering stays in the readings, with every sensor ``None``, level "unknown" and the reason in
    ``detail``. It is looked for again at once and then every 30 seconds, five times in all.
    """

    def __init__(
        self,
        interval: float = 2.0,
        on_reading: Callable[[list[Gpu]], None] | None = None,
        *,
        thresholds: Thresholds | None = None,
        uuids: Collection[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interval = interval
        self.thresholds = thresholds or Thresholds()
        self.problem: GPUProblem | None = None
        """Why nothing can be read; ``None`` while every card answers. Set by the first reading."""
        self._on_reading = on_reading
        self._uuids = uuids
        self._clock = clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._opened = False
        self._cards: dict[str, nvml.Card] = {}
        self._energy: dict[str, Energy] = {}
        self._details: dict[str, str] = {}
        self._attempts = 0
        self._next_attempt = 0.0

    def read(self) -> list[Gpu]:
        """One reading of every card (not stamped with run, number and time); empty where there is no card."""
        with self._lock:
            now = self._clock()
            if not self._opened:
                self._opened = True
                self._open()
            elif self._details and self._attempts < REOPEN_ATTEMPTS and now >= self._next_attempt:
                self._attempts += 1
                self._next_attempt = now + REOPEN_SECONDS
                nvml.close()
                self._open()
            return [self._read_card(card, now) for card in self._cards.values()]

    def start(self) -> None:
        """Begin reading in the background. Opening the driver, too, happens there: it can take seconds."""
        if self._thread is not None:
            raise RuntimeError("this monitor is already running")
        self._wake.clear()
        self._thread = threading.Thread(target=self._watch, name="gpu-monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the background reading; a reading in progress is waited for, five seconds at most."""
        if self._thread is not None:
            self._wake.set()
            self._thread.join(_STOP_SECONDS)
            self._thread = None

    def close(self) -> None:
        """Stop, and let go of the driver. The next ``read`` opens it again."""
        self.stop()
        with self._lock:
            if self._opened:
                nvml.close()
                self._opened = False

    def _watch(self) -> None:
        while not self._wake.is_set():
            readings = self.read()
            if self._on_reading is not None:
                self._on_reading(readings)
            if not readings:
                return
            self._wake.wait(self.interval)

    def _open(self) -> None:
        try:
            found = nvml.open_cards()
        except (nvml.NvmlUnavailableError, nvml.CardGoneError) as error:
            self.problem = GPUProblem("gone", f"the NVIDIA driver went away: {error}")
            if isinstance(error, nvml.NvmlUnavailableError):
                self.problem = error.problem
            for card in self._cards.values():
                card.handle = None
                self._details[card.uuid] = self.problem.message
            return
        wanted = [card for card in found if self._uuids is None or any(card.uuid.endswith(u) for u in self._uuids)]
        for card in wanted:
            self._cards[card.uuid] = card
            self._energy.setdefault(card.uuid, Energy())
        answering = {card.uuid for card in wanted}
        for uuid, card in self._cards.items():
            if uuid not in answering:
                self._lose(card, "it is no longer listed by the driver")
        if not self._cards:
            self.problem = NO_CARD

    def _read_card(self, card: nvml.Card, now: float) -> Gpu:
        reading, joules = None, None
        if card.handle is not None:
            try:
                reading, joules = nvml.read_card(card)
            except nvml.CardGoneError as error:
                if card.uuid not in self._details:  # a new loss; one that comes back only to fail again is the old one
                    self._attempts, self._next_attempt = 0, now
                self._lose(card, f"it stopped answering: {error}")
        if reading is None:
            return Gpu(index=card.index, name=card.name, detail=self._details[card.uuid])
        self._details.pop(card.uuid, None)
        if not self._details:
            self.problem = None
        reading.energy = self._energy[card.uuid].add(now, joules, reading.power)
        reading.level = condition(reading, self.thresholds)
        return reading

    def _lose(self, card: nvml.Card, why: str) -> None:
        card.handle = None
        self._details[card.uuid] = why
        self.problem = GPUProblem("gone", f"GPU {card.index} ({card.name}): {why}", "see what `nvidia-smi` says")


def check_gpu_safe(thresholds: Thresholds | None = None) -> bool:
    """Whether every NVIDIA card reads safe or warm now: below 80 °C, and memory and power below their warnings.

    A card whose temperature cannot be read is not safe: the answer is False.

    Raises:
        GPUNotAvailableError: there is no card to ask; the message says why.
        GPUMonitoringError: the driver is there and does not answer.
    """
    with closing(GPUMonitor(thresholds=thresholds)) as monitor:
        readings = monitor.read()
    if not readings:
        problem = monitor.problem or NO_CARD
        failing = GPUMonitoringError if problem.cause in ("failed", "gone") else GPUNotAvailableError
        raise failing(problem.message, hint=problem.hint, details={"cause": problem.cause})
    return worst([reading.level for reading in readings]) in {"safe", "warm"}
