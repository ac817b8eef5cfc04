"""Memory and disk that are free now."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from msgspec import Struct

from backprop.core.events import Gpu


class Memory(Struct, frozen=True):
    """Bytes; ``None`` where the platform does not say."""

    total: int | None
    available: int | None


def host_memory(root: Path = Path("/")) -> Memory:
    """Main memory of this machine, or of the container (cgroup v2) where that allows less.

    "Available" counts caches that are given back on demand (``MemAvailable``, Linux 3.14 and later). Other platforms
    say only the total, Windows nothing.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return Memory(_total_by_sysconf(), None)
    fields = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
    total, available = fields.get("MemTotal"), fields.get("MemAvailable")
    limit, used = _container(root)
    if limit is not None and used is not None and total is not None and available is not None:
        total, available = min(total, limit), min(available, max(0, limit - used))
    return Memory(total, available)


def card_memory(reading: Gpu) -> Memory:
    """Memory of the NVIDIA card of ``reading``, which all programs on it share."""
    total, used = reading.memory_total, reading.memory_used
    return Memory(total, None if total is None or used is None else total - used)


def disk_free(path: Path) -> int:
    """Bytes that this user may still write where ``path`` is, or will be: its nearest existing parent is asked.

    Raises:
        OSError: the file system cannot be asked.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _container(root: Path) -> tuple[int | None, int | None]:
    """Limit and use of the own control group. Pages of files that nobody used lately are not counted as used."""
    group = root / "sys/fs/cgroup"
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None, None
    return (None if limit == "max" else int(limit)), used - int(stat.get("inactive_file", 0))


def _total_by_sysconf() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
