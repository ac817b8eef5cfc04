"""Scores of rows after a run: the losses of its own curve, row by row, for each model that can be named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from backprop.core.errors import InputError
from backprop.core.events import Evaluated, Event, RunStarted, Warning, encode  # noqa: A004
from backprop.core.jobs import ChatRequest, EvalRequest, Evaluation, Sampling
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs import evaluations
from backprop.runs.directory import RunDirectory
from backprop.runs.verdict import bits_per_byte, paired
from backprop.train import generate
from backprop.train.jobs import eval as job
from backprop.train.jobs.chat import open_speaker
from pinned_machine import within
from runs_in_process import of, train
from tiny_language_model import rows as tiny_rows
from tiny_language_model import write_judged, write_model, write_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, list[Event]]:
    """A run that held rows out and kept a checkpoint of its fourth step, and its events."""
    folder = tmp_path_factory.mktemp("evaluated")
    config = RunConfig(
        data=str(write_rows(folder / "rows.jsonl", 50)),
        model=str(write_model(folder / "tiny")),
        backend="cpu",
        steps=8,
        eval_steps=4,
        batch_size=4,
        gradient_accumulation=1,
        learning_rate=2e-2,
        lora_r=4,
        held_out="0.2",
        output_dir=str(folder / "out"),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "DATA", "CONFIG"):
            patch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
        events, directory = train(config, [])
    events.insert(0, RunStarted(config=msgspec.to_builtins(config), output_dir=str(directory.path), pid=1))
    for number, event in enumerate(events, 1):
        event.run_id, event.seq = directory.run_id, number
    directory.journal.write_bytes(b"".join(map(encode, events)))
    return directory, events


def ask(directory: RunDirectory, source: Path | None = None, step: int | None = None, **asked: Any) -> list[Evaluation]:
    said = asked.pop("said", [])
    request = EvalRequest(
        model=ChatRequest(source=str(source or directory.path), step=step), run=str(directory.path), **asked
    )
    return job.evaluate(request, said.append).sides


def by_line(found: Evaluation) -> dict[int, float | None]:
    return {row.line: row.loss for row in found.rows}


def test_result_base_and_checkpoint_score_what_the_run_reported(run: tuple[RunDirectory, list[Event]]) -> None:
    directory, events = run
    base, fourth, last = of(events, Evaluated)

    tuned, untouched = ask(directory, base=True)
    (early,) = ask(directory, step=4)

    for found, event in ((tuned, last), (untouched, base), (early, fourth)):
        assert found.loss == pytest.approx(event.loss, rel=1e-4)
    for found, step in ((tuned, 8), (untouched, 0)):
        kept = evaluations.read(directory, step)
        assert kept is not None
        assert by_line(found) == pytest.approx(by_line(kept), rel=within(1e-3, bf16=1e-2))
        assert found.fingerprint == kept.fingerprint
    texts = {row.line: row for row in tuned.rows}
    for line, row in texts.items():
        assert row.expected == tiny_rows(50)[line - 1]["output"]
        assert tiny_rows(50)[line - 1]["instruction"] in row.prompt
        assert row.bytes == len(row.expected.encode())


def test_the_trained_rows_are_all_others(run: tuple[RunDirectory, list[Event]]) -> None:
    directory, _ = run
    lines = [{row.line for row in ask(directory, trained=trained)[0].rows} for trained in (False, True)]
    assert lines[0].isdisjoint(lines[1])
    assert lines[0] | lines[1] == set(range(1, 51))


def test_rows_of_an_edited_file_are_those_that_were_held_out_and_what_changed_is_told(
    run: tuple[RunDirectory, list[Event]],
) -> None:
    directory, _ = run
    data = Path(directory.read_record().config.data)
    as_trained = data.read_text()
    held_out, trained = (set(by_line(ask(directory, trained=trained)[0])) for trained in (False, True))
    lines = as_trained.splitlines()
    *left, gone = sorted(held_out)
    edited = [line for number, line in enumerate(lines, 1) if number != gone]
    edited[min(trained) - 1] = edited[min(trained) - 1].replace("What", "Which")
    added = [json.dumps({"instruction": f"Added {i}?", "output": f"Number {i}."}) for i in range(60)]
    said: list[Event] = []
    try:
        data.write_text("\n".join([*edited, *added]) + "\n")
        (found,) = ask(directory, said=said)
        (others,) = ask(directory, trained=True)
    finally:
        data.write_text(as_trained)

    assert set(by_line(found)) == set(left)
    assert set(by_line(others)) == {n - (n > gone) for n in trained - {min(trained)}}
    (warning,) = (each for each in of(said, Warning) if each.code == "DATA_CHANGED")
    told = f"line {min(trained)} was changed; line {gone} was removed; line 50 was added"
    assert warning.message.startswith(f"{data} is not as it was trained: {told}")
    assert warning.message.endswith("; 57 more rows")


@pytest.mark.parametrize("trained", [False, True])
def test_of_a_file_of_held_out_rows_it_is_told_what_changed(tmp_path: Path, trained: bool) -> None:
    rows, held_out = write_rows(tmp_path / "rows.jsonl", 20), tmp_path / "held-out.jsonl"
    held_out.write_text("".join(rows.read_text().splitlines(keepends=True)[:6]).replace("What", "Now what"))
    model = write_model(tmp_path / "tiny")
    others = {"data": str(rows), "model": str(model), "held_out": str(held_out), "output_dir": str(tmp_path / "out")}
    _, directory = train(RunConfig(backend="cpu", steps=1, **others), [])

    def told() -> list[tuple[str, str]]:
        said: list[Event] = []
        ask(directory, trained=trained, said=said)
        return [(each.code, each.message) for each in of(said, Warning)]

    assert told() == []
    edited = rows if trained else held_out
    edited.write_text(edited.read_text().replace("number 2 near", "number 22 near"))
    assert told() == [("DATA_CHANGED", f"{edited} is not as it was trained: line 3 was changed")]


def test_of_judged_rows_the_good_ones_that_were_held_out_are_scored(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny")
    data = str(write_judged(tmp_path / "judged.jsonl", 200))
    config = RunConfig(data=data, model=str(model), backend="cpu", method="kto", steps=1, output_dir=str(tmp_path))
    _, directory = train(config, [])
    kept = evaluations.read(directory, 0)
    assert kept is not None
    good = {n for n, line in enumerate(Path(data).read_text().splitlines(), 1) if json.loads(line)["label"]}
    (found,) = ask(directory)
    assert set(by_line(found)) == set(by_line(kept)) & good


def test_of_a_session_whose_runs_trained_other_rows_the_trained_ones_are_refused(
    run: tuple[RunDirectory, list[Event]], tmp_path: Path
) -> None:
    session = RunDirectory(tmp_path / run[0].run_id)
    shutil.copytree(run[0].path, session.path, ignore=shutil.ignore_patterns("control"))
    session.update_record(multi=MultiConfig())
    with pytest.raises(InputError, match="is a session"):
        ask(session, trained=True)


def test_that_a_run_of_pairs_is_scored_by_another_loss_than_it_made_less_of_is_told(
    run: tuple[RunDirectory, list[Event]], tmp_path: Path
) -> None:
    pairs = RunDirectory(tmp_path / run[0].run_id)
    shutil.copytree(run[0].path, pairs.path, ignore=shutil.ignore_patterns("control", "events.jsonl"))
    pairs.update_record(config=msgspec.structs.replace(run[0].read_record().config, method="dpo"))
    said: list[Any] = []
    ask(pairs, said=said)
    assert [each.code for each in said if isinstance(each, Warning)] == ["OTHER_LOSS"]


def test_a_merged_folder_scores_as_the_run_it_was_merged_from(
    run: tuple[RunDirectory, list[Event]], tmp_path: Path
) -> None:
    directory, _ = run
    model = Path(directory.read_record().config.model)
    merged = shutil.copytree(model, tmp_path / "merged")
    generate.load_model(model, directory.adapter, "cpu").merge_and_unload().save_pretrained(merged)

    (found,), (expected,) = ask(directory, merged), ask(directory)

    assert by_line(found) == pytest.approx(by_line(expected), rel=within(1e-3, bf16=1e-2))
    assert found.source == str(merged)
    with pytest.raises(InputError, match="no adapter"):
        ask(directory, merged, base=True)


def test_answers_made_together_are_those_made_alone_also_when_memory_runs_out(
    run: tuple[RunDirectory, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = run
    (found,) = ask(directory, generate=True, max_tokens=12, regex="of")
    speaker = open_speaker(ChatRequest(source=str(directory.path)), lambda message: None)
    for row in found.rows:
        asked = tiny_rows(50)[row.line - 1]["instruction"]
        alone = generate.reply(speaker.model, speaker.chat, asked, Sampling(max_tokens=12))
        assert row.answer == alone.text
        assert row.metrics["regex"] == float("of" in alone.text)
        assert set(row.metrics) == {"exact_match", "f1", "contains", "regex"}

    from peft import PeftModelForCausalLM as Tuned

    real, sizes = Tuned.generate, []

    def tight(model: Any, *words: Any, **asked: Any) -> Any:
        sizes.append(len(asked["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, *words, **asked)

    monkeypatch.setattr(Tuned, "generate", tight)
    (again,) = ask(directory, generate=True, max_tokens=12)
    assert [row.answer for row in again.rows] == [row.answer for row in found.rows]
    assert max(sizes) > 2 >= sizes[-1]


def test_another_tokenizer_is_compared_by_bits_per_byte_of_the_same_text(
    run: tuple[RunDirectory, list[Event]], tmp_path: Path
) -> None:
    directory, _ = run
    other = shutil.copytree(directory.read_record().config.model, tmp_path / "other")
    settings = json.loads((other / "tokenizer.json").read_bytes())
    settings["model"]["merges"] = settings["model"]["merges"][:5]
    (other / "tokenizer.json").write_text(json.dumps(settings))

    (ours,), (theirs,) = ask(directory), ask(directory, other)

    assert ours.fingerprint != theirs.fingerprint
    pairs = paired(theirs.rows, ours.rows)
    assert len(pairs) == len(ours.rows)
    assert any(a.tokens != b.tokens for a, b in pairs)
    before, after = bits_per_byte(pairs)
    assert [row.tokens for row in before] == [row.tokens for row in after] == [row.bytes for row in ours.rows]
    assert after[0].loss == pytest.approx(ours.rows[0].loss * ours.rows[0].tokens / ours.rows[0].bytes / 0.6931472)


def test_rows_of_another_file_are_all_scored_and_those_that_cannot_be_are_told(
    run: tuple[RunDirectory, list[Event]], tmp_path: Path
) -> None:
    directory, _ = run
    file = write_rows(tmp_path / "more.jsonl", 5)
    with file.open("a") as more:
        more.write('{"instruction": "half')
    said: list[Any] = []
    (found,) = ask(directory, data=str(file), said=said)
    assert [row.line for row in found.rows] == [1, 2, 3, 4, 5]
    assert [each.code for each in said if isinstance(each, Warning)] == ["ROWS_LEFT_OUT"]


def test_plain_texts_have_a_loss_and_no_answer(run: tuple[RunDirectory, list[Event]], tmp_path: Path) -> None:
    directory, _ = run
    file = tmp_path / "texts.jsonl"
    words = " ".join(f"harbour{number}" for number in range(300))
    file.write_text(json.dumps({"text": words}) + "\n" + json.dumps({"text": "A window."}) + "\n")
    (found,) = ask(directory, data=str(file))
    assert [row.line for row in found.rows] == [1, 2]
    assert [row.prompt for row in found.rows] == ["", ""]
    assert found.rows[0].tokens > 600, "all pieces of a long text are one row"
    with pytest.raises(InputError, match="no prompt"):
        ask(directory, data=str(file), generate=True)
