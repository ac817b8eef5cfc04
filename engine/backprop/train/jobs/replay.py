"""Whether a run can be repeated as it was, asked before its repetition is made. No weight is loaded."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from backprop.core.jobs import JobProgress
from backprop.runs.engine_jobs import ReplayRequest
from backprop.worker.job import Send, run_job


def check(request: ReplayRequest, send: Send) -> JobProgress:
    """Compare the model and the rows that there are now with those of then.

    Raises:
        CheckpointError: as ``persistence.replay.require_same_source``.
        DatasetError, ModelLoadError: as the run would.
    """
    from backprop.fetch.models import fetch_model
    from backprop.train.dataset import prepare
    from backprop.train.model import resolved
    from backprop.train.persistence.replay import require_same_source
    from backprop.train.persistence.resume import identity, split_of

    doing = JobProgress(doing="comparing the model and the rows")
    config, now = resolved(request.config), datetime.fromtimestamp(request.replays.created)
    path = fetch_model(config.model, send)
    split = split_of(Path(request.forked_from) if request.forked_from else None)
    rows, _, held_out = prepare(config, path, lambda event: send(doing), lambda: False, split=split, now=now)
    require_same_source(request.replays, identity(config, path, rows.fingerprint, held_out.fingerprint, split), rows)
    return doing


if __name__ == "__main__":
    run_job(ReplayRequest, check)
