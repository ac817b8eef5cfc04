"""Draw the pictures of the application: ``python screenshots/make.py [FOLDER]``.

Each screen shows a recorded run (``tests/tui/recorded.py``). Textual exports SVG; every word is set at its own place,
so that no renderer has to know the font's width, and ``rsvg-convert`` makes the PNG (librsvg2-bin, fonts-dejavu).
"""

from __future__ import annotations

import asyncio
import html
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "tui")]
os.environ["TEXTUAL_COLOR_SYSTEM"] = "truecolor"

import recorded  # noqa: E402
from textual.pilot import Pilot  # noqa: E402

from backprop_tui.app import BackpropApp  # noqa: E402

_TEXT = re.compile(r'<text class="([^"]+)" x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)"([^>]*)>(.*?)</text>')
_WORD = re.compile(r"[⠀-⣿]|[^\s⠀-⣿]+")
_BRAILLE = re.compile(r"[⠀-⣿]")


def set_words(svg: str) -> str:
    """One ``<text>`` a word, at its own x; a braille sign each (they come from another font)."""

    def split(match: re.Match[str]) -> str:
        style, x, y, length, rest, content = match.groups()
        text = html.unescape(content).replace("\xa0", " ")
        width = float(length) / max(1, len(text))
        pieces = []
        for word in _WORD.finditer(text):
            family = ' font-family="DejaVu Sans"' if _BRAILLE.match(word[0]) else ""
            at = float(x) + word.start() * width
            pieces.append(f'<text class="{style}" x="{at:.1f}" y="{y}"{rest}{family}>{html.escape(word[0])}</text>')
        return "".join(pieces)

    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: Fira Code[^;]*;", "font-family: DejaVu Sans Mono;", svg)
    return _TEXT.sub(split, svg)


async def draw(
    folder: Path, name: str, size: tuple[int, int], app: BackpropApp, act: Callable[[Pilot], Awaitable[None]]
) -> None:
    async with app.run_test(size=size) as pilot:
        await act(pilot)
        await pilot.pause(0.6)
        app.clear_notifications()
        await pilot.pause(0.2)
        svg = app.export_screenshot(title="backprop-tui")
    picture = str(folder / f"{name}.png")
    subprocess.run(["rsvg-convert", "-z", "1", "-o", picture], input=set_words(svg).encode(), check=True)


def shown(panes: int) -> Callable[[Pilot], Awaitable[None]]:
    """Wait for the run, then go ``panes`` panes on."""

    async def act(pilot: Pilot) -> None:
        await pilot.pause(0.8)
        for _ in range(panes):
            await pilot.press("tab")

    return act


async def make(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as home:
        for kind in ("CACHE", "DATA", "CONFIG"):
            os.environ[f"XDG_{kind}_HOME"] = f"{home}/{kind}"
        os.chdir(home)
        output = Path(home, "output")
        recorded.one_of_each(output, time.time())
        live, demo = output / "b81e40aa12cd", output / "3f2a9c1b7d20"
        with recorded.RunDirectory(live).hold_lock():
            for columns, rows in ((140, 45), (80, 24)):
                size = (columns, rows)
                await draw(folder, f"live-{columns}x{rows}", size, BackpropApp(attach=live), shown(0))
                await draw(folder, f"runs-{columns}x{rows}", size, BackpropApp(), shown(0))
                await draw(folder, f"demo-{columns}x{rows}", size, BackpropApp(attach=demo), shown(1))


if __name__ == "__main__":
    target = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else HERE
    target.mkdir(parents=True, exist_ok=True)
    asyncio.run(make(target))
