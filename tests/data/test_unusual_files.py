"""Files of other makes: read as what they are, or refused with what helps; whatever is unusual is said once."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backprop.core.errors import BackpropError, DatasetError, DatasetParseError
from backprop.core.events import DatasetPrepared
from backprop.data.example import Example
from backprop.data.examples import Reader
from backprop.data.preprocess import prepare
from backprop.data.reader import Source, open_source
from backprop.data.report import report
from backprop.data.validate import validate
from pyarrow import ipc

ROWS = [{"instruction": f"q{i}?", "output": f"a{i}"} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def opened(path: Path, data: str | bytes = b"") -> Source:
    if data:
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return open_source(path)


def read(path: Path, data: str | bytes = b"") -> list[object]:
    with opened(path, data) as source:
        return [row.value if row.error is None else row.error.code for row in source]


def examples(path: Path) -> list[Example]:
    with open_source(path) as source:
        return [read.became for read in Reader(source) if isinstance(read.became, Example)]


def codes(path: Path) -> dict[str, list[int]]:
    """Code of each finding → lines, as a person gets them from ``validate``."""
    found: dict[str, list[int]] = {}
    for problem in validate(path).problems:
        found.setdefault(problem.code, []).append(problem.line)
    return found


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("wrapped.json", json.dumps({"version": 1, "data": ROWS}, indent=1), "the list 'data' of one object; not read"),
        ("book.json", json.dumps({"author": "me", "pages": ROWS}), "the list 'pages' of one object; not read"),
        ("columns.json", json.dumps({k: [row[k] for row in ROWS] for k in ROWS[0]}), "columns (instruction, output)"),
        (
            "pandas.json",
            json.dumps({k: {str(i): row[k] for i, row in enumerate(ROWS)} for k in ROWS[0]}),
            "columns (instruction, output)",
        ),
        (
            "named.json",
            json.dumps({f"id{i}": row for i, row in enumerate(ROWS)}),
            "an object of rows: their names (id0",
        ),
        ("joined.json", "".join(map(json.dumps, ROWS)), "one after the other"),
        ("pretty.json", "\n".join(json.dumps(row, indent=2) for row in ROWS), "one after the other"),
        ("packed.jsonl", gzip.compress(LINES.encode(), mtime=0), "packed as .gz, whatever its name says"),
        ("tab.tsv", "instruction\toutput\n" + "".join(f"q{i}?\ta{i}\n" for i in range(3)), ""),
        ("bar.csv", "instruction|output\n" + "".join(f"q{i}?|a{i}\n" for i in range(3)), ""),
        ("sep.csv", "sep=;\ninstruction;output\n" + "".join(f"q{i}?;a{i}\n" for i in range(3)), "separated by ';'"),
        ("mac.csv", "instruction,output\r" + "".join(f"q{i}?,a{i}\r" for i in range(3)), ""),
    ],
)
def test_a_file_of_another_make_gives_its_rows_and_says_how(
    tmp_path: Path, name: str, text: str | bytes, note: str
) -> None:
    with opened(tmp_path / name, text) as source:
        assert [row.value for row in source] == ROWS
        assert len(source.notes) == bool(note)
        assert note in "".join(source.notes)
    with open_source(tmp_path / name) as source:
        assert note in "".join(source.notes), "said again when the copy is used again"
    assert validate(tmp_path / name).notes == source.notes


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_files_and_streams_are_read(tmp_path: Path, stream: bool) -> None:
    table = pa.Table.from_pylist(ROWS)
    with (ipc.new_stream if stream else ipc.new_file)(tmp_path / "a.arrow", table.schema) as out:
        out.write_table(table)
        out.write_table(table)
    assert read(tmp_path / "a.arrow") == ROWS * 2
    (tmp_path / "a.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:-200])
    with pytest.raises(DatasetParseError, match="cannot be read as Arrow"):
        open_source(tmp_path / "a.arrow")


def test_parquet_under_another_name_is_read_as_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.jsonl")
    with open_source(tmp_path / "a.jsonl") as source:
        assert [row.value for row in source] == ROWS
        assert source.notes == ["the file is parquet, whatever its name says"]


@pytest.mark.parametrize(
    ("document", "rows"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, 1),
        ({"dialogue": [{"speaker": "a", "text": "x"}, {"speaker": "b", "text": "y"}]}, 1),
        ({"instruction": "a", "output": "b", "references": [{"title": "c"}, {"title": "d"}]}, 1),
        ({"question": "a", "answer": "b", "passages": [{"title": "c"}]}, 1),
        ({"id": 7, "talk": [{"Speaker": "user", "utterance": "a"}, {"Speaker": "assistant", "utterance": "b"}]}, 1),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}, 1),
        ({"prompt": "a", "completion": "b", "meta": {"x": 1}}, 1),
    ],
)
def test_an_object_that_is_a_row_stays_one(tmp_path: Path, document: object, rows: int) -> None:
    assert read(tmp_path / "a.json", json.dumps(document, indent=1)) == [document] * rows


def test_an_object_with_several_lists_of_rows_asks_which(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="several lists of rows: train, test") as caught:
        opened(tmp_path / "a.json", json.dumps({"train": ROWS, "test": ROWS}))
    assert caught.value.code == "DATASET_AMBIGUOUS"
    assert "jq -c '.train[]'" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "head", "what", "hint"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "Git LFS", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "Git LFS", "git lfs pull"),
        ("a.json", b"\n<!DOCTYPE html><html>", "a web page", "the file itself"),
        ("a.csv", b"<HTML>", "a web page", "the file itself"),
        ("a.xlsx", b"PK\x03\x04 and more", "a spreadsheet", "CSV"),
        ("a.jsonl.bz2", bz2.compress(LINES.encode()), "bzip2", "bunzip2"),
    ],
)
def test_what_holds_no_rows_is_named_with_what_helps(
    tmp_path: Path, name: str, head: bytes, what: str, hint: str
) -> None:
    with pytest.raises(DatasetParseError, match=what) as caught:
        opened(tmp_path / name, head)
    assert hint in caught.value.hint


def test_the_first_line_of_a_json_file_may_be_of_any_length(tmp_path: Path) -> None:
    long = {"instruction": "x" * 70_000, "output": "y"}
    assert read(tmp_path / "a.json", json.dumps(long) + "\n" + LINES) == [long, *ROWS]


def test_json_lines_named_json_with_a_broken_first_line_stay_lines(tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", '{"instruction": "cut\n' + LINES) == ["broken_json", *ROWS]


@pytest.mark.parametrize(("text", "rows"), [("[", 0), ("[\n\n", 0), ('[{"text": "a"}', 1), ('[{"text": "a"},', 1)])
def test_an_array_without_an_end_is_broken_and_not_empty_or_whole(text: str, rows: int, tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", text) == [*[{"text": "a"}] * rows, "broken_json"]
    with open_source(tmp_path / "a.json") as source:
        error = list(source)[-1].error
    assert error is not None
    line = 1 + text.count("\n")
    assert error.message == f"the array has no end: the file may be cut off (line {line} of the file)"


def test_parts_in_a_folder_are_one_dataset_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in (0, 1, 2, 10):
        (folder / f"part-{i}.jsonl").write_text(f'{{"text": "row {i}"}}\n' * (i != 0) + "{broken\n" * (i == 1))
    (folder / ".part-3.jsonl").write_text("hidden")
    (folder / "dataset_info.json").write_text("{}")
    with open_source(folder) as source:
        rows = [row.value or (row.error and row.error.message) for row in source]
        assert rows[0] == {"text": "row 1"}
        assert str(rows[1]).endswith("(line 2 of part-1.jsonl)")
        assert rows[2:] == [{"text": "row 2"}, {"text": "row 10"}]
        assert source.unit == "row"
        assert source.notes == [
            "3 files are read as one: part-1.jsonl from row 1, part-2.jsonl from row 3, part-10.jsonl from row 4"
        ]
    (folder / "part-10.jsonl").write_text('{"text": "changed"}\n')
    assert read(folder)[3:] == [{"text": "changed"}]
    assert read(folder / "part-1*.jsonl") == [{"text": "row 1"}, "broken_json", {"text": "changed"}]


def test_a_folder_of_different_files_asks_which(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(LINES)
    with pytest.raises(DatasetError, match=r"not parts of one dataset: test\.jsonl, train\.jsonl") as caught:
        open_source(tmp_path)
    assert caught.value.code == "DATASET_AMBIGUOUS"
    assert read(tmp_path / "tr*.jsonl") == ROWS


def test_shards_of_other_kinds_say_what_is_unusual_once(tmp_path: Path) -> None:
    for i in range(3):
        pq.write_table(pa.Table.from_pylist(_CALLS), tmp_path / f"{i}.parquet")
    with open_source(tmp_path) as source:
        assert len(source) == 6
        assert [note.rpartition(" (")[2] for note in source.notes[1:]] == ["3 files)"]


@pytest.mark.parametrize(
    "broken",
    [
        'Q1?,"A1.\nQ2?,A2\nQ3?,A3\n',
        'Q1?,"A1.\nQ2?,A2\nQ3?,"A3, yes"\n',
        'Q1?,"A1.\nQ2?,A2\n"Q3?","A3"\n',
    ],
)
def test_a_stray_quote_costs_its_own_line_alone(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,output\nQ0?,A0\n" + broken)
    with open_source(path) as source:
        rows = list(source)
    assert [row.line for row in rows] == [2, 3, 4, 5]
    assert [row.error is not None for row in rows] == [False, True, False, False]
    assert rows[1].error is not None
    assert rows[1].error.code == "broken_csv"
    assert "a quote that opens in it is not closed" in rows[1].error.message
    assert rows[1].raw == b'Q1?,"A1.'
    assert rows[2].value == {"instruction": "Q2?", "output": "A2"}


@pytest.mark.parametrize(
    ("line", "output", "code"),
    [
        ('What?, "A thing, yes."', "A thing, yes.", "csv_quotes"),
        ('"Q?","say \\"hi, you\\""', 'say "hi, you"', "csv_quotes"),
        ('"Q?","ends \\"so\\""', 'ends "so"', "csv_quotes"),
        ('"Q?","C:\\"', "C:\\", ""),
        ('"Q?","C:\\new ""q"""', 'C:\\new "q"', ""),
        ('Q?,He said "hi" twice', 'He said "hi" twice', ""),
        ('"Q?"," ""x"""', ' "x"', ""),
        ("Q?, blue", " blue", ""),
        ('"Say ""a "" b", blue', " blue", ""),
        ('Q?,some "x", "y"', "column_count", ""),
    ],
)
def test_quotes_are_read_as_their_program_meant_them(tmp_path: Path, line: str, output: str, code: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"instruction,output\n{line}\nlast,row\n")
    first, last = read(path)
    assert (first["output"] if isinstance(first, dict) else first) == output
    assert last == {"instruction": "last", "output": "row"}
    assert codes(path).get("csv_quotes") == ([2] if code else None)


