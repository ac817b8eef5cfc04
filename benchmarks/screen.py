"""What the application costs a terminal: ``python benchmarks/screen.py``.

A real application in a pseudo-terminal of 120x40 watches a run whose journal grows by 1000 steps a second (written by
a stand-in for the engine, ``tests/tui/player.py``). Prints bytes a second, the time from a key to the paint it causes,
the bytes of a screen on which nothing happens, and the time to the first paint.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "tests" / "tui")]

from backprop.runs.directory import RunDirectory  # noqa: E402
from recorded import Recorder, demo_like, ev, finished_demo  # noqa: E402
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


def open_live(run: Path, home: Path) -> Terminal:
    return Terminal([*APPLICATION, "--attach", str(run)], columns=COLUMNS, rows=ROWS, cwd=home)


def first_paint(argv: list[str], home: Path) -> tuple[float, float]:
    """Milliseconds until the first screen is drawn: by the clock, and of a core's time."""
    began = time.perf_counter()
    with Terminal(argv, columns=COLUMNS, rows=ROWS, cwd=home) as terminal:
        terminal.wait_for("leave")
        took = time.perf_counter() - began
        return 1000 * took, 1000 * sum(psutil.Process(terminal.process.pid).cpu_times()[:2])


def idle_bytes(run: Path, home: Path) -> int:
    """Bytes sent in five seconds in which nothing happens."""
    with open_live(run, home) as terminal:
        terminal.wait_for("step 60/60")
        terminal.read(3.0)
        return terminal.read(5.0)


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
            process = psutil.Process(terminal.process.pid)
            busy, began, sent = sum(process.cpu_times()[:2]), time.perf_counter(), terminal.bytes_received
            terminal.read(SECONDS)
            took = time.perf_counter() - began
            share = 100 * (sum(process.cpu_times()[:2]) - busy) / took
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


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for kind in ("CACHE", "DATA", "CONFIG"):
            os.environ[f"XDG_{kind}_HOME"] = str(home / kind)
        done = finished_demo(home / "output").directory.path
        arms = {
            "a minimal Textual app": MINIMAL,
            "the list of runs": APPLICATION,
            "a finished run": [*APPLICATION, "--attach", str(done)],
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for _ in range(PAINTS):
            for name, argv in arms.items():
                times[name].append(first_paint(argv, home))
        for name, found in times.items():
            clock, core = (statistics.median(values) for values in zip(*found, strict=True))
            report(f"first paint of {name}", clock, "ms", None if arms[name] is MINIMAL else 500)
            report("  time of a core until then", core, "ms")
        report("bytes in 5 s when nothing changes", idle_bytes(done, home), "B", 0)
        for number, rate in enumerate((5, 1000)):
            run = Recorder(home / "output", f"feed0000000{number}", demo_like(home / "output"), time.time())
            run.start()
            run.write(ev.PhaseChanged(phase="training"))
            kib, share, keys = streaming(run.directory.path, home, rate)
            report(f"to the terminal at {rate} events/s", kib, "KiB/s", 20)
            report(f"CPU of the application at {rate} events/s", share, "%")
            report(f"key to paint at {rate} events/s, median", statistics.median(keys), "ms")
            report(f"key to paint at {rate} events/s, p95", statistics.quantiles(keys, n=20)[18], "ms", 50)


if __name__ == "__main__":
    main()
