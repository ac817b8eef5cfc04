"""Checking a file on the Data screen: findings, tokens, lengths, statistics, the cleaned copy."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from backprop.core import paths
from backprop.core.errors import DatasetError
from backprop.core.methods import Rows
from backprop.data.formats import FileFormat
from backprop.data.parse import parse_json
from backprop.data.preprocess import prepare
from backprop.data.reader import Row
from backprop.data.tokenizer import ChatTokenizer
from backprop.data.truncate import CountedLengths, count_lengths
from data_screen_app import DataApp, alpaca, at_rest, until, until_text, write_rows
from textual.widgets import Input
from tiny_tokenizer import write_model

from backprop_tui.screens.dataset.file import open_file
from backprop_tui.screens.dataset.lengths import edges
from backprop_tui.screens.dataset.row_view import RowView
from backprop_tui.screens.dataset.tokens import token_lines
from backprop_tui.screens.tasks import Task

NARROW, WIDE = (80, 24), (140, 40)


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A hundred rows: 12 lacks its output, 34 is broken, 56 repeats 5, 78 has an empty answer."""
    lines = [json.dumps(alpaca(number)) for number in range(1, 101)]
    lines[11] = '{"instruction": "no answer"}'
    lines[33] = '{"instruction": "half'
    lines[55] = lines[4]
    lines[77] = json.dumps({"instruction": "Depth?", "input": "", "output": " "})
    path = tmp_path / "faulty.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def small_model() -> Path:
    """The tokenizer that is used when nothing else is chosen, where the small model is kept."""
    return write_model(paths.model_cache("smollm2-135m"))


async def test_a_check_lists_every_finding_with_its_line_and_counts_per_code(faulty: Path) -> None:
    async with DataApp(faulty).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await pilot.press("c")
        await until_text(pilot, "checked 100 rows: 3 unusable, 4 to look at")
        await pilot.press("p")
        screen = await until_text(
            pilot, "1 ✗ missing_field", "1 ✗ broken_json", "1 ! duplicate_row", "1 ! empty_content"
        )
        await until_text(pilot, "1 ✗ nothing_to_train")
        for line in (12, 34, 56, 78):
            assert f"line {line}" in screen


async def test_the_list_begins_on_the_first_finding_below_the_counts(faulty: Path) -> None:
    async with DataApp(faulty).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("c")
        await until_text(pilot, "checked 100 rows")
        await pilot.press("p")
        await until_text(pilot, "1 ✗ missing_field")
        _, problem = pilot.app.data.findings.at_cursor()
        assert problem is pilot.app.data.findings.found.problems[0]
        await pilot.press("enter")
        await until_text(pilot, "line 12 as chat", "12 of 100")


async def test_enter_on_a_finding_goes_to_its_row(faulty: Path) -> None:
    async with DataApp(faulty).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("p")
        await until_text(pilot, "line 56 ! the same as line 5")
        await pilot.press("end", "up", "up", "enter")
        await until_text(pilot, "line 56 as chat", "duplicate_row: the same as line 5", "56 of 100")
        await pilot.press("escape")
        await until_text(pilot, "What is in hold 57?")


