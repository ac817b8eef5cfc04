"""A session of several runs on the screens: its timeline, its forgetting table, and the way to its runs and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import recorded
from acting import ended, seen, shown_path, text_of, until
from backprop.core.events import Rewound
from backprop.runs import engine_client
from backprop.runs.index import RunIndex
from backprop.runs.sessions import session_of
from backprop.runs.state import read_run
from textual.pilot import Pilot

from backprop_tui.app import BackpropApp
from backprop_tui.screens.live import LiveScreen
from backprop_tui.screens.runs.screen import RunsScreen
from backprop_tui.widgets.session import cell_words, change, forgetting_rows, piece, timeline

SMALL, LARGE = (80, 24), (140, 45)
TIMELINE, FORGETTING = ["tab"] * 3, ["tab"] * 4


def opened(seq: int, *keys: str) -> Callable[[Pilot[None]], Awaitable[None]]:
    """Wait for the session as far as it is recorded, then press keys."""

    async def act(pilot: Pilot[None]) -> None:
        await seen(pilot, seq)
        await pilot.press(*keys)
        await pilot.pause()

    return act


@pytest.fixture(autouse=True)
def true_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "truecolor")


@pytest.mark.parametrize(
    ("keys", "size", "done"),
    [(TIMELINE, SMALL, 3), ([*FORGETTING, "right"], SMALL, 5), (FORGETTING, LARGE, 5)],
)
def test_a_session_on_the_live_screen(
    output: Path, snap_compare: Callable[..., bool], keys: list[str], size: tuple[int, int], done: int
) -> None:
    run = recorded.session(output, done=done, failed=4)
    with ExitStack() as stack:
        if done < 5:
            stack.enter_context(run.directory.hold_lock())
        app = BackpropApp(attach=run.directory.path)
        assert snap_compare(app, run_before=opened(run.seq, *keys), terminal_size=size)


def test_the_table_without_colour(
    output: Path, snap_compare: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    run = recorded.session(output, done=5, failed=4)
    app = BackpropApp(attach=run.directory.path)
    assert snap_compare(app, run_before=opened(run.seq, *FORGETTING, "right"), terminal_size=SMALL)


@pytest.mark.usefixtures("fixed_clock")
def test_a_session_on_the_runs_screen(output: Path, snap_compare: Callable[..., bool]) -> None:
    recorded.session(output)

    async def listed(pilot: Pilot[None]) -> None:
        screen = pilot.app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: bool(screen.chosen_path) and shown_path(screen) == screen.chosen_path, "the detail")
        await pilot.pause()

    assert snap_compare(BackpropApp(), run_before=listed, terminal_size=LARGE)


def text(rows: list[list[tuple[str, str]]]) -> list[str]:
    return ["".join(words for words, _ in row).rstrip() for row in rows]


def test_what_became_of_each_run_is_said_with_its_reason(output: Path) -> None:
    state = read_run(recorded.session(output, done=4, failed=4).directory.path)
    rows = timeline(state, 76)
    words = dict(zip([index for index, _ in rows], text([row for _, row in rows]), strict=True))
    whole = "\n".join(text([row for _, row in rows]))
    assert [index for index, _ in rows] == [1, 2, 2, 3, 4, 4, 5]
    assert "100%   1.1500   1.0500" in words[1]
    assert "kept out        10        –   2.5000   1.2000" in whole
    assert "merging it raises the mean held-out loss of earlier runs by 0.412" in whole
    assert "✗ 4  task_4.jsonl" in whole
    assert "[RUNTIME_NOT_FINITE] 5 steps in a row" in whole
    # Its engine is gone, and it was not done: the fifth was begun.
    assert "✗ 5  task_5.jsonl" in words[5]
    assert "crashed" in words[5]


def test_the_direction_of_a_cell_is_a_mark_and_colour_only_adds_how_far(output: Path) -> None:
    table = read_run(recorded.session(output, done=5).directory.path).forgetting
    found = {(after, held_out): piece(table, after, held_out) for after in range(6) for held_out in range(1, 6)}
    assert found[0, 1] == ("  2.630 ", "muted")  # the base has nothing to be compared with
    assert found[1, 1] == ("  1.150▼", "good+lighter+bold")  # what was learned, against the base
    assert found[2, 1][0] == "  1.150 "  # kept out: all as before
    assert found[3, 1] == ("  1.210▲", "bad+warm")  # against what it was when learned
    assert found[4, 1] == (" " * 2 + "1.150 ", "text")
    assert found[3, 2] == ("  2.500▼", "good+lighter")  # never learned: against the base still
    assert found[1, 3] == (" " * 8, "text")
    assert change(table, table.cells[0]) is None
    assert cell_words(table, 3, 1) == ("after run 3, rows of run 1: 1.210 (95 % 1.010 to 1.410, n 20), ▲ +0.060")
    assert cell_words(table, 1, 4) == "after run 1, rows of run 4: not scored, for it comes later"


def test_a_table_too_wide_for_the_detail_is_shown_in_parts_with_its_averages_below(output: Path) -> None:
    run = recorded.session(output, runs=20, done=20)
    rows = text(forgetting_rows(read_run(run.directory.path), 76))
    heads = [row for row in rows if "rows of" in row]
    assert [head.split()[2:] for head in heads] == [
        " ".join(f"run {each}" for each in columns).split() for columns in (range(1, 9), range(9, 17), range(17, 21))
    ]
    assert max(map(len, rows)) <= 76
    assert "▲ AA 2.181, BWT +0.563 (above 0 is forgetting)" in rows
    run.write(Rewound(index=1))
    assert "after 2" not in "\n".join(text(forgetting_rows(read_run(run.directory.path), 76)))


async def test_the_cursor_of_a_large_table_shows_its_cell_whole(output: Path) -> None:
    run = recorded.session(output, runs=20, done=20)
    app = BackpropApp(attach=run.directory.path)
    async with app.run_test(size=SMALL) as pilot:
        await ended(pilot)
        await pilot.press(*FORGETTING)
        await pilot.pause()
        assert "after run 20, rows of run 1: 2.110 (95 % 1.910 to 2.310, n 20)" in text_of(app)
        assert "after 3 " not in text_of(app)
        await pilot.press("home", "down", "down", "down", *["right"] * 8)
        await pilot.pause()
        shown = text_of(app)
        head = next(row.split() for row in shown.split("\n") if "rows of" in row)
        assert head == ["rows", "of", "‹", *" ".join(f"run {each}" for each in range(2, 10)).split(), "›"]
        assert "✓ after 3" in shown
        assert "after run 3, rows of run 9: not scored" in shown
        assert "AA 1.230" in shown


async def test_from_a_session_to_one_of_its_runs_and_back(output: Path) -> None:
    session = recorded.session(output)
    inner = session.directory.path / "runs" / f"{4:012x}"
    with session.directory.hold_lock(), recorded.RunDirectory(inner).hold_lock():
        app = BackpropApp(attach=session.directory.path)
        async with app.run_test(size=SMALL) as pilot:
            await seen(pilot, session.seq)
            assert "run 4 of 5" in text_of(app).split("\n")[2]
            await pilot.press(*TIMELINE, "enter")
            await until(lambda: app.watched is not None and app.watched.path == inner, "the run")
            await until(lambda: app.watched is not None and app.watched.state.step == 4, "its steps")
            await pilot.pause()
            # Its session takes the commands; leaving asks about that alone.
            assert "pause" not in text_of(app).split("\n")[-1]
            assert "esc session" in text_of(app).split("\n")[-1]
            assert [watch.path for watch in app.living()] == [session.directory.path]
            await pilot.press("escape")
            await until(lambda: app.watched is not None and app.watched.path == session.directory.path, "the session")
            await pilot.pause()
            screen = app.screen
            assert isinstance(screen, LiveScreen)
            app.flush()
            assert screen.pane == "timeline"
            await pilot.press("escape")
            await until(lambda: app.current_mode == "runs", "the runs")
            await app.workers.wait_for_complete()
    with RunIndex() as index:
        assert [run.path for run in index.each()] == [str(session.directory.path)]


@pytest.mark.parametrize("of_it", [False, True], ids=["the session", "one of its runs"])
async def test_continuing_continues_the_session(output: Path, monkeypatch: pytest.MonkeyPatch, of_it: bool) -> None:
    session = recorded.session(output).directory.path
    resumed: list[Path] = []

    def resume(path: Path) -> object:
        resumed.append(path)
        return engine_client.attach(path)

    monkeypatch.setattr("backprop.runs.engine_client.resume", resume)
    app = BackpropApp(attach=session / "runs" / f"{4:012x}" if of_it else session)
    async with app.run_test(size=SMALL) as pilot:
        await ended(pilot)
        if not of_it:
            await pilot.press("4")
            screen = app.screen
            assert isinstance(screen, RunsScreen)
            await until(lambda: shown_path(screen) == str(session), "the detail")
            offered = {key.name for key in screen.own_keys()}
            assert "fork" in offered
            assert not {"extend", "replay"} & offered  # the engine refuses both of a session
        await pilot.press("c")
        await until(lambda: bool(resumed), "the resume")
    assert resumed == [session]


def test_a_fork_beside_the_runs_of_a_session_is_one_of_its_own(output: Path) -> None:
    session = recorded.session(output).directory.path
    inner = recorded.RunDirectory(session / "runs" / f"{1:012x}")
    assert session_of(session) is None
    for start, found in (("", session), (f"{session}/starts/step-1", session), (f"{inner.path}/checkpoints/s", None)):
        inner.update_record(forked_from=start)
        assert session_of(inner.path) == found
