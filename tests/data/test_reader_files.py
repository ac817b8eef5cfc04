"""Files as a whole: what opens, how rows come out, and what is said where a file is not what its name says."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import signal
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backprop.core import paths
from backprop.core.errors import (
    BackpropError,
    DatasetError,
    DatasetFormatError,
    DatasetNotFoundError,
    DatasetParseError,
    OperationCancelledError,
)
from backprop.data import to_jsonl
from backprop.data.reader import open_source

ROWS = [{"text": f"row {i} ä"} for i in range(40)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def written(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, "zstd", asbytes=True)
    return packed


def values(path: Path) -> list[object]:
    with open_source(path) as source:
        return [row.value for row in source]


def errors(path: Path) -> dict[int, str]:
    """Line → code and message of every row with an error."""
    with open_source(path) as source:
        return {row.line: f"{row.error.code}: {row.error.message}" for row in source if row.error is not None}


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "parquet", "txt"])
def test_every_file_type_gives_the_same_rows(tmp_path: Path, kind: str, packed: str) -> None:
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), table, row_group_size=7)
    data = {
        "jsonl": LINES,
        "ndjson": LINES,
        "json": json.dumps(ROWS, indent=2).encode(),
        "csv": ("text\r\n" + "".join(f"{row['text']}\r\n" for row in ROWS)).encode(),
        "txt": "".join(f"{row['text']}\n" for row in ROWS).encode(),
        "parquet": table.getvalue(),
    }[kind]
    data = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[packed](data)
    path = written(tmp_path, f"rows.{kind}{packed}", data)
    with open_source(path) as source:
        expected = [row["text"] for row in ROWS] if kind == "txt" else ROWS
        assert [row.value for row in source] == expected
        assert [source.row(i).value for i in (39, 0, 20)] == [expected[i] for i in (39, 0, 20)]
        assert len(source) == 40
        assert source.unit == ("row" if kind in ("json", "parquet") else "line")
        assert source.row(3).line == 4 + (kind == "csv")
        assert source.find(source.row(5).line) == 5


def test_a_broken_line_is_named_and_costs_no_other_row(tmp_path: Path) -> None:
    lines = LINES.splitlines(keepends=True)[:20]
    lines[6] = b'{"text": "cut\n'
    path = written(tmp_path, "a.jsonl", b"".join(lines))
    assert sum(value is not None for value in values(path)) == 19
    assert list(errors(path)) == [7]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b'{"a": 1},', "broken_json", "comma after the row"),
        (b'{"a": 1,}', "broken_json", "comma before the closing bracket"),
        (b"{'a': 1}", "broken_json", "single quotes"),
        (b'{"a": Infinity, "b": NaN}', "broken_json", "Infinity"),
        (b'# {"a": 1}', "broken_json", "a comment"),
        (b'{"a": 1}{"a": 2}', "broken_json", "more than one value in the line, the second at character 9"),
        (b'{"a": None}', "broken_json", "None"),
        (b'{"a": "b', "broken_json", "ends in the middle"),
        (b"[" * 3000 + b"]" * 3000, "broken_json", "nested more than 1024"),
        (b'{"a": "b\x00"}', "nul_byte", "byte 9"),
        (b'{"a": "\\ud800"}', "lone_surrogate", "surrogate"),
        (b'{"a": "caf\xe9"}', "not_utf8", "byte 0xE9 at byte 11 of the row (byte 36 of the file). As Latin-1"),
        (b'{"a": "\x93hi\x94"}', "not_utf8", "Windows-1252"),
        (b'{"a": 1e999}', "broken_json", "too large"),
        (b'{"a": "tab\there"}', "broken_json", "control character"),
        (b"hello", "broken_json", "not JSON"),
    ],
)
def test_a_broken_line_is_explained_in_words(tmp_path: Path, line: bytes, code: str, words: str) -> None:
    path = written(tmp_path, "a.jsonl", b'{"text": "a good row  "}\n' + line + b'\n{"text": "b"}\n')
    found = errors(path)
    assert list(found) == [2]
    assert found[2].startswith(code)
    assert words in found[2]


def test_values_that_other_readers_choke_on_are_kept(tmp_path: Path) -> None:
    rows = b'{"n": 123456789012345678901234567890}\r\n\r\n  \n{"n": "\\u0000 \\u2028"}\n"text"\nnull\n'
    path = written(tmp_path, "a.jsonl", rows)
    with open_source(path) as source:
        assert [row.line for row in source] == [1, 4, 5, 6]
    assert values(path) == [{"n": 123456789012345678901234567890}, {"n": "\x00 \u2028"}, "text", None]


def test_a_byte_order_mark_costs_no_row(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", LINES), ("a.json", json.dumps(ROWS).encode()), ("a.csv", b"text\nrow 0\n")):
        path = written(tmp_path, name, b"\xef\xbb\xbf" + data)
        with open_source(path) as source:
            assert source.has_bom
            assert "row 0" in str(source.row(0).value)
            assert list(source.row(0).value) == ["text"]
    joined = written(tmp_path, "b.jsonl", 2 * (b"\xef\xbb\xbf" + LINES))  # cat one.jsonl other.jsonl
    assert (values(joined), errors(joined)) == (2 * ROWS, {})


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_named(tmp_path: Path, codec: str) -> None:
    path = written(tmp_path, "a.jsonl", LINES.decode().encode(codec))
    with pytest.raises(DatasetParseError, match="line 1, byte 1: the file is UTF-") as caught:
        open_source(path)
    assert "iconv" in caught.value.hint


PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_binary_data_under_another_name_is_called_that_and_not_converted(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetParseError, match="it holds no text but binary data") as caught:
        open_source(written(tmp_path, name, PICTURE))
    assert "iconv" not in caught.value.hint


def test_a_binary_row_far_into_a_file_is_not_to_be_converted(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", LINES * (70_000 // len(LINES)) + PICTURE.replace(b"\n", b"") + b"\n")
    with open_source(path) as source:
        error = source.row(len(source) - 1).error
    assert error is not None
    assert (error.code, "binary data" in error.message, "iconv" in error.message) == ("not_utf8", True, False)


@pytest.mark.parametrize(
    "data", ['[{"a": 1}, {"a": 2}]', '[\n  {"a": 1},\n  {"a": 2}\n]\n', '[{"a": 1},\n{"a": 2}]', '{\n  "a": 1\n}\n']
)
def test_another_layout_under_jsonl_says_rename_to_json(tmp_path: Path, data: str) -> None:
    path = written(tmp_path, "a.jsonl", data)
    with pytest.raises(DatasetParseError, match="line 1") as caught:
        open_source(path)
    assert "rename to .json" in caught.value.hint
    path.rename(tmp_path / "a.json")
    assert {"a": 1} in values(tmp_path / "a.json")


def test_json_lines_under_json_are_read_as_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", LINES)
    assert values(path) == ROWS
    with open_source(path) as source:
        assert source.kind == "jsonl"


def test_one_object_is_one_row(tmp_path: Path) -> None:
    assert values(written(tmp_path, "a.json", '\n {"a": [1, 2],\n "b": 2}\n')) == [{"a": [1, 2], "b": 2}]


@pytest.mark.parametrize(
    ("data", "rows", "bad", "words"),
    [
        ('[{"a": 1},\n{"a": 2},\n]', 3, 3, "trailing comma, or two in a row) (line 3 of the file)"),
        ('[{"a": 1},,{"a": 2}]', 3, 2, "trailing comma, or two in a row) (line 1 of the file)"),
        ('[{"a": 1},\n{"a": 2', 2, 2, "ends in the middle"),
        ('[{"a": 1}]\n{"a": 2}', 2, 2, "follows the end of the array"),
        ('[{"a": 1},\n\n{"a": 2,}]', 2, 2, "comma before the closing bracket"),
    ],
)
def test_a_broken_array_gives_its_good_rows_and_the_line(
    tmp_path: Path, data: str, rows: int, bad: int, words: str
) -> None:
    path = written(tmp_path, "a.json", data)
    found = errors(path)
    assert len(values(path)) == rows
    assert list(found) == [bad]
    assert words in found[bad]


def test_csv_cells_keep_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'instruction,output\n"a, ""b""\nc",x\n\n,y\nonly one\nlast,\u2028z\n')
    with open_source(path) as source:
        rows = list(source)
    assert rows[0].value == {"instruction": 'a, "b"\nc', "output": "x"}
    assert rows[1].value == {"instruction": None, "output": "y"}
    assert rows[2].error is not None
    assert rows[2].error.code == "column_count"
    assert rows[3].value == {"instruction": "last", "output": "\u2028z"}
    assert [row.line for row in rows] == [2, 5, 6, 7]


def test_csv_types_that_a_table_cannot_hold_come_back(tmp_path: Path) -> None:
    messages = json.dumps([{"role": "user", "content": "x"}]).replace('"', '""')
    path = written(tmp_path, "a.csv", f'messages;label;output\n"{messages}";TRUE;true\n"{messages}";0;1\n')
    assert values(path) == [
        {"messages": [{"role": "user", "content": "x"}], "label": True, "output": "true"},
        {"messages": [{"role": "user", "content": "x"}], "label": False, "output": "1"},
    ]


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetParseError, match="line 1 names the column 'a' twice"):
        open_source(written(tmp_path, "a.csv", "a,b,a\n1,2,3\n"))


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.jsonl", ""), ("a.jsonl", " \n\n"), ("a.json", "[ ]"), ("a.csv", "a,b\n"), ("a.txt", "\ufeff")],
)
def test_an_empty_file_says_so(tmp_path: Path, name: str, data: str) -> None:
    with pytest.raises(DatasetError, match="dataset is empty") as caught:
        open_source(written(tmp_path, name, data))
    assert caught.value.code == "DATASET_EMPTY"


def test_what_is_missing_is_said_with_the_nearest_name(tmp_path: Path) -> None:
    written(tmp_path, "trainset.jsonl", LINES)
    with pytest.raises(DatasetNotFoundError) as caught:
        open_source(tmp_path / "trainsets.jsonl")
    assert "trainset.jsonl" in caught.value.hint
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatasetNotFoundError, match="is a directory without a dataset file"):
        open_source(tmp_path / "folder")
    with pytest.raises(DatasetNotFoundError, match="Hub") as caught:
        open_source("someone/some-dataset")
    assert caught.value.details["hub_name"] == "someone/some-dataset"
    with pytest.raises(DatasetFormatError, match="ending"):
        open_source(written(tmp_path, "rows.xlsx", b"PK"))


def test_parquet_is_read_forward_and_back_across_row_groups(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": str(i)}], "n": i} for i in range(5000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2100)
    with open_source(path) as source:
        for i in (4999, 0, 2099, 2100, 2098, 3500, 1024, 1023):
            assert source.row(i).value == rows[i]
            assert json.loads(source.row(i).raw) == rows[i]
        assert len(list(source)) == 5000
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DatasetParseError, match="Parquet"):
        open_source(path)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_packed_file_that_is_cut_off_is_refused(tmp_path: Path, pack: object) -> None:
    ending = "gz" if pack is gzip.compress else "zst"
    data = pack(os.urandom(200_000))  # type: ignore[operator]
    with pytest.raises(DatasetParseError, match="cannot be unpacked"):
        open_source(written(tmp_path, f"a.txt.{ending}", data[: len(data) // 2] if ending == "gz" else b"no" + data))
    assert not list((paths.cache_dir() / "jsonl").glob("*"))


def test_unpacking_shows_progress_and_can_be_stopped(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl.gz", gzip.compress(os.urandom(1).hex().encode() + b'{"text":"abc"}\n' * 400_000))
    seen: list[tuple[int, int]] = []
    with pytest.raises(OperationCancelledError):
        open_source(path, progress=lambda done, total: seen.append((done, total)), cancelled=lambda: len(seen) > 2)
    assert len(seen) == 3
    assert not list((paths.cache_dir() / "jsonl").iterdir())
    open_source(path, progress=lambda done, total: seen.append((done, total))).close()
    assert seen[-1][0] == seen[-1][1] == path.stat().st_size
    count = len(seen)
    open_source(path, progress=lambda done, total: seen.append((done, total))).close()
    assert len(seen) == count, "the copy of an unchanged file is used again"
    path.write_bytes(gzip.compress(b'{"text":"new"}\n'))
    assert values(path) == [{"text": "new"}]


@pytest.mark.parametrize("ending", ["csv", "json", "txt", "parquet"])
def test_a_file_becomes_json_lines_once_and_again_when_it_changes(tmp_path: Path, ending: str) -> None:
    def write(rows: list[dict[str, str]]) -> None:
        texts = [row["text"] for row in rows]
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text(json.dumps(rows) if ending == "json" else "\n".join(["text", *texts][ending == "txt" :]))

    path = tmp_path / f"a.{ending}"
    write(ROWS)
    seen: list[tuple[int, int]] = []
    open_source(path, progress=lambda *now: seen.append(now)).close()
    assert seen[-1][1] == path.stat().st_size
    count = len(seen)
    open_source(path, progress=lambda *now: seen.append(now)).close()
    assert len(seen) == count
    write(ROWS[:7])
    assert len(values(path)) == 7
    assert len(list((paths.cache_dir() / "jsonl").iterdir())) == 1, "the copy of the older file is gone"


def test_converting_can_be_stopped_and_leaves_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text\n" + "a row of some words\n" * 200_000)
    seen: list[int] = []
    with pytest.raises(OperationCancelledError):
        open_source(path, progress=lambda done, _: seen.append(done), cancelled=lambda: len(seen) > 1)
    assert len(seen) == 2
    assert not list((paths.cache_dir() / "jsonl").iterdir())


def test_what_a_row_that_cannot_be_read_was_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", b'text,n\n"two\nlines",1\ncaf\xe9,2\n\n"a ""b""",3,4\nlast,5\n')
    with open_source(path) as source:
        rows = [(row.line, row.raw, row.error.code if row.error is not None else "") for row in source]
    assert rows == [
        (2, b'{"text":"two\\nlines","n":"1"}', ""),
        (4, b"caf\xe9,2", "not_utf8"),
        (6, b'"a ""b""",3,4', "column_count"),
        (7, b'{"text":"last","n":"5"}', ""),
    ]


