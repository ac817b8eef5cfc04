"""The Data screen opens a dataset of the hub by its name; an engine process fetches it from a stand-in."""

from __future__ import annotations

import json

import pytest
from data_screen_app import DataApp, alpaca, at_rest, until, until_text
from small_hub import Hub
from textual.widgets import Input

NAME = "harbour/charts"


@pytest.fixture(autouse=True)
def charts(hub: Hub) -> None:
    hub.datasets[NAME] = {"train.jsonl": b"".join(json.dumps(alpaca(n)).encode() + b"\n" for n in range(1, 41))}


async def test_a_name_is_fetched_with_progress_and_opened(hub: Hub) -> None:
    hub.holds.clear()
    async with DataApp().run_test(size=(80, 24)) as pilot:
        await pilot.press("o")
        entry = pilot.app.screen.query_one(Input)
        await until(pilot, lambda: pilot.app.focused is entry, "a prompt")
        entry.value = NAME
        await pilot.press("enter")
        await until_text(pilot, "fetching harbour/charts 0 %", "x stops it")
        hub.holds.set()
        await until_text(pilot, "harbour/charts · alpaca · 40 rows", "What is in hold 1?")


async def test_fetching_is_stopped_and_begun_again(hub: Hub) -> None:
    hub.holds.clear()
    async with DataApp(NAME).run_test(size=(80, 24)) as pilot:
        await until_text(pilot, "fetching harbour/charts 0 %")
        await pilot.press("x")
        await at_rest(pilot)
        await until_text(pilot, "No dataset is open", "owner/name")
        hub.holds.set()
        pilot.app.data.open_path(NAME)
        await until_text(pilot, "harbour/charts · alpaca · 40 rows")


async def test_a_name_that_nobody_has_is_said_in_words(hub: Hub) -> None:
    async with DataApp("harbour/nothing").run_test(size=(80, 24)) as pilot:
        await until_text(pilot, "✗ there is no file harbour/nothing", "HF_TOKEN", "DATASET_NOT_FOUND")