async def test_findings_are_listed_while_the_check_goes_on(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backprop.data import validate

    seen = threading.Event()
    real = validate._Checking.pieces

    def slowly(checking: validate._Checking) -> Iterator[int]:
        yield from real(checking)
        assert seen.wait(60)

    monkeypatch.setattr(validate._Checking, "pieces", slowly)
    async with DataApp(faulty).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("p")
        screen = await until_text(pilot, "line 12", "line 34", "1 ✗ broken_json", "checking")
        assert "duplicate_row" not in screen  # known when every row was seen
        await pilot.press("end", "enter")
        await until_text(pilot, "line 78 as chat")
        seen.set()
        await until_text(pilot, "checked 100 rows")
        await pilot.press("p")
        await until_text(pilot, "1 ! duplicate_row")
        # One more code and one more finding are listed above the one that was chosen, which stays chosen.
        assert pilot.app.data.findings.at_cursor()[1].line == 78


async def test_the_mouse_goes_to_rows_and_to_findings(faulty: Path) -> None:
    async with DataApp(faulty).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await pilot.click("#rows", offset=(5, 7))
        await until_text(pilot, "line 7 as chat", "7 of 100")
        await pilot.press("p")
        await until_text(pilot, "line 12", "line 56")
        listed = pilot.app.data.query_one("#problems")
        at = next(y for y in range(20) if "line 34" in listed.render_line(y).text)
        await pilot.click("#problems", offset=(5, at))
        await pilot.click("#problems", offset=(5, at), times=2)
        await until_text(pilot, "34 of 100", "This row cannot be used for training")


async def test_enter_on_a_code_shows_its_findings_alone(faulty: Path) -> None:
    async with DataApp(faulty).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("p")
        await until_text(pilot, "line 12", "line 34")
        await pilot.press("home", "enter")
        await until_text(pilot, "shown alone: enter shows all")
        assert "line 78" not in pilot.app.text()
        await pilot.press("enter")
        await until_text(pilot, "line 78")


async def test_what_a_check_found_is_said_whole_and_is_gone_with_the_next_key(faulty: Path) -> None:
    async with DataApp(faulty).run_test(size=(60, 24)) as pilot:
        await at_rest(pilot)
        await pilot.press("c")
        await until_text(
            pilot,
            "What is in hold 1?",
            "1 of 100 checked 100 rows: 3 unusable, 4 to look at · p lists them, n goes to the next",
        )
        await pilot.press("down")
        await until(pilot, lambda: "unusable" not in pilot.app.text(), "a status line of its own")


async def test_n_steps_through_the_rows_with_findings_and_begins_again(faulty: Path) -> None:
    async with DataApp(faulty).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("n")
        await until_text(pilot, "c checks the file")
        await pilot.press("c")
        await until_text(pilot, "checked 100 rows")
        for place in (12, 34, 56, 78, 12):
            await pilot.press("n")
            await until_text(pilot, f"{place} of 100")
        await pilot.press("N")
        await until_text(pilot, "78 of 100")


async def test_a_file_with_nothing_wrong_says_so(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", (alpaca(number) for number in range(9)))
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("c")
        await until_text(pilot, "checked 9 rows: 0 unusable, 0 to look at")
        await pilot.press("n")
        await until_text(pilot, "the check found nothing to look at")


async def test_tokens_show_what_is_trained_the_begin_token_and_the_terminator(
    tmp_path: Path, small_model: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"instruction": "Depth?", "output": "Nine"}])
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await until_text(pilot, "▌assistant")
        await pilot.press("v", "v")
        await until_text(pilot, "5 trained")
        drawn = pilot.app.data.query_one("#detail", RowView).text
        assert "BOS     <s> once, at the start" in drawn
        assert "answers end with <|im_end|>, trained" in drawn
        assert "<s><|im_start|>user↵\nDepth?<|im_end|>↵\n<|im_start|>assistant↵\nNine<|im_end|>↵" in drawn


@pytest.mark.parametrize(
    ("end", "eos", "said"),
    [
        ("<|im_end|>", "<|im_end|>", "answers end with <|im_end|>, trained"),
        ("!", "!", "answers end with !, trained"),  # ends generation without being special
        ("<|im_end|>", "!", "answers end with <|im_end|>, trained"),  # special, as templates' own ends are
        ("!", "<|im_end|>", "answers end with !, trained, but no special token: the model may not learn to stop"),
    ],
)
def test_an_answer_that_ends_without_a_token_that_ends_generation_is_remarked(
    small_model: Path, end: str, eos: str, said: str
) -> None:
    path = small_model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    template = config["chat_template"].replace("<|im_end|>", end)
    path.write_text(json.dumps({**config, "eos_token": eos, "chat_template": template}))
    assert said in _drawn(b'{"instruction": "Depth?", "output": "Nine"}', small_model).split("\n")


