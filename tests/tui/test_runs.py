from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import msgspec
import pytest
import recorded
from acting import key_of, seen, shown_path, text_of, until
from backprop.core import events as ev
from backprop.core.errors import RunError
from backprop.core.redaction import CONTROLS
from backprop.runs import engine_client
from backprop.runs.deletion import delete_run
from backprop.runs.index import RunIndex
from backprop.runs.state import read_run
from textual.pilot import Pilot

from backprop_tui.app import BackpropApp
from backprop_tui.charts.series import SMOOTHING
from backprop_tui.remembered import recall, remember
from backprop_tui.run_reader import RunReader
from backprop_tui.screens.dialogs import Question
from backprop_tui.screens.runs.screen import RunsScreen, matches


async def listed(pilot: Pilot[None], count: int) -> RunsScreen:
    """Wait until the list shows ``count`` runs and the chosen one in detail."""
    screen = pilot.app.screen
    assert isinstance(screen, RunsScreen)
    await until(lambda: screen.found is not None and len(screen.found) == count, f"{count} runs")
    if count:
        await until(lambda: shown_path(screen) == screen.chosen_path, "the detail")
    await pilot.pause()
    return screen


def order(app: BackpropApp) -> list[str]:
    """The ids in the list, from the top."""
    known = ("3f2a9c1b", "77d0c3f1", "c0ffee12", "dead00be", "b81e40aa")
    rows = text_of(app).split("\n")[3:9]
    return [run_id for row in rows for run_id in known if run_id in row]


