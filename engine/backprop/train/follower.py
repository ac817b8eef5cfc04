"""A rank other than 0 of a run with several processes: ``python -P -m backprop.train.follower``, told by rank 0.

It ends with whoever started it: when its standard input does, at the latest.
"""

from __future__ import annotations

import queue
import sys
from datetime import datetime
from pathlib import Path

from backprop.core.errors import BackpropError
from backprop.core.events import Event
from backprop.runs.directory import RunDirectory
from backprop.worker.commands import Control
from backprop.worker.setup import end_process, importing, quiet_libraries


def nowhere(event: Event) -> None:
    """Rank 0 alone emits."""


def main() -> None:
    """Import, wait for the assignment, and follow rank 0 to the last step."""
    quiet_libraries()
    # Seconds of imports, in which rank 0 looks for the model and prepares the rows.
    with importing():
        import torch

        from backprop.runs.checkpoints import Checkpoint, read_manifest
        from backprop.train.persistence.resume import Beginning
        from backprop.train.ranks import Assignment, Ranks
        from backprop.train.run import Run
        from backprop.worker.job import listen

    told: queue.SimpleQueue[Assignment] = queue.SimpleQueue()
    listen(Assignment, told.put)
    job = told.get()
    if job.config.backend == "cuda":
        torch.cuda.set_device(job.rank)
    path = Path(job.checkpoint) if job.checkpoint else None
    start = Beginning(
        job.config,
        Checkpoint(path, read_manifest(path)) if path else None,
        continued=path is not None,
        extended=job.extended,
        now=datetime.fromtimestamp(job.now) if job.now is not None else None,
        split=job.split,
        prepared=job.prepared,
    )
    run = Run(start, RunDirectory(Path(job.directory)), nowhere, Control())
    try:
        run.follow(Ranks(job.rank, job.size, job.port))
    except BackpropError as error:
        print(f"[{error.code}] {error.message}", file=sys.stderr)
        end_process(error.exit_code)


if __name__ == "__main__":
    main()
