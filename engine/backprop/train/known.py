"""What a run is once its rows are known: the same for a run that starts, and for an engine that gets ready for one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from backprop.core import rules
from backprop.core.events import Event, SettingsChosen
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.data.split import Split
from backprop.data.token_cache import Prepared
from backprop.train import model as models
from backprop.train.dataset import Subset, in_proportion, prepare


class Known(NamedTuple):
    """The rows of a run, and its configuration with all that they decide about."""

    config: RunConfig
    rows: Prepared
    trained: Subset
    held_out: Subset
    evaluated: Subset
    """Those of ``held_out`` that evaluations take."""
    schedule: Schedule


def look_at_rows(
    config: RunConfig,
    path: Path,
    emit: Callable[[Event], None],
    look: Callable[[], bool],
    *,
    asked: RunConfig,
    prepared: RunConfig | None = None,
    split: Split | None = None,
    now: datetime | None = None,
) -> Known:
    """Prepare the rows of a ``resolved`` configuration for the model in ``path``, and choose what was left to them.

    Args:
        asked: the configuration with what nobody has said still open.
        prepared: what the rows were prepared with, where another process did that.

    The rest, and what it raises, is as for ``dataset.prepare``. Emits ``settings_chosen`` after that.
    """
    rows, trained, held_out = prepare(prepared or config, path, emit, look, split=split, now=now)
    config, reasons = models.for_lengths(config, asked, rows.summary)
    schedule = Schedule.of(config, len(trained))
    config, others = rules.for_rows(
        config,
        path,
        rows=len(trained),
        held_out=len(held_out),
        rows_per_step=schedule.rows_per_step,
        steps=schedule.steps,
    )
    if reasons := models.by_memory(asked) | reasons | others:
        values = msgspec.to_builtins(config)
        emit(SettingsChosen(values={name: values[name] for name in reasons}, reasons=reasons))
    return Known(config, rows, trained, held_out, in_proportion(held_out, trained, schedule), schedule)
