"""Draw the pictures of the application: ``python screenshots/make.py [FOLDER]``.

``demo``, ``samples``, ``data``, ``configure``, ``export`` and ``chat`` show a real run: the demo is trained first (some
minutes on two cores, its model in the cache). ``live``, ``session`` and ``runs`` show recorded runs of made-up numbers
(``tests/tui/recorded.py``), with the panels of a graphics card. Textual exports SVG; every word is set at its own
place, so that no renderer has to know the font's width, and ``rsvg-convert`` makes the PNG (librsvg2-bin,
fonts-dejavu).
"""

from __future__ import annotations

import argparse
import asyncio
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "tui")]
os.environ["TEXTUAL_COLOR_SYSTEM"] = "truecolor"

import recorded  # noqa: E402
from textual.pilot import Pilot  # noqa: E402

from backprop_tui import elsewhere  # noqa: E402
from backprop_tui.app import BackpropApp  # noqa: E402
from backprop_tui.keys import press  # noqa: E402
from backprop_tui.widgets.path_input import Input  # noqa: E402

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


def shown(*keys: str) -> Callable[[Pilot], Awaitable[None]]:
    """Wait for the screen, then press keys, one after the other has had its effect."""

    async def act(pilot: Pilot) -> None:
        await pilot.pause(0.8)
        for key in keys:
            await pilot.press(key)
            await pilot.pause(0.4)

    return act


def bundled(path: Path, *keys: str) -> Callable[[Pilot], Awaitable[None]]:
    """Open a file on the Data screen, and press keys there."""

    async def act(pilot: Pilot) -> None:
        await shown(press("everywhere.data"), "o")(pilot)
        pilot.app.screen.query_one(Input).value = str(path)
        await shown("enter", *keys)(pilot)
        await pilot.pause(3)  # what was asked for in the background

    return act


def until(words: str, *keys: str, typed: str = "") -> Callable[[Pilot], Awaitable[None]]:
    """Press keys, write ``typed`` and wait until the screen shows ``words``."""

    async def act(pilot: Pilot) -> None:
        await shown(*keys)(pilot)
        if typed:
            await pilot.press(*("space" if sign == " " else sign for sign in typed), "enter")
        while words not in html.unescape(pilot.app.export_screenshot()).replace("\xa0", " "):
            await pilot.pause(0.5)

    return act


def trained_demo(output: Path) -> Path:
    """Train the demo; the directory of its run."""
    command = [str(Path(sys.executable).parent / "backprop"), "demo", "--json", "--output", str(output)]
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()
    return Path(json.loads(lines[0])["output_dir"])


async def make(folder: Path) -> None:
    os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # where the model is
    elsewhere.place = lambda: "you@gpu-box"
    with tempfile.TemporaryDirectory() as home:
        os.environ["HOME"] = home
        for kind in ("DATA", "CONFIG"):
            os.environ[f"XDG_{kind}_HOME"] = f"{home}/{kind}"
        os.chdir(home)
        demo = trained_demo(Path(home, "demo"))
        rows = resources.files("backprop.demo") / "demo.jsonl"
        Path("captain.jsonl").write_bytes(rows.read_bytes())
        output = Path(home, "output")
        recorded.one_of_each(output, time.time())
        live, session = output / "b81e40aa12cd", recorded.session(Path(home, "sessions"), done=5).directory.path
        with recorded.RunDirectory(live).hold_lock():
            for columns, height in ((140, 45), (80, 24)):
                size, end = (columns, height), f"{columns}x{height}"
                await draw(folder, f"demo-{end}", size, BackpropApp(attach=demo), shown())
                await draw(folder, f"samples-{end}", size, BackpropApp(attach=demo), shown("tab"))
                row_as_tokens = bundled(Path("captain.jsonl"), "enter", "v", "v")
                await draw(folder, f"data-{end}", size, BackpropApp(), row_as_tokens)
                configured = bundled(Path("captain.jsonl"), "t")
                await draw(folder, f"configure-{end}", size, BackpropApp(), configured)
                shutil.rmtree(demo / "exports")  # nothing is replaced
                exported = until("written, opened again", "w", "enter")
                await draw(folder, f"export-{end}", size, BackpropApp(attach=demo), exported)
                talked = until("identical on", "t", typed="Where are you going?")
                await draw(folder, f"chat-{end}", size, BackpropApp(attach=demo), talked)
                await draw(folder, f"live-{end}", size, BackpropApp(attach=live), shown())
                await draw(folder, f"session-{end}", size, BackpropApp(attach=session), shown(*["tab"] * 4))
                await draw(folder, f"runs-{end}", size, BackpropApp(), shown())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    target = parser.parse_args().folder.absolute()
    target.mkdir(parents=True, exist_ok=True)
    asyncio.run(make(target))
