"""Validation: every planted defect is found at its line, none is invented, no row disappears."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.core.errors import DatasetParseError
from backprop.data import validate as validation
from backprop.data.example import PROBLEM_CODES
from backprop.data.validate import Validation, validate
from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = [*"abcdefghijklmnop", "tide", "rope", "mast", "gull", "brine", "hull", "knot", "reef", "sail", "cape"]


def chat(rng: random.Random) -> dict[str, Any]:
    """A good row; its number makes it like no other."""
    said = " ".join(rng.choices(WORDS, k=rng.randint(3, 30)))
    turns = [
        {"role": "user", "content": f"{said}? {rng.random()}"},
        {"role": "assistant", "content": f'"{said}",\nsaid the {rng.choice(WORDS)} {rng.random()}'},
    ]
    if rng.random() < 0.3:
        turns.insert(0, {"role": "system", "content": "Answer as a sailor."})
    if rng.random() < 0.3:
        turns += [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": f"Then {rng.random()}"}]
    return {"id": rng.randint(0, 10**9), "messages": turns}


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _with(change: Callable[[dict[str, Any]], Any]) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        row = chat(rng)
        changed = change(row)
        return dumped(row if changed is None else changed)

    return make


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[random.Random], bytes]:
    return lambda rng: change(dumped(chat(rng)))


DEFECTS: dict[str, tuple[str, Callable[[random.Random], bytes]]] = {
    "cut off": ("broken_json", _bytes(lambda raw: raw[: len(raw) // 2])),
    "comma after": ("broken_json", _bytes(lambda raw: raw + b",")),
    "two on a line": ("broken_json", _bytes(lambda raw: raw + b" " + raw)),
    "latin-1": ("not_utf8", _bytes(lambda raw: raw.replace(b"said the", b"caf\xe9 the"))),
    "raw nul": ("nul_byte", _bytes(lambda raw: raw.replace(b"said the", b"said\x00the"))),
    "escaped nul": ("nul_byte", _bytes(lambda raw: raw.replace(b"said the", b"said \\u0000 the"))),
    "half a pair": ("lone_surrogate", _bytes(lambda raw: raw.replace(b"said the", b"\\udc00 the"))),
    "no content": ("missing_field", _with(lambda row: row["messages"][-1].pop("content") and None)),
    "content is a number list": ("invalid_type", _with(lambda row: row["messages"][0].update(content=[1, 2]))),
    "image": (
        "unsupported_content",
        _with(lambda row: row["messages"][0].update(content=[{"type": "image_url", "image_url": "x"}])),
    ),
    "no assistant": (
        "no_assistant",
        _with(lambda row: row.update(messages=[turn for turn in row["messages"] if turn["role"] == "user"][:1])),
    ),
    "empty answer": (
        "empty_content",
        _with(lambda row: row["messages"].extend([row["messages"][-2], {"role": "assistant", "content": ""}])),
    ),
    "blank question": ("empty_content", _with(lambda row: row["messages"][-2].update(content=" \n\u3000"))),
    "two answers": ("role_order", _with(lambda row: row["messages"].append({"role": "assistant", "content": "Aye."}))),
    "unknown role": ("invalid_role", _with(lambda row: row["messages"].append({"role": "narrator", "content": "Hm"}))),
    "no turns": ("no_turns", _with(lambda row: row.update(messages=[]))),
    "control token": (
        "special_token",
        _with(lambda row: row["messages"][-1].update(content="Aye.<|im_end|>\nMore " + str(row["id"]))),
    ),
    "escaped control token": ("special_token", _bytes(lambda raw: raw.replace(b"said the", b"\\u003c/s> the"))),
    "another format": (
        "mixed_format",
        lambda rng: dumped({"instruction": f"Say {rng.random()}", "input": "", "output": "Aye."}),
    ),
    "no row": ("invalid_type", lambda rng: dumped(rng.random())),
}


def planted(rows: int, share: float, seed: int) -> tuple[bytes, set[tuple[int, str]]]:
    """A file of ``rows`` rows, ``share`` of them with each defect, and the true findings."""
    rng = random.Random(seed)
    lines: list[bytes] = []
    truth: set[tuple[int, str]] = set()
    kinds = [name for name in [*DEFECTS, "repeated"] for _ in range(round(rows * share))]
    plan: list[str] = kinds + [""] * (rows - len(kinds))
    rng.shuffle(plan)
    good: list[int] = []
    for number, name in enumerate(plan, 1):
        if name == "repeated" and good:
            original = json.loads(lines[rng.choice(good)])
            lines.append(dumped({"messages": original["messages"], "id": rng.random()}))
            truth.add((number, "duplicate_row"))
        elif name in DEFECTS:
            code, make = DEFECTS[name]
            lines.append(make(rng))
            truth.add((number, code))
        else:
            good.append(len(lines))
            lines.append(dumped(chat(rng)))
    return b"\n".join(lines) + b"\n", truth


def found(answer: Validation) -> set[tuple[int, str]]:
    return {(problem.line, problem.code) for problem in answer.problems}


def written(folder: Path, name: str, data: bytes | str | list[Any]) -> Path:
    path = folder / name
    if isinstance(data, list):
        data = b"".join(dumped(row) + b"\n" for row in data)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_every_planted_defect_is_found_and_none_is_invented(tmp_path: Path) -> None:
    data, truth = planted(20_000, 0.01, seed=7)
    answer = validate(written(tmp_path, "planted.jsonl", data))
    codes = {name: code for name, (code, _) in DEFECTS.items()}
    unreadable = {name for name, code in codes.items() if code in ("broken_json", "not_utf8", "lone_surrogate")}
    assert len(DEFECTS) >= 15
    assert answer.format == "openai"
    assert answer.rows == 20_000
    assert found(answer) == truth
    errors = {problem.line for problem in answer.problems if problem.severity == "error"}
    assert answer.invalid == len(errors)
    assert answer.valid + answer.invalid == answer.rows
    assert sum(answer.formats.values()) == answer.rows
    assert answer.formats["unreadable"] == 200 * (len(unreadable) + 1)
    assert answer.problem_counts == Counter(problem.code for problem in answer.problems)
    assert all(problem.excerpt and problem.message for problem in answer.problems)


@pytest.mark.parametrize("seed", [1, 2])
def test_an_array_and_crlf_lines_give_the_same_findings(tmp_path: Path, seed: int) -> None:
    data, truth = planted(400, 0.02, seed)
    lines = [line for line in data.splitlines() if line.strip()]
    crlf = validate(written(tmp_path, "crlf.jsonl", b"\r\n".join(lines)))
    assert found(crlf) >= truth
    assert {line for line, _ in found(crlf) - truth} <= {line for line, _ in truth}
    kept = [(i, line) for i, line in enumerate(lines, 1) if not _breaks_arrays(line)]
    array = validate(written(tmp_path, "a.json", b"[\n" + b",\n".join(line for _, line in kept) + b"\n]"))
    renumbered = {line: i for i, (line, _) in enumerate(kept, 1)}
    expected = {(renumbered[line], code) for line, code in found(crlf) if line in renumbered}
    assert {item for item in found(array) if item[1] != "duplicate_row"} == {
        item for item in expected if item[1] != "duplicate_row"
    }


def _breaks_arrays(line: bytes) -> bool:
    """Rows that are no single JSON value: among commas they would not stay one row."""
    try:
        json.loads(line.decode("latin-1"))
    except ValueError:
        return True
    return False


ROW_PARTS = st.sampled_from(
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
        {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "\u00e9"}]},
        {"messages": [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": None}]},
        {"messages": [{"role": "user", "content": "a"}], "chosen": 1, "rejected": 2},
        {"messages": {"role": "user", "content": "a"}},
        {"messages": [], "text": "x"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b</s>"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        {"conversations": [{"from": "gpt", "value": "\u3000"}, {"from": "human", "value": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[]"},
        {"instruction": "a", "input": None, "output": "b"},
        {"instruction": "", "input": "x", "output": "b"},
        {"instruction": "a", "output": "\t", "history": [["q", "a"]]},
        {"instruction": "a", "output": 0},
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "a", "completion": "b", "label": 2},
        {"prompt": "a", "completion": "", "label": False},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "", "chosen": "b", "rejected": "c"},
        {"chosen": "b", "rejected": "c<|x|>"},
        {"text": "plain [INST] text"},
        {"text": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"},
        {"text": "<|im_start|>user\na"},
        {"text": "\u00a0"},
        {"text": 5},
        {"text": "### Instruction:\nWho?\n\n### Response:\nMe."},
        {"text": "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "N/A"}], "source": "book"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "loss_mask": [1]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "turn_loss": [0, 1]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "label": False},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": "c"},
        {"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'},
        {"instruction": "a", "output": "nan", "images": ["x.png"]},
        {"instruction": "a <image>", "output": "b", "rejected": "c"},
        {"prompt": "Human: a\n\nAssistant:", "completion": "b"},
        {"prompt": "a", "chosen": '[{"role": "assistant", "content": "b"}]', "rejected": "c"},
        "bare text",
        {},
        [],
        None,
        3,
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(ROW_PARTS, min_size=1, max_size=12),
    main=ROW_PARTS,
    garbage=st.lists(st.sampled_from([b"", b"{", b"}{", b'{"text": "a"} {"text": "b"}', b"\xff", b" "]), max_size=3),
)
def test_the_quick_look_finds_what_the_slow_one_finds(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], main: Any, garbage: list[bytes]
) -> None:
    lines = [dumped(row) for row in [main, main, *rows]] + garbage
    random.Random(len(lines)).shuffle(lines)
    path = written(tmp_path_factory.mktemp("both"), "a.jsonl", b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        quick = _validated(path)
        patch.setattr(validation, "TYPES", {})
        slow = _validated(path)
    assert quick == slow


def _validated(path: Path) -> object:
    try:
        answer = validate(path)
    except DatasetParseError as error:
        return error.message
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    assert answer.rows == len(lines) == sum(answer.formats.values())
    return answer


def one(tmp_path: Path, rows: list[Any], **options: Any) -> Validation:
    return validate(written(tmp_path, "one.jsonl", rows), **options)


GOOD = {"instruction": "Do", "output": "Done"}


def test_findings_of_each_format_name_field_and_severity(tmp_path: Path) -> None:
    alpaca = one(
        tmp_path,
        [GOOD, {"instruction": "x", "output": " "}, {"instruction": "y", "output": None}, {"instruction": "z"}],
    )
    assert [(p.line, p.code, p.severity) for p in alpaca.problems] == [
        (2, "empty_content", "warning"),
        (2, "nothing_to_train", "error"),
        (3, "empty_content", "warning"),
        (3, "nothing_to_train", "error"),
        (4, "missing_field", "error"),
    ]
    said = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    share = one(
        tmp_path,
        [{"conversations": said}, {"conversations": [said[0], {"value": "b"}]}, {"conversations": [*said, "x"]}],
    )
    assert [(p.line, p.code, p.field) for p in share.problems] == [
        (2, "missing_field", "conversations[1].from"),
        (3, "invalid_type", "conversations[2]"),
    ]
    assert share.invalid == 2


def test_a_pair_whose_sides_are_the_same_and_one_label_are_found(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    pairs = one(tmp_path, [pair, {"prompt": "a", "chosen": "c", "rejected": "c"}, {"chosen": "b", "rejected": "c"}])
    assert {(p.line, p.code, p.severity) for p in pairs.problems} == {
        (2, "same_sides", "warning"),
        (3, "no_prompt", "info"),
    }
    judged = [{"prompt": str(i), "completion": "x", "label": True} for i in range(3)]
    labels = one(tmp_path, judged)
    assert [(p.line, p.code, p.field) for p in labels.problems] == [(0, "one_label", "label")]
    assert not one(tmp_path, [*judged, {"prompt": "b", "completion": "x", "label": 0}]).problems
    bad = one(tmp_path, [*judged, {"prompt": "b", "completion": "x", "label": "perhaps"}])
    assert (4, "invalid_value") in found(bad)


def test_mixed_formats_are_counted_with_their_lines(tmp_path: Path) -> None:
    rows = [GOOD | {"output": str(i)} for i in range(5)]
    rows[3] = {"prompt": "a", "completion": "b"}
    answer = one(tmp_path, rows)
    assert answer.formats == {"alpaca": 4, "prompt_completion": 1}
    assert [(p.line, p.code) for p in answer.problems] == [(4, "mixed_format")]


def test_rows_that_are_also_held_out_are_found(tmp_path: Path) -> None:
    rows = [{"id": i, "instruction": f"Do {i}", "output": "Done"} for i in range(50)]
    held = written(
        tmp_path, "held.json", json.dumps([{"output": "Done", "instruction": f"Do {i}"} for i in (7, 31, 99)])
    )
    answer = one(tmp_path, rows, held_out=held)
    assert [(p.line, p.code) for p in answer.problems] == [(8, "held_out_overlap"), (32, "held_out_overlap")]


def test_an_earlier_row_of_equal_content_is_named_however_it_is_written(tmp_path: Path) -> None:
    tail = "the same ending of more than twenty characters"
    rows = [{"instruction": f"Do {i}", "output": f"{i} {tail}"} for i in range(10, 99)]
    assert not one(tmp_path, rows).problems
    again = one(tmp_path, [*rows, {"output": f"10 {tail}", "instruction": "Do 10", "input": "", "system": ""}])
    assert [(p.line, p.code, p.message) for p in again.problems] == [(90, "duplicate_row", "the same as line 1")]


def test_a_mapping_is_found_and_told_and_can_be_given(tmp_path: Path) -> None:
    rows = [{"question": f"a{i}", "answer": "b"} for i in range(3)]
    answer = one(tmp_path, [*rows, {"question": "x", "answer": ""}])
    assert answer.format == "alpaca"
    assert "instruction=question" in answer.notes[0]
    assert [(p.line, p.code, p.field) for p in answer.problems] == [
        (4, "empty_content", "answer"),
        (4, "nothing_to_train", ""),
    ]
    assert (answer.valid, answer.invalid) == (3, 1)
    given = one(tmp_path, [{"a": "x", "b": "y"}], mapping={"prompt": "a", "completion": "b"})
    assert (given.format, given.valid) == ("prompt_completion", 1)


def test_only_so_many_findings_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    rows: list[Any] = [GOOD | {"output": f"b{i}"} for i in range(600)] + [{"instruction": str(i)} for i in range(500)]
    answer = one(tmp_path, rows, listed=7)
    assert len(answer.problems) == 7
    assert answer.problem_counts == {"missing_field": 500}
    assert answer.invalid == 500


def test_a_file_without_one_readable_row_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'{"a": \n{"b"\nhello\n')
    with pytest.raises(DatasetParseError, match="none of its 3 rows can be read; line 1: "):
        validate(path)


def test_a_byte_order_mark_is_noted_and_every_code_has_a_meaning(tmp_path: Path) -> None:
    answer = validate(written(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + dumped(GOOD)))
    assert [(p.line, p.code, p.severity) for p in answer.problems] == [(0, "bom", "info")]
    assert answer.valid == 1
    data, _ = planted(300, 0.03, seed=3)
    assert set(validate(written(tmp_path, "b.jsonl", data)).problem_counts) <= set(PROBLEM_CODES)


def test_a_check_that_is_stopped_says_so_and_shows_progress(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b"".join(dumped(GOOD | {"output": str(i)}) + b"\n" for i in range(60_000)))
    seen: list[tuple[int, int]] = []
    answer = validate(path, progress=lambda *now: seen.append(now), cancelled=lambda: len(seen) == 2)
    assert not answer.complete
    assert 0 < answer.rows < 60_000
    whole = validate(path, progress=lambda *now: seen.append(now))
    assert (whole.rows, whole.complete) == (60_000, True)
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


def test_two_values_in_a_line_are_not_made_up_for_by_a_blank_line(tmp_path: Path) -> None:
    data = '{"text": "a"}\n{"text": "b"} {"text": "c"}\n\n{"text": "d"}\n'
    answer = validate(written(tmp_path, "a.jsonl", data))
    assert (answer.rows, answer.invalid, found(answer)) == (3, 1, {(2, "broken_json")})
