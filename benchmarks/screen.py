"""What the application costs a terminal: ``python benchmarks/screen.py``.

A real application in a pseudo-terminal of 120x40: the time to its first paint beside the least that Textual can draw;
each screen while nothing happens and while keys are pressed; a run whose journal grows by 1000 steps a second (written
by a stand-in for the engine, ``tests/tui/player.py``); and with ``--hour`` an hour of that, compressed: each time the
screen shows the last step of a portion, the next 12,000 steps (12 seconds of them) are appended to the journal at once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from math import nan
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / each) for each in ("e2e", "tui", "fixtures")]

from backprop.runs.directory import RunDirectory  # noqa: E402
from recorded import Recorder, demo_like, ev, finished_demo, make_steps, reading  # noqa: E402
from terminal import Terminal  # noqa: E402

APPLICATION = [sys.executable, "-c", "from backprop_tui.main import main; main()"]
MINIMAL = [
    sys.executable,
    "-c",
    "from textual.app import App\nfrom textual.widgets import Static\n"
    "class Minimal(App):\n    def compose(self):\n        yield Static('leave')\nMinimal().run()",
]
"""The least that Textual can paint: what the first paint costs on this machine whatever one writes."""
COLUMNS, ROWS = 120, 40
SECONDS = 15.0
PRESSES = 60
PAINTS = 7
MARK = b"log"
"""What the key ``l`` writes into the plot's title, and nothing else that moves."""
RUNS, DATA_ROWS = 200, 1_000_000
IDLE_SECONDS = 10.0
PORTIONS, PORTION = 300, 12_000


class Visit(NamedTuple):
    """A screen, or what is done on it."""

    name: str
    way: tuple[tuple[str, str], ...]
    """Keys that lead there from the visit before, each with words that are on the screen then."""
    keys: tuple[str, ...]
    """Pressed in turn."""


VISITS = (
    Visit("Runs, down 200 runs", (), ("down",)),
    Visit("Live, a finished run", (("enter", "step 60/60"),), ("l",)),
    Visit("Data, pages of a big file", (("1", "\n   rows.jsonl"), ("enter", f"{DATA_ROWS:,} rows")), ("page_down",)),
    Visit("Configure, down the settings", (("2", "steps"),), ("down", "up")),
    Visit("Configure, typing", (("enter", "tab"),), ("a",)),
    Visit("Export, down the formats", (("escape", "enter change"), ("5", "lora-gguf")), ("down", "up")),
)
CHAT = Visit("Chat, typing", (("6", "no run with a result"),), ("a",))
"""Before there is a run: with one its model would be loaded."""


def open_live(run: Path, home: Path) -> Terminal:
    return Terminal([*APPLICATION, "--attach", str(run)], columns=COLUMNS, rows=ROWS, cwd=home)


def first_paint(argv: list[str], home: Path) -> tuple[float, float]:
    """Milliseconds until the first screen is drawn: by the clock, and of a core's time."""
    began = time.perf_counter()
    with Terminal(argv, columns=COLUMNS, rows=ROWS, cwd=home) as terminal:
        terminal.wait_for("leave")
        took = terminal.last_read_at - began  # not the time in which the stand-in for a terminal understands it
        return 1000 * took, 1000 * busy(terminal)


def busy(terminal: Terminal) -> float:
    """Seconds of a core that the application took so far."""
    return sum(psutil.Process(terminal.process.pid).cpu_times()[:2])


def pressed(terminal: Terminal, key: str) -> tuple[float, int]:
    """Milliseconds from a key to what it draws first, and the bytes of all that it draws."""
    terminal.read(0.05)
    began, before = time.perf_counter(), terminal.bytes_received
    terminal.send(key)
    while not terminal.read_once(1.0):
        pass
    took = 1000 * (terminal.last_read_at - began)
    while terminal.read_once(0.15):
        pass
    return took, terminal.bytes_received - before


def visit_all(visits: tuple[Visit, ...], home: Path) -> None:
    """What screens send and take where nothing happens, and for a key."""
    with Terminal(APPLICATION, columns=COLUMNS, rows=ROWS, cwd=home) as terminal:
        terminal.wait_for("leave")
        for visit in visits:
            for key, words in visit.way:
                terminal.send(key)
                terminal.wait_for(words)
            terminal.read(4.0)
            taken, sent = busy(terminal), terminal.bytes_received
            terminal.read(IDLE_SECONDS)
            share, sent = (busy(terminal) - taken) / IDLE_SECONDS, terminal.bytes_received - sent
            found = [pressed(terminal, visit.keys[press % len(visit.keys)]) for press in range(PRESSES)]
            row(visit.name, sent / IDLE_SECONDS, 100 * share, terminal, found)


def switching(home: Path) -> None:
    """From screen to screen, each opened before."""
    with Terminal(APPLICATION, columns=COLUMNS, rows=ROWS, cwd=home) as terminal:
        terminal.wait_for("leave")
        for name in "34125":
            pressed(terminal, name)
        found = [pressed(terminal, "41325"[press % 5]) for press in range(PRESSES)]
        row("from screen to screen", nan, nan, terminal, found)


def row(name: str, idle: float, share: float, terminal: Terminal, found: list[tuple[float, int]]) -> None:
    times, sizes = zip(*found, strict=True)
    memory = psutil.Process(terminal.process.pid).memory_full_info().uss / 1e6
    middle, most = statistics.median(times), statistics.quantiles(times, n=20)[18]
    print(
        f"{name:<30}{idle:>9.0f}{share:>8.2f}{memory:>6.0f}{middle:>8.1f}{most:>6.1f}{statistics.median(sizes):>7.0f}"
    )


