"""What an engine that waits for its run does meanwhile: it prepares the rows, loads the model that a form names, and
has the untouched model answer the held-out rows.

The run takes that model where it would load the very same: every setting but the run's name and place, and every file
of the model, unchanged since. Of the held-out rows it takes what was answered of the very same tokens in the very same
passes, and computes the rest itself. On a card, and with MLX, nothing is done ahead: a form is no reason to hold its
memory.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from backprop.core.events import Event
from backprop.core.methods import METHODS
from backprop.core.models import find_model, weight_files
from backprop.core.settings import RunConfig
from backprop.data.tokenizer import ChatTokenizer
from backprop.train import model as models
from backprop.train.dataset import RunRows, prepare_run
from backprop.train.evaluate import Evaluator
from backprop.train.methods import method_named
from backprop.train.out_of_memory import Recovery
from backprop.train.trainer import first_batching

_TIMES = 4
"""Memory that must be free for each byte of weights in files: twice the model, which float32 makes twice as large."""
_SCORING = 60.0
"""Seconds of answering held-out rows for a form that nobody may start."""


class _Ready(NamedTuple):
    wanted: tuple[Any, ...]
    loaded: models.Loaded
    told: list[Event]


_ready: list[_Ready] = []
"""What is loaded ahead: one model or none."""


class _Enough(Exception):
    """The rest of the held-out rows is the run's."""


def get_ready(asked: RunConfig, look: Callable[[], bool]) -> None:
    """Get ready for a located configuration, going on where it was got ready for before; nothing is fetched.

    Args:
        look: called while rows are prepared and before each pass over held-out ones; may raise.

    Raises:
        Exception: whatever a run with this configuration would end with.
    """
    path = find_model(asked.model)
    if path is None or not Path(asked.data).is_absolute() or models.choose_device(asked.backend).type == "cuda":
        return
    resolved = models.resolved(asked)
    if resolved.backend == "mlx":
        return
    torch.set_grad_enabled(True)
    models.use_all_cores(asked.processes)
    planned = prepare_run(resolved, path, lambda event: None, look, asked=asked)
    wanted = _wanted(planned.config, path)
    if [ready.wanted for ready in _ready] != [wanted]:
        _ready.clear()
        look()
        if _TIMES * sum(file.stat().st_size for file in weight_files(path)) > _free_memory():
            return
        told: list[Event] = []
        _ready.append(_Ready(wanted, models.load(planned.config, path, told.append), told))
    _score(_ready[0].loaded, planned, look)


def _score(loaded: models.Loaded, planned: RunRows, look: Callable[[], bool]) -> None:
    """Have the untouched model answer the held-out rows as ``Run`` does; what it has done is kept wherever it ends."""
    config, until = planned.config, time.monotonic() + _SCORING
    if not config.eval_base or not len(planned.evaluated) or METHODS[config.method].reference:
        return
    for rows in (planned.rows, planned.held_out.rows):
        models.require_known_tokens(loaded.model, rows.ids, loaded.chat)
    method = method_named(config.method)(config, planned.trained)
    batching = first_batching(loaded, config, planned.trained)

    def between() -> None:
        look()
        if time.monotonic() > until:
            raise _Enough

    with suppress(_Enough), loaded.mode.base_answers(loaded.model):
        Evaluator(loaded, method, planned.evaluated, batching, Recovery(config)).evaluate(0, between, base=True)


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
