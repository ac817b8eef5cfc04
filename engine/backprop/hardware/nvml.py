"""NVIDIA's management library, read through its own Python bindings (``nvidia-ml-py``).

Every sensor can fail for itself (not there on this model, not permitted, broken): it reads ``None`` and the others go
on. Failures that mean the card or the driver is gone raise ``CardGoneError``; where nothing can be read at all, a
``GPUProblem`` says why in words, with the next thing to do. Reference: NVIDIA NVML API.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from backprop.core.events import Gpu

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
_NVIDIA_PCI_VENDOR = "0x10de"
_DISPLAY_PCI_CLASS = "0x03"


class GPUProblem(Struct, frozen=True):
    """One reason: ``message`` says what is so, ``hint`` what to do about it (empty where nothing is wrong)."""

    cause: str
    """For programs: ``no_card``, ``no_driver``, ``no_library``, ``hidden``, ``cpu_torch``, ``gone`` …"""
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}".rstrip(". ") + "."


class CardGoneError(Exception):
    """The card or its driver no longer answers; the text says how NVML puts it."""


class NvmlUnavailableError(Exception):
    """NVML could not be opened; ``problem`` says why."""

    def __init__(self, problem: GPUProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Card(Struct):
    """One physical card. ``handle`` is NVML's, ``None`` while the card is gone."""

    uuid: str
    index: int
    name: str
    handle: Any
    shutdown: float | None = None


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
        raise NvmlUnavailableError(nvml_problem(error.value, str(error))) from None
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


def nvml_problem(code: int, text: str, root: Path = Path("/")) -> GPUProblem:
    """What NVML's answer to being opened means on this machine.

    Args:
        code: NVML's return value.
        text: NVML's own words for it.
        root: where ``/sys`` and ``/proc`` are looked for.
    """
    import pynvml

    if code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return _no_library(root)
    known = {
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
            "driver_not_loaded",
            "the NVIDIA driver is installed but not running",
            "try `sudo modprobe nvidia`; after a kernel update, reboot or install the driver again",
        ),
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "version_mismatch",
            "the NVIDIA driver was updated while the old one is still running",
            "reboot this machine",
        ),
        pynvml.NVML_ERROR_NO_PERMISSION: (
            "no_permission",
            "this user may not talk to the NVIDIA driver",
            "look at the rights of /dev/nvidia*; the user may have to be in the group `video` or `render`",
        ),
    }
    other = ("failed", f"the NVIDIA driver does not answer: {text}", "see what `nvidia-smi` says")
    return GPUProblem(*known.get(code, other))


def close() -> None:
    """Stop NVML; one that is already gone is left as it is."""
    import pynvml

    with suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()


def versions() -> tuple[str | None, str | None]:
    """Driver version, and the newest CUDA version it serves (``"13.0"``). NVML must be open."""
    import pynvml

    driver = _sensor(pynvml.nvmlSystemGetDriverVersion)
    cuda = _sensor(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return driver, None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"


def read_card(card: Card) -> tuple[Gpu, float | None]:
    """Read every sensor of a card, temperature first: the reading, and joules since driver load.

    Open in the reading: ``level`` and ``energy``, which depend on more than this card now.

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
    degrees = _plausible(temperature)
    reading = Gpu(
        index=card.index,
        name=card.name,
        temperature=degrees,
        utilization=None if utilization is None else float(utilization.gpu),
        memory_used=None if memory is None else memory.total - memory.free,
        memory_total=None if memory is None else memory.total,
        power=_scaled(_sensor(lambda: nv.nvmlDeviceGetPowerUsage(handle))),
        power_limit=_scaled(_sensor(lambda: nv.nvmlDeviceGetEnforcedPowerLimit(handle))),
        fan=_scaled(_sensor(lambda: nv.nvmlDeviceGetFanSpeed(handle)), 1),
        clock=_scaled(_sensor(lambda: nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_SM)), 1),
        throttle=throttle_names(reasons or 0),
        other_processes=None
        if processes is None
        else other_processes([p.pid for p in processes], os.getpid(), same_namespace=_in_first_pid_namespace()),
        shutdown_temperature=card.shutdown,
        detail="" if degrees is not None else "its temperature sensor gives no value",
    )
    return reading, _scaled(_sensor(lambda: nv.nvmlDeviceGetTotalEnergyConsumption(handle)))


def throttle_names(bits: int) -> list[str]:
    """Why the clock is held down, by name; a bit that has none yet keeps its number."""
    names = [name for bit, name in THROTTLE_REASONS.items() if bits & bit]
    rest = bits & ~_IDLE & ~sum(THROTTLE_REASONS)
    return [*names, *([f"reason_{rest:#x}"] if rest else [])]


def other_processes(pids: list[int], own: int, *, same_namespace: bool) -> int | None:
    """How many of the compute processes on a card are not the process ``own``.

    Inside a container NVML gives the process ids of the machine, in which this process cannot find itself: then the
    answer is ``None`` (unknown) unless the card has no process at all.
    """
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


def _no_library(root: Path) -> GPUProblem:
    if platform.system() == "Darwin":
        return GPUProblem("no_card", "no NVIDIA GPU: Macs have none; training runs on the CPU")
    if (root / "proc/driver/nvidia/version").exists():
        return GPUProblem(
            "no_library",
            "the NVIDIA driver runs, but its library libnvidia-ml.so.1 cannot be found here",
            "in a container: start it with `--gpus all` (NVIDIA Container Toolkit); "
            "else install the driver's library (Debian: libnvidia-ml1)",
        )
    if _has_nvidia_card(root):
        return GPUProblem(
            "no_driver",
            "this machine has an NVIDIA card but no NVIDIA driver",
            "install the driver from your distribution or https://www.nvidia.com/drivers, then reboot",
        )
    return GPUProblem("no_card", "no NVIDIA GPU on this machine; training runs on the CPU")


def _has_nvidia_card(root: Path) -> bool:
    """Linux lists what is on the PCI bus, with or without a driver for it; elsewhere nothing is known: False."""
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue  # unplugged while we look
        if vendor == _NVIDIA_PCI_VENDOR and kind.startswith(_DISPLAY_PCI_CLASS):
            return True
    return False