def test_a_table_of_another_encoding_names_the_command(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("instruction,output\nCafé?,“Oui”\nq,a\n".encode("cp1252"))
    assert read(path) == ["not_utf8", {"instruction": "q", "output": "a"}]
    assert "iconv -f WINDOWS-1252 -t UTF-8" in validate(path).problems[0].message
    with pytest.raises(DatasetParseError, match=r"line 1 cannot be read.*iconv -f ISO-8859-1 -t UTF-8"):
        opened(tmp_path / "b.csv", "français,output\na,b\n".encode("latin-1"))


def test_a_wide_table_is_read_column_by_column(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(50_000)]
    (row,) = read(tmp_path / "a.csv", ",".join(names) + "\n" + ",".join(map(str, range(50_000))) + "\n")
    assert isinstance(row, dict)
    assert (len(row), row["c49999"]) == (50_000, "49999")


_CALLS = [
    {
        "messages": [
            {"role": "user", "content": "Time?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}],
            },
        ],
        "tools": [{"name": "clock", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}],
    },
    {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "function": {"name": "sky", "arguments": {"city": "B", "days": 2}}}
                ],
            },
        ],
        "tools": [
            {
                "name": "sky",
                "description": "the sky",
                "parameters": {"type": "object", "properties": {"days": {"type": "integer", "minimum": 0}}},
            }
        ],
    },
]


