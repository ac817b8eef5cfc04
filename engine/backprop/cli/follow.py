"""Start a run, watch it to its end, and hand the person's Ctrl+C on to it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backprop.cli import output
from backprop.cli.views import View, choose_view
from backprop.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PARTIAL
from backprop.core.events import RunFinished
from backprop.core.log import LOGGER
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs import engine_client
from backprop.runs.describe import describe_merge, log_event
from backprop.runs.engine_client import EngineClient
from backprop.runs.record import Replays
from backprop.runs.state import RunState

_LOOK = 0.2
"""Seconds between two looks for a Ctrl+C."""


@contextmanager
def _counted_interrupts() -> Iterator[list[int]]:
    """The numbers of every SIGINT and SIGTERM that comes, in place of a ``KeyboardInterrupt``."""
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(
    config: RunConfig,
    kind: str,
    as_json: bool,
    verbose: bool,
    *,
    forked_from: str = "",
    origins: dict[str, str] | None = None,
    replays: Replays | None = None,
    multi: MultiConfig | None = None,
    then: Callable[[Path, bool], int] | None = None,
) -> int:
    """Start a run and show it to its end; the exit code. ``origins``, ``replays`` as in ``runs.record.RunRecord``.

    Args:
        then: what follows a run that ended well; called with its directory and ``as_json``, gives the exit code.
    """
    engine = engine_client.start(config, kind, forked_from, origins, replays=replays, multi=multi)
    # First of all: whatever fails from here on, the person knows what trains. Its first event comes seconds from now.
    output.narrate(f"starting the engine of run {engine.run_id}")
    from backprop.cli.runs import open_index

    with open_index() as index:
        index.add(engine.directory.path)
    code = follow(engine, as_json=as_json, verbose=verbose)
    return then(engine.directory.path, as_json) if then is not None and code == EXIT_OK else code


def follow(engine: EngineClient, as_json: bool = False, verbose: bool = False, leave: bool = False) -> int:
    """Show a run to its end.

    Args:
        leave: Ctrl+C only stops watching, for a run that somebody else started.

    Raises:
        BrokenPipeError: nobody reads standard output any more; the run goes on.
        EngineCrashedError: the engine is gone without an end.
    """
    view = choose_view(as_json)
    state = RunState(run_id=engine.run_id, path=str(engine.directory.path), alive=True)
    try:
        with _counted_interrupts() as interrupts:
            if not _watch(engine, state, view, interrupts, leave):
                engine.detach()
                output.narrate(f"left; run {engine.run_id} goes on")
                return EXIT_INTERRUPTED
    except BrokenPipeError:
        output.narrate(f"nobody reads any more; run {engine.run_id} goes on (backprop show-run {engine.run_id})")
        raise
    state.alive = False
    view.close(state)
    return _exit_code(engine, state, bool(interrupts), as_json, verbose)


def _watch(engine: EngineClient, state: RunState, view: View, interrupts: list[int], leave: bool) -> bool:
    """Show events until none can follow; whether the run ended (else it was left)."""
    heard = 0
    while not engine.over:
        for event in engine.read(_LOOK):
            state.apply(event)
            if LOGGER.handlers:
                log_event(event, engine.run_id)
            view.show(event, state)
        while len(interrupts) > heard:
            heard += 1
            if leave:
                return False
            _pass_on(engine, heard)
    return True


def _pass_on(engine: EngineClient, times: int) -> None:
    if times > 2:
        output.narrate("killing the engine", "warning")
        engine.kill()
        return
    output.narrate(
        "stopping after this step; Ctrl+C again ends it at once" if times == 1 else "ending it now", "warning"
    )
    engine.interrupt()


def _exit_code(engine: EngineClient, state: RunState, interrupted: bool, as_json: bool, verbose: bool) -> int:
    if (failed := state.last_failure) is not None and state.last_event_at >= engine.launched_at:
        if verbose and failed.traceback:
            output.narrate(failed.traceback.rstrip())
        if not as_json and failed.hint:
            output.narrate(f"hint: {failed.hint}")
        return failed.error().exit_code
    last = state.notable[-1] if state.notable else None
    if interrupted or (isinstance(last, RunFinished) and last.status == "interrupted"):
        return EXIT_INTERRUPTED
    if state.finished is None or state.last_event_at < engine.launched_at:  # an end of before is not this engine's
        raise engine.crash()
    lost = [merge for merge in state.merges if merge.failed]
    for merge in lost:
        output.narrate(describe_merge(merge), "warning")
    return EXIT_PARTIAL if lost else EXIT_OK
