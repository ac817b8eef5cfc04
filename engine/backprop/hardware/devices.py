"""What this machine is and has: Python, torch, driver, cards, extras. Nothing heavy is imported to find out."""

from __future__ import annotations

import os
import platform
import re
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path

from msgspec import Struct
from packaging.requirements import Requirement

from backprop.core.events import Gpu
from backprop.core.extras import DISTRIBUTION, install_command
from backprop.hardware import nvml
from backprop.hardware.gpu import GPUMonitor
from backprop.hardware.nvml import GPUProblem

LIBRARIES = (
    *("torch", "transformers", "peft", "accelerate", "bitsandbytes"),
    *("datasets", "safetensors", "tokenizers", "gguf", "numpy"),
)
"""Whose versions are reported and kept with each run."""
FEATURES = {
    "train": "training, evaluating, generating and chatting",
    "export": "GGUF files in every precision",
    "qlora": "4-bit base models (QLoRA)",
    "llama": "comparing a GGUF's answers with the trained model's (llama.cpp)",
    "tracking": "experiment trackers",
    "observability": "OpenTelemetry spans",
    "web": "the application in a web browser (backprop ui)",
    "unsloth": "nothing so far: Unsloth is not used",
    "fp8": "full fine-tuning in 8-bit floats (torchao)",
    "mlx": "training on Apple Silicon (MLX)",
    "all": "everything above that belongs to the tested set",
}


class CardFacts(Struct, kw_only=True):
    """One NVIDIA card; bytes and degrees Celsius, ``None`` where it does not say."""

    name: str
    index: int
    vram_total: int | None
    vram_free: int | None
    temperature: float | None


class Extra(Struct, kw_only=True):
    """An optional set of packages of this program and what it turns on."""

    installed: bool
    enables: str
    missing: list[str]
    """Requirements that are not met: absent, or another version than needed."""
    install: str
    """The command that installs it, also where it is there already."""
    available: bool = True
    """False where the extra is not made for this platform."""


class Info(Struct, kw_only=True):
    """The answer of ``backprop info``."""

    python: str
    platform: str
    torch: str | None
    cuda: str | None
    """CUDA version of the installed torch; ``null`` for a CPU build."""
    driver: str | None
    driver_cuda: str | None
    """Newest CUDA version that the driver serves."""
    gpus: list[CardFacts]
    gpu_problem: GPUProblem | None
    """Why training would not use a GPU; ``null`` where it can."""
    libraries: dict[str, str | None]
    extras: dict[str, Extra]


def info() -> Info:
    """Facts for ``backprop info`` and the GPU panel (SPEC section 13)."""
    driver, driver_cuda = None, None
    with closing(GPUMonitor()) as monitor:
        readings = monitor.read()
        with suppress(nvml.CardGoneError):  # between two questions
            driver, driver_cuda = nvml.versions() if readings else (None, None)
    torch, cuda = installed_torch()
    return Info(
        python=platform.python_version(),
        platform=platform.platform(),
        torch=torch,
        cuda=cuda,
        driver=driver,
        driver_cuda=driver_cuda,
        gpus=[_card(reading) for reading in readings],
        gpu_problem=visibility_problem() or torch_problem(torch, cuda) if readings else monitor.problem,
        libraries={name: installed_version(name) for name in LIBRARIES},
        extras=installed_extras(),
    )


def _card(reading: Gpu) -> CardFacts:
    total, used = reading.memory_total, reading.memory_used
    return CardFacts(
        name=reading.name,
        index=reading.index,
        vram_total=total,
        vram_free=None if total is None or used is None else total - used,
        temperature=reading.temperature,
    )


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def installed_torch() -> tuple[str | None, str | None]:
    """Version of the installed torch, and the CUDA version it was built with: read from its files, not imported."""
    version = installed_version("torch")
    if version is None:
        return None, None
    try:
        text = Path(str(metadata.distribution("torch").locate_file("torch/version.py"))).read_text(encoding="utf-8")
        return version, cuda_of_version_file(text)
    except OSError:  # installed from a source tree: only the version's own tag tells
        tag = re.search(r"\+cu(\d+)(\d)$", version)
        return version, f"{tag[1]}.{tag[2]}" if tag else None


def cuda_of_version_file(text: str) -> str | None:
    """The value of ``cuda`` in the text of ``torch/version.py``."""
    found = re.search(r"""^cuda\b[^=\n]*=\s*['"]([^'"]+)['"]""", text, re.MULTILINE)
    return found[1] if found else None


def torch_problem(torch_version: str | None, torch_cuda: str | None) -> GPUProblem | None:
    """Why torch would not use an NVIDIA card; ``None`` where it would.

    Args:
        torch_version: as installed, ``None`` if it is not.
        torch_cuda: CUDA version that torch was built with, ``None`` for a CPU build.
    """
    if torch_version is None:
        return GPUProblem("no_torch", "torch is not installed", install_command("train"))
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


def visibility_problem() -> GPUProblem | None:
    """Cards that are hidden from CUDA by ``CUDA_VISIBLE_DEVICES``; ``None`` where they are not."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None or value.strip() not in {"", "-1"}:
        return None
    return GPUProblem(
        "hidden",
        f"CUDA_VISIBLE_DEVICES={value.strip()!r} hides every NVIDIA card from this program",
        "unset CUDA_VISIBLE_DEVICES, or set it to the number of a card",
    )


def installed_extras() -> dict[str, Extra]:
    """Every extra that is meant for people (not ``test``), with what is missing of it."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in lines]
    return {name: _extra(name, requirements) for name in FEATURES}


def _extra(name: str, requirements: list[Requirement]) -> Extra:
    needed = _needed(name, requirements)
    missing = []
    for requirement in needed:
        version = installed_version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement.name}{requirement.specifier}")
    return Extra(
        installed=bool(needed) and not missing,
        enables=FEATURES[name],
        missing=missing,
        install=install_command(name),
        available=bool(needed),
    )


def _needed(name: str, requirements: list[Requirement]) -> list[Requirement]:
    """What an extra needs on this platform. One that names this program's other extras stands for theirs."""
    found: list[Requirement] = []
    for requirement in requirements:
        marker = requirement.marker
        if marker is None or not marker.evaluate({"extra": name}) or marker.evaluate({"extra": ""}):
            continue
        if requirement.name == DISTRIBUTION:
            for other in sorted(requirement.extras):
                found += _needed(other, requirements)
        else:
            found.append(requirement)
    return found
