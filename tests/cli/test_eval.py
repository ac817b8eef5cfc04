"""``eval``: two models beside each other, the rows that flip, the gate; refusals before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.cli import eval as eval_command
from backprop.cli.eval import comparison, gate_of, summary
from backprop.cli.main import main
from backprop.core.errors import InputError
from backprop.core.jobs import EvaluatedRow, Evaluation, Evaluations
from backprop.core.settings import RunConfig
from recorded_runs import record


def made(losses: list[float | None], right: str = "", fingerprint: str = "same", size: int = 20) -> Evaluation:
    """Scores of as many rows; ``right`` has a 1 for each answer that is right."""
    rows = [
        EvaluatedRow(line=i + 1, content=i, loss=loss, tokens=10, bytes=size, prompt=f"p{i}", expected="yes")
        for i, loss in enumerate(losses)
    ]
    for row, flag in zip(rows, right, strict=False):
        row.answer = "yes" if flag == "1" else f"no {row.line}"
        row.metrics = {"exact_match": float(flag), "f1": float(flag)}
    return Evaluation(source="made", fingerprint=fingerprint, rows=rows)


def test_rows_that_flip_are_listed_with_both_answers_and_counted_exactly() -> None:
    before, after = made([2.0] * 8, "11000000"), made([1.9] * 8, "10111110")
    found = comparison(after, before)
    flipped = found["flipped"]
    assert [row["line"] for row in flipped["gained"]] == [3, 4, 5, 6, 7]
    assert [row["line"] for row in flipped["lost"]] == [2]
    assert (flipped["lost"][0]["before"], flipped["lost"][0]["after"]) == ("yes", "no 2")
    assert flipped["p"] == pytest.approx(2 * 7 / 64)
    assert found["differences"]["exact_match"]["mean"] == pytest.approx(0.5)
    assert found["verdict"].word == "better"


def test_other_tokens_are_compared_by_bits_per_byte_or_refused_with_the_reason() -> None:
    ours = made([2.0 + i / 10 for i in range(8)])
    found = comparison(ours, made([3.0 + i / 10 for i in range(8)], fingerprint="other"))
    assert found["unit"] == "bits per byte"
    assert found["verdict"].difference == pytest.approx(-1.0 * 10 / 20 / 0.6931472)
    with pytest.raises(InputError, match="tokenizers differ"):
        comparison(ours, made([3.0] * 8, fingerprint="other", size=19))
    with pytest.raises(InputError, match="no row in common"):
        comparison(ours, made([]))


@pytest.mark.parametrize(
    ("before", "after", "allowed", "passes"),
    [(1.0, 0.9, 0.0, True), (1.0, 1.0, 0.0, True), (1.0, 1.1, 0.0, False), (1.0, 1.1, 0.2, True)],
)
def test_the_gate_holds_what_every_row_says_is_worse(before: float, after: float, allowed: float, passes: bool) -> None:
    ours = made([after] * 10)
    answer = {**summary(ours), **comparison(ours, made([before] * 10))}
    assert gate_of(answer, "loss", allowed)["passed"] is passes


def test_the_gate_gives_way_to_chance_and_never_to_what_is_missing() -> None:
    # Worse on average, and as likely as not by chance.
    ours = made([1.0 + (0.5 if i % 2 else -0.4) for i in range(10)], "1" * 4 + "0" * 6)
    answer = {**summary(ours), **comparison(ours, made([1.0] * 10, "0110110000"))}
    assert answer["verdict"].difference > 0
    assert gate_of(answer, "loss", 0.0)["passed"]
    assert gate_of(answer, "exact_match", 0.0)["passed"]
    assert not gate_of(answer, "contains", 9.0)["passed"]
    broken = made([None, *[0.5] * 9])
    assert not gate_of({**summary(broken), **comparison(broken, made([1.0] * 10))}, "loss", 0.0)["passed"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--regex", "("], "no regular expression"),
        (["--gate", "loss"], "--vs"),
        (["--vs", "base", "--gate", "regex"], "--regex"),
        (["--vs", "base", "--gate", "loss", "--allow", "nan"], "a finite number is needed"),
        (["--trained", "--data", "rows.jsonl"], "--trained scores"),
        (["--allow", "0"], "--allow is without effect here\nhint: add --gate, or leave --allow out"),
        (["--max-tokens", "128", "--gate", "loss"], "--max-tokens is without effect here\nhint: add --metrics"),
        ([], "no held-out rows"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_a_model_is_loaded(
    arguments: list[str], said: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tiny_model), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_the_base_of_a_whole_model_is_named(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = record(tmp_path, "a" * 12, RunConfig(data="d", model=str(tiny_model), mode="full"))
    assert main(["eval", str(run.path), "--vs", "base"]) == 1
    assert f"hint: name the base: --vs {tiny_model}\n" in capsys.readouterr().err


def test_a_run_is_scored_beside_its_base_and_each_row_is_kept(nosy_run: Any, backprop: Callable[..., Any]) -> None:
    words = ("--vs", "base", "--gate", "loss", "--metrics", "--max-tokens", "6", "--hardest", "2", "--json")
    done = backprop("eval", str(nosy_run.run), *words, **nosy_run.environment)

    found, ended = done.json, nosy_run.answer.events[-1]["verdict"]
    assert (done.code, found["gate"]["passed"]) == (0, True)
    assert found["verdict"]["difference"] == pytest.approx(ended["difference"], rel=1e-3)
    assert found["verdict"]["rows"] == ended["rows"] == len(found["per_row"]) == 4
    assert set(found["metrics"]) == {"exact_match", "f1", "contains"}
    kept = json.loads(Path(found["path"]).read_text())
    assert [row["line"] for row in kept["rows"]] == [row["line"] for row in found["per_row"]]
    losses = sorted((row["loss"] for row in found["per_row"]), reverse=True)
    assert [row["loss"] for row in found["hardest"]] == losses[:2]
    assert all(row["prompt"] and row["expected"] for row in found["hardest"])


def test_what_the_gate_rejects_ends_with_exit_code_1_and_is_told(
    tiny_model: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [made([2.0 + i / 10 for i in range(9)], "1" * 9), made([1.0 + i / 10 for i in range(9)], "0" * 9)]
    monkeypatch.setattr(eval_command, "ask_engine", lambda *asked: Evaluations(sides=sides))
    words = ["eval", str(tiny_model), "--vs", "base", "--data", str(rows_file)]
    assert main([*words, "--gate", "loss"]) == 1
    told = capsys.readouterr().out
    for said in ("the gate rejects it", "worse: loss +1.000", "9 gained, 0 lost; McNemar p 0.004"):
        assert said in told
    assert "gained line 1: p0" in told
    assert main([*words, "--gate", "loss", "--allow", "1.1"]) == 0
    assert main([*words, "--gate", "f1"]) == 0


def test_scores_that_cannot_be_kept_are_shown_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = record(tmp_path, "a" * 12, RunConfig(data="d", model="m"))
    (run.path / "evaluations").touch()
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(eval_command, "ask_engine", lambda *asked: Evaluations(sides=[made([2.0] * 3)]))
    assert main(["eval", str(run.path), "--json"]) == 0
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert (answer["loss"], answer["path"], answer["warnings"][0]["code"]) == (2.0, "", "RUNTIME_IO_FAILED")
    assert "the scores are not kept: " in shown.err
