"""Perplexity of rows: the same as training's loss row by row, whatever the batches; counted, cached, stoppable."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from backprop.core.errors import DatasetError, EngineCrashedError, GPUMemoryError
from backprop.core.jobs import Message, RowScore, RowScores, Scored
from backprop.core.settings import RunConfig
from backprop.data import preprocess
from backprop.runs.engine_jobs import engine_job
from backprop.train import model as models
from backprop.train.jobs import perplexity
from backprop.train.loss import summed_loss
from backprop.train.packing import pad
from tiny_language_model import rows as chat_rows

pytestmark = pytest.mark.usefixtures("shared_start")

CPU = torch.device("cpu")
LONG = " ".join(f"word{number}" for number in range(300))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ragged chats. Line 5 is broken, 9 has too long an answer, 12 is a text of several samples, 14 trains nothing."""
    written = [
        json.dumps({**row, "instruction": row["instruction"] * (1 + i % 4)}) for i, row in enumerate(chat_rows(12))
    ]
    written.insert(4, '{"instruction": "half')
    written.insert(8, json.dumps({"instruction": "Say all", "output": LONG}))
    written.insert(11, json.dumps({"text": LONG}))
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "train": False}]
    written.insert(13, json.dumps({"messages": turns}))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(written) + "\n")
    return path


def ask(path: Path, model: Path, **others: object) -> tuple[list[RowScore], Scored]:
    said: list[Message] = []
    request = RunConfig(data=str(path), model=str(model), backend="cpu", max_seq_length=128, **others)
    perplexity.score(request, said.append)
    assert isinstance(said[-1], Scored)
    return [row for one in said if isinstance(one, RowScores) for row in one.rows], said[-1]


def test_a_score_is_the_mean_loss_of_the_row_computed_alone(file: Path, tiny_model: Path) -> None:
    found, summary = ask(file, tiny_model)
    prepared = preprocess.prepare(file, tiny_model, max_length=128)
    base = models.load_base(tiny_model, CPU, models.choose_dtype(CPU)).eval()
    expected: dict[int, tuple[float, int]] = {}
    mixed = models.choose_dtype(CPU) == torch.bfloat16
    for i, line in enumerate(prepared.lines.tolist()):
        one = pad([prepared.row(i)])
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            loss = float(summed_loss(base, one, plain_head=True))
        before = expected.get(line, (0.0, 0))
        expected[line] = (before[0] + loss, before[1] + one.supervised)
    assert sum(prepared.lines == 12) > 1
    whole = {line: (total / count, count) for line, (total, count) in expected.items() if count}
    assert {row.line: row.tokens for row in found} == {line: count for line, (_, count) in whole.items()}
    tolerance = 2e-2 if mixed else 1e-5
    for row in found:
        assert row.loss == pytest.approx(whole[row.line][0], rel=tolerance)
        assert row.perplexity == pytest.approx(math.exp(whole[row.line][0]), rel=30 * tolerance)
    assert summary.scored == len(found) == len(whole)


def test_batching_changes_nothing(file: Path, tiny_model: Path) -> None:
    prepared = preprocess.prepare(file, tiny_model, max_length=128)
    base = models.load_base(tiny_model, CPU, torch.float32)

    def by_line(room: int) -> dict[int, float]:
        batches = list(perplexity.scores(base, prepared, CPU, torch.float32, pass_tokens=room))
        assert (len(batches) > 8) is (room == 1)
        return {row.line: row.loss for rows in batches for row in rows}

    alone = by_line(1)
    for room in (300, 4096):
        assert by_line(room) == pytest.approx(alone, rel=1e-5)


def test_every_row_is_counted_and_those_without_a_score_are_named(file: Path, tiny_model: Path) -> None:
    found, summary = ask(file, tiny_model)
    assert (summary.rows, summary.scored, summary.answer_lost, summary.dropped) == (16, 13, 1, 2)
    assert [(p.line, p.code) for p in summary.problems] == [
        (5, "broken_json"),
        (9, "answer_lost"),
        (14, "nothing_to_train"),
    ]
    assert {5, 9, 14}.isdisjoint(row.line for row in found)


def test_asking_again_computes_nothing_and_another_model_is_asked_anew(
    file: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, summary = ask(file, tiny_model)
    asked = []
    real = perplexity.scores
    monkeypatch.setattr(perplexity, "scores", lambda *given, **named: asked.append(given) or real(*given, **named))
    again, kept = ask(file, tiny_model)
    assert (again, asked, summary.cached, kept.cached) == (first, [], False, True)
    with file.open("a") as more:
        more.write(json.dumps(chat_rows(40)[39]) + "\n")
    assert len(ask(file, tiny_model)[0]) == len(first) + 1
    assert asked


def test_when_memory_runs_out_passes_become_smaller_and_no_row_is_lost(
    file: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = preprocess.prepare(file, tiny_model, max_length=128)
    base = models.load_base(tiny_model, CPU, torch.float32)
    whole = {row.line: row.loss for some in perplexity.scores(base, prepared, CPU, torch.float32) for row in some}
    real = perplexity._sums

    def tight(model: object, rows: list[object], *others: object) -> object:
        if len(rows) > most:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, rows, *others)

    monkeypatch.setattr(perplexity, "_sums", tight)
    most = 2
    found = {row.line: row.loss for some in perplexity.scores(base, prepared, CPU, torch.float32) for row in some}
    assert found == pytest.approx(whole, rel=1e-5)
    most = 0
    with pytest.raises(GPUMemoryError, match="a single row"):
        list(perplexity.scores(base, prepared, CPU, torch.float32))


def test_the_job_streams_scores_and_leaves_no_log_behind(file: Path, tiny_model: Path, own_home: Path) -> None:
    request = RunConfig(data=str(file), model=str(tiny_model), backend="cpu", max_seq_length=128)
    with engine_job("backprop.train.jobs.perplexity", request) as job:
        said = list(job.messages())
    assert isinstance(said[-1], Scored)
    assert sum(len(one.rows) for one in said if isinstance(one, RowScores)) == said[-1].scored == 13
    assert list((own_home / "cache" / "backprop" / "jobs").iterdir()) == []


def test_a_file_that_cannot_be_scored_is_the_error_of_reading_it(
    tmp_path: Path, tiny_model: Path, own_home: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    request = RunConfig(data=str(tmp_path / "empty.jsonl"), model=str(tiny_model))
    with (
        pytest.raises(DatasetError, match="dataset is empty"),
        engine_job("backprop.train.jobs.perplexity", request) as job,
    ):
        list(job.messages())
    assert [log.name for log in (own_home / "cache" / "backprop" / "jobs").glob("*/*")] == ["engine.log"]


def test_a_stopped_job_ends_and_keeps_nothing(file: Path, tiny_model: Path, own_home: Path) -> None:
    with file.open("a") as more:
        more.writelines(json.dumps(row) + "\n" for row in chat_rows(4000))
    request = RunConfig(data=str(file), model=str(tiny_model), backend="cpu", max_seq_length=128)

    def until_stopped() -> None:
        with engine_job("backprop.train.jobs.perplexity", request) as job:
            for message in job.messages():
                if isinstance(message, RowScores):
                    job.stop()

    with pytest.raises(EngineCrashedError):
        until_stopped()
    assert not (own_home / "cache" / "backprop" / "scores").exists()
    assert list((own_home / "cache" / "backprop" / "jobs").iterdir()) == []
