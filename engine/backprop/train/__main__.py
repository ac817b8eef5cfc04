"""The engine that trains: ``python -P -m backprop.train RUN_DIRECTORY [VERB [STEPS [MODEL [HASHES]]]]``, or ``wait``.

The verb is ``start``, ``resume`` or ``extend``; of a session of several runs also ``rewind``, with the number of a run.
The hashes are those of the model's files, as JSON, where whoever starts it has compared them.
"""

from __future__ import annotations

import os
import sys

import msgspec

from backprop.core.events import EndStatus
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from backprop.worker.commands import Control
from backprop.worker.process import Emit, GetReady, run_engine
from backprop.worker.setup import importing


def train(directory: RunDirectory, emit: Emit, control: Control) -> EndStatus:
    """Train the run in ``directory`` from where the command line says, ``run_started`` first.

    Raises:
        BackpropError: the run failed.
    """
    verb = sys.argv[2] if len(sys.argv) > 2 else "start"
    steps = int(sys.argv[3]) if len(sys.argv) > 3 and sys.argv[3] else None
    model = sys.argv[4] if len(sys.argv) > 4 else ""
    # Seconds of imports. The lock is held and commands are listened to before them.
    with importing():
        from backprop.train.model import resolved
        from backprop.train.persistence.replay import CurveCheck
        from backprop.train.persistence.resume import begin, run_started
        from backprop.train.run import Run
        from backprop.train.tracking.spans import wanted
        from backprop.train.tracking.trackers import Trackers, chosen

    record, accepted = directory.read_record(), False
    if record.multi is not None:
        from backprop.train.multi_run.session import MultiRun

        names, notes = chosen(record.config.report_to, os.environ)
        with Trackers(names, record.run_id, directory.path, emit, spans=wanted(os.environ)) as trackers:
            session = MultiRun(directory, trackers.emit, control, model)
            return session.rewind(steps or 0) if verb == "rewind" else session.run(verb == "resume", notes)

    def accept(_: object) -> None:
        nonlocal accepted
        accepted = True

    try:
        start = begin(directory, record, verb, steps, resolved, model=model)
        start.model_hashes = msgspec.json.decode(sys.argv[5], type=dict[str, str]) if len(sys.argv) > 5 else None
        names, notes = chosen(start.config.report_to, os.environ)
        with Trackers(names, record.run_id, directory.path, emit, spans=wanted(os.environ)) as trackers:
            trackers.emit(run_started(directory, record, start.config, start.resumed_from))
            for note in (*start.notes, *notes):
                emit(note)
            emit = trackers.emit
            if record.replays is not None:
                taken = read_run(directory.path).curves
                taken.truncate(start.resumed_from or 0)
                emit = CurveCheck(record.replays, emit, taken).emit
            run = Run(start, directory, emit, control)
            run.on_loaded = accept
            return run.run()
    except Exception:  # whatever it is goes on, to the edge of the process
        if verb == "extend" and not accepted:  # the end is the old one
            directory.update_record(config=record.config, extended=record.extended)
        raise


def warm_up() -> GetReady:
    """Import what nearly every run needs; what gets ready for one."""
    with importing():
        from backprop.train import ahead
        from backprop.train.methods import sft  # noqa: F401
        from backprop.train.modes import lora  # noqa: F401
        from backprop.train.persistence import resume  # noqa: F401
        from backprop.train.run import Run  # noqa: F401
    return ahead.get_ready


if __name__ == "__main__":
    run_engine(train, warm_up)
