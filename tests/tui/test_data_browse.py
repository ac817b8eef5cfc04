"""Opening a file on the Data screen and moving over its rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from acting import key_of
from data_screen_app import DataApp, alpaca, at_rest, until, until_text, write_rows
from pyarrow import parquet
from textual.widgets import Input

from backprop_tui.app import BackpropApp
from backprop_tui.screens.dataset.screen import DataScreen
from backprop_tui.widgets.path_input import candidates

NARROW, WIDE = (80, 24), (140, 40)


async def test_a_big_file_is_shown_by_reading_only_the_rows_around_the_screen(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "big.jsonl", (alpaca(number) for number in range(200_000)))
    async with DataApp(path).run_test(size=NARROW) as pilot:
        app = pilot.app
        await until_text(pilot, "What is in hold 0?", "What is in hold 18?")
        await at_rest(pilot)
        await pilot.press("G")
        await until_text(pilot, "200,000 UA", "What is in hold 199999?")
        assert "200,000 of 200,000" in app.text()
        await pilot.press("g", *"123456", "enter")
        await until_text(pilot, "123,456 UA", "What is in hold 123455?")
        for _ in range(10):
            await pilot.press("pagedown")
        await until_text(pilot, "123,636 UA")
        # Some screens of rows, however often they were drawn while the index grew: never a share of the file.
        assert app.data.opened.reads < 20_000


async def test_the_last_row_is_reached_before_the_next_tick_after_the_index_is_complete(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "big.jsonl", (alpaca(number) for number in range(100_000)))
    async with DataApp(path).run_test(size=NARROW) as pilot:
        screen = pilot.app.data
        await until(pilot, lambda: screen.opened is not None, "an open file")
        pilot.app.flushing.pause()
        await until(pilot, lambda: screen.opened.source.complete, "all rows")
        screen.action_last()
        assert screen.table.cursor == 99_999


async def test_the_bar_scrolls_the_rows_and_leaves_the_cursor_where_it_is(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", (alpaca(number) for number in range(300)))
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.mouse_down("#rows", offset=(79, 19))
        await until_text(pilot, "What is in hold 299?", "1 of 300")
        await pilot.hover("#rows", offset=(79, 1))
        await until_text(pilot, "What is in hold 0?")
        await pilot.mouse_up("#rows", offset=(79, 1))
        await pilot.hover("#rows", offset=(79, 19))
        await pilot.pause()
        assert "What is in hold 0?" in pilot.app.text()


async def test_without_a_file_the_screen_asks_for_one_and_names_what_it_reads() -> None:
    async with DataApp().run_test(size=NARROW) as pilot:
        await until_text(pilot, "No dataset is open", ".jsonl", ".parquet", "sharegpt", "kto", "there is none")


async def test_tab_completes_the_path_and_enter_opens_it(tmp_path: Path) -> None:
    (tmp_path / "voyages").mkdir()
    write_rows(tmp_path / "voyages" / "cargo-list.jsonl", [alpaca(1)])
    (tmp_path / "voyages" / "cargo.notes").write_text("not a dataset")
    async with DataApp().run_test(size=NARROW) as pilot:
        await pilot.press("o")
        entry = pilot.app.screen.query_one("#prompt-input")
        await until(pilot, lambda: pilot.app.focused is entry, "a prompt")
        entry.value = f"{tmp_path}/voy"
        await pilot.press("tab")
        await until(pilot, lambda: entry.value.endswith("voyages/"), "the directory")
        await pilot.press("tab")
        await until(pilot, lambda: entry.value.endswith("voyages/cargo-list.jsonl"), "the only dataset in it")
        await pilot.press("enter")
        await until_text(pilot, "cargo-list.jsonl", "What is in hold 1?")


async def test_a_link_that_leads_back_to_itself_hides_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "circle.jsonl").symlink_to("circle.jsonl")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert candidates(f"{tmp_path}/r", (".jsonl",)) == candidates(f"{tmp_path}/", (".jsonl",))[1:] != []


async def test_tab_again_takes_the_next_of_several_candidates(tmp_path: Path) -> None:
    for name in ("a1.jsonl", "a2.jsonl", "a3.csv"):
        (tmp_path / name).write_text("{}\n")
    async with DataApp().run_test(size=NARROW) as pilot:
        await pilot.press("o")
        entry = pilot.app.screen.query_one("#prompt-input")
        await until(pilot, lambda: pilot.app.focused is entry, "a prompt")
        entry.value = f"{tmp_path}/a"
        seen = []
        for wanted in ("a1.jsonl", "a2.jsonl", "a3.csv", "a1.jsonl"):
            await pilot.press("tab")
            await until(pilot, lambda wanted=wanted: entry.value.endswith(wanted), wanted)
            seen.append(entry.value)
        assert len(set(seen)) == 3


async def test_keys_typed_right_after_a_prompt_opens_go_into_the_prompt(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", (alpaca(number) for number in range(300)))
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        pilot.app.data.action_go()
        assert pilot.app.focused is pilot.app.screen.query_one("#prompt-input")
        await pilot.press(*"250", "enter")
        await until_text(pilot, "250 of 300")


async def test_enter_shows_the_row_as_a_chat_and_v_as_json(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "system", "content": "Answer like a pilot."},
            {"role": "user", "content": "Where to?"},
            {"role": "assistant", "content": "North by north-west."},
        ]
    }
    async with DataApp(write_rows(tmp_path / "chat.jsonl", [row])).run_test(size=NARROW) as pilot:
        await until_text(pilot, "SUA", "Where to? ▸ North by north-west.")
        await pilot.press("enter")
        await until_text(pilot, "▌system Answer like a pilot. ▌user Where to? ▌assistant North by north-west.")
        await pilot.press("v")
        await until_text(pilot, '"messages": [ {', '"content": "North by north-west."')
        await pilot.press("escape")
        await until_text(pilot, "SUA", "1 of 1")


async def test_a_preference_pair_shows_both_sides(tmp_path: Path) -> None:
    row = {"prompt": "Sail or row?", "chosen": "Sail, the wind is fair.", "rejected": "Row."}
    async with DataApp(write_rows(tmp_path / "pairs.jsonl", [row])).run_test(size=NARROW) as pilot:
        await until_text(pilot, "preference", "U+/-")
        await pilot.press("enter")
        await until_text(
            pilot, "Sail or row?", "── chosen ── ▌assistant Sail, the wind is fair.", "── rejected ──", "Row."
        )


async def test_a_wide_terminal_shows_the_row_beside_the_table_as_the_cursor_moves(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [alpaca(1), alpaca(2)])
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await until_text(pilot, "▌user", "line 1 as chat")
        await pilot.press("down")
        await until_text(pilot, "line 2 as chat", "Barrel 2: salt")


async def test_resizing_moves_between_one_and_two_panes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [alpaca(1, words=60), alpaca(2)])
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await until_text(pilot, "What is in hold 2?")
        assert "▌user" not in pilot.app.text()
        await pilot.resize_terminal(*WIDE)
        await until_text(pilot, "What is in hold 2?", "▌assistant")
        await pilot.resize_terminal(*NARROW)
        await until(pilot, lambda: "▌user" not in pilot.app.text(), "one pane")


async def test_control_characters_of_a_row_never_reach_the_terminal(tmp_path: Path) -> None:
    row = {"instruction": "red \x1b[31m alert\x07", "output": "over\r\x9b2J\u202eback"}
    async with DataApp(write_rows(tmp_path / "rows.jsonl", [row])).run_test(size=WIDE) as pilot:
        for view in ("as chat", "as JSON"):
            screen = await until_text(pilot, view, "red ␛[31m alert")
            assert not set(screen) & set("\x1b\x07\r\x9b\u202e")
            await pilot.press("v")


async def test_a_row_of_megabytes_is_shown_from_its_start_and_says_what_is_left_out(tmp_path: Path) -> None:
    row = {"instruction": "Recite.", "output": "word " * 1_000_000}
    async with DataApp(write_rows(tmp_path / "rows.jsonl", [row, alpaca(2)])).run_test(size=NARROW) as pilot:
        await until_text(pilot, "5.0M Recite.", "What is in hold 2?")
        await pilot.press("enter")
        await until_text(pilot, "▌assistant word word")
        await pilot.press("end")
        await until_text(pilot, "4,800,000 more characters, not shown")


async def test_a_mapping_that_was_found_is_shown(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "qa.jsonl", [{"question": "Depth?", "answer": "Nine fathoms."}])
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await until_text(pilot, "read as instruction=question, output=answer", "Depth? ▸ Nine fathoms.")


@pytest.mark.parametrize("name", ["rows.csv", "rows.txt", "rows.json", "rows.parquet", "rows.jsonl.gz"])
async def test_every_kind_of_file_is_browsed_alike(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [{"text": f"log entry {number}"} for number in range(50)]
    if name.endswith(".csv"):
        path.write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))
    elif name.endswith(".txt"):
        path.write_text("".join(f"{row['text']}\n" for row in rows))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await until_text(pilot, f"{name} · text · 50 rows", "log entry 0")
        await at_rest(pilot)
        await pilot.press("G")
        await until_text(pilot, "log entry 49", "50 of 50")


async def test_a_file_that_shrinks_while_it_is_open_says_so_in_the_row(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", (alpaca(number) for number in range(3000)))
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        write_rows(path, [alpaca(0)])
        await pilot.press("G")
        await until_text(pilot, "✗", "the row is no longer there")


async def test_another_file_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "first.jsonl", (alpaca(number) for number in range(100)))
    second = write_rows(tmp_path / "second.jsonl", [{"text": "only this"}])
    async with DataApp(first).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("G")
        pilot.app.data.open_path(str(second))
        screen = await until_text(pilot, "second.jsonl · text · 1 row", "only this", "1 of 1")
        assert "hold" not in screen


async def test_the_application_has_the_screen_under_its_number_and_in_the_palette(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [alpaca(1), alpaca(2)])
    app = BackpropApp()
    async with app.run_test(size=NARROW) as pilot:
        await pilot.press(key_of("data"))
        await until(pilot, lambda: isinstance(app.screen, DataScreen), "the Data screen")
        screen = app.screen
        assert isinstance(screen, DataScreen)
        entry = screen.query_one(Input)
        await pilot.press("o")
        await until(pilot, lambda: app.focused is entry, "a prompt")
        entry.value = str(path)
        await pilot.press("enter")
        await until(pilot, lambda: screen.table.count == 2, "two rows")
        assert {"Check", "Filter", "Lengths", "Copy"} <= {
            command.title.split()[0] for command in app.get_system_commands(screen)
        }
        await pilot.press(key_of("runs"))
        await until(pilot, lambda: not isinstance(app.screen, DataScreen), "another screen")
        await pilot.press(key_of("data"))
        await until(pilot, lambda: app.screen is screen and screen.table.count == 2, "the same file")


async def test_the_keys_go_where_it_is_seen_by_key_and_by_mouse(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [alpaca(1), alpaca(2)])
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await until_text(pilot, "▌user")
        screen, bar = pilot.app.data, pilot.app.screen.query_one("#keybar")
        before = [strip.text for strip in screen._compositor.render_strips()]
        await pilot.press("enter")
        await until(pilot, lambda: screen.detail.has_focus, "the row")
        assert [strip.text for strip in screen._compositor.render_strips()][3] != before[3]  # without colour, too
        assert "next row" in bar.render_line(0).text
        await pilot.click("#rows", offset=(5, 2))
        await until(pilot, lambda: "next row" not in bar.render_line(0).text, "the table's keys")
        await pilot.click("#detail", offset=(5, 2))
        await until(pilot, lambda: "next row" in bar.render_line(0).text, "the row's keys")


async def test_v_in_a_narrow_terminal_shows_the_row_before_it_turns_it(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [alpaca(1), alpaca(2)])
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("v")
        await until_text(pilot, "line 1 as chat")
        await pilot.press("v")
        await until_text(pilot, "line 1 as JSON")


async def test_the_narrow_key_bar_has_what_is_done_with_a_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [alpaca(1), alpaca(2)])
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        wanted = ("enter row", "/ find", "f filter", "l lengths", "t train", "? more", "q leave")
        await until_text(pilot, *wanted, "c check")
        await pilot.press("c")
        await until_text(pilot, *wanted, "w write", "checked 2 rows")


async def test_rows_of_a_file_without_lines_are_called_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([alpaca(number) for number in range(3000)]))
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await pilot.press("G")
        screen = await until_text(pilot, "row turns", "row 3,000 as chat", "3,000 UA", "3,000 of 3,000")
        assert "line" not in screen
        await pilot.press("g")
        await until_text(pilot, "Go to row")


async def test_what_is_remembered_of_rows_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backprop_tui.screens.dataset.rows._REMEMBERED", 100)
    path = write_rows(tmp_path / "rows.jsonl", (alpaca(number) for number in range(1000)))
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        for _ in range(10):
            await pilot.press("pagedown")
            await pilot.pause()
        await until_text(pilot, "What is in hold 180?")
        assert len(pilot.app.data.table._summaries) <= 100
