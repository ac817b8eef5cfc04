from __future__ import annotations

from backprop.core import events as ev
from backprop.runs.state import RunState

from backprop_tui.charts.timeline import FAILED, HALVED, PACED, PAUSED, RESUMED, SAVED, marks, timeline
from backprop_tui.widgets.run_detail import resume_words


def saved(step: int) -> ev.CheckpointSaved:
    return ev.CheckpointSaved(step=step, path=f"step-{step}", seconds_blocked=0.1, bytes=1)


def test_each_turn_of_a_run_has_a_mark_at_its_step() -> None:
    happened = [
        ev.RunStarted(config={}, output_dir="o", pid=1),
        saved(3),
        ev.Pacing(step=4, rest=0.5, reason="82 degrees"),
        ev.Pacing(step=5, rest=0.0, reason="cool again"),
        ev.Paused(step=6),
        ev.BatchHalved(step=7, batch_size=1, gradient_accumulation=8),
        ev.CheckpointFailed(step=8, code="DISK", message="no space"),
        ev.StepSkipped(step=9, reason="loss is not finite", in_a_row=1),
        ev.RunStarted(config={}, output_dir="o", pid=2, resumed_from=3),
        ev.Heartbeat(step=10),
    ]
    expected = [(3, SAVED), (4, PACED), (6, PAUSED), (7, HALVED), (8, FAILED), (9, FAILED), (3, RESUMED)]
    assert marks(happened) == expected


def test_in_a_shared_cell_the_mark_that_matters_more_is_seen() -> None:
    row = timeline([(9, FAILED), (2, SAVED), (1, HALVED), (99, SAVED)], 4, lambda step: step // 8)
    assert "".join(text for text, _ in row) == "½! ▪"


def test_a_run_says_what_resuming_it_would_do() -> None:
    state = RunState(run_id="abc", step=20, total_steps=60, journal_status="stopped")
    assert "starts again at step 1" in resume_words(state, "c")
    state.checkpoints = [saved(10), saved(18)]
    assert resume_words(state, "c") == "c goes on exactly after step 18 of 60, 2 steps are taken again"
    state.resumes = 2
    assert resume_words(state, "c").endswith("resumed 2 times so far")
    state.journal_status = "done"
    assert resume_words(state, "c", "n").startswith("nothing is left to do; n gives it a new end")
    state.alive = True
    assert resume_words(state, "c") == ""