def test_parquet_gives_the_calls_and_tools_of_its_twin_in_json_lines(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(_CALLS), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _CALLS))
    ours, twin = examples(tmp_path / "a.parquet"), examples(tmp_path / "a.jsonl")
    assert [(example.turns, example.tools) for example in ours] == [(example.turns, example.tools) for example in twin]
    assert len(ours) == 2
    assert any("messages, tools" in note for note in validate(tmp_path / "a.parquet").notes)


def test_columns_of_bytes_and_decimals_are_text_and_large_numbers_stay_whole(tmp_path: Path) -> None:
    columns = {"text": [b"caf\xc3\xa9"], "price": [Decimal("1.50")], "id": pa.array([2**63 + 5], pa.uint64())}
    columns["map"] = pa.array([{"a": 1}], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [{"text": "café", "price": "1.50", "id": 2**63 + 5, "map": {"a": 1}}]


@pytest.mark.parametrize("wrap", ["%s\n", "[%s]"])
def test_numbers_keep_every_digit_and_nan_is_no_value(tmp_path: Path, wrap: str) -> None:
    path = tmp_path / ("a.json" if wrap.startswith("[") else "a.jsonl")
    row = {"instruction": "n?", "input": None, "output": 12345678901234567890123}
    with opened(path, wrap % '{"instruction": "n?", "input": NaN, "output": 12345678901234567890123}') as source:
        (found,) = source
    assert found.value == row
    assert json.loads(found.raw) == row
    assert examples(path)[0].turns[1].content == "12345678901234567890123"
    assert codes(path)["nan_value"] == [1]
    assert report(path).problems["nan_value"] == 1


@pytest.mark.parametrize("wrap", ["%s\n", "[%s]"])
def test_a_key_that_stands_twice_is_said(tmp_path: Path, wrap: str) -> None:
    path = tmp_path / ("a.json" if wrap.startswith("[") else "a.jsonl")
    text = '{"instruction": "say \\"x\\": y", "output": "a", "output": "b"}'
    assert read(path, wrap % text) == [{"instruction": 'say "x": y', "output": "b"}]
    assert codes(path) == {"repeated_key": [1]}


@pytest.mark.parametrize(
    "row",
    [
        '{"instruction": "a", "output": "b", "output": "c"}',
        '{"instruction": "a", "output": "b", "note": 1, "note": 2}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "content": "c"}]}',
    ],
)
@pytest.mark.parametrize("broken", [{}, {"broken_json": [8]}])
@pytest.mark.parametrize("code", ["", r"{\"x\": 1, \"y\": 2}"])
def test_the_one_row_with_a_repeated_key_is_found_among_many(
    tmp_path: Path, row: str, code: str, broken: dict[str, list[int]]
) -> None:
    good = row.replace(', "output": "c"', "").replace(', "note": 2', "").replace(', "content": "c"', "")
    lines = [good.replace('"a"', f'"a{i} {code * (i % 3 == 0)}"') for i in range(2000)]
    lines[1234] = row
    for line in broken.get("broken_json", []):
        lines[line - 1] = '{"cut'
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines) + "\n")
    assert codes(path) == {"repeated_key": [1235], **broken}