def hour(run: Recorder, home: Path) -> None:
    """3.6 million steps as fast as the application takes them: its memory, and what it sends, at both ends."""
    total = PORTIONS * PORTION
    with run.directory.hold_lock(), open_live(run.directory.path, home) as terminal:
        process, rates, memory = psutil.Process(terminal.process.pid), [], []
        for portion in range(PORTIONS):
            first, began, sent = portion * PORTION + 1, time.perf_counter(), terminal.bytes_received
            run.write(*make_steps(first, first + PORTION - 1, total), reading(60 + portion % 30), seconds=0.001)
            terminal.wait_for(f"step {first + PORTION - 1:,}/", 120)
            rates.append((terminal.bytes_received - sent) / (time.perf_counter() - began) / 1024)
            memory.append(process.memory_full_info().uss / 1e6)
    tenth = PORTIONS // 10
    report("an hour at 1000 events/s: memory after 1/10", memory[tenth - 1], "MB")
    report("  its growth from then to the end", memory[-1] - memory[tenth - 1], "MB", 5)
    report("  to the terminal in the first tenth", statistics.mean(rates[:tenth]), "KiB/s", 20)
    report("  in the last tenth", statistics.mean(rates[-tenth:]), "KiB/s", 20)


def streaming(run: Path, home: Path, rate: int) -> tuple[float, float, list[float]]:
    """KiB a second, CPU share of the application in percent, and milliseconds from each key to its paint."""
    player = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/tui/player.py"), str(run), str(rate), "1", str(10**6), str(10**6)]
    )
    try:
        while not RunDirectory(run).is_locked():
            time.sleep(0.05)
        with open_live(run, home) as terminal:
            terminal.wait_until(lambda: "tokens/s" in terminal.text and "step" in terminal.text)
            terminal.read(4.0)
            taken, began, sent = busy(terminal), time.perf_counter(), terminal.bytes_received
            terminal.read(SECONDS)
            took = time.perf_counter() - began
            share = 100 * (busy(terminal) - taken) / took
            return (terminal.bytes_received - sent) / took / 1024, share, key_times(terminal)
    finally:
        player.terminate()
        player.wait()


def key_times(terminal: Terminal) -> list[float]:
    """Milliseconds from a key that draws the whole plot anew until that is written."""
    found = []
    for press in range(PRESSES):
        terminal.read(0.05 + 0.01 * (press % 20))
        before, began = len(terminal.output), time.perf_counter()
        terminal.send("l")
        while MARK not in terminal.output[before:]:
            terminal.read_once(0.5)
        found.append(1000 * (terminal.last_read_at - began))
        terminal.send("l")
    return found


def report(name: str, value: float, unit: str, limit: float | None = None) -> None:
    verdict = "" if limit is None else f"   (at most {limit:g}: {'yes' if value <= limit else 'NO'})"
    print(f"{name:<42}{value:>9.1f} {unit}{verdict}")


def first_paints(home: Path, done: Path) -> None:
    """Beside the least application, in turns."""
    arms = {
        "a minimal Textual app": MINIMAL,
        "the list of runs": APPLICATION,
        "a finished run": [*APPLICATION, "--attach", str(done)],
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(PAINTS):
        for name, argv in arms.items():
            times[name].append(first_paint(argv, home))
    least = statistics.median(clock for clock, _ in times["a minimal Textual app"])
    for name, found in times.items():
        clock, core = (statistics.median(values) for values in zip(*found, strict=True))
        report(f"first paint of {name}", clock, "ms", None if arms[name] is MINIMAL else 1.5 * least)
        report("  time of a core until then", core, "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hour", action="store_true", help="an hour of 1000 events/s alone, in a few minutes")
    only_hour = parser.parse_args().hour
    # An installed program has its bytecode.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for kind in ("CACHE", "DATA", "CONFIG"):
            os.environ[f"XDG_{kind}_HOME"] = str(home / kind)

        def begun(number: int) -> Recorder:
            run = Recorder(home / "output", f"feed0000000{number}", demo_like(home / "output"), time.time())
            run.start()
            run.write(ev.PhaseChanged(phase="training"))
            return run

        if only_hour:
            return hour(begun(0), home)
        print(f"{'':<30}{'idle B/s':>9}{'% core':>8}{'MB':>6}{'ms p50':>8}{'p95':>6}{'B/key':>7}")
        visit_all((CHAT,), home)
        done = finished_demo(home / "output").directory.path
        with (home / "rows.jsonl").open("w") as file:
            file.writelines(f'{{"prompt": "What is {n}?", "completion": "{n % 97}"}}\n' for n in range(DATA_ROWS))
        for number in range(1, RUNS):
            finished_demo(home / "output", f"{number:012x}")
        visit_all(VISITS, home)
        switching(home)
        first_paints(home, done)
        for number, rate in enumerate((5, 1000, 5000)):
            kib, share, keys = streaming(begun(number).directory.path, home, rate)
            report(f"to the terminal at {rate} events/s", kib, "KiB/s", 20)
            report(f"CPU of the application at {rate} events/s", share, "%")
            report(f"key to paint at {rate} events/s, median", statistics.median(keys), "ms")
            report(f"key to paint at {rate} events/s, p95", statistics.quantiles(keys, n=20)[18], "ms", 50)


if __name__ == "__main__":
    main()
