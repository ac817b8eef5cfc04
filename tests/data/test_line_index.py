"""Reading rows at random and in order: every row once, at its line, whatever the bytes around it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import orjson
import pytest
from backprop.core.errors import BackpropError
from backprop.data import line_index, read_json
from backprop.data.line_index import LineIndex
from backprop.data.reader import Source, open_source
from hypothesis import given, settings
from hypothesis import strategies as st


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def reference_lines(data: bytes) -> list[tuple[int, bytes]]:
    """What a plain loop over the lines finds."""
    found = enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
    return [(number, line.removesuffix(b"\r")) for number, line in found if line.strip()]


def both_ways(source: Source) -> list[tuple[int, bytes]]:
    """Lines and bytes of all rows, after checking that iteration, random access and ``find`` agree."""
    streamed = [(row.line, row.raw) for row in source]
    assert len(source) == len(streamed)
    for place in random.Random(1).sample(range(len(streamed)), len(streamed)):
        row = source.row(place)
        assert (row.line, row.raw) == streamed[place]
        assert source.find(row.line) == place
    with pytest.raises(IndexError):
        source.row(len(streamed))
    with pytest.raises(IndexError):
        source.row(-1)
    return streamed


@pytest.fixture(params=[7, 64, 4096])
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scan in pieces of a few bytes, so that every construct is cut somewhere."""
    monkeypatch.setattr(line_index, "PIECE", request.param)
    monkeypatch.setattr(line_index, "LONG_ROW", 40)
    monkeypatch.setattr(read_json, "PIECE", request.param)


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from([b"{}", b"x" * 50, b"", b" ", b"\t\r", b"\r", b'{"a":1}', b"\xff", b"x" * 300]), max_size=60
    ),
    end=st.sampled_from([b"", b"\n", b"\n\n", b" "]),
)
def test_every_line_is_found_at_its_number(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], end: bytes
) -> None:
    data = b"\n".join(parts) + end
    expected = reference_lines(data)
    path = written(tmp_path_factory.mktemp("lines"), "a.jsonl", data)
    found = LineIndex(path)
    assert [(line, raw) for batch in found.stream() for line, _, raw in batch] == expected
    found.build()
    assert found.known == len(expected)
    assert [found.place(i)[::2] for i in range(len(expected))] == expected
    for i, (line, raw) in enumerate(expected):
        assert found.find(line) == i
        assert data[found.place(i)[1] :].startswith(raw)
    found.close()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(alphabet='ab"\\[]{},\n é😀', max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='k"\\{', max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=80, deadline=None)
@given(rows=st.lists(VALUES, min_size=1, max_size=40), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_every_element_of_an_array_is_found(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object], indent: int | None, ascii_only: bool
) -> None:
    data = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode()
    source = open_source(written(tmp_path_factory.mktemp("array"), "a.json", data))
    assert [row.value for row in source] == rows
    assert [row.error for row in source] == [None] * len(rows)
    assert [line for line, _ in both_ways(source)] == list(range(1, len(rows) + 1))
    source.close()


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "txt", "parquet", "jsonl.gz", "json.zst"])
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300) | st.text(alphabet='{}[]",:\\ \n\rab1\x00\ufeff', max_size=120).map(str.encode))
def test_no_bytes_raise_anything_but_our_errors(
    tmp_path_factory: pytest.TempPathFactory, ending: str, data: bytes
) -> None:
    path = written(tmp_path_factory.mktemp("fuzz"), f"a.{ending}", data)
    try:
        source = open_source(path)
    except BackpropError:
        return
    rows = list(source)
    assert len(rows) == len(source) > 0
    assert all(row.error is not None or row.value is not None or row.raw.strip() == b"null" for row in rows)
    assert [row.raw for row in rows] == [source.row(i).raw for i in range(len(rows))]
    source.close()


def test_first_rows_are_there_before_the_index_is_whole(tmp_path: Path) -> None:
    line = orjson.dumps({"text": "word " * 200}) + b"\n"
    source = open_source(written(tmp_path, "big.jsonl", line * 40_000))
    assert source.row(30).line == 31
    assert not source.complete
    assert 30 < source.known < 40_000
    source.start()
    assert source.row(39_999).line == 40_000
    assert len(source) == 40_000
    source.close()


def test_a_file_that_is_shortened_meanwhile_ends_early_and_does_not_crash(tmp_path: Path) -> None:
    path = written(tmp_path, "big.jsonl", b'{"text": "abc"}\n' * 100_000)
    source = open_source(path)
    assert len(source) == 100_000
    with path.open("r+b") as file:
        file.truncate(1_000)
    assert source.row(0).value == {"text": "abc"}
    with pytest.raises(IndexError):
        source.row(99_999)
    assert sum(1 for _ in source) < 100
    source.close()


def test_a_row_of_many_megabytes_is_one_row(tmp_path: Path) -> None:
    huge = orjson.dumps({"text": "x" * 20_000_000})
    source = open_source(written(tmp_path, "huge.jsonl", b'{"text":"a"}\n' + huge + b'\n{"text":"b"}\n'))
    assert [(row.line, len(row.raw)) for row in source] == [(1, 12), (2, len(huge)), (3, 12)]
    assert source.row(2).value == {"text": "b"}
    assert source.row(1).raw == huge
    source.close()