def test_of_a_row_of_very_many_tokens_the_first_are_drawn_and_the_others_counted(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backprop_tui.screens.dataset.tokens.MOST_TOKENS", 20)
    drawn = _drawn(b'{"instruction": "Depth?", "output": "Nine"}', small_model)
    assert "32 tokens, 5 trained" in drawn
    assert drawn.endswith("<|im_start|>assi\n… 12 more tokens, not shown")


async def test_without_colour_the_row_on_screen_has_its_brackets(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    path = write_rows(tmp_path / "rows.jsonl", [{"instruction": "Depth?", "output": "Nine"}])
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await until_text(pilot, "▌assistant")
        await pilot.press("v", "v")
        await until_text(pilot, "[Nine<|im_end|>]")


async def test_another_model_counts_the_lengths_anew(tmp_path: Path, small_model: Path) -> None:
    other = write_model(tmp_path / "other")
    config = json.loads((other / "tokenizer_config.json").read_text())
    template = config["chat_template"].replace("assistant", "pilot")
    (other / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": f"Ahoy!{template}"}))
    path = write_rows(tmp_path / "rows.jsonl", [{"instruction": "Depth?", "output": "Nine"}])
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await pilot.press("l")
        await until_text(pilot, "1 row · at this limit 32 tokens")
        pilot.app.data.chosen.choose(str(other))
        await until_text(pilot, "1 row · at this limit 37 tokens")


async def test_a_begin_token_that_opens_every_turn_is_not_said_to_stand_once(tmp_path: Path, small_model: Path) -> None:
    path = small_model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    template = config["chat_template"].removeprefix("{{ bos_token }}")
    path.write_text(json.dumps({**config, "bos_token": "<|im_start|>", "chat_template": template}))
    path = write_rows(tmp_path / "rows.jsonl", [{"instruction": "Depth?", "output": "Nine"}])
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await until_text(pilot, "▌assistant")
        await pilot.press("v", "v")
        await until_text(pilot, "BOS <|im_start|> at the start, 2 times in the row")


async def test_without_a_tokenizer_the_screen_says_how_to_get_one(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [alpaca(1)])
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await until_text(pilot, "▌assistant")
        await pilot.press("v", "v")
        await until_text(pilot, "the tokenizer of smollm2-135m is not on this machine", "backprop demo")


async def test_another_model_is_chosen_by_its_directory(tmp_path: Path) -> None:
    model = write_model(tmp_path / "my-model")
    path = write_rows(tmp_path / "rows.jsonl", [alpaca(1)])
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await until_text(pilot, "▌assistant")
        await pilot.press("v", "v", "m")
        entry = pilot.app.screen.query_one(Input)
        await until(pilot, lambda: pilot.app.focused is entry, "a prompt")
        entry.value = f"{model}/"
        await pilot.press("enter")
        await until_text(pilot, "BOS <s> once")
        assert str(model) in pilot.app.data.query_one("#detail", RowView).text.replace("\n", "")


def _lines(raw: bytes, model: Path, limit: int) -> list[list[tuple[str, str]]]:
    value, error = parse_json(raw)
    file = FileFormat(format="alpaca", mapping={}, counts={}, lines={})
    return token_lines(Row(1, raw, value, error), file, ChatTokenizer.load(model), limit, brackets=True)


def _drawn(raw: bytes, model: Path, limit: int = 2048) -> str:
    lines = _lines(raw, model, limit)
    return "\n".join("".join(text for text, _ in line) for line in lines)


def test_without_colour_trained_tokens_stand_in_brackets(small_model: Path) -> None:
    drawn = _drawn(b'{"instruction": "Depth?", "output": "Nine"}', small_model)
    assert "assistant↵\n[Nine<|im_end|>]↵" in drawn


@pytest.mark.parametrize(
    ("limit", "words"),
    [(60, ""), (40, "tokens are cut from its beginning"), (20, "its last answer does not fit")],
)
def test_the_token_view_says_what_the_limit_does_to_the_row(small_model: Path, limit: int, words: str) -> None:
    drawn = _drawn(b'{"instruction": "Depth?", "output": "Nine fathoms and more"}', small_model, limit)
    assert ("!" in drawn) is bool(words)
    assert words in drawn


def test_of_a_pair_both_sides_are_shown_as_a_limit_leaves_them(small_model: Path) -> None:
    value = {"prompt": "How deep is it?", "chosen": "Nine fathoms and more", "rejected": "No"}
    row, file = Row(1, json.dumps(value).encode(), value, None), FileFormat(format="preference", mapping={})
    tokenizer = ChatTokenizer.load(small_model)

    def drawn(limit: int, rows: Rows) -> str:
        lines = token_lines(row, file, tokenizer, limit, rows=rows, brackets=True)
        return "\n".join("".join(text for text, _ in line) for line in lines)

    chosen, rejected = drawn(2048, "pairs").split("── rejected ──")
    assert "── chosen ──" in chosen
    assert "assistant↵\n[Nine fathoms and more<|im_end|>]" in chosen
    assert "assistant↵\n[No<|im_end|>]" in rejected
    cut = [part.split(" tokens are cut")[0].split("! ")[-1] for part in drawn(50, "pairs").split("── rejected ──")]
    assert cut[0] == cut[1] != ""
    assert "No" not in drawn(2048, "conversation")


@pytest.mark.parametrize("begin", ["<s>", ""])
@pytest.mark.parametrize("limit", [16, 40, *range(60, 68), 71, 100, 150, 4096])
def test_counts_at_a_limit_are_those_of_training(tmp_path: Path, limit: int, begin: str) -> None:
    rows: list[object] = [alpaca(number, words=number % 23) for number in range(1, 60)]
    rows += [
        {"messages": [{"role": role, "content": "x" * (7 * n)} for n in (1, 3) for role in ("user", "assistant")]},
        {"instruction": "no answer"},
        {"messages": [{"role": "assistant", "content": "first word"}, {"role": "user", "content": "and last"}]},
        *({"text": "y" * n} for n in (*range(60, 70), 99, 100, 101, 149, 150, 151)),
    ]
    model, path = write_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl", rows)
    config = json.loads((model / "tokenizer_config.json").read_text())
    if not begin:
        config |= {"bos_token": None, "chat_template": config["chat_template"].removeprefix("{{ bos_token }}")}
        (model / "tokenizer_config.json").write_text(json.dumps(config))
    task: Task[CountedLengths] = Task("count")
    opened = open_file(str(path), Task("open"))
    tokenizer = ChatTokenizer.load(model)
    counted = count_lengths(
        path, opened.file, tokenizer, progress=task.progress, cancelled=task.stopped, so_far=task.so_far
    )
    opened.close()
    at = counted.lengths.at(limit)
    if not at.whole + at.cut + at.split:
        with pytest.raises(DatasetError):
            prepare(path, model, max_length=limit, cache_dir=tmp_path / "tokens")
        return
    summary = prepare(path, model, max_length=limit, cache_dir=tmp_path / "tokens").summary
    assert counted.lengths.tokens_at(limit) == (summary.tokens, summary.trained_tokens)
    assert (at.whole + at.split, at.cut, at.answer_lost) == (
        summary.kept - summary.cut,
        summary.cut,
        summary.answer_lost,
    )
    assert summary.limits == counted.lengths.limits(limit)
    assert counted.unusable == summary.dropped
    assert counted.rows == summary.rows == len(rows)


async def test_lengths_are_drawn_with_the_limit_which_keys_move(tmp_path: Path, small_model: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", (alpaca(number, words=number) for number in range(100)))
    async with DataApp(path).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await pilot.press("l")
        # what a run by rule would train at: every answer fits
        await until_text(
            pilot, "limit 576 (a run's, by these rows", "100 rows ·", "──── limit 576 ──", "576 chosen 100 0 0"
        )
        await pilot.press("minus", "minus", "minus")
        await until_text(pilot, "──── limit 128 ──", "128 chosen", "answer lost")
        await pilot.press("equals_sign")
        entry = pilot.app.screen.query_one(Input)
        await until(pilot, lambda: pilot.app.focused is entry, "a prompt")
        entry.value = "300"
        await pilot.press("enter")
        await until_text(pilot, "──── limit 300 ──")


@pytest.mark.parametrize(
    ("limit", "counts", "trained"),
    [
        (2048, "86 tokens, 21 trained (24 %)", ["Nine fathoms.<|im_end|>", "Eight.<|im_end|>"]),
        (75, "75 of 86 tokens, 21 trained (28 %)", ["Nine fathoms.<|im_end|>", "Eight.<|im_end|>"]),
        (60, "60 of 86 tokens, 21 trained (35 %)", ["Nine fathoms.<|im_end|>", "Eight.<|im_end|>"]),
        (40, "40 of 86 tokens, 7 trained (18 %)", ["Eight.<|im_end|>"]),
        (8, "0 of 86 tokens, 0 trained (0 %)", []),
    ],
)
def test_what_is_marked_is_what_is_trained_at_the_limit(
    small_model: Path, limit: int, counts: str, trained: list[str]
) -> None:
    turns = [("user", "Depth?"), ("assistant", "Nine fathoms."), ("user", "And now?"), ("assistant", "Eight.")]
    row = {"messages": [{"role": role, "content": text} for role, text in (*turns, ("user", "Ah"))]}
    drawn = _drawn(json.dumps(row).encode(), small_model, limit)
    assert counts in drawn
    assert re.findall(r"\[(.*?)\]", drawn.replace("\n", "")) == trained


def test_what_the_limit_cuts_of_a_row_is_drawn_without_borders(small_model: Path) -> None:
    lines = _lines(b'{"instruction": "Depth?", "output": "Nine fathoms"}', small_model, 35)
    body = [piece for line in lines[5:] for piece in line]
    assert body[0] == ("<s>", "mark+bold")  # stays at the beginning
    muted = "".join(text for text, ink in body if ink == "muted")
    assert muted == "<|im_start|>use↵"  # and what follows the answer
    assert _drawn(b'{"text": "abcdefghijklmnopqrstuvw"}', small_model, 16).count("[") == 2


async def test_without_a_tokenizer_lengths_are_counted_in_characters_and_say_so(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "x" * n} for n in (10, 20, 30)])
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("l")
        await until_text(pilot, "3 rows, in characters", "p50 20", "longest 30", "The limit is in tokens")


async def test_a_model_that_is_not_there_is_said_above_the_characters_that_are_counted_instead(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "x" * n} for n in (10, 20, 30)])
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("l")
        await until_text(pilot, "✗ the tokenizer of smollm2-135m is not on this machine", "3 rows, in characters")


