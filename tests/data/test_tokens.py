"""Preparing a dataset: what is kept, cut, left out and counted, and the cache."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backprop.core.errors import BackpropError, DatasetError, InvalidSettingError, ModelLoadError, TrainingAbortedError
from backprop.core.settings import RunConfig
from backprop.data import preprocess, token_cache
from backprop.data.encode import encode_value
from backprop.data.example import RowError
from backprop.data.preprocess import Prepared, prepare
from backprop.data.tokenizer import ChatTokenizer
from one_row import explain_row
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

ModelDir = Callable[[str], Path]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pair(question: str, answer: str) -> dict[str, str]:
    return {"instruction": question, "output": answer}


@pytest.fixture
def ready(model_dir: ModelDir, tmp_path: Path) -> Callable[..., Prepared]:
    def run(rows: list[Any], family: str = "chatml", **options: Any) -> Prepared:
        return prepare(write(tmp_path / "data.jsonl", rows), model_dir(family), **options)

    return run


def decode(prepared: Prepared, index: int, family_dir: Path) -> tuple[str, str]:
    """The whole text of a sample, and its trained part."""
    tokenizer = ChatTokenizer.load(family_dir).tokenizer
    ids, trained = prepared.row(index)
    return (
        tokenizer.decode(ids.tolist(), skip_special_tokens=False),
        tokenizer.decode(ids[trained].tolist(), skip_special_tokens=False),
    )


def test_rows_become_ids_with_the_answer_trained(ready: Callable[..., Prepared], model_dir: ModelDir) -> None:
    prepared = ready([pair("Who?", "Me."), pair("Why?", "So.")])
    assert len(prepared) == 2
    assert decode(prepared, 1, model_dir("chatml")) == (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n",
        "So.<|im_end|>",
    )
    assert prepared.lines.tolist() == [1, 2]
    assert (prepared.ids.dtype, prepared.trained.dtype) == (np.int32, np.bool_)
    assert prepared.offsets.tolist() == [0, len(prepared.row(0)[0]), len(prepared.ids)]


def test_the_summary_counts_tokens_and_shows_the_first_row(ready: Callable[..., Prepared]) -> None:
    prepared = ready([pair("Who?", "Me.")])
    summary = prepared.summary
    assert (summary.rows, summary.kept, summary.format) == (1, 1, "alpaca")
    assert summary.tokens == len(prepared.ids)
    assert summary.trained_tokens == int(prepared.trained.sum())
    assert [(span.text, span.trained) for span in summary.first_row] == [
        ("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Me.<|im_end|>", True),
        ("\n", False),
    ]
    assert "answers end with <|im_end|>, which is trained" in summary.notes


def test_the_first_row_is_shown_as_it_is_trained(ready: Callable[..., Prepared], model_dir: ModelDir) -> None:
    """Rows whose answer is lost are not it, and what the limit cuts is not shown."""
    lost, long = pair("Who?", "word " * 60), pair("word " * 40, "Me.")
    prepared = ready([lost, long], max_length=24)
    shown = "".join(span.text for span in prepared.summary.first_row)
    assert (shown, "Me.<|im_end|>") == decode(prepared, 0, model_dir("chatml"))
    assert [span.text for span in prepared.summary.first_row if span.trained] == ["Me.<|im_end|>"]


def test_findings_of_data_without_lines_are_in_rows(model_dir: ModelDir, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps([pair("Who?", "Me."), pair("Who?", "Me.")]))
    assert prepare(tmp_path / "data.json", model_dir("chatml")).summary.unit == "row"


def test_the_fingerprint_names_the_samples_whatever_file_they_come_from(model_dir: ModelDir, tmp_path: Path) -> None:
    rows = [pair("Who?", "Me."), pair("Why?", "So.")]
    lines = write(tmp_path / "a.jsonl", rows)
    first = prepare(lines, model_dir("chatml"), cache_dir=tmp_path / "one")
    (tmp_path / "b.json").write_text(json.dumps([{"id": 7, **row} for row in rows], indent=3))
    second = prepare(tmp_path / "b.json", model_dir("chatml"), cache_dir=tmp_path / "two", max_length=4096)
    assert first.key != second.key
    assert first.fingerprint == second.fingerprint
    again = prepare(lines, model_dir("chatml"), cache_dir=tmp_path / "one")
    assert (again.summary.cached, again.fingerprint) == (True, first.fingerprint)


def test_the_fingerprint_differs_where_tokens_flags_or_borders_do(model_dir: ModelDir, tmp_path: Path) -> None:
    def mark(rows: list[Any], **options: Any) -> str:
        return prepare(write(tmp_path / "data.jsonl", rows), model_dir("chatml"), **options).fingerprint

    rows = [pair("Who?", "Me."), pair("Why?", "So.")]
    others = [mark(rows[::-1]), mark(rows, train_on_responses=False), mark([*rows, rows[0]]), mark(rows[:1])]
    split, whole = mark([{"text": "a b c d e f"}], max_length=4), mark([{"text": "a b c d e f"}])
    assert len({mark(rows), *others, split, whole}) == 7


def test_a_row_too_long_loses_its_beginning_and_keeps_its_answer(
    ready: Callable[..., Prepared], model_dir: ModelDir
) -> None:
    prepared = ready([pair("x" * 300, "Me.")], max_length=40)
    assert (prepared.summary.kept, prepared.summary.cut) == (1, 1)
    text, trained = decode(prepared, 0, model_dir("chatml"))
    assert trained == "Me.<|im_end|>"
    assert text.endswith("x<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>")
    assert len(prepared.ids) == 40
    assert prepared.summary.problem_counts == {"cut": 1}
    assert prepared.summary.problems[0].line == 1


def test_a_begin_token_survives_the_cut(ready: Callable[..., Prepared]) -> None:
    prepared = ready([pair("x" * 300, "Me.")], family="gemma", max_length=40)
    ids, trained = prepared.row(0)
    whole, _ = ready([pair("x" * 300, "Me.")], family="gemma").row(0)
    assert ids[0] == whole[0]
    assert len(ids) == 40
    assert not trained[0]


def test_a_row_whose_answer_is_cut_is_counted_and_never_trained_in_part(ready: Callable[..., Prepared]) -> None:
    prepared = ready([pair("Who?", "y" * 300), pair("Who?", "Me.")], max_length=40)
    assert (prepared.summary.rows, prepared.summary.kept, prepared.summary.answer_lost) == (2, 1, 1)
    assert prepared.lines.tolist() == [2]
    assert [(p.line, p.code) for p in prepared.summary.problems] == [(1, "answer_lost")]


def test_lengths_are_told_as_they_were_before_the_cut(ready: Callable[..., Prepared]) -> None:
    rows = [pair("why " * words, "because " * (words // 2 + 1)) for words in range(40)]
    uncut, short = ready(rows, max_length=4096).summary, ready(rows, max_length=40).summary
    assert short.cut
    assert short.answer_lost
    assert (short.p50, short.p90, short.p99, short.longest) == (uncut.p50, uncut.p90, uncut.p99, uncut.longest)
    assert short.limits[1:] == uncut.limits[1:]
    for limit in uncut.limits:
        told = ready(rows, max_length=limit.max_length).summary
        assert (limit.whole, limit.cut, limit.answer_lost) == (told.kept - told.cut, told.cut, told.answer_lost)
    assert ready(rows, max_length=short.answers_fit).summary.answer_lost == 0
    assert ready(rows, max_length=short.answers_fit - 1).summary.answer_lost
    assert [limit.max_length for limit in short.limits] == [40, short.p50, short.p90, short.p99, short.longest]


def test_texts_are_split_by_a_limit_and_never_lost(ready: Callable[..., Prepared]) -> None:
    summary = ready([{"text": "deep water " * words} for words in (2, 300, 3)], max_length=100).summary
    assert (summary.limits[0].whole, summary.limits[0].split, summary.limits[0].answer_lost) == (2, 1, 0)
    assert summary.longest > 100


def test_an_earlier_answer_whose_beginning_is_cut_is_context(
    ready: Callable[..., Prepared], model_dir: ModelDir
) -> None:
    chat = [("user", "Q"), ("assistant", "z" * 200), ("user", "R"), ("assistant", "Me.")]
    prepared = ready([{"messages": [{"role": r, "content": c} for r, c in chat]}], max_length=60)
    text, trained = decode(prepared, 0, model_dir("chatml"))
    assert trained == "Me.<|im_end|>"
    assert text.startswith("z")
    assert "1 of 2 answers" in prepared.summary.problems[0].message


def test_raw_text_is_trained_whole_and_ended(ready: Callable[..., Prepared], model_dir: ModelDir) -> None:
    prepared = ready([{"text": "Once upon a time."}])
    text, trained = decode(prepared, 0, model_dir("chatml"))
    assert text == "Once upon a time.<|endoftext|>"
    assert prepared.row(0)[1].tolist() == [False] + [True] * (len(prepared.ids) - 1)
    assert trained.endswith("<|endoftext|>")


def test_a_long_text_is_split_and_loses_nothing(ready: Callable[..., Prepared], model_dir: ModelDir) -> None:
    words = " ".join(f"word{i}" for i in range(100))
    prepared = ready([{"text": words}], max_length=64)
    assert len(prepared) > 1
    assert prepared.summary.kept == 1
    assert max(len(prepared.row(i)[0]) for i in range(len(prepared))) <= 64
    joined = "".join(decode(prepared, i, model_dir("chatml"))[0] for i in range(len(prepared)))
    assert joined == words + "<|endoftext|>"


def test_bad_rows_are_counted_with_their_lines_and_stop_nothing(ready: Callable[..., Prepared]) -> None:
    rows = [pair("a", "b"), "{broken", {"odd": 1}, pair("c", " "), pair("d", "e"), pair("d", "e"), {"text": "t"}]
    summary = ready(rows).summary
    assert (summary.rows, summary.kept, summary.dropped, summary.duplicated) == (7, 4, 3, 1)
    found = {(problem.line, problem.code) for problem in summary.problems}
    assert found == {
        (2, "broken_json"),
        (3, "missing_field"),
        (4, "nothing_to_train"),
        (6, "duplicate_row"),
        (7, "mixed_format"),
    }
    assert summary.problem_counts["broken_json"] == 1
    assert any("mixes formats: 4 alpaca, 1 text (line 7)" in note for note in summary.notes)


def test_a_mapping_found_from_the_names_is_shown(ready: Callable[..., Prepared]) -> None:
    summary = ready([{"question": "Who?", "answer": "Me."}]).summary
    assert any("instruction=question, output=answer" in note for note in summary.notes)


def test_a_mapping_that_is_given_wins(ready: Callable[..., Prepared], model_dir: ModelDir) -> None:
    row = {"question": "no", "ask": "Who?", "answer": "Me."}
    prepared = ready([row], mapping={"instruction": "ask", "output": "answer"})
    assert "Who?" in decode(prepared, 0, model_dir("chatml"))[0]
    with pytest.raises(InvalidSettingError, match="instuction"):
        ready([row], mapping={"instuction": "ask"})


def test_only_as_many_usable_rows_as_asked_are_taken(ready: Callable[..., Prepared]) -> None:
    rows = [pair("a", "b" * 300), {"odd": 1}, *(pair(str(i), "Me.") for i in range(10))]
    prepared = ready(rows, samples=4, max_length=40)
    assert prepared.summary.kept == len(prepared) == 4
    assert prepared.lines.tolist() == [3, 4, 5, 6]


def test_everything_is_trained_when_asked(ready: Callable[..., Prepared]) -> None:
    prepared = ready([pair("Who?", "Me.")], train_on_responses=False)
    assert prepared.trained.sum() == len(prepared.ids) - 1


def test_nothing_to_train_is_an_error_that_says_why(ready: Callable[..., Prepared]) -> None:
    with pytest.raises(DatasetError) as error:
        ready([pair("a", " "), pair("b", "y" * 300)], max_length=40)
    assert error.value.code == "DATASET_NOTHING_TO_TRAIN"
    assert "line 1" in error.value.message
    with pytest.raises(DatasetError) as error:
        ready([{"odd": 1}])
    assert error.value.code == "DATASET_FORMAT_UNKNOWN"
    assert "--map" in error.value.hint


def test_an_empty_file_is_said_to_be_empty(ready: Callable[..., Prepared]) -> None:
    for rows in ([], [""]):
        with pytest.raises(DatasetError) as error:
            ready(rows)
        assert error.value.code == "DATASET_EMPTY"


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [pair("a", "b")])
    with pytest.raises(ModelLoadError, match=r"no tokenizer\.json"):
        prepare(data, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        prepare(data, tmp_path)


def test_the_second_time_it_comes_from_the_cache(ready: Callable[..., Prepared]) -> None:
    rows = [pair("Who?", "Me."), {"odd": 1}]
    first, second = ready(rows), ready(rows)
    assert (first.summary.cached, second.summary.cached) == (False, True)
    assert second.key == first.key
    assert second.ids.tolist() == first.ids.tolist()
    assert second.trained.tolist() == first.trained.tolist()
    assert second.summary.problem_counts == first.summary.problem_counts


def test_another_option_another_row_or_another_template_is_another_key(
    ready: Callable[..., Prepared], model_dir: ModelDir, tmp_path: Path
) -> None:
    rows = [pair("Who?", "Me.")]
    changed = tmp_path / "changed"
    shutil.copytree(model_dir("chatml"), changed)
    (changed / "chat_template.jinja").write_text((changed / "chat_template.jinja").read_text() + " ")
    keys = [
        ready(rows).key,
        ready(rows, max_length=100).key,
        ready(rows, samples=1).key,
        ready(rows, train_on_responses=False).key,
        ready(rows, mapping={"instruction": "instruction"}).key,
        ready(rows, family="smollm2").key,
        ready([pair("Who!", "Me.")]).key,
        prepare(write(tmp_path / "data.jsonl", rows), changed).key,
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("chat_template.jinja", "generation_config.json", "chat_template.json", "processor_config.json"),
        "additional_chat_templates/tool_use.jinja",
    ],
)
def test_every_file_that_decides_about_tokens_is_in_the_key(model_dir: ModelDir, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_dir("chatml"), folder)
    file = folder / name
    before = ChatTokenizer.load(folder).fingerprint
    file.parent.mkdir(exist_ok=True)
    file.write_text((file.read_text() if file.exists() else "{}") + " ")
    assert ChatTokenizer.load(folder).fingerprint != before


@pytest.mark.parametrize("damage", ["missing", "short", "altered", "no summary"])
def test_a_broken_cache_entry_is_made_again(ready: Callable[..., Prepared], damage: str) -> None:
    rows = [pair("Who?", "Me.")]
    first = ready(rows)
    wanted, folder = first.ids.tolist(), first.folder
    file = folder / ("summary.json" if damage == "no summary" else "ids.bin")
    data = file.read_bytes()
    file.unlink()
    if damage == "short":
        file.write_bytes(data[:-4])
    elif damage == "altered":
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    again = ready(rows)
    assert not again.summary.cached
    assert again.ids.tolist() == wanted
    assert ready(rows).summary.cached


@pytest.mark.parametrize("rows", [1, 2000])
def test_a_cache_without_room_is_named_and_nothing_is_left_in_it(
    ready: Callable[..., Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    class Full(token_cache.Writer):
        """All that it writes goes to a disk that is full."""

        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            for name, file in self._files.items():
                file.close()
                self._files[name] = Path("/dev/full").open("wb")  # noqa: SIM115 - the writer closes it

    monkeypatch.setattr(preprocess, "Writer", Full)
    with pytest.raises(BackpropError) as caught:
        ready([pair(f"a{number}", "b") for number in range(rows)], cache_dir=tmp_path / "cache")
    assert caught.value.code == "RUNTIME_DISK_FULL"
    assert caught.value.message == f"tokens cannot be kept in {tmp_path / 'cache'}: No space left on device"
    assert "XDG_CACHE_HOME" in caught.value.hint
    assert list((tmp_path / "cache").iterdir()) == []


def test_cancelling_leaves_nothing_in_the_cache(ready: Callable[..., Prepared], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(TrainingAbortedError):
        ready([pair("a", "b")], cache_dir=cache, cancelled=lambda: True)
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_swept_up_and_a_living_ones_is_not(
    ready: Callable[..., Prepared], tmp_path: Path
) -> None:
    old, fresh = tmp_path / "cache" / ".aa.partial", tmp_path / "cache" / ".bb.partial"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "ids.bin").write_bytes(b"1234")
    for path in (old / "ids.bin", old):
        os.utime(path, (1e9, 1e9))
    ready([pair("a", "b")], cache_dir=tmp_path / "cache")
    assert not old.exists()
    assert fresh.exists()


def test_progress_reaches_the_end(ready: Callable[..., Prepared]) -> None:
    seen: list[tuple[int, int]] = []
    ready([pair("a", "b")] * 1500, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_model_without_template_says_how_turns_are_written(model_dir: ModelDir, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(model_dir("chatml"), folder)
    (folder / "chat_template.jinja").unlink()
    prepared = prepare(write(tmp_path / "data.jsonl", [pair("Who?", "Me.")]), folder)
    assert decode(prepared, 0, folder)[1] == "Me.<|im_end|>"
    assert "no chat template" in prepared.summary.notes[0]


def test_a_reasoning_that_the_template_drops_is_counted_with_its_turn(ready: Callable[..., Prepared]) -> None:
    chat = [("user", "Q"), ("assistant", "<think>\nhm\n</think>\n\nA"), ("user", "R"), ("assistant", "B")]
    summary = ready([{"messages": [{"role": r, "content": c} for r, c in chat]}], family="qwen3").summary
    assert summary.kept == 1
    assert summary.problem_counts == {"reasoning_dropped": 1, "reasoning_trace": 1}
    assert "turn 2" in summary.problems[1].message


def test_a_tool_result_that_the_template_drops_is_counted(ready: Callable[..., Prepared]) -> None:
    chat = [("user", "Q"), ("tool", "the result"), ("assistant", "B")]
    summary = ready([{"messages": [{"role": r, "content": c} for r, c in chat]}], family="phi-4").summary
    assert "text_dropped" in summary.problem_counts


def test_a_system_text_is_moved_where_the_template_has_no_place_for_it(ready: Callable[..., Prepared]) -> None:
    summary = ready([{**pair("Who?", "Me."), "system": "Be brief."}], family="gemma").summary
    assert summary.problem_counts == {"system_moved": 1}
    assert "Be brief.\n\nWho?" in summary.first_row[0].text


def test_a_tokenizer_that_sets_a_begin_token_gives_text_one_and_chats_one(model_dir: ModelDir, tmp_path: Path) -> None:
    folder = tmp_path / "sets_bos"
    shutil.copytree(model_dir("mistral"), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.save(str(folder / "tokenizer.json"))
    eos = tokenizer.token_to_id("</s>")
    rows = [{"text": "Once."}, {"text": "<s>Once.</s>"}, pair("Who?", "Me.")]
    prepared = prepare(write(tmp_path / "data.jsonl", rows), folder)
    for i in range(3):
        ids, trained = prepared.row(i)
        assert (ids[0], int((ids == bos).sum()), bool(trained[0])) == (bos, 1, False)
        assert (ids[-1], int((ids == eos).sum()), bool(trained[-1])) == (eos, 1, True)
        alone = encode_value(rows[i], ChatTokenizer.load(folder))[0].encoded
        assert (alone.ids.tolist(), alone.trained.tolist()) == (ids.tolist(), trained.tolist())


def test_a_second_begin_token_and_control_tokens_in_the_text_are_counted(
    ready: Callable[..., Prepared], model_dir: ModelDir, tmp_path: Path
) -> None:
    summary = ready([pair("Who?", "Me.<|im_end|> and more"), pair("<s> is another model's", "Me. ")]).summary
    assert [(p.line, p.code) for p in summary.problems] == [(1, "special_token"), (2, "special_token")]
    folder = tmp_path / "twice"
    shutil.copytree(model_dir("gemma"), folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + (folder / "chat_template.jinja").read_text())
    assert prepare(tmp_path / "data.jsonl", folder).summary.problem_counts["double_bos"] == 2


def test_a_rare_error_is_listed_among_many_warnings(ready: Callable[..., Prepared]) -> None:
    rows = [pair("x" * 300, f"{i}.") for i in range(300)]
    summary = ready([*rows, {"instruction": "no answer"}], max_length=40).summary
    assert summary.problem_counts == {"cut": 300, "missing_field": 1}
    assert (301, "missing_field") in [(problem.line, problem.code) for problem in summary.problems]


def test_a_row_of_which_no_token_has_anything_before_it_is_dropped_and_counted(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    folder = tmp_path / "endless"
    shutil.copytree(model_dir("chatml"), folder)
    (folder / "tokenizer_config.json").write_text("{}")
    summary = prepare(write(tmp_path / "data.jsonl", [{"text": "a"}, {"text": "a b"}]), folder).summary
    assert (summary.rows, summary.kept, summary.dropped) == (2, 1, 1)
    assert [(problem.line, problem.code) for problem in summary.problems] == [(1, "nothing_to_train")]


@pytest.mark.parametrize("part", ["code", "tokenizers", "jinja2", "file ending", "date"])
def test_what_decides_about_tokens_besides_the_files_is_in_the_key(
    model_dir: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    folder = tmp_path / "dated"
    shutil.copytree(model_dir("chatml"), folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}" + template)
    path, now = write(tmp_path / "data.jsonl", [{"text": "a b"}]), datetime(2024, 2, 29, 12)

    def key() -> str:
        return prepare(path, folder, now=now, cache_dir=tmp_path / "cache").key

    before = key()
    assert key() == before
    if part == "code":
        edited = shutil.copytree(Path(preprocess.__file__).parent, tmp_path / "data")
        (edited / "encode.py").write_text((edited / "encode.py").read_text() + "# Another line.\n")
        monkeypatch.setattr(preprocess, "__file__", str(edited / "preprocess.py"))
    elif part == "file ending":
        path = path.rename(tmp_path / "data.txt")
    elif part == "date":
        now = datetime(2024, 3, 1, 12)
    else:
        monkeypatch.setattr(getattr(preprocess, part), "__version__", "0")
    assert key() != before


def test_answers_alone_are_trained_where_nobody_says_otherwise(model_dir: ModelDir, tmp_path: Path) -> None:
    tokenizer, row = ChatTokenizer.load(model_dir("chatml")), pair("Who?", "Me.")
    shares = [
        prepare(write(tmp_path / "data.jsonl", [row]), model_dir("chatml")).trained.tolist(),
        encode_value(row, tokenizer)[0].encoded.trained.tolist(),
        [token.trained for token in explain_row(row, tokenizer)],
    ]
    assert shares[0] == shares[1] == shares[2]
    assert 0 < sum(shares[0]) < len(shares[0]) / 2
    assert RunConfig(data="").train_on_responses is True


@pytest.mark.parametrize(
    ("end", "words"),
    [
        *(("<|im_end|>", "with <|im_end|>, which"), ("</s>", "with </s>, which"), ("", "no special token")),
        ("!", "with !, which"),  # an ordinary token, by which the model ends its answers
    ],
)
def test_what_ends_an_answer_is_said(model_dir: ModelDir, tmp_path: Path, end: str, words: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_dir("chatml"), folder)
    (folder / "chat_template.jinja").write_text(
        # The first conversation has a name in it, and then another end than the usual one.
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.name or '<|im_end|>' }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
        if end == "</s>"
        else "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "\n{% endfor %}"
    )
    if end == "!":
        ends = {"eos_token_id": ChatTokenizer.load(folder).tokenizer.token_to_id("!")}
        (folder / "generation_config.json").write_text(json.dumps(ends))
    answer = {"role": "assistant", "content": "Me.", **({"name": end} if end == "</s>" else {})}
    row = {"messages": [{"role": "user", "content": "Who?"}, answer]}
    notes = prepare(write(tmp_path / "data.jsonl", [row]), folder).summary.notes
    assert any(words in note for note in notes)


@pytest.mark.parametrize("row", [{"text": "half \\ud800 a pair"}, pair("Who?", "half \\udc00 a pair")])
def test_half_a_character_is_a_finding_in_texts_and_in_answers(
    ready: Callable[..., Prepared], model_dir: ModelDir, row: Any
) -> None:
    line = json.dumps(row).replace("\\\\ud", "\\ud")
    summary = ready([line, {"text": "whole"}]).summary
    assert [(problem.line, problem.code) for problem in summary.problems if problem.severity == "error"] == [
        (1, "lone_surrogate")
    ]
    with pytest.raises(RowError) as error:
        explain_row(json.loads(line), ChatTokenizer.load(model_dir("chatml")))
    assert error.value.code == "lone_surrogate"
