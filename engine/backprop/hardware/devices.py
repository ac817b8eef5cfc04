"""What this machine is and has: Python, torch, driver, cards, extras. Nothing heavy is imported to find out."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from packaging.requirements import Requirement

from backprop.hardware import nvml
from backprop.hardware.estimate import card_memory
from backprop.hardware.gpu import GPUMonitor
from backprop.hardware.nvml import GPUProblem

DISTRIBUTION = "backprop-tui"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "tokenizers", "gguf")
FEATURES = {
    "qlora": "4-bit base models (QLoRA)",
    "export": "quantized GGUF files (llama.cpp)",
    "tracking": "experiment trackers",
    "observability": "OpenTelemetry spans",
    "web": "the application in a web browser (backprop ui)",
    "unsloth": "Unsloth's kernels",
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


class Torch(Struct, frozen=True):
    """The installed torch, from its files. ``cuda`` is the CUDA version it was built with, ``None`` for a CPU build."""

    version: str
    cuda: str | None


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
    cards, driver, driver_cuda, problem = _look_at_cards()
    torch = installed_torch()
    if cards:
        problem = visibility_problem() or torch_problem(
            torch.version if torch else None, torch.cuda if torch else None, cards=len(cards)
        )
    return Info(
        python=platform.python_version(),
        platform=platform.platform(),
        torch=torch.version if torch else None,
        cuda=torch.cuda if torch else None,
        driver=driver,
        driver_cuda=driver_cuda,
        gpus=cards,
        gpu_problem=problem,
        libraries={name: installed_version(name) for name in LIBRARIES},
        extras=installed_extras(),
    )


def info_dict() -> dict[str, Any]:
    """``info`` as plain values for ``--json``."""
    plain: dict[str, Any] = msgspec.to_builtins(info())
    return plain


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def installed_torch() -> Torch | None:
    """The installed torch and its CUDA version, read from ``torch/version.py`` as text; ``None`` without torch."""
    try:
        distribution = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        return None
    try:
        text = Path(str(distribution.locate_file("torch/version.py"))).read_text(encoding="utf-8")
        return Torch(distribution.version, cuda_of_version_file(text))
    except OSError:  # installed from a source tree: only the version's own tag tells
        tag = re.search(r"\+cu(\d+)(\d)$", distribution.version)
        return Torch(distribution.version, f"{tag[1]}.{tag[2]}" if tag else None)


def cuda_of_version_file(text: str) -> str | None:
    """The value of ``cuda`` in the text of ``torch/version.py``."""
    found = re.search(r"""^cuda\b[^=\n]*=\s*['"]([^'"]+)['"]""", text, re.MULTILINE)
    return found[1] if found else None


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


def install_command(extra: str) -> str:
    """The command that installs an extra; the quotes suit every shell."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


def installed_extras() -> dict[str, Extra]:
    """Every extra that is meant for people (not ``test``), with what is missing of it."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in lines]
    return {name: _extra(name, requirements) for name in FEATURES}


def _extra(name: str, requirements: list[Requirement]) -> Extra:
    here = [
        requirement
        for extra, requirement in _requirements_of(name, requirements)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
    ]
    missing = [f"{requirement.name}{requirement.specifier}" for requirement in here if not _met(requirement)]
    return Extra(
        installed=bool(here) and not missing,
        enables=FEATURES[name],
        missing=missing,
        install=install_command(name),
        available=bool(here),
    )


def _requirements_of(name: str, requirements: list[Requirement]) -> list[tuple[str, Requirement]]:
    """Requirements of an extra on any platform, each with the extra it is listed under.

    One that names this program's other extras stands for theirs.
    """
    found: list[tuple[str, Requirement]] = []
    for requirement in requirements:
        if not re.search(rf"""extra == ['"]{re.escape(name)}['"]""", str(requirement.marker or "")):
            continue
        if requirement.name == DISTRIBUTION:
            for other in sorted(requirement.extras):
                found += _requirements_of(other, requirements)
        else:
            found.append((name, requirement))
    return found


def _met(requirement: Requirement) -> bool:
    version = installed_version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _look_at_cards() -> tuple[list[CardFacts], str | None, str | None, GPUProblem | None]:
    """Cards, driver version, its CUDA version, and why there is no card."""
    driver, driver_cuda = None, None
    with closing(GPUMonitor()) as monitor:
        readings = monitor.read()
        with suppress(nvml.CardGoneError):  # between two questions
            driver, driver_cuda = nvml.versions() if readings else (None, None)
    cards = []
    for reading in readings:
        memory = card_memory(reading)
        cards.append(
            CardFacts(
                name=reading.name,
                index=reading.index,
                vram_total=memory.total,
                vram_free=memory.available,
                temperature=reading.temperature,
            )
        )
    return cards, driver, driver_cuda, monitor.problem
