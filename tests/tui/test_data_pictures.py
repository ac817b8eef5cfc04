"""How the Data screen looks at 80×24 and at 120×40."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from backprop.core import paths
from data_screen_app import DataApp, alpaca, at_rest, until_text
from textual.pilot import Pilot
from tiny_tokenizer import write_model

SIZES = [(80, 24), (120, 40)]


@pytest.fixture
def cargo(tmp_path: Path) -> Path:
    """Sixty rows with two turns, three turns, an image, a broken line, a duplicate and wide characters."""
    lines = [json.dumps(alpaca(number, words=number % 17)) for number in range(1, 61)]
    chat = [
        {"role": "system", "content": "You are the ship's purser."},
        {"role": "user", "content": "何がありますか？\nAnd the tea?"},
        {"role": "assistant", "content": "Forty chests of tea 🍵,\ntwo of silk."},
    ]
    lines[1] = json.dumps({"messages": chat}, ensure_ascii=False)
    lines[4] = '{"instruction": "What is in hold 5?", "output": '
    lines[7] = json.dumps({"instruction": "What is left?", "input": "", "output": ""})
    lines[9] = lines[5]
    path = tmp_path / "cargo.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def after(*keys: str, words: str = "") -> Callable[[Pilot[None]], Awaitable[None]]:
    """Press keys one by one, each when the work of the one before is done."""

    async def run(pilot: Pilot[None]) -> None:
        await at_rest(pilot)
        for key in keys:
            await pilot.press(key)
            await at_rest(pilot)
        if words:
            await until_text(pilot, words)
            await at_rest(pilot)  # what says how far it was is over as well
        await pilot.pause()

    return run


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
class TestPictures:
    def test_rows(self, cargo: Path, size: tuple[int, int], snap_compare: Callable[..., bool]) -> None:
        assert snap_compare(DataApp(cargo), terminal_size=size, run_before=after("down", words="Forty chests"))

    def test_chat(self, cargo: Path, size: tuple[int, int], snap_compare: Callable[..., bool]) -> None:
        before = after("down", "enter", words="▌assistant")
        assert snap_compare(DataApp(cargo), terminal_size=size, run_before=before)

    def test_broken_row(self, cargo: Path, size: tuple[int, int], snap_compare: Callable[..., bool]) -> None:
        before = after(*["down"] * 4, "enter", words="This row cannot be used")
        assert snap_compare(DataApp(cargo), terminal_size=size, run_before=before)

    def test_tokens(self, cargo: Path, size: tuple[int, int], snap_compare: Callable[..., bool]) -> None:
        write_model(paths.model_cache("smollm2-135m"))
        before = after("down", "enter", "v", "v", words="answers end with")
        assert snap_compare(DataApp(cargo), terminal_size=size, run_before=before)

    def test_problems(self, cargo: Path, size: tuple[int, int], snap_compare: Callable[..., bool]) -> None:
        before = after("c", "p", words="duplicate_row")  # by p alone it may end before or after the list has the focus
        assert snap_compare(DataApp(cargo), terminal_size=size, run_before=before)

    def test_lengths(self, cargo: Path, size: tuple[int, int], snap_compare: Callable[..., bool]) -> None:
        write_model(paths.model_cache("smollm2-135m"))
        before = after("l", "minus", words="limit 128")
        assert snap_compare(DataApp(cargo), terminal_size=size, run_before=before)

    def test_welcome(self, cargo: Path, size: tuple[int, int], snap_compare: Callable[..., bool]) -> None:
        assert snap_compare(DataApp(), terminal_size=size, run_before=after(words="cargo.jsonl"))
