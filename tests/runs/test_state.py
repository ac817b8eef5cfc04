from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import msgspec
import pytest
from backprop.core import events as ev
from backprop.core.errors import RunError
from backprop.runs.directory import RunDirectory
from backprop.runs.state import RunState, read_run
from made_events import finished, started, step


def fold(*events: ev.Event) -> RunState:
    state = RunState(alive=True)
    for number, event in enumerate(events, 1):
        event.seq, event.time = number, 1000.0 + number
        state.apply(event)
    return state


def test_a_finished_run_is_done_with_its_curve() -> None:
    state = fold(started(), step(1, loss=2.0), step(2, loss=1.5), finished(2))
    assert (state.status, state.step, state.final_loss) == ("done", 2, 1.5)
    assert list(state.curves.loss) == [2.0, 1.5]
    assert state.duration_seconds == 3.0


def test_a_step_that_was_not_finite_is_a_gap_in_the_curve() -> None:
    state = fold(started(), step(1), step(2, loss=None))
    assert math.isnan(state.curves.loss[1])
    assert state.final_loss is None


def test_a_resume_takes_back_the_steps_after_its_checkpoint() -> None:
    state = fold(
        started(), step(1, loss=4.0), step(2, loss=3.0), step(3, loss=2.0), started(resumed_from=2), step(3, loss=2.5)
    )
    assert list(state.curves.step) == [1, 2, 3]
    assert state.curves.loss[2] == 2.5
    assert state.resumes == 1
    assert state.status == "running"


def test_the_same_event_twice_counts_once() -> None:
    state = fold(started(), step(1))
    again = step(1)
    again.seq = 2
    state.apply(again)
    assert len(state.curves) == 1


def test_remaining_time_follows_the_pace_of_the_last_steps() -> None:
    state = fold(started(), step(1, total=11))
    assert state.eta_seconds == pytest.approx(20.0)


def test_remaining_time_counts_the_evaluations_to_come() -> None:
    state = fold(started(), step(1, total=11), step(2, total=11))
    without = state.eta_seconds
    state.apply(ev.Evaluated(step=2, loss=1.0, tokens=1, rows=1, seconds=6.0, best=True, seq=4))
    assert without is not None
    assert state.eta_seconds == pytest.approx(without + 9 * 6.0 / 2)


def test_a_run_that_is_launched_again_is_starting_until_its_engine_speaks_or_goes() -> None:
    state = fold(started(), step(1), ev.RunFailed(code="X", message="no", hint="", retryable=False, traceback=""))
    state.await_start(0.0)
    assert (state.status, state.failed) == ("starting", None)
    state.alive = False
    assert state.status == "crashed"


def test_pausing_and_resuming_show_in_the_status() -> None:
    state = fold(started(), step(1), ev.Paused(step=1))
    assert state.status == "paused"
    again = ev.Resumed(step=1)
    again.seq, again.time = 4, 1004.0
    state.apply(again)
    assert state.status == "running"


def test_a_pause_is_no_time_worked() -> None:
    state = fold(started(), step(1), ev.Paused(step=1))
    worked = state.duration_seconds
    told = [ev.Heartbeat(), ev.Paused(step=1, reason="too hot"), ev.Resumed(step=1), ev.Resumed(step=1), step(2)]
    for seq, (event, after) in enumerate(zip(told, (300, 500, 1000, 1001, 1003), strict=True), 4):
        event.seq, event.time = seq, state.started_at + worked + after
        state.apply(event)
        assert state.duration_seconds == worked + max(0, after - 1000)
    paused = ev.Paused(step=2)
    paused.seq, paused.time = 9, state.last_event_at
    state.apply(paused)
    ended = finished(2)
    ended.seq, ended.time = 10, paused.time + 77
    state.apply(ended)
    assert (state.status, state.duration_seconds) == ("done", worked + 3)


def test_a_run_without_end_whose_engine_is_gone_has_crashed(
    directory: RunDirectory, story: Callable[..., None]
) -> None:
    story(started(), step(1))
    assert read_run(directory.path).status == "crashed"
    with directory.hold_lock():
        assert read_run(directory.path).status == "running"


def test_one_that_was_begun_again_is_silent_since_then_and_not_since_the_one_before() -> None:
    state = fold(started(), step(1))
    state.await_start(now=5000.0)
    assert state.silence(5009.0) == ""
    assert state.silence(5040.0) == "no sign of the engine for 40 s"


def test_an_engine_that_took_a_run_of_long_ago_and_said_nothing_yet_is_silent_since_it_took_it(
    directory: RunDirectory, story: Callable[..., None]
) -> None:
    story(started(), step(1))
    with directory.hold_lock():
        taken = directory.lock_holder().time
        state = read_run(directory.path)
        assert state.last_event_at < taken - 3600
        assert state.silence(taken + 9.0) == ""
        assert state.silence(taken + 40.0) == "no sign of the engine for 40 s"


