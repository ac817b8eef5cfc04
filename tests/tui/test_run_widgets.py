"""What the widgets of a run say, each rule with the value that would be wrong without it."""

from __future__ import annotations

from math import nan
from pathlib import Path

import pytest
import recorded
from acting import seen, text_of
from backprop.core import events as ev
from backprop.runs.describe import describe
from backprop.runs.state import RunState, read_run

from backprop_tui.app import BackpropApp
from backprop_tui.charts.loss_plot import LossPlot
from backprop_tui.charts.series import Curve, RunSeries
from backprop_tui.charts.sparkline import Readings, sparkline
from backprop_tui.main import farewell
from backprop_tui.text import Row
from backprop_tui.widgets.gpu import card_rows
from backprop_tui.widgets.log import EventLog
from backprop_tui.widgets.run_detail import resume_words
from backprop_tui.widgets.samples import SamplesPane, pairs
from backprop_tui.widgets.status import Progress, RunHeader


def words(rows: list[Row]) -> str:
    return "\n".join("".join(text for text, _ in row) for row in rows)


def state_of(*events: ev.Event) -> RunState:
    state = RunState(run_id="abc")
    for number, event in enumerate(events, 1):
        event.seq, event.time = number, recorded.NOW
        state.apply(event)  # type: ignore[arg-type]
    return state


def started(resumed_from: int | None = None) -> ev.RunStarted:
    return ev.RunStarted(config={}, output_dir="", pid=1, resumed_from=resumed_from)


@pytest.mark.parametrize(
    ("saved", "said"),
    [(9, "c goes on exactly after step 9 of 10"), (7, "c goes on exactly after step 7 of 10, 2 steps are taken again")],
)
def test_what_continuing_does_is_said_with_the_steps_that_are_taken_again(saved: int, said: str) -> None:
    checkpoint = ev.CheckpointSaved(step=saved, path="p", seconds_blocked=0.0, bytes=1)
    assert resume_words(state_of(started(), *recorded.make_steps(1, 9, 10), checkpoint), "c") == said


@pytest.mark.parametrize(("resumed_from", "epoch"), [(4, ""), (9, f"epoch {9 * 4 / 198:.2f}")])
def test_a_resumed_run_shows_no_epoch_of_a_step_that_is_taken_again(resumed_from: int, epoch: str) -> None:
    bar = Progress()
    bar.state = state_of(started(), *recorded.make_steps(1, 9, 10), started(resumed_from))
    said = words(bar.rows(100, 1))
    assert f"step {resumed_from}/10" in said
    assert (epoch in said, "epoch" in said) == (True, bool(epoch))


def test_a_run_that_is_done_has_nothing_to_continue(output: Path) -> None:
    assert resume_words(read_run(recorded.finished_demo(output).directory.path), "c").startswith(
        "nothing is left to do"
    )


def test_a_sensor_that_is_missing_is_unknown_and_not_zero() -> None:
    rows = words(card_rows(ev.Gpu(index=0, name="card"), 42)).split("\n")
    assert [row.split()[-1] for row in rows[1:6]] == ["unknown"] * 5


def test_a_pause_that_nobody_asked_for_says_why() -> None:
    header = RunHeader()
    header.show(state_of(started(), ev.Paused(step=3, reason="92 degrees")), "")
    state = header._shown[0]
    assert state is not None
    state.alive = True
    assert "paused: 92 degrees" in words(header.rows(80, 1))


def test_the_newest_answer_is_shown_beside_the_first_and_none_is_awaited_of_a_run_that_is_over() -> None:
    answers = [ev.Sample(step=step, prompt="p", text=f"answer {step}", tuned=step > 0) for step in (0, 5, 9)]
    (pair,) = pairs(answers)
    assert (pair.before, pair.after) == (answers[0], answers[2])
    pane = SamplesPane()
    for alive, said in ((True, True), (False, False)):
        pane.state = state_of(started(), answers[0])
        pane.state.alive = alive
        assert ("comes after the last step" in words(pane.content(80))) == said


def curve_of(values: list[float]) -> Curve:
    curve = Curve()
    for step, value in enumerate(values, 1):
        curve.add(step, value)
    return curve