async def test_lengths_of_a_file_without_a_usable_row_show_no_limits(tmp_path: Path, small_model: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"instruction": "no answer"}] * 3)
    async with DataApp(path).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("l")
        screen = await until_text(pilot, "3 rows cannot be used at any length")
        assert "at a limit of" not in screen


async def test_the_share_that_is_trained_is_that_at_the_limit(tmp_path: Path, small_model: Path) -> None:
    rows = [{"instruction": "Why?", "output": "x" * n} for n in (10, 1000)]
    async with DataApp(write_rows(tmp_path / "rows.jsonl", rows)).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await pilot.press("l")
        await until_text(pilot, "2 rows · at this limit 1.1k tokens, 95 % trained")
        assert pilot.app.data.chosen.changes() == {}  # a run goes by its data
        pilot.app.data.lengths.set_limit("2048")
        assert pilot.app.data.chosen.changes() == {"max_seq_length": 2048}
        pilot.app.data.lengths.set_limit("512")  # loses the long answer
        await until_text(pilot, "2 rows · at this limit 36 tokens, 31 % trained")
        await pilot.press("s")
        await until_text(pilot, "limit 512 tokens a row", "trained 11 (31 %)")


@pytest.mark.parametrize(
    ("longest", "usual", "limit", "borders"),
    [
        (95, 90, 2048, [0, 20, 40, 60, 80, 96]),  # the data, not the limit, is the scale
        (95, 90, 50, [0, 20, 40, 51, 60, 80, 96]),
        (5000, 90, 2048, [0, 20, 40, 60, 80, 100, 2049, 5001]),  # one long row does not hide the others
        (1, 1, 16, [0, 1, 2]),
    ],
)
def test_bars_are_scaled_to_what_most_rows_are(longest: int, usual: int, limit: int, borders: list[int]) -> None:
    assert edges(longest, usual, limit, 8) == borders