def test_a_living_engine_that_says_nothing_for_long_is_told_and_one_that_is_stopped() -> None:
    with subprocess.Popen(["sleep", "60"]) as engine:
        state = fold(started(pid=engine.pid), step(1))
        assert state.silence(1011.0) == ""
        assert state.silence(1042.0) == "no sign of the engine for 40 s"
        engine.send_signal(signal.SIGSTOP)
        os.waitpid(engine.pid, os.WUNTRACED)
        assert f"`kill -CONT {engine.pid}`" in state.silence(1042.0)
        engine.kill()
    state.alive = False
    assert state.silence(1042.0) == ""
    assert fold(started(), finished(1)).silence(1042.0) == ""


def test_a_journal_cut_in_the_middle_of_a_line_is_read_up_to_there(
    directory: RunDirectory, story: Callable[..., None]
) -> None:
    story(started(), step(1), step(2))
    directory.journal.write_bytes(directory.journal.read_bytes()[:-30])
    state = read_run(directory.path)
    assert (state.status, state.step) == ("crashed", 1)


def test_a_missing_record_is_named_and_the_journal_still_tells(
    directory: RunDirectory, story: Callable[..., None]
) -> None:
    story(started(), step(1), finished(1))
    directory.record.unlink()
    state = read_run(directory.path)
    assert state.status == "done"
    assert any("run.json" in words for words in state.damage)
    assert state.config["model"] == "m"


def test_lost_lines_are_counted_as_damage(directory: RunDirectory, story: Callable[..., None]) -> None:
    story(started(), step(1), step(2), finished(2))
    lines = directory.journal.read_bytes().splitlines(keepends=True)
    directory.journal.write_bytes(b"".join([lines[0], *lines[2:]]))
    assert any("1 events are missing" in words for words in read_run(directory.path).damage)


def test_a_directory_with_neither_record_nor_journal_is_damaged(directory: RunDirectory) -> None:
    directory.record.unlink()
    assert read_run(directory.path).status == "damaged"


def test_a_path_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        read_run(tmp_path / "nothing")


@pytest.mark.parametrize("end", [None, "interrupted"])
def test_the_gap_before_a_resume_is_not_time_worked(end: str | None) -> None:
    state = RunState(alive=True)
    first = [started(), step(1), *([msgspec.structs.replace(finished(1), status=end)] if end else [])]
    events = [(1000.0 + n, event) for n, event in enumerate(first)]
    worked = len(first) - 1
    events += [(9000.0, started(resumed_from=1)), (9001.0, step(2))]
    for number, (time, event) in enumerate(events, 1):
        event.seq, event.time = number, time
        state.apply(event)
    assert state.duration_seconds == worked + 1


def test_the_gap_before_a_resume_that_was_refused_is_not_time_worked() -> None:
    state = RunState(alive=False)
    failed = ev.RunFailed(code="STATE_IDENTITY_MISMATCH", message="m", hint="", retryable=False, began=False)
    for number, (time, event) in enumerate([(1000.0, started()), (1005.0, step(1)), (9000.0, failed)], 1):
        event.seq, event.time = number, time
        state.apply(event)
    assert (state.status, state.duration_seconds) == ("crashed", 5.0)


REFUSED = ev.RunFailed(code="DATASET_NOT_FOUND", message="there are no rows", hint="", retryable=False)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (finished(3), "done"),
        (msgspec.structs.replace(finished(3), status="stopped"), "stopped"),
        (ev.RunFailed(code="RUNTIME_GPU_OOM", message="m", hint="", retryable=True), "failed"),
        (None, "crashed"),
    ],
    ids=["done", "stopped", "failed", "crashed"],
)
@pytest.mark.parametrize("said_more", [False, True], ids=["at once", "after the rows"])
def test_a_run_that_is_not_continued_is_what_it_was(end: ev.Event | None, status: str, said_more: bool) -> None:
    first = [started(), step(1), step(2), step(3), *([end] if end else [])]
    before, after = fold(*first), fold(*first)
    for times in (1, 2):
        others = ev.DatasetPrepared(path="others", format="text", rows=9, kept=9)
        stretch = [msgspec.structs.replace(started(resumed_from=2), config={"model": "m", "steps": 99})]
        stretch += [ev.PhaseChanged(phase="preparing_data"), others] if said_more else []
        for event in [*stretch, msgspec.structs.replace(REFUSED)]:
            event.seq, event.time = after.last_seq + 1, after.last_event_at + 100.0 * times
            after.apply(event)
        before.alive = after.alive = False
        assert (after.status, after.refused) == (status, event)
        assert after.last_failure is after.refused
        for name in ("failed", "finished", "config", "step", "total_steps", "last_step", "dataset", "resumes"):
            assert getattr(after, name) == getattr(before, name), name
        assert repr(after.curves) == repr(before.curves)  # which have NaN
        assert after.duration_seconds == before.duration_seconds


