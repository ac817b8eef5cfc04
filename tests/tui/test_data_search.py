"""Search and filter on the Data screen."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from backprop.data.reader import Row
from data_screen_app import DataApp, alpaca, at_rest, until, until_text, write_rows
from textual.pilot import Pilot

from backprop_tui.screens import tasks
from backprop_tui.screens.dataset import rows as browser
from backprop_tui.screens.dataset.search import text_test

NARROW = (80, 24)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A hundred rows: 20 and 60 mention a whale, 30 is broken, 40 has a tool turn."""
    rows: list[object] = [alpaca(number) for number in range(1, 101)]
    rows[19] = {"instruction": "Sighted?", "output": "A Whale to starboard"}
    rows[59] = {"instruction": "Whale oil left?", "output": "Two barrels"}
    rows[29] = {"instruction": "no answer"}
    rows[39] = {
        "messages": [
            {"role": "user", "content": "Depth?"},
            {"role": "tool", "content": "9"},
            {"role": "assistant", "content": "Nine."},
        ]
    }
    return write_rows(tmp_path / "log.jsonl", rows)


async def ask(pilot: Pilot[None], key: str, words: str) -> None:
    """Open a prompt by its key, answer it, and wait for the work to end."""
    await pilot.press(key)
    entry = pilot.app.screen.query_one("#prompt-input")
    await until(pilot, lambda: pilot.app.focused is entry, "a prompt")
    entry.value = words  # type: ignore[attr-defined]
    await pilot.press("enter")
    await at_rest(pilot)


async def test_a_search_goes_to_the_next_hit_and_n_steps_through_them(log: Path) -> None:
    async with DataApp(log).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await ask(pilot, "slash", "whale")
        await until_text(pilot, "20 of 100", "search: 2 rows", "search 'whale': 2")
        await pilot.press("n")
        await until_text(pilot, "60 of 100")
        await pilot.press("n")
        await until_text(pilot, "20 of 100")
        await pilot.press("N")
        await until_text(pilot, "60 of 100")
        await pilot.press("escape")
        await until(pilot, lambda: "whale" not in pilot.app.text(), "no search")


async def test_a_search_that_finds_nothing_says_so_and_stays(log: Path) -> None:
    async with DataApp(log).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("down", "down")
        await ask(pilot, "slash", "kraken")
        await until_text(pilot, "search: 'kraken' was not found", "3 of 100")


@pytest.mark.parametrize(
    ("words", "shown", "count"),
    [
        ("bad", "no 'output'", "1 of 1"),
        ("role:tool", "UTA", "1 of 1"),
        ("format:openai", "UTA", "1 of 1"),
        ("WHALE", "A Whale to starboard", "1 of 2"),
    ],
)
async def test_a_filter_shows_only_the_rows_it_names(log: Path, words: str, shown: str, count: str) -> None:
    async with DataApp(log).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await ask(pilot, "f", words)
        screen = await until_text(pilot, shown, count, f"only {words!r}")
        assert "hold" not in screen


async def test_leaving_a_filter_keeps_the_row_under_the_cursor(log: Path) -> None:
    async with DataApp(log).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await ask(pilot, "f", "whale")
        await until_text(pilot, "1 of 2")
        await pilot.press("down", "escape")
        await until_text(pilot, "60 of 100", "hold 59?")


async def test_a_filter_for_a_format_that_does_not_exist_names_those_that_do(log: Path) -> None:
    async with DataApp(log).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await ask(pilot, "f", "format:sharegtp")
        await until_text(pilot, "no format is called 'sharegtp'; formats: sharegpt")


async def test_hits_can_be_looked_at_while_the_search_goes_on_and_x_stops_it(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def slow(words: str) -> browser.Test:
        plain = text_test(words)

        def test(row: Row) -> bool:
            if row.line == 50:
                reached.set()
                go_on.wait(60)
            return plain(row)

        return test

    many = write_rows(log.with_name("many.jsonl"), (alpaca(number) for number in range(2000)))
    monkeypatch.setattr(browser, "text_test", slow)
    async with DataApp(many).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("slash", *"hold 7", "enter")
        await until(pilot, reached.is_set, "row 50")
        await until_text(pilot, "8 of 2,000", "search 'hold 7' 0 % (x stops it)")
        await pilot.press("x")
        go_on.set()
        await until_text(pilot, "so far: stopped before the end")


@pytest.mark.parametrize(
    ("raw", "words", "holds"),
    [
        (b'{"text": "caf\\u00e9 noir"}', "CAFÉ", True),
        ('{"text": "café noir"}'.encode(), "CAFÉ", True),
        (b'{"text": "a \\"quoted\\" word"}', 'a "quoted"', True),
        (b'{"text": "one\\ntwo"}', "one\ntwo", True),
        (b'{"text": "three"}', "text", False),
        (b'{"n": 12, "ok": true}', "12", True),
        (b'{"broken', "brok", True),
    ],
)
def test_a_search_looks_into_values_however_they_are_written(raw: bytes, words: str, holds: bool) -> None:
    from backprop.data.parse import parse_json

    value, error = parse_json(raw)
    assert text_test(words)(Row(1, raw, value, error)) is holds


async def test_another_file_is_shown_whole_whatever_the_first_was_filtered_by(log: Path) -> None:
    other = write_rows(log.with_name("other.jsonl"), [{"text": f"entry {number}"} for number in range(30)])
    async with DataApp(log).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await ask(pilot, "f", "whale")
        await ask(pilot, "slash", "whale")
        await until_text(pilot, "1 of 2", "only 'whale'")
        pilot.app.data.open_path(str(other))
        screen = await until_text(pilot, "other.jsonl · text · 30 rows", "entry 0", "entry 9", "1 of 30")
        assert "whale" not in screen.lower()


def test_work_that_takes_its_time_says_how_long_it_will_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(tasks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    task: tasks.Task[int] = tasks.Task("counting tokens")
    assert task.words() == "counting tokens …"
    said = []
    for now[0], done in ((102.0, 10), (110.0, 0), (110.0, 10), (190.0, 90), (199.9, 100)):
        task.progress(done, 100)
        said.append(task.words().removeprefix("counting tokens "))
    assert said == ["10 %", "0 %", "10 %, 1:30 left", "90 %, 0:10 left", "100 %"]