def test_a_comment_is_a_row_that_says_how_to_leave_it_out(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", "# rows\n" + LINES) == ["broken_json", *ROWS]
    assert "grep -v '^#'" in validate(tmp_path / "a.jsonl").problems[0].message


@pytest.mark.parametrize("write", [lambda p: p.mkdir(), lambda p: None])
def test_a_folder_without_rows_and_a_pattern_that_fits_nothing_are_refused(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "a")
    with pytest.raises(BackpropError) as caught:
        open_source(tmp_path / ("a" if (tmp_path / "a").exists() else "*.jsonl"))
    assert caught.value.code == "DATASET_NOT_FOUND"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Itâ€™s here", "mojibake"),
        ("a cafÃ© there", "mojibake"),
        ("20 Â°C", "mojibake"),
        ("caf\ufffd", "mojibake"),
        ("AMANHÃ, “NÃO” e “MANHÃ”, «IRMÃ»", ""),
        ("ÂNGULO, Ägypten, Ça va, naïve, 你好", ""),
    ],
)
@pytest.mark.parametrize("make", [lambda t: {"text": t}, lambda t: {"instruction": "a?", "output": t}])
def test_letters_read_in_a_wrong_encoding_are_named(
    tmp_path: Path, make: Callable[[str], dict[str, str]], text: str, code: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps(make(t), ensure_ascii=False) + "\n" for t in ("other words", text, "more words"))
    )
    assert codes(path) == ({code: [2]} if code else {})


def test_training_says_what_is_unusual_and_knows_when_a_part_has_changed(
    tmp_path: Path, model_dir: Callable[[str], Path]
) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "0.jsonl").write_text('{"instruction": "a", "output": "b", "output": "c"}\n')
    (parts / "1.jsonl").write_text('{"instruction": NaN, "input": "cafÃ©", "output": "d"}\n')

    def prepared() -> DatasetPrepared:
        return prepare(parts, model_dir("chatml"), cache_dir=tmp_path / "cache").summary

    first = prepared()
    assert first.problem_counts == {"repeated_key": 1, "nan_value": 1, "mojibake": 1}
    assert first.notes[0] == "2 files are read as one: 0.jsonl from row 1, 1.jsonl from row 2"
    assert (first.cached, prepared().cached) == (False, True)
    (parts / "1.jsonl").write_text('{"instruction": "a", "input": "b", "output": "other"}\n')
    assert prepared().problem_counts == {"repeated_key": 1}
