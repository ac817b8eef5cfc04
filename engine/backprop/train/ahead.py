"""What an engine that waits for its run does meanwhile: it prepares the rows and loads the model that a form names.

The run takes that model where it would load the very same: every setting but the run's name and place, and every file
of the model, unchanged since. On a card nothing is done ahead: a form is no reason to hold its memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from backprop.core.events import Event
from backprop.core.models import find_model, weight_files
from backprop.core.settings import RunConfig
from backprop.data.tokenizer import ChatTokenizer
from backprop.train import model as models
from backprop.train.dataset import prepare_run

_TIMES = 4
"""Memory that must be free for each byte of weights in files: twice the model, which float32 makes twice as large."""


class _Ready(NamedTuple):
    wanted: tuple[Any, ...]
    loaded: models.Loaded
    told: list[Event]


_ready: list[_Ready] = []
"""What is loaded ahead: one model or none."""


def get_ready(asked: RunConfig, look: Callable[[], bool]) -> None:
    """Prepare the rows of a located configuration and load its model, unless that was done; nothing is fetched.

    Args:
        look: called while rows are prepared; may raise.

    Raises:
        Exception: whatever a run with this configuration would end with.
    """
    path = find_model(asked.model)
    if path is None or not Path(asked.data).is_absolute() or models.choose_device(asked.backend).type == "cuda":
        return
    torch.set_grad_enabled(True)
    models.use_all_cores(asked.processes)
    config = prepare_run(models.resolved(asked), path, lambda event: None, look, asked=asked).config
    wanted = _wanted(config, path)
    if [ready.wanted for ready in _ready] == [wanted]:
        return
    _ready.clear()
    look()
    if _TIMES * sum(file.stat().st_size for file in weight_files(path)) <= _free_memory():
        told: list[Event] = []
        _ready.append(_Ready(wanted, models.load(config, path, told.append), told))


def load(config: RunConfig, path: Path, emit: Callable[[Event], None], now: datetime | None) -> models.Loaded:
    """As ``model.load``, with what was loaded ahead where it is the same."""
    if not _ready or _ready[0].wanted != _wanted(config, path):
        _ready.clear()
        return models.load(config, path, emit, now)
    _, loaded, told = _ready.pop()
    for event in told:
        emit(event)
    loaded.chat = ChatTokenizer.load(path, now)
    return loaded


def _wanted(config: RunConfig, path: Path) -> tuple[Any, ...]:
    """All that decides about what is loaded, in an order; a file that is written anew has another time of change."""
    facts = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
    files = [(name, fact.st_ino, fact.st_size, fact.st_mtime_ns, fact.st_ctime_ns) for name, fact in facts]
    return msgspec.structs.replace(config, run_name="", output_dir=""), path, files


def _free_memory() -> int:
    """Bytes of memory that can be had without swapping; 0 where the system does not say."""
    file = Path("/proc/meminfo")
    found = re.search(r"MemAvailable: +(\d+) kB", file.read_text()) if file.is_file() else None
    return 1024 * int(found[1]) if found else 0
