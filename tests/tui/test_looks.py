"""Themes, symbols and statuses: what a person chose stays, and nothing is told by colour alone."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import recorded
from acting import key_of, seen, text_of, until
from textual.color import Color

from backprop_tui import themes
from backprop_tui.app import BackpropApp
from backprop_tui.charts.canvas import SYMBOLS
from backprop_tui.text import STATUS

STEPS = (0, 95, 135, 175, 215, 255)
XTERM = {*product(STEPS, repeat=3), *((8 + 10 * n,) * 3 for n in range(24))}
"""The entries of xterm's palette that no person sets otherwise."""
BRAILLE = set(SYMBOLS[0].characters) - {" "}


@pytest.mark.parametrize("theme", [theme for theme in themes.OWN if not theme.ansi], ids=lambda theme: theme.name)
def test_every_ink_is_an_entry_of_the_256_colours(theme: object) -> None:
    assert isinstance(theme, themes.Theme)
    for name, value in themes.inks(theme).items():
        assert Color.parse(value).rgb in XTERM, name


def test_every_text_can_be_read_in_every_theme() -> None:
    """Also in those that come with Textual, whose colours are not all meant for text."""
    for name, theme in BackpropApp().available_themes.items():
        if theme.ansi:  # the terminal's own colours are nobody's to know
            continue
        ground = Color.parse(theme.background or ("#121212" if theme.dark else "#efefef"))
        for ink, colour in themes.inks(theme).items():
            least = {"ink-rule": 1.0, "ink-cursor": 1.0, "ink-raw": 3.0}.get(ink, themes.CONTRAST)
            assert themes.contrast(Color.parse(colour), ground) >= least - 0.05, (name, ink)


def test_inks_with_a_meaning_of_their_own_are_told_apart_in_every_theme_of_ours() -> None:
    for name in (*(theme.name for theme in themes.OWN), "ansi-dark", "ansi-light"):
        inks = themes.inks(BackpropApp().available_themes[name])
        told = [inks[f"ink-{ink}"] for ink in ("text", "good", "warn", "bad")]
        assert len(set(told)) == 4, name
        assert inks["ink-raw"] != inks["ink-smooth"], name


def test_living_runs_are_told_apart_by_their_glyph() -> None:
    living = [STATUS[status][0] for status in ("starting", "running", "paused")]
    assert len({*living, STATUS["done"][0], STATUS["failed"][0], STATUS["stopped"][0]}) == 6


@pytest.mark.parametrize("width", [60, 80, 140])
async def test_the_list_says_each_status_in_words(output: Path, width: int) -> None:
    for make in (recorded.finished_demo, recorded.failed, recorded.crashed):
        make(output)
    async with BackpropApp().run_test(size=(width, 24)) as pilot:
        await until(lambda: "77d0c3f1" in text_of(pilot.app), "the runs")  # type: ignore[arg-type]
        rows = {row[:20] for row in text_of(pilot.app).split("\n")}  # type: ignore[arg-type]
        for status in ("✓ done", "✗ failed", "✗ crashed"):
            assert any(status in row for row in rows)


async def test_symbols_that_a_font_lacks_are_left_on_every_plot_and_for_good(output: Path) -> None:
    run = recorded.finished_demo(output)
    async with BackpropApp(attach=run.directory.path).run_test(size=(140, 45)) as pilot:
        app = await seen(pilot, run.seq)
        await pilot.press(key_of("runs"))
        await until(lambda: bool(BRAILLE & set(text_of(app))), "the curve")
        await pilot.press(key_of("live"))
        assert BRAILLE & set(text_of(app))
        await pilot.press("b", "b")
        assert not BRAILLE & set(text_of(app))
        await pilot.press(key_of("runs"))
        await until(lambda: not BRAILLE & set(text_of(app)), "the other curve")
    async with BackpropApp(attach=run.directory.path).run_test(size=(140, 45)) as pilot:
        app = await seen(pilot, run.seq)
        assert not BRAILLE & set(text_of(app))
        assert ":" in text_of(app)


async def test_linuxs_console_has_no_braille(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "linux")
    run = recorded.finished_demo(output)
    async with BackpropApp(attach=run.directory.path).run_test(size=(140, 45)) as pilot:
        assert not BRAILLE & set(text_of(await seen(pilot, run.seq)))
