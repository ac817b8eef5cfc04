"""Whatever is wrong with a file, the Data screen says it in words, with the place."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path

import pyarrow
import pytest
from data_screen_app import DataApp, alpaca, at_rest, until_text, write_rows

from backprop_tui.screens.dataset.keys import KEYS
from backprop_tui.screens.trouble import ErrorPanel

GOOD = json.dumps(alpaca(1))
WHOLE = {
    "empty": ("rows.jsonl", b"", ["dataset is empty"]),
    "blank lines only": ("rows.jsonl", b"\n \n\n", ["dataset is empty"]),
    "an array named jsonl": ("rows.jsonl", f"[{GOOD},\n{GOOD}]".encode(), ["line 1", "rename to .json"]),
    "UTF-16": ("rows.jsonl", f"{GOOD}\n".encode("utf-16"), ["UTF-16", "line 1, byte 1", "iconv"]),
    "another ending": ("rows.docx", b"PK", [".docx", ".jsonl, .ndjson, .json"]),
    "no parquet": ("rows.parquet", b"PAR1 not really", ["cannot be read as Parquet"]),
    "a cut gz": ("rows.jsonl.gz", gzip.compress(GOOD.encode() * 999)[:40], ["cannot be unpacked", "cut off"]),
    "csv with a column twice": ("rows.csv", b"text,text\na,b\n", ["line 1", "'text' twice"]),
    "a csv header alone": ("rows.csv", b"text\n", ["dataset is empty"]),
    "an empty array": ("rows.json", b"[]", ["dataset is empty"]),
    "a lone number": ("rows.json", b"5", ["1 row", "it is a number, not an object"]),
    "a cut zst": (
        "rows.jsonl.zst",
        pyarrow.compress(GOOD.encode() * 999, "zstd", asbytes=True)[:20],
        ["cannot be unpacked", "cut off"],
    ),
    "gz by name alone": ("rows.jsonl.gz", f"{GOOD}\n".encode(), ["cannot be unpacked"]),
    "one object over many lines": ("rows.jsonl", b'{\n"text": "a"\n}\n', ["line 1", "rename to .json"]),
}
ROWS = {
    "a broken line": (b'{"instruction": "half', "line 7", "in the middle"),
    "a trailing comma": (f"{GOOD},".encode(), "line 7", "a comma after the row"),
    "Latin-1": ('{"instruction": "caf\xe9", "output": "x"}'.encode("latin-1"), "line 7", "not UTF-8: byte 0xE9"),
    "deep nesting": (b"[" * 3000 + b"]" * 3000, "line 7", "levels deep"),
    "no known field": (b'{"foo": 1}', "line 7", "instruction"),
    "a number": (b"5", "line 7", "a number"),
    "turns without a speaker": (
        b'{"conversations": [{"from": "human", "value": "a"}, {"value": "b"}]}',
        "line 7",
        "conversations[1] has no",
    ),
    "text where a turn should be": (b'{"conversations": [{"from": "human", "value": "a"}, "x"]}', "line 7", "[1]"),
    "an image": (
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]},'
        b' {"role": "assistant", "content": "b"}]}',
        "line 7",
        "unsupported_content",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
async def test_a_file_that_cannot_be_read_says_why_and_what_to_do(tmp_path: Path, name: str) -> None:
    file, data, words = WHOLE[name]
    path = tmp_path / file
    path.write_bytes(data)
    async with DataApp(path).run_test(size=(140, 40)) as pilot:
        screen = await until_text(pilot, "✗", file, *words)
        assert "Traceback" not in screen
        assert "KeyError" not in screen
        assert pilot.app.is_running


async def test_a_path_that_does_not_exist_names_the_nearest_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "voyage.jsonl", [alpaca(1)])
    async with DataApp(tmp_path / "voyages.jsonl").run_test(size=(140, 40)) as pilot:
        await until_text(pilot, "✗ no file", "did you mean", "voyage.jsonl", "DATASET_NOT_FOUND")


@pytest.mark.parametrize("first", [True, False])
async def test_e_shows_the_whole_error_with_what_can_be_done_until_another_file_is_there(
    tmp_path: Path, first: bool
) -> None:
    good = write_rows(tmp_path / "good.jsonl", [alpaca(1)])
    (tmp_path / "rows.jsonl").write_bytes(f"[{GOOD},\n{GOOD}]".encode())
    async with DataApp(*([] if first else [good])).run_test(size=(80, 24)) as pilot:
        await at_rest(pilot)
        assert "e error" not in pilot.app.text()
        pilot.app.data.open_path(str(tmp_path / "rows.jsonl"))
        await until_text(pilot, "e error")
        await pilot.press("e")
        panel = pilot.app.screen
        assert isinstance(panel, ErrorPanel)
        assert "[DATASET_PARSE_FAILED]" in panel.told.text
        assert "Look at line 1 of rows.jsonl" in [answer.title for answer in panel.answers.answers]
        await pilot.press("escape")
        pilot.app.data.open_path(str(good))
        await until_text(pilot, "good.jsonl · alpaca")
        await at_rest(pilot)
        assert "e error" not in pilot.app.text()


async def test_a_directory_of_different_files_names_them(tmp_path: Path) -> None:
    for name in ("voyage.jsonl", "harbour.jsonl"):
        write_rows(tmp_path / name, [alpaca(1)])
    async with DataApp(tmp_path).run_test(size=(140, 40)) as pilot:
        await until_text(pilot, "not parts of one dataset", "harbour.jsonl, voyage.jsonl", "DATASET_AMBIGUOUS")


async def test_a_hub_name_says_that_it_is_not_on_this_machine() -> None:
    async with DataApp("someone/some-dataset").run_test(size=(140, 40)) as pilot:
        await until_text(pilot, "✗ someone/some-dataset could not be fetched", "not on this machine", "HF_HUB_OFFLINE")


async def test_a_file_that_cannot_be_opened_leaves_the_one_on_screen(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [alpaca(1), alpaca(2)])
    async with DataApp(path).run_test(size=(140, 40)) as pilot:
        await at_rest(pilot)
        pilot.app.data.open_path(str(tmp_path / "none.jsonl"))
        await until_text(pilot, "rows.jsonl · alpaca", "What is in hold 2?", "✗ no file")
        await pilot.press("escape", "down")
        await until_text(pilot, "line 2 as chat")


@pytest.mark.parametrize("name", ROWS)
async def test_a_bad_row_is_marked_in_the_table_and_explained_in_the_pane(tmp_path: Path, name: str) -> None:
    raw, line, why = ROWS[name]
    path = tmp_path / "rows.jsonl"
    good = [json.dumps(alpaca(number)).encode() for number in range(19)]
    path.write_bytes(b"\n".join([*good[:6], raw, *good[6:]]) + b"\n")
    async with DataApp(path).run_test(size=(140, 40)) as pilot:
        await until_text(pilot, "20 rows", "7 ✗")
        await pilot.press("g", "7", "enter")
        screen = await until_text(pilot, line, "This row cannot be used for training", why)
        assert "Traceback" not in screen
        assert "KeyError" not in screen
        await pilot.press("v")
        await until_text(pilot, "as JSON")
        await pilot.press("v")
        await until_text(pilot, "as tokens")


async def test_a_label_that_is_no_label_is_explained_in_a_feedback_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False, "perhaps", True)]
    async with DataApp(write_rows(tmp_path / "rows.jsonl", rows)).run_test(size=(140, 40)) as pilot:
        await until_text(pilot, "kto", "3 ✗", "label must be true or false (or 1, 0, yes, no), not")


@pytest.mark.parametrize(
    ("file", "data", "words"),
    [
        ("rows.json", b'{"instruction": "Depth?", "output": "Nine"}', ["alpaca", "1 row", "Depth?"]),
        ("rows.json", b'[{"text": "a"},\n{"text": "b"},\n]', ["3 rows", "3 \u2717", "a comma with no row after it"]),
        ("rows.csv", b"instruction,input,output\nDepth?,,Nine\nWhere?,,\n", ["2 rows", "Depth?", "3 ! UA"]),
        ("rows.csv", "instruction,output\ncaf\xe9,x\n".encode("latin-1"), ["1 row", "2 \u2717", "not UTF-8"]),
        ("rows.txt", b"one\nstill one\n\ntwo\n", ["3 rows", "1 text one", "4 text two"]),
        ("rows.txt", b"one\ntwo\nthree\n", ["3 rows"]),
    ],
)
async def test_odd_files_are_read_row_by_row_and_nothing_is_lost(
    tmp_path: Path, file: str, data: bytes, words: list[str]
) -> None:
    path = tmp_path / file
    path.write_bytes(data)
    async with DataApp(path).run_test(size=(140, 40)) as pilot:
        screen = await until_text(pilot, *words)
        assert "nan" not in screen


async def test_a_file_that_mixes_formats_says_which_and_where(tmp_path: Path) -> None:
    rows: list[object] = [alpaca(number) for number in range(1, 9)]
    rows.insert(4, {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]})
    async with DataApp(write_rows(tmp_path / "rows.jsonl", rows)).run_test(size=(140, 40)) as pilot:
        await at_rest(pilot)
        await until_text(pilot, "mixed: alpaca, openai")
        await pilot.press("p")
        await until_text(pilot, "1 ! mixed_format", "line 5", "the row is openai, where most rows are alpaca")


async def test_where_most_rows_are_broken_the_check_says_how_many(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{broken\n" * 30 + f"{GOOD}\n".encode())
    async with DataApp(path).run_test(size=(140, 40)) as pilot:
        await at_rest(pilot)
        await pilot.press("c")
        await until_text(pilot, "checked 31 rows: 30 unusable")
        await pilot.press("s")
        await until_text(pilot, "unusable 30 (97 %)")


async def test_the_first_row_of_a_file_with_a_byte_order_mark_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\n" + GOOD.encode() + b"\n")
    async with DataApp(path).run_test(size=(140, 40)) as pilot:
        await until_text(pilot, "2 rows", "1 UA", "What is in hold 1?")


async def test_when_every_row_is_broken_the_check_says_so_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{broken\n" * 30)
    async with DataApp(path).run_test(size=(140, 40)) as pilot:
        await at_rest(pilot)
        await pilot.press("c")
        await until_text(pilot, "none of its 30 rows can be read", "line 1")


async def test_without_a_file_no_key_of_the_screen_does_harm() -> None:
    async with DataApp().run_test(size=(80, 24)) as pilot:
        await until_text(pilot, "No dataset is open")
        for key in KEYS:
            await pilot.press(key.keys, "escape")
        await until_text(pilot, "No dataset is open")
        assert pilot.app.data.opened is None


async def test_a_defect_in_a_thread_is_said_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [alpaca(1), alpaca(2)])
    async with DataApp(path).run_test(size=(140, 40)) as pilot:
        await at_rest(pilot)
        monkeypatch.setattr("backprop.data.validate.validate", lambda *_, **__: 1 // 0)
        await pilot.press("c")
        await until_text(pilot, "a defect in this program, while checking: ZeroDivisionError", "please report it")
        await pilot.press("escape", "down")
        await until_text(pilot, "line 2 as chat")


async def test_what_was_found_in_a_file_that_is_left_is_not_taken_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backprop.data import validate

    first = write_rows(tmp_path / "first.jsonl", [{"instruction": "no answer"}] + [alpaca(1)] * 3)
    second = write_rows(tmp_path / "second.jsonl", [alpaca(1), alpaca(2)])
    go_on, real = threading.Event(), validate.validate

    def slow(*given: object, **more: object) -> object:
        found = real(*given, **more)
        go_on.wait(60)
        return found

    monkeypatch.setattr(validate, "validate", slow)
    async with DataApp(first).run_test(size=(80, 24)) as pilot:
        await at_rest(pilot)
        await pilot.press("c")
        pilot.app.data.open_path(str(second))
        await until_text(pilot, "second.jsonl · alpaca · 2 rows")
        go_on.set()
        await at_rest(pilot)
        assert pilot.app.data.findings.found is None
        await pilot.press("c")
        await until_text(pilot, "checked 2 rows: 0 unusable")
