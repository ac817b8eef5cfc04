"""Filters by finding and by length, marked hits, the row before and after, and what is copied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from backprop.core import paths
from backprop.core.errors import InputError
from data_screen_app import DataApp, alpaca, at_rest, until, until_text, write_rows
from test_data_search import ask
from tiny_tokenizer import write_model

from backprop_tui.screens.dataset.search import code_named
from backprop_tui.text import marked
from backprop_tui.widgets.text_view import TextView

NARROW, WIDE = (80, 24), (140, 40)


@pytest.fixture
def cargo(tmp_path: Path) -> Path:
    """Forty rows: 12 repeats 5, 20 is broken, 30 has a long question, 35 a long answer."""
    lines = [json.dumps(alpaca(number)) for number in range(1, 41)]
    lines[11] = lines[4]
    lines[19] = '{"instruction": "half'
    lines[29] = json.dumps({"instruction": "Why? " * 300, "output": "Salt."})
    lines[34] = json.dumps({"instruction": "Tell.", "output": "Once " * 300})
    path = tmp_path / "cargo.jsonl"
    path.write_text("\n".join(lines) + "\n")
    write_model(paths.model_cache("smollm2-135m"))
    return path


@pytest.mark.parametrize(
    ("words", "place"),
    [("finding:cut", 30), ("finding:lost", 35), ("finding:duplicate", 12), ("finding:broken_json", 20)],
)
async def test_a_filter_by_finding_shows_its_rows_alone(cargo: Path, words: str, place: int) -> None:
    async with DataApp(cargo).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        pilot.app.data.chosen.limit = 256
        await pilot.press("c")
        await until_text(pilot, "checked 40 rows")
        await ask(pilot, "f", words)
        await until_text(pilot, "1 of 1", f"only {words!r}: 1")
        assert pilot.app.data.table.row_of(0) == place - 1


async def test_a_finding_is_filtered_by_from_the_list_of_findings(cargo: Path) -> None:
    async with DataApp(cargo).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("p")
        await until_text(pilot, "duplicate_row", "line 12")
        await pilot.press("end", "f")
        entry = pilot.app.screen.query_one("#prompt-input")
        await until(pilot, lambda: pilot.app.focused is entry, "a prompt")
        assert entry.value == "finding:broken_json"  # line 20, the last
        await pilot.press("enter")
        await until_text(pilot, "1 of 1", "only 'finding:broken_json'")
        await until(pilot, lambda: pilot.app.focused is pilot.app.data.table, "the list of rows to have the keys")


async def test_a_filter_that_lets_nothing_through_says_so_and_how_to_go_on(cargo: Path) -> None:
    async with DataApp(cargo).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await until_text(pilot, "line 1", "Barrel 1")
        await ask(pilot, "f", "walrus")
        await until_text(pilot, "no row is let through by 'walrus'", "esc shows every row")
        await until(pilot, lambda: not pilot.app.data.query_one("#detail", TextView).text.strip(), "no row beside it")
        assert "step" not in {key.name for key in pilot.app.data.own_keys()}, "there is no next"
        await pilot.press("escape")
        await until_text(pilot, "1 of 40")


async def test_the_counts_stand_above_the_findings_of_a_check_that_nobody_watched(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "bad.jsonl", [{"instruction": f"{number}?"} for number in range(80)])
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("c")
        await until_text(pilot, "checked 80 rows")
        assert "finding" in {key.label for key in pilot.app.data.own_keys()}
        await pilot.press("p")
        await until_text(pilot, "80 ✗", "line 1 ✗")


async def test_a_filter_that_nothing_is_known_of_yet_says_what_to_press(cargo: Path) -> None:
    async with DataApp(cargo).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await ask(pilot, "f", "finding:duplicate")
        await until_text(pilot, "the file was not checked yet; press c first", "1 of 40")


async def test_a_filter_by_length_without_a_tokenizer_says_so_and_is_over(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [alpaca(1), alpaca(2)])
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await ask(pilot, "f", "finding:cut")
        await until_text(pilot, "✗", "the tokenizer of smollm2-135m is not on this machine", "1 of 2")


def test_findings_of_which_not_all_are_listed_are_counted_in_the_answer(tmp_path: Path) -> None:
    from backprop.data.validate import validate

    from backprop_tui.screens.dataset.findings import FindingsPane

    path = write_rows(tmp_path / "rows.jsonl", [{"instruction": "no answer"}, alpaca(1)] * 20)
    pane = FindingsPane(None, id="problems")
    pane.found = validate(path, listed=5)
    lines, note = pane.lines_of("missing_field")
    assert (sorted(lines), note) == ([1, 3, 5, 7, 9], " (15 more findings are counted and not listed)")


@pytest.mark.parametrize(("name", "code"), [("cut", "cut"), ("lost", "answer_lost"), ("duplicate", "duplicate_row")])
def test_a_finding_is_named_in_short(name: str, code: str) -> None:
    assert code_named(name) == code


@pytest.mark.parametrize("name", ["kraken", "dropped", ""])
def test_a_finding_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(InputError) as refused:
        code_named(name)
    assert "p lists" in refused.value.hint


@pytest.mark.parametrize(
    ("row", "words", "hits"),
    [
        ([("a Whale and a whale", "text")], "WHALE", ["Whale", "whale"]),
        ([("a wh", "text"), ("ale", "good+bold")], "whale", ["wh", "ale"]),
        ([("a.c abc", "text")], "a.c", ["a.c"]),
        ([("aaaa", "text")], "aa", ["aa", "aa"]),
        ([("plain", "text")], "", []),
        ([("何がありますか", "text")], "あり", ["あり"]),
    ],
)
def test_every_place_of_the_words_is_marked_and_the_text_stays(
    row: list[tuple[str, str]], words: str, hits: list[str]
) -> None:
    found = marked(row, words)
    assert [text for text, ink in found if ink.endswith("+hit")] == hits
    assert "".join(text for text, _ in found) == "".join(text for text, _ in row)
    assert next(ink.removesuffix("+hit") for _, ink in found) == row[0][1]


def test_marking_a_long_row_of_many_pieces_takes_no_time_of_its_own() -> None:
    row = [("ab", "text"), ("ba", "good")] * 20_000
    assert sum(ink.endswith("+hit") for _, ink in marked(row, "b")) == 40_000


async def test_hits_are_marked_in_the_table_and_in_the_row_which_is_scrolled_to_the_first(tmp_path: Path) -> None:
    rows = [alpaca(1), {"instruction": "Sighted?", "output": "Nothing.\n" * 100 + "A Whale!"}, alpaca(3)]
    async with DataApp(write_rows(tmp_path / "rows.jsonl", rows)).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await ask(pilot, "slash", "whale")
        await until_text(pilot, "2 of 3")
        await ask(pilot, "slash", "sighted")
        screen = pilot.app.data
        await until(pilot, lambda: "+hit" in str(screen.table.row_at(1, 80)), "a marked row")
        await ask(pilot, "slash", "whale")
        await pilot.press("enter")
        await until_text(pilot, "A Whale!")
        ground = screen.detail.ink("text").bgcolor
        drawn = [segment for y in range(screen.detail.size.height) for segment in screen.detail.render_line(y)]
        assert [segment.text for segment in drawn if segment.text.strip() and segment.style.bgcolor != ground] == [
            "Whale"
        ]
        write_model(paths.model_cache("smollm2-135m"))
        await ask(pilot, "slash", "once")  # a word that the screen says of the tokens, too
        await pilot.press("v", "v")
        await until_text(pilot, "once, at the start")
        assert "+hit" not in str(screen.detail.content(80))
        await pilot.press("escape", "escape")
        await until(pilot, lambda: "+hit" not in str(screen.table.row_at(1, 80)), "no marks")


async def test_the_next_and_the_previous_row_are_seen_without_leaving_the_row(cargo: Path) -> None:
    async with DataApp(cargo).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("enter")
        await until_text(pilot, "line 1 as chat")
        await pilot.press("right", "right")
        await until_text(pilot, "line 3 as chat", "hold 3?", "3 of 40")
        await pilot.press("left")
        await until_text(pilot, "line 2 as chat")


@pytest.mark.parametrize(
    ("keys", "copied"),
    [
        (
            ("y",),
            '{"instruction": "What is in hold 1?", "input": "", "output": "Barrel 1: salt salt salt salt salt salt "}',
        ),
        (("down", "enter", "v", "y"), '"What is in hold 2?"'),
        (("p", "end", "y"), "cargo.jsonl, line 20: broken_json: "),
        (("s", "y"), "cargo.jsonl"),
        (("Y",), "cargo.jsonl"),
    ],
)
async def test_y_copies_what_has_the_keys(cargo: Path, keys: tuple[str, ...], copied: str) -> None:
    async with DataApp(cargo).run_test(size=NARROW) as pilot:
        for key in keys:
            await at_rest(pilot)
            await pilot.press(key)
        await until(pilot, lambda: copied in pilot.app.clipboard, "the text")


async def test_a_path_that_is_no_utf8_is_copied_as_far_as_it_can_be(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "caf\udce9.jsonl", [alpaca(1)])
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("Y")
        await until(pilot, lambda: pilot.app.clipboard.endswith("caf?.jsonl"), "the path")
