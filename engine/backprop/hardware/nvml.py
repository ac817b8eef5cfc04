"""NVIDIA's management library, read through its own Python bindings (``nvidia-ml-py``).

Every sensor can fail for itself (not there on this model, not permitted, broken): it reads ``None`` and the others go
on. Failures that mean the card or the driver is gone raise ``CardGoneError``. Reference: NVIDIA NVML API.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

T = TypeVar("T")

# Bits of nvmlClocksEventReasons. Idle (0x1) is left out: a card with nothing to do is not throttled.
THROTTLE_REASONS = {
    0x002: "clock_setting",
    0x004: "power_cap",
    0x008: "hardware_slowdown",
    0x010: "sync_boost",
    0x020: "software_thermal",
    0x040: "hardware_thermal",
    0x080: "power_brake",
    0x100: "display_clock",
}
_IDLE = 0x001
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # inode that Linux gives to the machine's own process-id namespace


class CardGoneError(Exception):
    """The card or its driver no longer answers; the text says how NVML puts it."""


class NvmlUnavailableError(Exception):
    """NVML could not be opened; ``code`` is its return value."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Card(Struct):
    """One physical card. ``handle`` is NVML's, ``None`` while the card is gone."""

    uuid: str
    index: int
    name: str
    handle: Any
    shutdown: float | None = None


class Sensors(Struct, kw_only=True):
    """One look at a card, in the units of ``core.events.Gpu``; ``energy_counter`` is in joules since driver load."""

    temperature: float | None
    utilization: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    power: float | None = None
    power_limit: float | None = None
    fan: float | None = None
    clock: float | None = None
    throttle: list[str] = []
    other_processes: int | None = None
    energy_counter: float | None = None


def open_cards() -> list[Card]:
    """Start NVML and list the cards that answer.

    Raises:
        NvmlUnavailableError: no library, no driver, or they do not fit together.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        raise NvmlUnavailableError(error.value, str(error)) from None
    cards = []
    for index in range(count):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            card = Card(pynvml.nvmlDeviceGetUUID(handle), index, pynvml.nvmlDeviceGetName(handle), handle)
            card.shutdown = _shutdown_temperature(handle)
        except (pynvml.NVMLError, CardGoneError):
            continue  # a card that fell off the bus still counts, but has no handle
        cards.append(card)
    return cards


def close() -> None:
    """Stop NVML; one that is already gone is left as it is."""
    import pynvml

    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return


def versions() -> tuple[str | None, str | None]:
    """Driver version, and the newest CUDA version it serves (``"13.0"``). NVML must be open."""
    import pynvml

    driver = _sensor(pynvml.nvmlSystemGetDriverVersion)
    cuda = _sensor(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return driver, None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"


def read_sensors(card: Card) -> Sensors:
    """Read every sensor of a card; temperature first.

    Raises:
        CardGoneError: the card or the driver went away.
    """
    import pynvml as nv

    handle = card.handle
    temperature = _sensor(
        lambda: nv.nvmlDeviceGetTemperature(handle, nv.NVML_TEMPERATURE_GPU),
        lambda: nv.nvmlDeviceGetTemperatureV(handle, nv.NVML_TEMPERATURE_GPU),
    )
    memory = _sensor(lambda: nv.nvmlDeviceGetMemoryInfo(handle))
    utilization = _sensor(lambda: nv.nvmlDeviceGetUtilizationRates(handle))
    reasons = _sensor(
        lambda: nv.nvmlDeviceGetCurrentClocksEventReasons(handle),
        lambda: nv.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    )
    processes = _sensor(lambda: nv.nvmlDeviceGetComputeRunningProcesses(handle))
    return Sensors(
        temperature=_plausible(temperature),
        utilization=None if utilization is None else float(utilization.gpu),
        memory_used=None if memory is None else memory.total - memory.free,
        memory_total=None if memory is None else memory.total,
        power=_scaled(_sensor(lambda: nv.nvmlDeviceGetPowerUsage(handle))),
        power_limit=_scaled(_sensor(lambda: nv.nvmlDeviceGetEnforcedPowerLimit(handle))),
        fan=_scaled(_sensor(lambda: nv.nvmlDeviceGetFanSpeed(handle)), 1),
        clock=_scaled(_sensor(lambda: nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_SM)), 1),
        throttle=throttle_names(reasons or 0),
        other_processes=None if processes is None else other_processes([p.pid for p in processes]),
        energy_counter=_scaled(_sensor(lambda: nv.nvmlDeviceGetTotalEnergyConsumption(handle))),
    )


def throttle_names(bits: int) -> list[str]:
    """Why the clock is held down, by name; a bit that has none yet keeps its number."""
    names = [name for bit, name in THROTTLE_REASONS.items() if bits & bit]
    rest = bits & ~_IDLE & ~sum(THROTTLE_REASONS)
    return [*names, *([f"reason_{rest:#x}"] if rest else [])]


def other_processes(pids: list[int], own: int | None = None, *, same_namespace: bool | None = None) -> int | None:
    """How many of the compute processes on a card are not this one.

    Inside a container NVML gives the process ids of the machine, in which this process cannot find itself: then the
    answer is ``None`` (unknown) unless the card has no process at all.
    """
    own = os.getpid() if own is None else own
    if same_namespace is None:
        same_namespace = _in_first_pid_namespace()
    if own in pids:
        return len(pids) - 1
    return len(pids) if same_namespace or not pids else None


def _in_first_pid_namespace() -> bool:
    namespace = Path("/proc/self/ns/pid")
    return not namespace.exists() or namespace.stat().st_ino == _FIRST_PID_NAMESPACE


def _sensor(*calls: Callable[[], T]) -> T | None:
    """The first of ``calls`` that this driver knows (functions are renamed over time), ``None`` if it fails."""
    import pynvml

    gone = {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
    for call in calls:
        try:
            return call()
        except pynvml.NVMLError as error:
            if error.value in gone:
                raise CardGoneError(str(error)) from None
            if error.value != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                return None
        except AttributeError:
            continue  # these bindings are older than the function
    return None


def _shutdown_temperature(handle: Any) -> float | None:
    import pynvml

    degrees = _sensor(
        lambda: pynvml.nvmlDeviceGetTemperatureThreshold(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)
    )
    # Newer cards answer with a distance to their limit instead of a temperature: no use as one.
    return float(degrees) if degrees is not None and 60 <= degrees <= 150 else None


def _plausible(degrees: int | None) -> float | None:
    """Broken sensors answer 0 or a huge number; neither is a temperature of a card that is switched on."""
    return float(degrees) if degrees is not None and 0 < degrees <= 150 else None


def _scaled(value: int | None, divisor: float = 1000) -> float | None:
    return None if value is None else value / divisor