@pytest.mark.parametrize(
    ("first", "status"),
    [([started(), step(1)], "crashed"), ([started(), step(1), finished(1)], "done"), ([], "failed")],
    ids=["crashed", "done", "new"],
)
def test_an_engine_that_fails_before_it_says_that_it_continues_a_run_leaves_it_what_it_was(
    first: list[ev.Event], status: str
) -> None:
    state = fold(*first, msgspec.structs.replace(REFUSED, began=False))
    state.alive = False
    assert (state.status, state.last_failure and state.last_failure.code) == (status, REFUSED.code)
    assert (state.step, len(state.curves)) == ((1, 1) if first else (0, 0))


@pytest.mark.parametrize(
    ("first", "status"),
    [
        ([started(), step(1)], "crashed"),
        ([started(), step(1), finished(1)], "done"),
        ([started(), step(1), started(resumed_from=1), REFUSED], "crashed"),
        ([], "interrupted"),
    ],
    ids=["crashed", "done", "refused", "new"],
)
def test_an_engine_interrupted_before_it_says_that_it_continues_a_run_leaves_it_what_it_was(
    first: list[ev.Event], status: str
) -> None:
    early = msgspec.structs.replace(finished(0), status="interrupted", samples_seen=0, tokens_seen=0, began=False)
    before = fold(*first)
    state = deepcopy(before)
    state.started_at = state.started_at or 1.0  # as whoever watches has it from run.json, before an engine spoke
    state.apply(msgspec.structs.replace(early, seq=state.last_seq + 1, time=state.last_event_at + 1.0))
    before.alive = state.alive = False
    assert (state.status, state.last_failure) == (status, None)
    assert (state.step, len(state.curves)) == ((1, 1) if first else (0, 0))
    assert (state.samples_seen, state.tokens_seen) == (before.samples_seen, before.tokens_seen)
    worked = state.duration_seconds
    state.apply(msgspec.structs.replace(early, seq=state.last_seq + 1, time=state.last_event_at + 500.0))
    assert state.duration_seconds == worked


def test_a_run_that_was_continued_and_failed_has_failed() -> None:
    trained = ev.PhaseChanged(phase="training")
    state = fold(started(), step(1), step(2), finished(2), started(resumed_from=2), trained, REFUSED)
    assert (state.status, state.failed, state.refused) == ("failed", REFUSED, None)


def test_a_run_that_is_continued_after_all_was_not_refused() -> None:
    state = fold(
        *(started(), step(1), finished(1), started(resumed_from=1), REFUSED, started(resumed_from=1), step(2)),
        finished(2),
    )
    assert (state.status, state.step, state.refused, state.last_failure) == ("done", 2, None, None)


def test_a_watched_run_that_is_not_continued_is_what_it_was() -> None:
    state = fold(started(), step(1), finished(1))
    state.await_start(0.0)
    assert (state.status, state.finished) == ("starting", None)
    for event in (started(resumed_from=1), msgspec.structs.replace(REFUSED)):
        event.seq, event.time = state.last_seq + 1, state.last_event_at + 1.0
        state.apply(event)
    assert (state.status, state.finished and state.finished.steps) == ("done", 1)


def test_a_journal_of_another_run_is_said_and_not_taken_in(directory: RunDirectory, story: Callable[..., None]) -> None:
    story(started(), step(1))
    stranger = directory.journal.read_bytes().replace(directory.run_id.encode(), b"another")
    directory.journal.write_bytes(stranger)
    state = read_run(directory.path)
    assert state.damage == ["events.jsonl: 2 events belong to run another"]
    assert (state.step, state.run_id) == (0, directory.run_id)


def test_a_journal_that_was_removed_is_damage(directory: RunDirectory) -> None:
    with directory.hold_lock():
        pass
    state = read_run(directory.path)
    assert state.damage == ["events.jsonl: it is missing, though an engine worked here"]
    assert state.status == "damaged"


def test_a_step_of_zero_has_an_estimate_too() -> None:
    assert fold(started(), step(0, total=4)).eta_seconds is not None


def test_a_run_that_was_moved_names_its_files_where_they_are_now(
    directory: RunDirectory, story: Callable[..., None]
) -> None:
    def saved(number: int, below: str = "checkpoints") -> ev.CheckpointSaved:
        return ev.CheckpointSaved(step=number, path=f"/x/{below}/step-0000000{number}", seconds_blocked=0, bytes=1)

    pruned = ev.CheckpointPruned(step=1, path=f"/elsewhere/{directory.run_id}/checkpoints/step-00000001")
    inner = saved(1, "runs/a/checkpoints")
    story(started(), step(1), saved(1), inner, step(2), saved(2), pruned, finished(2))
    moved = directory.path.rename(directory.path.with_name("moved"))
    state = read_run(moved)
    assert state.output_path == str(moved / "adapter")
    kept = ["runs/a/checkpoints/step-00000001", "checkpoints/step-00000002"]
    assert [each.path for each in state.checkpoints] == [str(moved / below) for below in kept]
