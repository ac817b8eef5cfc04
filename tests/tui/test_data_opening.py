"""Opening a dataset on the Data screen: without typing a path, or with one, however it is written."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from backprop.core.datasets import hub_name, recent_datasets, remember_dataset
from data_screen_app import DataApp, alpaca, at_rest, until, until_text, write_rows
from textual.pilot import Pilot
from textual.widgets import Input

from backprop_tui.screens.dataset import opening

NARROW, WIDE = (80, 24), (140, 40)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "cargo.jsonl", (alpaca(number) for number in range(300)))


async def asked(pilot: Pilot[None], key: str) -> Input:
    """The prompt that a key opens."""
    await pilot.press(key)
    entry = pilot.app.screen.query_one(Input)
    await until(pilot, lambda: pilot.app.focused is entry, "a prompt")
    return entry


@pytest.mark.parametrize("size", [(60, 16), NARROW])
async def test_enter_opens_a_dataset_of_the_current_directory(rows: Path, size: tuple[int, int]) -> None:
    (rows.parent / "notes.md").write_text("no dataset")
    async with DataApp().run_test(size=size) as pilot:
        screen = await until_text(pilot, "No dataset is open", "cargo.jsonl", "enter open", "o path")
        assert "notes.md" not in screen
        await pilot.press("enter")
        await until_text(pilot, "cargo.jsonl · alpaca", "What is in hold 1?")


@pytest.mark.parametrize("stays", [True, False])
async def test_enter_before_the_list_is_there_opens_its_first_when_it_comes_to_who_waits(
    rows: Path, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    known, offers = threading.Event(), opening.offers
    monkeypatch.setattr(opening, "offers", lambda: known.wait() and offers())
    async with DataApp().run_test(size=NARROW) as pilot:
        await until_text(pilot, "No dataset is open")
        await pilot.press("enter", *([] if stays else ["o"]))
        await pilot.pause()
        known.set()
        await until(pilot, lambda: bool(pilot.app.data.opening.offered), "the list")
        if stays:
            await until_text(pilot, "cargo.jsonl · alpaca", "What is in hold 1?")
        else:
            await at_rest(pilot)
            assert pilot.app.data.opened is None


async def test_what_was_opened_before_comes_first_wherever_it_is_and_not_when_it_is_gone(tmp_path: Path) -> None:
    gone, far = (write_rows(tmp_path / name / "far.jsonl", [alpaca(7)]) for name in map(_folder(tmp_path), "ab"))
    for path in (gone, far):
        async with DataApp(path).run_test(size=NARROW) as pilot:
            await at_rest(pilot)
    gone.unlink()
    write_rows(tmp_path / "near.jsonl", [alpaca(1)])
    async with DataApp().run_test(size=NARROW) as pilot:
        screen = await until_text(pilot, f"far.jsonl opened before, in ~/{far.parent.name}/", "near.jsonl")
        assert screen.index("far.jsonl") < screen.index("near.jsonl")
        assert screen.count("far.jsonl") == 1
        await pilot.press("enter")
        await until_text(pilot, "What is in hold 7?")
        entry = await asked(pilot, "o")
        await pilot.press("tab")
        assert entry.value == str(far)


def _folder(parent: Path):  # type: ignore[no-untyped-def]
    def made(name: str) -> str:
        (parent / name).mkdir()
        return name

    return made


def test_a_name_longer_than_a_file_system_takes_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert hub_name("a/" + "b" * 300) is None
    remember_dataset(f"{tmp_path}/{'b' * 300}")
    assert recent_datasets() == []


def test_the_same_dataset_is_remembered_once_and_a_broken_list_is_no_list(tmp_path: Path) -> None:
    from backprop.core import paths

    first, second = (str(write_rows(tmp_path / name, [alpaca(1)])) for name in ("a.jsonl", "b.jsonl"))
    for name in (first, second, first, "owner/name"):
        remember_dataset(name)
    assert recent_datasets() == ["owner/name", first, second]
    for pattern in ("*.jsonl", "*.csv"):
        remember_dataset(f"{tmp_path}/{pattern}")
    assert recent_datasets()[:2] == [f"{tmp_path}/*.jsonl", "owner/name"]
    next(paths.data_dir().glob("recent*")).write_text('{"no": "list"}')
    assert recent_datasets() == []
    remember_dataset(second)
    assert recent_datasets() == [second]


async def test_the_first_o_opens_the_prompt_and_is_no_part_of_the_path(rows: Path) -> None:
    async with DataApp().run_test(size=NARROW) as pilot:
        await until_text(pilot, "o path")
        entry = await asked(pilot, "o")
        assert entry.value == ""
        await pilot.press(*"cargo.jsonl", "enter")
        await until_text(pilot, "cargo.jsonl · alpaca")


async def test_a_folder_begins_a_path(tmp_path: Path) -> None:
    (tmp_path / "voyages").mkdir()
    write_rows(tmp_path / "voyages" / "log.jsonl", [alpaca(3)])
    async with DataApp().run_test(size=NARROW) as pilot:
        await until_text(pilot, "voyages/")
        entry = await asked(pilot, "enter")
        assert entry.value == "voyages/"
        await pilot.press("tab")
        await until(pilot, lambda: entry.value == "voyages/log.jsonl", "the file in it")
        await pilot.press("enter")
        await until_text(pilot, "What is in hold 3?")


@pytest.mark.parametrize("inside", [True, False])
async def test_a_wrong_path_stays_to_be_mended(rows: Path, inside: bool) -> None:
    async with DataApp(rows if inside else "").run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        entry = await asked(pilot, "o")
        await pilot.press(*"cargo.jsom", "enter")
        await until_text(pilot, "✗ no file")
        assert (entry.value, pilot.app.focused) == ("cargo.jsom", entry)
        await pilot.press("backspace", *"nl", "enter")
        await until_text(pilot, "cargo.jsonl · alpaca", "300 rows")
        await until(pilot, lambda: pilot.app.focused is pilot.app.data.table, "the table")


@pytest.mark.parametrize("form", ["'{}'", '"{}"', "{escaped}", "~/{name}", "'~/{name}'", "{}"])
async def test_a_path_may_be_written_as_for_a_shell(tmp_path: Path, form: str) -> None:
    path = write_rows(tmp_path / "the ship's log.jsonl", [alpaca(5)])
    plain = write_rows(tmp_path / "plain log.jsonl", [alpaca(5)])
    used = plain if "'" in form else path
    text = form.format(used, name=used.name, escaped=str(used).replace(" ", "\\ ").replace("'", "\\'"))
    async with DataApp().run_test(size=NARROW) as pilot:
        entry = await asked(pilot, "o")
        entry.value = text
        await pilot.press("enter")
        await until_text(pilot, f"{used.name} · alpaca", "What is in hold 5?")


@pytest.mark.parametrize("text", ["~nobody-at-all/x.jsonl", "a/" + "b" * 300, "c" * 300 + ".jsonl", "'half"])
async def test_a_path_that_cannot_be_is_said_in_words(text: str) -> None:
    async with DataApp().run_test(size=WIDE) as pilot:
        entry = await asked(pilot, "o")
        entry.value = text
        await pilot.press("tab")
        await until_text(pilot, "no file or directory begins like this")
        await pilot.press("enter")
        screen = await until_text(pilot, "✗")
        assert "defect" not in screen
        assert entry.value == text


async def test_shift_tab_goes_back_and_never_leaves_the_prompt(tmp_path: Path) -> None:
    for name in ("a1.jsonl", "a2.jsonl", "a3.csv"):
        (tmp_path / name).write_text("{}\n")
    async with DataApp().run_test(size=NARROW) as pilot:
        await until_text(pilot, "a3.csv")
        entry = await asked(pilot, "o")
        for wanted in ("a3.csv", "a2.jsonl", "a1.jsonl", "a3.csv"):
            await pilot.press("shift+tab")
            assert entry.value.endswith(wanted)
        await pilot.press("down")
        assert entry.value.endswith("a1.jsonl")
        assert pilot.app.focused is entry


async def test_while_a_person_types_the_key_bar_shows_the_keys_of_the_prompt_alone(rows: Path) -> None:
    async with DataApp(rows).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        bar = pilot.app.screen.query_one("#keybar")
        entry = await asked(pilot, "slash")
        pilot.app.data.flush()
        assert bar.render_line(0).text.split() == ["enter", "answer", "esc", "leave"]
        await pilot.press("q", "1")
        assert entry.value == "q1"
        await pilot.click("#keybar", offset=(18, 0))
        await until(pilot, lambda: not entry.has_focus, "the table")
        assert "f filter" in bar.render_line(0).text


@pytest.mark.parametrize(
    ("keys", "label", "wrong"),
    [(("l", "equals_sign"), "Longest row in tokens, from 16 to 1,048,576", "7"), (("g",), "Go to line", "0")],
)
async def test_a_prompt_for_a_number_takes_digits_and_says_its_range(
    rows: Path, keys: tuple[str, ...], label: str, wrong: str
) -> None:
    async with DataApp(rows).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press(*keys[:-1])
        await at_rest(pilot)
        before = pilot.app.focused
        entry = await asked(pilot, keys[-1])
        await until_text(pilot, label)
        entry.value = ""
        await pilot.press(*f"a-{wrong}e٣", "enter")
        assert entry.value == wrong
        await until_text(pilot, "✗ a number from")
        assert entry.has_focus
        await pilot.press("escape")
        assert pilot.app.focused is before  # the pane that asked, not the table


async def test_another_window_of_the_desktop_does_not_close_the_prompt(rows: Path) -> None:
    from textual import events

    async with DataApp(rows).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        entry = await asked(pilot, "o")
        await pilot.press(*"car")
        pilot.app.post_message(events.AppBlur())
        await until(pilot, lambda: not entry.has_focus, "another window")
        pilot.app.post_message(events.AppFocus())
        await until(pilot, lambda: entry.has_focus, "this window again")
        assert (entry.value, entry.parent.display) == ("car", True)


@pytest.mark.parametrize(
    "keys", [("c", "p"), ("l",), ("s",), ("w", "enter"), ("enter", "v"), ("slash", *"barrel", "enter"), ("G",)]
)
async def test_another_file_begins_anew_whatever_was_looked_at_in_the_first(rows: Path, keys: tuple[str, ...]) -> None:
    other = write_rows(rows.with_name("other.jsonl"), [{"text": f"entry {number}"} for number in range(30)])
    async with DataApp(rows).run_test(size=NARROW) as pilot:
        for key in keys:
            await at_rest(pilot)
            await pilot.press(key)
        await at_rest(pilot)
        screen = pilot.app.data
        screen.open_path(str(other))
        shown = await until_text(pilot, "other.jsonl · text · 30 rows", "entry 0", "entry 9", "1 of 30")
        assert "barrel" not in shown.lower()
        assert screen.focused is screen.table
        assert (screen.findings.found, screen.lengths.counted, screen.scores.report) == (None, None, None)
        assert (screen.notice, screen.table.words) == ("", {})
        await pilot.press("p")
        await until_text(pilot, "nothing to say about 30 rows")
