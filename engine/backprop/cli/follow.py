"""Start a run, watch it to its end, and hand the person's Ctrl+C on to it."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from backprop.cli import output
from backprop.cli.views import View, choose_view
from backprop.core.errors import EXIT_INTERRUPTED, EXIT_OK, error_for
from backprop.core.settings import RunConfig
from backprop.runs import engine_client
from backprop.runs.engine_client import EngineClient
from backprop.runs.state import RunState

_LOOK = 0.2
"""Seconds between two looks for a Ctrl+C."""


class Interrupts:
    """Counts Ctrl+C and SIGTERM while it is entered, in place of raising ``KeyboardInterrupt``."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def run(config: RunConfig, kind: str, as_json: bool, verbose: bool, *, forked_from: str = "") -> int:
    """Start a run and show it to its end; the exit code."""
    link = engine_client.start(config, kind, forked_from)
    from backprop.runs.index import RunIndex

    with RunIndex() as index:
        index.add(link.directory.path)
    # The engine speaks when its libraries are imported, seconds from now.
    output.narrate(f"starting the engine of run {link.run_id}")
    return follow(link, as_json=as_json, verbose=verbose)


def follow(link: EngineClient, as_json: bool = False, verbose: bool = False, leave: bool = False) -> int:
    """Show a run to its end.

    Args:
        leave: Ctrl+C only stops watching, for a run that somebody else started.

    Raises:
        BrokenPipeError: nobody reads standard output any more; the run goes on.
        EngineCrashedError: the engine went without a word.
    """
    view = choose_view(as_json)
    state = RunState(run_id=link.run_id, path=str(link.directory.path), alive=True)
    try:
        with Interrupts() as interrupts:
            if not _watch(link, state, view, interrupts, leave):
                link.detach()
                output.narrate(f"left; run {link.run_id} goes on")
                return EXIT_INTERRUPTED
    except BrokenPipeError:
        output.narrate(f"nobody reads any more; run {link.run_id} goes on (backprop show-run {link.run_id})")
        raise
    state.alive = False
    view.close(state)
    return _exit_code(link, state, interrupts.count, as_json, verbose)


def _watch(link: EngineClient, state: RunState, view: View, interrupts: Interrupts, leave: bool) -> bool:
    """Show events until none can follow; whether the run ended (else it was left)."""
    heard = 0
    while not link.over:
        for event in link.read(_LOOK):
            state.apply(event)
            view.show(event, state)
        while interrupts.count > heard:
            heard += 1
            if leave:
                return False
            _pass_on(link, heard)
    return True


def _pass_on(link: EngineClient, times: int) -> None:
    if times > 2:
        output.narrate("killing the engine", "warning")
        link.kill()
        return
    output.narrate(
        "stopping after this step; Ctrl+C again ends it at once" if times == 1 else "ending it now", "warning"
    )
    link.interrupt()


def _exit_code(link: EngineClient, state: RunState, interrupts: int, as_json: bool, verbose: bool) -> int:
    if state.failed is not None:
        failed = state.failed
        error = error_for(failed.code, failed.message, failed.hint, failed.retryable)
        if verbose and failed.traceback:
            output.narrate(failed.traceback.rstrip())
        if not as_json and failed.hint:
            output.narrate(f"hint: {failed.hint}")
        return error.exit_code
    if interrupts:
        return EXIT_INTERRUPTED
    if state.finished is None:
        raise link.crash()
    return EXIT_INTERRUPTED if state.finished.status == "interrupted" else EXIT_OK