async def test_statistics_tell_what_was_counted_and_the_keys_for_the_rest(faulty: Path, small_model: Path) -> None:
    async with DataApp(faulty).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await pilot.press("s")
        await until_text(pilot, "rows 100", "format alpaca", "c checks every row", "l counts tokens")
        await pilot.press("c", "l")
        await until_text(pilot, "──── limit")
        await at_rest(pilot)
        await pilot.press("s")
        await until_text(pilot, "usable 97 (97 %)", "duplicates 1 (1 %)", "trained", "Counted 100 rows")


async def test_the_cleaned_copy_is_written_beside_the_original_with_a_report(faulty: Path) -> None:
    before = faulty.read_bytes()
    async with DataApp(faulty).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await pilot.press("w")
        await until_text(pilot, "Write faulty.clean.jsonl beside it")
        assert not faulty.with_name("faulty.clean.jsonl").exists()
        await pilot.press("enter")
        await until_text(
            pilot,
            "96 of 100 rows written",
            "1 missing_field",
            "1 nothing_to_train",
            "1 duplicate_row",
            "line 56 duplicate_row",
        )
        assert len(faulty.with_name("faulty.clean.jsonl").read_text().splitlines()) == 96
        assert faulty.with_name("faulty.clean.report.json").exists()
        await pilot.press("w")
        await until_text(pilot, "Write faulty.clean.jsonl")
        await pilot.press("enter")
        await until_text(pilot, "✗", "exists already and is not overwritten")
        assert faulty.read_bytes() == before


async def test_the_cleaned_copy_has_what_the_configured_method_learns_from(tmp_path: Path) -> None:
    pairs = [{"prompt": f"q{i}", "chosen": "right", "rejected": "wrong" if i else "right"} for i in range(6)]
    async with DataApp(write_rows(tmp_path / "pairs.jsonl", pairs)).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        assert isinstance(pilot.app, DataApp)
        pilot.app.data.chosen.rows = "pairs"
        await pilot.press("w")
        await until_text(pilot, "Write pairs.clean.jsonl")
        await pilot.press("enter")
        await until_text(pilot, "5 of 6 rows written", "1 same_sides")


async def test_a_word_that_is_no_rule_writes_nothing(faulty: Path) -> None:
    async with DataApp(faulty).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await pilot.press("w")
        await until_text(pilot, "Write faulty.clean.jsonl")
        await pilot.press(*"nearly", "enter")
        await until_text(pilot, "'nearly' is nothing that can be left out")
        assert list(faulty.parent.iterdir()) == [faulty]
