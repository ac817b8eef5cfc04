"""``backprop validate`` and ``backprop data`` as a person or a script runs them: answers, exit codes, streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import write_model

KEYS = {"path", "format", "rows", "valid", "invalid", "problems"}
GOOD = [{"instruction": f"Say {i}", "output": f"The number is {i}, my friend."} for i in range(30)]


def backprop(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backprop.cli.main", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def written(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_validate_answers_with_the_keys_that_scripts_rely_on(tmp_path: Path) -> None:
    done = backprop("validate", written(tmp_path, [*GOOD, '{"cut":']), "--json")
    answer = json.loads(done.stdout)
    assert set(answer) >= KEYS
    assert (answer["rows"], answer["valid"], answer["invalid"], done.returncode) == (31, 30, 1, 1)
    (problem,) = answer["problems"]
    assert {"line", "field", "code", "severity", "message", "excerpt"} == set(problem)
    assert (problem["line"], problem["code"], problem["excerpt"]) == (31, "broken_json", '{"cut":')


@pytest.mark.parametrize("command", ["validate", "data report", "data split", "data clean"])
def test_parts_are_one_dataset_which_is_said_and_what_is_written_lies_beside_them(tmp_path: Path, command: str) -> None:
    (tmp_path / "parts").mkdir()
    for i in range(2):
        written(tmp_path / "parts", GOOD[15 * i : 15 * i + 15], f"{i}.jsonl")
    done = backprop(*command.split(), str(tmp_path / "parts" / "*.jsonl"))
    assert done.returncode == 0
    assert done.stdout.count("2 files are read as one: 0.jsonl from row 1, 1.jsonl from row 16") == 1
    wrote = {"data split": ["parts.held-out.jsonl", "parts.train.jsonl"]}
    wrote["data clean"] = ["parts.clean.jsonl", "parts.clean.report.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", *wrote.get(command, [])]


@pytest.mark.parametrize("command", ["validate", "data report"])
def test_a_file_without_a_row_that_can_be_used_ends_with_an_error_code(tmp_path: Path, command: str) -> None:
    assert backprop(*command.split(), written(tmp_path, [{"a": 1}, {"a": 2}])).returncode == 1


def test_validate_for_people_says_each_kind_of_finding_in_one_line(tmp_path: Path) -> None:
    part = {"messages": [{"role": "user", "content": [{"type": "text"}]}, {"role": "assistant", "content": "Aye."}]}
    done = backprop("validate", written(tmp_path, [*GOOD, *[{"instruction": str(i)} for i in range(25)], part]))
    assert "26 missing_field (lines 31, 32, 33, 34, 35 …): the row has no 'output'" in done.stdout
    assert "1 mixed_format (line 56)" in done.stdout
    assert len(done.stdout.splitlines()) < 10
    assert done.returncode == 1
    clean = backprop("validate", written(tmp_path, GOOD, "good.jsonl"))
    assert (clean.returncode, clean.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "text", "code", "words"),
    [
        ("none.jsonl", None, "DATASET_NOT_FOUND", "no file"),
        ("a.jsonl", "", "DATASET_EMPTY", "dataset is empty"),
        ("a.jsonl", '[{"a": 1},\n{"a": 2}]', "DATASET_PARSE_FAILED", "rename to .json"),
        ("a.jsonl", '{"a":\n{"b":\n', "DATASET_PARSE_FAILED", "none of its 2 rows"),
        ("a.docx", "x", "DATASET_FORMAT_UNKNOWN", "ending .docx"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error_in_both_answers(
    tmp_path: Path, name: str, text: str | None, code: str, words: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    plain = backprop("validate", str(tmp_path / name))
    assert (plain.returncode, plain.stdout) == (1, "")
    assert code in plain.stderr
    assert words in plain.stderr
    assert "Traceback" not in plain.stderr
    as_json = backprop("validate", str(tmp_path / name), "--json")
    assert json.loads(as_json.stdout)["error"]["code"] == code
    assert as_json.returncode == 1


def test_a_held_out_file_and_a_mapping_are_taken(tmp_path: Path) -> None:
    rows = [{"q": f"Say {i}", "a": f"The number is {i}."} for i in range(10)]
    path, held = written(tmp_path, rows), written(tmp_path, rows[4:5], "held.jsonl")
    done = backprop("validate", path, "--map", "instruction=q", "--map", "output=a", "--held-out", held, "--json")
    answer = json.loads(done.stdout)
    assert [(p["line"], p["code"]) for p in answer["problems"]] == [(5, "held_out_overlap")]
    wrong = backprop("validate", path, "--map", "instructon=q")
    assert wrong.returncode == 1
    assert "'instructon' is no part of a row" in wrong.stderr


def test_rows_that_a_length_cuts_are_all_counted_whatever_is_listed(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    long = [{"instruction": f"Say {i} " * 40, "output": f"It is {i}."} for i in range(70)]
    lost = [{"instruction": f"Say {i}", "output": f"It is {i}. " * 60} for i in range(60)]
    path = written(tmp_path, [*GOOD, *long, *lost])
    answer = json.loads(backprop("validate", path, "--model", str(model), "--max-seq-length", "128", "--json").stdout)
    assert (answer["tokens"]["cut"], answer["tokens"]["answer_lost"]) == (70, 60)
    assert (answer["problem_counts"]["cut"], answer["problem_counts"]["answer_lost"]) == (70, 60)
    listed = [problem["line"] for problem in answer["problems"] if problem["code"] == "cut"]
    assert listed[0] == 31
    plain = backprop("validate", path, "--model", str(model), "--max-seq-length", "128").stdout
    assert "70 cut (lines 31, 32" in plain
    assert "60 answer_lost (lines 101" in plain


def test_validate_refuses_what_training_would_refuse_and_counts_no_tokens_without_a_model(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    path = written(tmp_path, [*GOOD, {"instruction": "Say it", "output": "It is so. " * 60}])
    assert backprop("validate", path, "--model", str(model)).returncode == 0
    refused = backprop("validate", path, "--model", str(model), "--max-seq-length", "128", "--json")
    assert (refused.returncode, json.loads(refused.stdout)["tokens"]["answer_lost"]) == (1, 1)
    empty = written(tmp_path, [*GOOD, {"instruction": "Say it", "output": ""}], "empty.jsonl")
    for extra in ([], ["--model", str(model)]):
        found = backprop("validate", empty, *extra, "--json")
        answer = json.loads(found.stdout)
        assert (found.returncode, answer["invalid"], answer["problem_counts"]["nothing_to_train"]) == (1, 1, 1)
        assert [problem["code"] for problem in answer["problems"]].count("nothing_to_train") == 1
    nothing = backprop("validate", path, "--model", str(model), "--max-seq-length", "8")
    assert nothing.returncode == 1
    assert "CONFIG_INVALID_SETTING" in nothing.stderr
    alone = backprop("validate", path, "--max-seq-length", "128")
    assert alone.returncode == 1
    assert "--model" in alone.stderr


def test_validate_counts_a_row_that_the_template_cannot_take_as_one_that_cannot_be_used(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if 'odd' in m.content %}{{ raise_exception('no odd words') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    odd = [{"instruction": f"Say {i}", "output": "odd"} for i in range(4)]
    path = written(tmp_path, [*odd, {"instruction": "Say it", "output": "It is so."}, {"instruction": "no answer"}])
    found = backprop("validate", path, "--model", str(model), "--json")
    answer = json.loads(found.stdout)
    assert (found.returncode, answer["rows"], answer["valid"], answer["invalid"]) == (1, 6, 1, 5)
    assert answer["problem_counts"] == {"template_refused": 4, "missing_field": 1}
    assert "1 can be used, 5 cannot" in backprop("validate", path, "--model", str(model)).stdout


def test_validate_with_a_model_says_what_training_leaves_out_of_feedback(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}", "completion": f"{i}, my friend.", "label": i % 3 != 0} for i in range(9)]
    done = backprop("validate", written(tmp_path, rows), "--model", str(write_model(tmp_path / "model")))
    assert done.returncode == 0
    assert "6 can be used, 0 cannot, 3 are left out on purpose" in done.stdout
    assert "3 label_false (lines 1, 4, 7): the answer is labelled bad: supervised training" in done.stdout


def test_validate_of_rows_that_train_nothing_says_so_and_sends_nobody_to_validate(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}", "completion": f"{i}, my friend.", "label": False} for i in range(3)]
    done = backprop("validate", written(tmp_path, rows), "--model", str(write_model(tmp_path / "model")))
    assert done.returncode == 1
    assert "none of 3 rows can be trained (3 label_false)" in done.stdout
    assert "0 can be used, 3 cannot" in done.stdout
    assert "`backprop validate`" not in done.stdout + done.stderr


def test_report_of_a_file_without_a_usable_row_ends_as_validate_does(tmp_path: Path) -> None:
    path = written(tmp_path, [{"colour": "red"}, {"instruction": "Say it", "output": ""}])
    for words in (["validate"], ["data", "report"], ["data", "report", "--json"]):
        assert backprop(*words, path).returncode == 1
    assert json.loads(backprop("data", "report", path, "--json").stdout)["usable"] == 0


def test_report_split_and_clean_answer_in_json_and_in_words(tmp_path: Path) -> None:
    path = written(tmp_path, [*GOOD, GOOD[0], '{"cut":'])
    found = json.loads(backprop("data", "report", path, "--json").stdout)
    assert (found["rows"], found["usable"], found["duplicates"]) == (32, 31, 1)
    assert "31 can be used; 1 repeat an earlier one" in backprop("data", "report", path).stdout
    split = json.loads(backprop("data", "split", path, "--ratio", "0.2", "--near", "1.0", "--json").stdout)
    assert (split["train_rows"], split["held_out_rows"], split["left_out"]) == (25, 6, {"broken_json": 1})
    again = backprop("data", "split", path)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    cleaned = backprop("data", "clean", path)
    assert cleaned.returncode == 0
    assert "30 of 32 rows" in cleaned.stdout
    assert len((tmp_path / "rows.clean.jsonl").read_text().splitlines()) == 30
    bad = backprop("data", "split", path, "--ratio", "1")
    assert bad.returncode == 1
    assert "between 0 and 1" in bad.stderr


def test_a_copy_for_a_method_has_only_what_it_can_learn_from(tmp_path: Path) -> None:
    pairs = [{"prompt": f"q{i}", "chosen": "right", "rejected": "wrong" if i else "right"} for i in range(6)]
    path = written(tmp_path, pairs)
    assert "5 can be used" in backprop("data", "report", path, "--method", "dpo").stdout
    for command in ("clean", "split"):
        assert "1  same_sides" in backprop("data", command, path, "--method", "dpo").stdout.replace("1 same", "1  same")


def test_checking_data_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import sys; from backprop.cli.main import main; "
        f"main(['validate', {written(tmp_path, GOOD)!r}]); main(['data', 'report', {written(tmp_path, GOOD)!r}]); "
        "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