def test_values_that_json_has_no_word_for_become_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    row = {"day": date(2024, 2, 3), "at": datetime(2024, 2, 3, 4, 5), "raw": b"\xff", "none": float("nan")}
    pq.write_table(pa.Table.from_pylist([row]), path)
    (value,) = values(path)
    assert value == {"day": "2024-02-03", "at": "2024-02-03T04:05:00", "raw": {"base64": "/w=="}, "none": None}


def test_damaged_pages_of_parquet_cost_the_rows_of_their_group_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"text": f"row {i} " + "x" * 400} for i in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10, compression="none", use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[group.data_page_offset : group.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    assert list(errors(path)) == list(range(11, 21))
    assert [value for value in values(path) if value is not None] == rows[:10] + rows[20:]


def _unpack_in_part(path: str) -> None:
    to_jsonl._PIECE = 64

    def stay(*_: object) -> None:
        if _partial():
            signal.pause()

    open_source(path, progress=stay)


def _partial() -> list[Path]:
    """Files that are being unpacked and have something in them."""
    return [path for path in (paths.cache_dir() / "jsonl").glob("*.partial") if path.stat().st_size > 0]


def test_a_kill_while_unpacking_leaves_nothing_half_made_in_use(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl.gz", gzip.compress(b'{"text":"abc"}\n' * 20_000))
    child = multiprocessing.get_context("fork").Process(target=_unpack_in_part, args=(str(path),))
    child.start()
    folder = paths.cache_dir() / "jsonl"
    while not _partial():
        assert child.is_alive()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert [p.suffix for p in folder.iterdir()] == [".partial"]
    assert len(values(path)) == 20_000
    assert [p.suffix for p in folder.iterdir()] == [".jsonl"]


def test_a_file_without_permission_is_an_error_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "a.jsonl", LINES)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BackpropError, match="cannot be read: Permission denied"):
        open_source(path)


def test_a_zst_file_that_is_cut_off_is_refused_and_one_of_several_frames_is_read_whole(tmp_path: Path) -> None:
    rows = b"".join(b'{"text": "row %d of many that do not repeat %d"}\n' % (i, i * 7919) for i in range(5000))
    half = len(rows) // 2 + rows[len(rows) // 2 :].index(b"\n") + 1
    packed = zstd(rows[:half]) + zstd(rows[half:])
    whole = tmp_path / "whole.jsonl.zst"
    whole.write_bytes(packed)
    with open_source(whole) as source:
        assert len(source) == 5000
    for share in (0.2, 0.7, 0.99):
        path = tmp_path / f"cut-{share}.jsonl.zst"
        path.write_bytes(packed[: int(len(packed) * share)])
        with pytest.raises(DatasetParseError, match="cannot be unpacked: Truncated"):
            open_source(path)