def test_losses_that_have_no_logarithm_are_left_out_of_a_logarithmic_axis() -> None:
    plot = LossPlot()
    plot.curve, plot.log_y = curve_of([1.0, -1.0, 2.0, 0.0, 3.0]), True
    assert "log" in words(plot.rows(60, 10))


def test_steps_without_a_finite_loss_are_a_gap_in_the_curve() -> None:
    plot = LossPlot()
    plot.curve, plot.chosen_smoothing = curve_of([1.0] * 4 + [nan] * 12 + [1.0] * 4), 0
    drawn = [row for row in words(plot.rows(60, 10)).split("\n") if any("⠀" < sign <= "⣿" for sign in row)]
    assert all(not row[28:40].strip() for row in drawn)


def test_a_run_that_is_continued_draws_the_steps_that_were_taken_again_once() -> None:
    state, series = state_of(started(), *recorded.make_steps(1, 9, 10)), RunSeries()
    series.follow(state)
    for number, event in enumerate(
        (started(resumed_from=2), *recorded.make_steps(3, 12, 12, seed=8)), state.last_seq + 1
    ):
        event.seq = number
        state.apply(event)
    series.follow(state)
    assert [bucket.total for _, bucket in series.loss.buckets()] == list(state.curves.loss)


@pytest.mark.parametrize("place", [(78, 2), (40, 12)], ids=["low", "tall"])
def test_a_run_on_preferences_shows_its_margin_and_accuracy(place: tuple[int, int]) -> None:
    steps = list(recorded.make_steps(1, 9, 10))
    readings, series = Readings(), RunSeries()
    for step, margin in zip(steps, range(9), strict=True):
        step.metrics = {"rewards/margins": -0.1 * margin, "rewards/accuracies": 1.0}
    series.follow(state_of(started(), *steps))
    readings.series, readings.total = series, 10
    shown = " ".join(words(readings.rows(*place)).replace("─", " ").split())
    assert "margin -0.800 100% right" in shown
    assert "tokens/s" in shown
    assert describe(steps[-1]).endswith("margin -0.800 accuracy 1.000")


def test_the_log_of_another_run_is_not_that_of_the_one_before() -> None:
    log = EventLog()
    for detail in ("first", "second"):
        log.show(state_of(started(), ev.PhaseChanged(phase="training", detail=detail)))
        assert detail in words(list(log.content(80)))


async def test_the_log_stays_where_one_reads_and_follows_again_from_its_end(output: Path) -> None:
    run = recorded.running(output, steps=300)
    with run.directory.hold_lock():
        async with BackpropApp(attach=run.directory.path).run_test(size=(80, 24)) as pilot:
            await seen(pilot, run.seq)
            await pilot.press("home")
            run.write(ev.Warning(code="X", message="look here"))
            app = await seen(pilot, run.seq)
            assert "look here" not in text_of(app)
            await pilot.press("end")
            assert "look here" in text_of(app)
            run.write(ev.Warning(code="X", message="and here"))
            assert "and here" in text_of(await seen(pilot, run.seq))


async def test_nothing_that_is_drawn_can_move_the_cursor_and_a_theme_changes_every_ink(output: Path) -> None:
    run = recorded.finished_demo(output)
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        app = await seen(pilot, run.seq)
        plot = app.screen.query_one(LossPlot)
        assert plot.strip([("a\x1b[2J\x9bb", "text")]).text.startswith("a␛[2J�b")
        before = plot.ink("strong")
        app.theme = "backprop-light"
        await pilot.pause()
        assert plot.ink("strong") != before


async def test_a_path_that_could_change_the_terminal_is_printed_as_text(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recorded.failed(output / "ev\x1b[2Jil")
    app = BackpropApp(attach=run.directory.path)
    async with app.run_test() as pilot:
        await seen(pilot, run.seq)
    farewell(app)
    said = capsys.readouterr().out
    assert "directory: " in said
    assert "\x1b" not in said


@pytest.mark.parametrize("width", [-2, 0, 1])
def test_in_a_window_without_room_a_sparkline_is_as_narrow_as_that(width: int) -> None:
    series = RunSeries()
    series.loss.add(1, 2.0)
    assert len(sparkline(series.loss, 10, width)) == max(0, width)