async def test_every_run_of_the_output_directory_is_listed_the_newest_first(output: Path) -> None:
    recorded.one_of_each(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await listed(pilot, 5)
        assert order(pilot.app) == ["b81e40aa", "dead00be", "c0ffee12", "77d0c3f1", "3f2a9c1b"]
        shown = text_of(pilot.app)
        for words in ("✓ done", "✗ failed", "✗ crashed"):
            assert words in shown


async def test_without_runs_it_says_how_to_begin(output: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await listed(pilot, 0)
        await until(lambda: "demonstration" in text_of(pilot.app), "the welcome")


async def test_a_damaged_run_is_marked_and_explained(output: Path) -> None:
    recorded.torn(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await listed(pilot, 1)
        shown = text_of(pilot.app)
        assert "✗ crashed !" in shown
        assert "line 8 is no whole event" in shown
        assert "run.json is missing" in shown


async def test_the_filter_keeps_runs_with_every_word_and_escape_drops_it(output: Path) -> None:
    recorded.one_of_each(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await listed(pilot, 5)
        await pilot.press("slash", *"crash c0", "enter")
        assert order(pilot.app) == ["c0ffee12"]
        assert "1 of 5" in text_of(pilot.app)
        await pilot.press("escape")
        assert len(order(pilot.app)) == 5


async def test_sorting_by_status_groups_the_runs(output: Path) -> None:
    recorded.one_of_each(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await listed(pilot, 5)
        await pilot.press("o")
        assert screen.sort == "status"
        assert order(pilot.app)[-1] == "77d0c3f1"


async def test_the_loss_of_the_list_is_the_end_of_the_smoothed_curve(output: Path) -> None:
    run = recorded.Recorder(output, "aaaabbbbcccc", recorded.demo_like(output))
    run.start()
    run.steps(1, 9, 10)
    (last,) = recorded.make_steps(10, 10, 10)
    run.write(msgspec.structs.replace(last, loss=9.0))
    async with BackpropApp().run_test(size=(140, 45)) as pilot:
        screen = await listed(pilot, 1)
        curve = screen._plot.curve
        shown = f"{curve.smooth[SMOOTHING.index(0.6)]:.3f}"
        assert 3.0 < float(shown) < 6.0
        row = text_of(pilot.app).split("\n")[3]
        assert shown in row
        assert f"→ {shown[:-1]}" in screen._detail.text


async def test_numbers_are_written_one_way(output: Path) -> None:
    run = recorded.Recorder(output, "aaaabbbbcccc", recorded.demo_like(output))
    run.start()
    for step in recorded.make_steps(12_343, 12_343, 1_000_000):
        run.write(step)
    async with BackpropApp().run_test(size=(140, 45)) as pilot:
        await listed(pilot, 1)
        assert "12k/1.0M" in text_of(pilot.app)
        assert "12,343 steps" in text_of(pilot.app)
        assert not re.search(r"12343|12 343|1000000", text_of(pilot.app))


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (58, "status run model steps loss"),
        (78, "status run model steps loss curve started▾"),
        (118, "status run model dataset steps loss helped curve started▾"),
        (138, "status run name model dataset steps loss helped curve started▾"),
        (148, "status run name model dataset steps loss helped curve started▾ took"),
    ],
)
async def test_columns_that_have_no_room_are_left_out_and_none_is_cut(output: Path, width: int, titles: str) -> None:
    recorded.running(output)
    async with BackpropApp().run_test(size=(width + 2, 24)) as pilot:
        await listed(pilot, 1)
        head, row = text_of(pilot.app).split("\n")[2:4]
        assert head.split() == titles.split()
        assert "720/1,000" in row
        assert "…" not in row


async def test_the_cursor_stays_on_its_run_when_another_one_comes(output: Path) -> None:
    recorded.failed(output)
    recorded.finished_demo(output, created=recorded.NOW - 100)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await listed(pilot, 2)
        await pilot.press("down")
        before = screen.chosen_path
        recorded.crashed(output, created=recorded.NOW + 500)
        screen.look()
        await listed(pilot, 3)
        assert screen.chosen_path == before


async def test_while_many_runs_are_read_the_cursor_is_at_the_newest(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backprop_tui.run_reader.PORTION", 0.0)
    for number in range(4):  # those that are read first are the oldest
        recorded.failed(output, f"{number:012x}", created=recorded.NOW - 100 * number)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await listed(pilot, 4)
        assert screen.chosen_path == str(output / f"{0:012x}")


async def test_a_second_demonstration_is_not_started_beside_a_living_run(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    monkeypatch.setattr(engine_client, "start", begun.append)
    run = recorded.running(output, steps=5)
    with run.directory.hold_lock():
        async with BackpropApp(attach=run.directory.path).run_test() as pilot:
            app = await seen(pilot, run.seq)
            await pilot.press(key_of("runs"), "d")
            assert begun == []
            assert any("a run is going already" in n.message for n in app._notifications)


async def test_an_index_that_cannot_be_used_is_said_once(output: Path, own_home: Path) -> None:
    recorded.failed(output)
    (own_home / "data").write_text("in the way")
    async with BackpropApp().run_test() as pilot:
        screen = await listed(pilot, 1)
        await until(lambda: screen._troubled, "the trouble")
        screen.look()
        await until(lambda: not screen._reading.locked(), "the second look")
        await pilot.pause()
        assert len([n for n in pilot.app._notifications if "cannot be used" in n.message]) == 1


async def test_the_detail_of_another_run_that_comes_late_is_not_shown(output: Path) -> None:
    late = read_run(recorded.crashed(output).directory.path)
    recorded.failed(output, created=recorded.NOW + 500)
    async with BackpropApp().run_test() as pilot:
        screen = await listed(pilot, 2)
        before = shown_path(screen)
        screen._take_state(late)
        assert shown_path(screen) == before != late.path
        screen._read_state(str(output / "deleted meanwhile"))
        assert shown_path(screen) == before


async def test_runs_are_read_by_one_thread_at_a_time_and_only_where_they_are_seen(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.failed(output)
    async with BackpropApp().run_test() as pilot:
        screen = await listed(pilot, 1)
        await until(lambda: not screen._reading.locked(), "the first look")
        read: list[object] = []
        monkeypatch.setattr(screen._reader, "read", lambda *given: read.append(given) or screen.found)
        with screen._reading:
            screen._read_runs()
        assert read == []
        await pilot.press(key_of("live"))
        screen.look()
        await pilot.pause()
        assert read == []


async def test_the_detail_of_the_next_run_begins_at_its_top(output: Path) -> None:
    recorded.one_of_each(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await listed(pilot, 5)
        screen._detail.scroll_by(5)
        assert screen._detail.top == 5
        await pilot.press("down")
        await until(lambda: shown_path(screen) == screen.chosen_path, "the next detail")
        assert screen._detail.top == 0


async def test_enter_opens_the_chosen_run(output: Path) -> None:
    recorded.finished_demo(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        app = pilot.app
        assert isinstance(app, BackpropApp)
        await listed(pilot, 1)
        await pilot.press("enter")
        assert app.current_mode == "live"
        assert app.watched is not None
        await until(lambda: app.watched is not None and app.watched.state.status == "done", "the state")


async def test_deleting_asks_and_removes_the_directory(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded.failed(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await listed(pilot, 1)
        await pilot.press("x", "enter")
        assert run.directory.path.exists()
        with monkeypatch.context() as patch:  # in a browser, which may not write there
            patch.setenv("WRITING_CONFINED_TO", str(output / "elsewhere"))
            await pilot.press("x", "d")
            await until(lambda: "UI_OUTPUT_DIR_FORBIDDEN" in text_of(pilot.app), "why it stays")
            await pilot.press("c")
        assert run.directory.path.exists()
        await pilot.press("x", "d")
        await until(lambda: not run.directory.path.exists(), "the removal")


async def test_enter_before_the_list_is_there_opens_its_first_run_when_it_comes(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recorded.finished_demo(output)
    known, read = threading.Event(), RunReader.read
    monkeypatch.setattr(RunReader, "read", lambda *given: known.wait() and read(*given))
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        app = pilot.app
        assert isinstance(app, BackpropApp)
        await pilot.press("enter")
        await pilot.pause()
        known.set()
        await until(lambda: app.watched is not None, "the run")
        assert app.watched is not None
        assert app.watched.path == run.directory.path


async def test_marked_runs_are_deleted_together(output: Path) -> None:
    recorded.one_of_each(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await listed(pilot, 5)
        await pilot.press("down", "space", "space", "x")
        assert "2 marked" in text_of(pilot.app).split("\n")[1]
        assert "Delete 2 runs" in text_of(pilot.app)
        assert "dead00be" in text_of(pilot.app)
        await pilot.press("d")
        await until(lambda: screen.found is not None and len(screen.found) == 3, "the removal")
        assert order(pilot.app) == ["b81e40aa", "77d0c3f1", "3f2a9c1b"]


async def test_marks_are_dropped_by_escape_and_go_with_what_is_filtered_out(output: Path) -> None:
    recorded.one_of_each(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await listed(pilot, 5)
        await pilot.press("space", "space", "escape")
        assert "marked" not in text_of(pilot.app)
        await pilot.press("space", "slash", *"done", "enter", "x")
        assert "Delete run 3f2a9c1b7d20" in text_of(pilot.app)
        assert "marked" not in text_of(pilot.app)
        await pilot.press("escape")
        assert screen.found is not None
        assert len(screen.found) == 5


async def test_continuing_is_offered_where_there_is_something_to_continue(output: Path) -> None:
    recorded.finished_demo(output)
    recorded.crashed(output, created=recorded.NOW + 500)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await listed(pilot, 2)
        assert "c resume" in text_of(pilot.app).split("\n")[-1]
        await pilot.press("down")
        assert "c resume" not in text_of(pilot.app).split("\n")[-1]


async def test_a_run_that_took_no_step_is_neither_extended_nor_forked(output: Path) -> None:
    recorded.failed(output, created=recorded.NOW + 500)
    recorded.refused(output)
    async with BackpropApp().run_test(size=(200, 30)) as pilot:
        screen = await listed(pilot, 2)
        assert {"extend", "fork", "replay"} <= {key.name for key in screen.own_keys()}
        await pilot.press("down")
        assert {"extend", "fork"}.isdisjoint(names := {key.name for key in screen.own_keys()})
        assert {"resume", "replay"} <= names


async def test_the_titles_of_columns_sort_by_them_and_the_other_way_round(output: Path) -> None:
    recorded.one_of_each(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await listed(pilot, 5)
        newest = order(pilot.app)
        await pilot.press("O")
        assert order(pilot.app) == newest[::-1]
        assert "started▴" in text_of(pilot.app)
        await pilot.press("O")
        row = text_of(pilot.app).split("\n")[2]
        await pilot.click("#table", offset=(row.index("loss") - 1, 0))
        assert screen.sort == "loss"
        best = order(pilot.app)
        await pilot.click("#table", offset=(row.index("loss") - 1, 0))
        assert order(pilot.app) == best[::-1]
        await pilot.click("#table", offset=(row.index("curve") - 1, 0))
        assert screen.sort == "loss"


async def test_the_key_bar_shows_what_works_while_one_types_and_afterwards(output: Path) -> None:
    recorded.failed(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await listed(pilot, 1)
        before = text_of(pilot.app).split("\n")[-1]
        await pilot.press("slash")
        assert text_of(pilot.app).split("\n")[-1] == " enter keep the filter  esc drop it"
        await pilot.press(*"zz")
        await pilot.press("escape")
        assert text_of(pilot.app).split("\n")[-1] == before


@pytest.mark.parametrize(("key", "copied"), [("i", "77d0c3f1e9ab"), ("c", "backprop resume 77d0c3f1e9ab")])
async def test_an_id_and_a_command_are_copied_by_the_terminal(output: Path, key: str, copied: str) -> None:
    recorded.failed(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await listed(pilot, 1)
        await pilot.press("y", key)
        assert pilot.app.clipboard == copied


async def test_a_run_that_failed_for_good_is_not_continued_without_a_question(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []
    monkeypatch.setattr(engine_client, "resume", lambda path: begun.append(path) or engine_client.attach(path))
    run = recorded.failed(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await listed(pilot, 1)
        await pilot.press("c")
        shown = " ".join(text_of(pilot.app).replace("│", " ").split())
        assert "What to do: lower the learning rate (learning_rate 0.0002)" in shown
        await pilot.press("enter")
        assert begun == []
        await pilot.press("c", "c")
        assert begun == [run.directory.path]


async def test_a_run_that_failed_for_now_is_continued_at_once(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []
    monkeypatch.setattr(engine_client, "resume", lambda path: begun.append(path) or engine_client.attach(path))
    run = recorded.crashed(output)
    run.write(ev.RunFailed(code="RUNTIME_IO_FAILED", message="disk full", hint="make room", retryable=True))
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await listed(pilot, 1)
        await pilot.press("c")
        assert begun == [run.directory.path]


@pytest.mark.parametrize("size", [(60, 16), (80, 24)])
async def test_a_question_shows_all_its_answers_however_long_its_text(output: Path, size: tuple[int, int]) -> None:
    run = recorded.crashed(output)
    run.write(ev.RunFailed(code="DATASET_ROWS_UNUSABLE", message="word " * 300, hint="look", retryable=False))
    async with BackpropApp().run_test(size=size) as pilot:
        await listed(pilot, 1)
        await pilot.press("c")
        shown = text_of(pilot.app)
        assert "Continue all the same" in shown
        assert "╰─" in shown
        assert "…" in shown


async def test_the_palette_names_each_command_with_its_key_on_one_line(output: Path) -> None:
    recorded.failed(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await listed(pilot, 1)
        await pilot.press("ctrl+p")
        await until(lambda: "Filter" in text_of(pilot.app), "the commands")
        lines = [line.strip() for line in text_of(pilot.app).split("\n")]
        found = [line for line in lines if re.match(r"(Chat|Compare|Copy|Data|Delete|Demo|Extend|Filter) ", line)]
        assert len(found) == 8
        assert found[4].split()[:4] == ["Delete", "x", "delete", "the"]


async def test_the_theme_is_remembered(output: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        pilot.app.theme = "backprop-light"
        await until(lambda: recall("theme") == "backprop-light", "the theme on disk")
    assert BackpropApp().theme == "backprop-light"
    remember("theme", "no such theme")
    assert BackpropApp().theme == "backprop-dark"


async def test_a_living_run_is_never_deleted(output: Path) -> None:
    run = recorded.running(output, steps=5)
    with run.directory.hold_lock():
        async with BackpropApp().run_test(size=(80, 24)) as pilot:
            await listed(pilot, 1)
            await pilot.press("x")
            assert not isinstance(pilot.app.screen, Question)
    assert run.directory.path.exists()


def test_a_directory_that_is_no_run_is_never_deleted(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError):
        delete_run(precious)
    assert (precious / "thesis.txt").exists()


def test_a_link_to_a_run_is_not_followed_when_deleting(output: Path, tmp_path: Path) -> None:
    run = recorded.failed(output)
    link = tmp_path / "link"
    link.symlink_to(run.directory.path)
    with pytest.raises(RunError):
        delete_run(link)
    assert run.directory.journal.exists()


def test_a_run_matches_by_any_part_of_what_is_shown(output: Path) -> None:
    recorded.finished_demo(output)
    with RunIndex() as index:
        index.scan(output)
        (run,) = index.summaries()
    assert matches(run, "")
    assert matches(run, "DEMO smollm")
    assert not matches(run, "demo llama")


async def test_nothing_that_a_run_s_files_say_controls_the_terminal(output: Path) -> None:
    recorded.one_of_each(output)
    evil = "\x1b[31m\x9b2J\u202e\u2066\r\n[/nothing][b]"
    told = json.dumps(evil)[1:-1]
    keys = "model|data|run_name|message|hint|prompt|text|path|format|code|mode|dtype|device|detail"
    for journal in output.glob("*/events.jsonl"):
        journal.write_text(re.sub(rf'("({keys})":")', lambda found: found[0] + told, journal.read_text()))
    async with BackpropApp().run_test(size=(140, 50), notifications=True) as pilot:
        screen = await listed(pilot, 5)
        for _ in range(5):
            assert not CONTROLS.search(text_of(pilot.app).replace("\n", ""))
            await pilot.press("down")
            await until(lambda: shown_path(screen) == screen.chosen_path, "the detail")
            await pilot.pause()
        await pilot.press("enter")
        await until(lambda: pilot.app.current_mode == "live", "the run")
        pilot.app.notify(evil, title="X")
        await until(lambda: "[/nothing]" in text_of(pilot.app), "the message")
        assert not CONTROLS.search(text_of(pilot.app).replace("\n", ""))


async def test_an_index_that_cannot_be_used_is_said_and_the_runs_are_shown(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.one_of_each(output)
    monkeypatch.setenv("XDG_DATA_HOME", "/dev/null")
    async with BackpropApp().run_test(size=(80, 24), notifications=True) as pilot:
        await listed(pilot, 5)
        await until(lambda: "the index over runs" in " ".join(text_of(pilot.app).split()), "what is wrong")
