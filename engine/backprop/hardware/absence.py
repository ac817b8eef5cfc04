"""Why no NVIDIA GPU can be used, in words, with the next thing to do."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

Cause: TypeAlias = Literal[
    "no_card",
    "no_driver",
    "no_library",
    "driver_not_loaded",
    "version_mismatch",
    "no_permission",
    "hidden",
    "cpu_torch",
    "no_torch",
    "gone",
    "failed",
]

_NVIDIA_PCI_VENDOR = "0x10de"
_DISPLAY_PCI_CLASS = "0x03"


class GPUProblem(Struct, frozen=True):
    """One reason: ``message`` says what is so, ``hint`` what to do about it (empty where nothing is wrong)."""

    cause: Cause
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}".rstrip(". ") + "."


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
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: GPUProblem(
            "driver_not_loaded",
            "the NVIDIA driver is installed but not running",
            "try `sudo modprobe nvidia`; after a kernel update, reboot or install the driver again",
        ),
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: GPUProblem(
            "version_mismatch",
            "the NVIDIA driver was updated while the old one is still running",
            "reboot this machine",
        ),
        pynvml.NVML_ERROR_NO_PERMISSION: GPUProblem(
            "no_permission",
            "this user may not talk to the NVIDIA driver",
            "look at the rights of /dev/nvidia*; the user may have to be in the group `video` or `render`",
        ),
    }
    return known.get(code) or GPUProblem(
        "failed", f"the NVIDIA driver does not answer: {text}", "see what `nvidia-smi` says"
    )


def no_card() -> GPUProblem:
    """The driver works and lists no card."""
    return GPUProblem("no_card", "the NVIDIA driver runs but finds no card", "see what `nvidia-smi -L` says")


def torch_problem(torch_version: str | None, torch_cuda: str | None, *, cards: int) -> GPUProblem | None:
    """Why torch would not use the cards that are there; ``None`` where it would, or where there is no card.

    Args:
        torch_version: as installed, ``None`` if it is not.
        torch_cuda: CUDA version that torch was built with, ``None`` for a CPU build.
        cards: NVIDIA cards that the driver lists.
    """
    if cards == 0:
        return None
    if torch_version is None:
        return GPUProblem("no_torch", "torch is not installed", "pip install torch")
    if torch_cuda is not None:
        return None
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        hint = "pip install --force-reinstall torch (on this platform PyPI has the CUDA build)"
    else:
        hint = "choose a CUDA build of torch at https://pytorch.org/get-started/locally"
    return GPUProblem(
        "cpu_torch",
        f"there is an NVIDIA card, but the installed torch {torch_version} is a CPU-only build and cannot use it",
        hint,
    )


def visibility_problem(environ: Mapping[str, str] | None = None) -> GPUProblem | None:
    """Cards that are hidden from CUDA by ``CUDA_VISIBLE_DEVICES``; ``None`` where they are not."""
    value = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    if value is None or value.strip() not in {"", "-1"}:
        return None
    return GPUProblem(
        "hidden",
        f"CUDA_VISIBLE_DEVICES={value.strip()!r} hides every NVIDIA card from this program",
        "unset CUDA_VISIBLE_DEVICES, or set it to the number of a card",
    )


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
