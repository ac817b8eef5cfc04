from __future__ import annotations

import io
import json

import pytest
from backprop.cli import output, views
from backprop.cli.data_options import ProgressLine
from backprop.core import events as ev
from backprop.runs.describe import duration
from backprop.runs.state import RunState
from made_events import finished, started, step


def play(view: views.View, events: list[ev.AnyEvent], seconds: float = 1.0) -> RunState:
    """Show events that came ``seconds`` apart."""
    state = RunState(run_id="feed", alive=True)
    for number, event in enumerate(events, 1):
        event.run_id, event.seq, event.time = "feed", number, 1000.0 + seconds * number
        state.apply(event)
        view.show(event, state)
    state.alive = False
    view.close(state)
    return state


def story(steps: int) -> list[ev.AnyEvent]:
    return [started(), *(step(n, steps, loss=3.0 - n / steps) for n in range(1, steps + 1)), finished(steps)]


def step_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("step ")]


def test_plain_output_shows_the_run_id_first_and_last_loss_and_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    play(views.PlainLines(), story(5))
    out = capsys.readouterr().out
    assert out.startswith("run_started run_id=feed")
    assert "loss 2.8000 -> 2.0000 over 5 steps" in out
    assert "backprop generate feed" in out
    assert "backprop show-run feed" in out
    assert len(step_lines(out)) == 5


def test_plain_steps_say_how_long_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    play(views.PlainLines(), story(5), seconds=2.0)
    shown = step_lines(capsys.readouterr().out)
    seconds = step(1, 5).seconds
    assert [line.endswith(" left") for line in shown] == [True] * 4 + [False]
    assert shown[0].endswith(f" {duration(4 * seconds)} left")


def test_one_step_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    play(views.PlainLines(), story(1))
    out = capsys.readouterr().out
    assert ("over 1 step, " in out, "after 1 step in" in out, "1 steps" in out) == (True, True, False)


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_long_work_says_how_far_it_is_also_where_no_line_can_be_written_over(
    term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, clock = Terminal(), [100.0]
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setenv("TERM", term)
    with ProgressLine("scoring", in_bytes=False) as line:
        for done in range(1, 5):
            clock[0] += 5.0
            line(done, 8)
    told = screen.getvalue()
    if term == "dumb":
        assert told == "scoring  25%, 30 s left\nscoring  50%, 20 s left\n"
    else:
        assert told.startswith("\r\x1b[Kscoring  12%, 35 s left\r\x1b[Kscoring  25%, 30 s left")


def test_fast_steps_are_thinned_and_the_first_and_the_last_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    play(views.PlainLines(), story(1000), seconds=0.01)
    shown = step_lines(capsys.readouterr().out)
    assert 10 <= len(shown) <= 13
    assert shown[0].startswith("step 1/1000")
    assert shown[-1].startswith("step 1000/1000")


def test_a_long_run_does_not_fill_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    play(views.PlainLines(), story(20_000), seconds=2.0)
    assert len(step_lines(capsys.readouterr().out)) <= 202


def test_json_shows_every_event(capsys: pytest.CaptureFixture[str]) -> None:
    play(views.JsonLines(), story(300), seconds=0.001)
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["seq"] for event in shown] == list(range(1, 303))


def test_an_event_with_a_secret_stays_json_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    warning = ev.Warning(code="W", message='password=hunter2"\n and hf_abcdefghijkl', hint="token=abcdefgh")
    play(views.JsonLines(), [warning])
    shown = json.loads(capsys.readouterr().out)
    assert shown["message"] == 'password=[redacted]"\n and [redacted]'
    assert shown["hint"] == "token=[redacted]"


def prepared(**values: object) -> ev.DatasetPrepared:
    return ev.DatasetPrepared(
        path="d", format="alpaca", rows=10, kept=8, cut=2, dropped=2, tokens=400, trained_tokens=100, **values
    )


def test_the_first_row_is_shown_with_its_trained_tokens_in_brackets() -> None:
    spans = [ev.TokenSpan("<user>\nHi", False), ev.TokenSpan("Hello.<end>", True), ev.TokenSpan("\n", False)]
    text = "\n".join(views.dataset_lines(prepared(first_row=spans)))
    assert "8 of 10 rows kept, 2 cut" in text
    assert "25.0 % of 400 tokens are trained" in text
    assert "<user>\\nHi[Hello.<end>]\\n" in text


def test_a_long_first_row_is_shown_by_its_ends() -> None:
    shown = views.first_row([ev.TokenSpan("a" * 5000, False), ev.TokenSpan("b" * 5000 + "<end>", True)])
    assert len(shown) < 600
    assert shown.endswith("b<end>]")


def test_findings_of_a_kind_are_one_line() -> None:
    problems = [ev.Problem(line=n, code="EMPTY", message="no text") for n in range(1, 8)]
    shown = views.dataset_lines(prepared(problems=problems, problem_counts={"EMPTY": 40}))
    assert "40 EMPTY (lines 1, 2, 3, 4, 5 …): no text" in shown
    part = ev.Problem(line=3, code="GONE", field="messages[0].text", message="messages[0] has no 'text'")
    note = ev.Problem(line=0, code="LABELS", field="label", message="all are the same", severity="info")
    shown = views.dataset_lines(prepared(problems=[note, part], problem_counts={"GONE": 1, "LABELS": 1}))
    assert shown[-2:] == [
        "1 GONE (line 3): messages[0] has no 'text'",
        "1 LABELS (the file): label: all are the same",
    ]
    shown = views.dataset_lines(prepared(problems=[part], problem_counts={"GONE": 1}, unit="row"))
    assert shown[-1].startswith("1 GONE (row 3)")


def test_before_and_after_stand_side_by_side_in_80_columns() -> None:
    samples = [
        ev.Sample(step=0, prompt="Why?", text="Because of many reasons, " * 6, tuned=False),
        ev.Sample(step=0, prompt="How?", text="So.", tuned=False),
        ev.Sample(step=9, prompt="Why?", text="Aye.", tuned=True),
        ev.Sample(step=9, prompt="How?", text="Thus\nand so", tuned=True),
    ]
    shown = views.before_and_after(samples, 80)
    assert max(map(len, shown)) <= 80
    assert sum(line.startswith("> ") for line in shown) == 2
    assert any(line.startswith("So. ") and line.endswith("| Thus") for line in shown)
    assert any(line.endswith("| Aye.") for line in shown)


def test_text_from_outside_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.line("a\x1b]0;owned\x07b\x9bc\rd\u202ee")
    shown = capsys.readouterr().out
    assert shown == "a\\x1b]0;owned\\x07b\\x9bc\\rd\\u202ee\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    view = views.choose_view(as_json=False)
    assert isinstance(view, views.LiveLine)
    play(view, story(10))
    text = screen.getvalue()
    painted = [part.split("\r")[0].split("\n")[0] for part in text.split("\r\x1b[2K")[1:]]
    assert any("10/10 loss 2.0000" in part for part in painted)
    assert all(len(part) < 60 for part in painted if part.startswith("["))
    assert step_lines(text.replace("\r", "\n")) == []
    assert text.rstrip().splitlines()[-1].startswith("as text:")


@pytest.mark.parametrize(("term", "tty"), [("dumb", True), ("xterm", False)])
def test_where_a_line_cannot_be_written_over_lines_are_written(
    term: str, tty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", Terminal() if tty else io.StringIO())
    monkeypatch.setenv("TERM", term)
    assert isinstance(views.choose_view(as_json=False), views.PlainLines)


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_is_respected(no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    output.narrate("mind this", "warning")
    assert ("\x1b[" in screen.getvalue()) == coloured
