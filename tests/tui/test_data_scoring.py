"""Scores on the Data screen: a real engine process asks a tiny model how hard each row is for it."""

from __future__ import annotations

import json
from pathlib import Path

import acting
import pytest
import tiny_language_model as tiny
from acting import key_of
from backprop.core.jobs import EvaluatedRow, Evaluation
from backprop.core.settings import RunConfig
from backprop.data.dedup import content_number
from backprop.runs import evaluations
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex
from data_screen_app import DataApp, at_rest, until, until_text
from recorded_runs import record
from textual.pilot import Pilot
from textual.widgets import Input

from backprop_tui.app import BackpropApp
from backprop_tui.screens.dataset.perplexity import ScoresPane

NARROW, WIDE = (80, 24), (140, 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Thirty rows that are alike, one (line 8) of other characters, one (line 20) that is broken."""
    lines = [json.dumps(row) for row in tiny.rows(30)]
    lines[7] = json.dumps({"instruction": "What is it?", "output": "~~~~^^^^````{{{{||||}}}}" * 2})
    lines[19] = '{"instruction": "half'
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


async def score(pilot: Pilot[None], model: Path) -> None:
    app = pilot.app
    assert isinstance(app, DataApp)
    await at_rest(pilot)
    app.data.chosen.model = str(model)
    await pilot.press("h")


async def test_rows_are_listed_from_the_hardest_and_enter_goes_to_one(rows: Path, model: Path) -> None:
    async with DataApp(rows).run_test(size=NARROW) as pilot:
        await score(pilot, model)
        screen = await until_text(
            pilot, "29 rows scored, the hardest first", "1 rows have no score", "whole perplexity"
        )
        listed = pilot.app.data.query_one(ScoresPane)
        losses = [row.loss for row in listed._rows]
        assert losses == sorted(losses, reverse=True)
        hardest = listed._rows[0]
        assert f"line {hardest.line}" in screen
        assert "enter row" in screen.splitlines()[-1]
        await pilot.press("enter")
        await until_text(pilot, f"line {hardest.line} as chat", f"{hardest.line} of 30")


async def test_scores_are_in_the_statistics_and_leave_rows_out_of_the_cleaned_copy(rows: Path, model: Path) -> None:
    async with DataApp(rows).run_test(size=WIDE) as pilot:
        await at_rest(pilot)
        await pilot.press("w")
        entry = pilot.app.screen.query_one(Input)
        await until(pilot, lambda: pilot.app.focused is entry, "a prompt")
        entry.value = "outliers"
        await pilot.press("enter")
        await until_text(pilot, "no model has scored the rows yet")
        await score(pilot, model)
        await until_text(pilot, "29 rows scored, the hardest first")
        await pilot.press("s")
        await until_text(pilot, "Scored 29 rows", "trained tokens", "far off")
        limit = sorted(row.perplexity for row in pilot.app.data.query_one(ScoresPane)._rows)[19]
        await pilot.press("w")
        await until(pilot, lambda: pilot.app.focused is entry, "a prompt")
        entry.value = f"perplexity:{limit:.6f}"
        await pilot.press("enter")
        screen = await until_text(pilot, "of 30 rows written", "perplexity_high")
        assert any(f"{kept} of 30 rows written" in screen for kept in (19, 20))


async def test_scoring_can_be_stopped_and_begun_again(rows: Path, model: Path) -> None:
    with rows.open("a") as more:
        more.writelines(json.dumps(row) + "\n" for row in tiny.rows(3000))
    async with DataApp(rows).run_test(size=NARROW) as pilot:
        await score(pilot, model)
        await until_text(pilot, "scoring")
        for task in pilot.app.data.tasks.running():
            task._began -= 10  # then it is asked before the application is left
        assert pilot.app.data.losing().startswith("Work on the dataset goes on: ")
        await pilot.press("x")
        await at_rest(pilot)
        assert pilot.app.data.losing() == ""
        await until_text(pilot, "stopped")
        assert "the hardest first" not in pilot.app.text() or "so far" in pilot.app.text()
        await pilot.press("escape", "h")
        await until(pilot, lambda: pilot.app.data.tasks.goes_on("score"), "another scoring")
        await pilot.press("x")


async def test_a_model_that_does_not_exist_is_said_in_words(rows: Path) -> None:
    async with DataApp(rows).run_test(size=NARROW) as pilot:
        await score(pilot, Path("no-such-model"))
        await until_text(pilot, "✗ there is no model", "no-such-model", "DEP_MODEL_LOAD_FAILED")


def scored_run(output: Path, rows: Path, losses: dict[int, float | None]) -> RunDirectory:
    """A run on ``rows`` that held out these lines, and what its result scored on them."""
    run = record(output, "cafe00000001", RunConfig(data=str(rows), model="m", output_dir=str(output)))
    lines = rows.read_text().splitlines()
    scores = [
        EvaluatedRow(line=line, content=content_number(json.loads(lines[line - 1]), "alpaca"), loss=loss, tokens=9)
        for line, loss in losses.items()
    ]
    for step, found in ((0, scores[:1]), (3, scores)):
        evaluations.write(evaluations.step_file(run, step), Evaluation(source=run.run_id, step=step, rows=found))
    return run


@pytest.mark.parametrize("size", [NARROW, WIDE])
async def test_the_hardest_rows_of_a_run_are_listed_with_their_text(
    rows: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    scored_run(tmp_path / "output", rows, {3: 1.0, 8: 4.5, 11: None, 12: 2.0})
    with RunIndex() as index:
        index.scan(tmp_path / "output")
    lines = rows.read_text().splitlines()
    lines[11] = lines[0]
    rows.write_text("\n".join(lines) + "\n")
    async with DataApp(rows).run_test(size=size) as pilot:
        await at_rest(pilot)
        await pilot.press("H")
        screen = await until_text(pilot, "run cafe00000001 at step 3", "4 rows", "held out by it, the hardest first")
        listed = pilot.app.data.query_one(ScoresPane)
        assert [row.line for row in listed._rows] == [11, 8, 12, 3]
        assert "4.500   What is it? ▸ ~~" in screen
        assert "line 12" in screen
        assert "! another row than was" in screen
        await pilot.press("down", "enter")
        await until_text(pilot, "line 8 as chat")


async def test_without_kept_scores_that_is_said(rows: Path) -> None:
    async with DataApp(rows).run_test(size=NARROW) as pilot:
        await at_rest(pilot)
        await pilot.press("H")
        await until_text(pilot, "no run kept what it scored on rows of this file")


async def test_the_list_of_runs_leads_to_the_rows_that_a_run_finds_hardest(rows: Path, tmp_path: Path) -> None:
    run = scored_run(tmp_path / "output", rows, {3: 1.0, 8: 4.5})
    (run.path / "adapter").mkdir()
    app = BackpropApp()
    async with app.run_test(size=NARROW) as pilot:
        await acting.until(lambda: "cafe0000" in acting.text_of(app), "the run")
        await pilot.press("h")
        await acting.until(lambda: "held out by it, the hardest first" in acting.text_of(app), "the scores")
        assert "What is it? ▸ ~~" in acting.text_of(app)
        await pilot.press("escape", key_of("runs"), "h")  # the file is open already
        await acting.until(lambda: "held out by it, the hardest first" in acting.text_of(app), "the scores again")
