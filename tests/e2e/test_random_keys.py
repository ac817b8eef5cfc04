"""Whatever is pressed, clicked, pasted and resized, on every screen: nothing breaks, nothing of the person's is lost.

``RANDOM_KEYS=N RANDOM_SEED=S pytest tests/e2e/test_random_keys.py`` takes N actions from the seed S.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from backprop.core.files import write_file
from backprop.runs.directory import RunDirectory
from patience import PATIENCE
from terminal import KEYS, Terminal
from tiny_language_model import write_model, write_pairs, write_rows

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tui"))

import recorded  # noqa: E402

APPLICATION = [sys.executable, str(HERE.parent / "fixtures" / "idle_engines.py")]
PLAYER = [sys.executable, str(HERE.parent / "tui" / "player.py")]
NUMBER = int(os.environ.get("RANDOM_KEYS", "600"))
SEED = int(os.environ.get("RANDOM_SEED", "1"))
CHARACTERS = "abcdefghijklmnopqrstuvwxyzGHNOY0123456789/?+-= ~.'\"\\[]é漢\t\x7f"
NAMED = sorted(KEYS.keys() - {"ctrl+c", "ctrl+q", "ctrl+z"})
SEQUENCES = ("\x1bOP", "\x1bOQ", "\x10", "\x1b[3~", "\x1b[H", "\x1b[F", "\x1b[Z", "\x01", "\x0b", "\x1bx", "\x1b[99~")
"""f1, f2, ctrl+p, delete, home, end, shift+tab, ctrl+a, ctrl+k, alt+x, and one that nobody knows."""
SIZES = ((80, 24), (140, 45), (60, 16), (100, 30), (59, 15), (20, 5), (1, 1), (200, 60), (80, 10), (300, 20))
PASTES = ("rows.jsonl", "broken.jsonl", "pairs.jsonl", "128", "[red]x[/", "two\nlines", "\x00\x07", "x" * 300, "/tmp/")
LEFT = b"\x1b[?1049l"
"""The application gives the terminal back."""
WORDS = "1jjo|4v|5\r|6\r|4c|4e|3\t|2a|2e\r|1\r\rv|4 \x1b[B v|4u|1/the\r|1f|1c|1l|1w\t\r"
"""Beginnings of what a person does."""


class World:
    """A folder with datasets and runs of every kind, one of them living."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.dice = folder, random.Random(seed)
        self.output = folder / "output"
        write_model(folder / "model")
        write_rows(folder / "rows.jsonl")
        write_pairs(folder / "pairs.jsonl")
        good = '{"instruction": "Where?", "output": "There."}\n'
        (folder / "broken.jsonl").write_text(good + '{"instruction": "Who?", "output": ""}\n{"instr\n[1, 2]\n' + good)
        (folder / "notes.csv").write_text('question,answer\nWho?,"Me\nand "" you"\n,\n')
        (folder / "empty.jsonl").write_text("")
        (folder / "noise.jsonl").write_bytes(bytes(range(256)) * 40)
        (folder / "locked").mkdir()
        (folder / "locked" / "secret.jsonl").write_text(good)
        self.owned = self._files()
        self.player: subprocess.Popen[bytes] | None = None
        self.journals: dict[Path, bytes] = {}
        self._number = 0
        self.replenish()

    def _files(self) -> dict[Path, str]:
        files = (path for path in self.folder.rglob("*") if path.is_file() and self.output not in path.parents)
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def replenish(self) -> None:
        """Have some runs of every kind, whatever was deleted, and one that goes on."""
        if not self.output.is_dir() or len(list(self.output.iterdir())) < 7:
            makers = (recorded.finished_demo, recorded.failed, recorded.crashed, recorded.torn, recorded.session)
            for maker in makers:
                self._number += 1
                made = maker(self.output, f"{self._number:06x}{self.dice.randrange(16**6):06x}")
                made.directory.adapter.mkdir(exist_ok=True)
                write_file(made.directory.adapter / "adapter_config.json", b"{}")
                self.journals[made.directory.journal] = made.directory.journal.read_bytes()
        if self.player is None or self.player.poll() is not None:
            self._number += 1
            run = recorded.Recorder(
                self.output, f"{self._number:06x}living", recorded.demo_like(self.output), time.time()
            )
            run.start()
            self.player = subprocess.Popen([*PLAYER, str(run.directory.path), "40", "1", "100000", "100000"])
            while not RunDirectory(run.directory.path).is_locked():
                assert self.player.poll() is None

    def unharmed(self) -> None:
        """Every file of the person is there as it was; of a run that is there, all that it had written."""
        now = self._files()
        assert {path: now.get(path) for path in self.owned} == self.owned
        for journal, was in self.journals.items():
            assert not journal.parent.is_dir() or journal.read_bytes().startswith(was), journal

    def end(self) -> None:
        if self.player is not None:
            self.player.kill()
            self.player.wait()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, SEED)
    yield made
    made.end()


class Hand:
    """Somebody who presses anything."""

    def __init__(self, world: World) -> None:
        self.world, self.dice = world, world.dice
        self.faults = world.folder.parent / "faults.txt"
        self.faults.write_text("")
        self.done: list[str] = []
        self.terminal = self.start()

    def start(self) -> Terminal:
        self.world.replenish()
        env = {"BACKPROPAGATE_MODEL__NAME": str(self.world.folder / "model"), "BACKPROPAGATE_TRAINING__STEPS": "3"}
        columns, rows = self.dice.choice(SIZES[:4])
        made = Terminal([*APPLICATION, str(self.faults)], columns=columns, rows=rows, cwd=self.world.folder, env=env)
        made.wait_for("runs")
        return made

    def act(self) -> None:
        """Do one thing; start again where it made the application leave."""
        dice, terminal = self.dice, self.terminal
        kind = dice.choices(("key", "named", "digit", "sequence", "words", "click", "wheel", "paste", "size", "leave"),
                            (40, 25, 8, 5, 6, 8, 3, 3, 4, 0.3))[0]  # fmt: skip
        columns, rows = terminal.screen.columns, terminal.screen.lines
        x, y = dice.randint(1, columns), dice.randint(1, rows)
        match kind:
            case "key":
                text = "".join(dice.choices(CHARACTERS, k=dice.choice((1, 1, 1, 1, 2, 5)))).replace("q", "")
            case "named":
                text = KEYS[dice.choice(NAMED)] * dice.choice((1, 1, 1, 2, 7))
            case "digit":
                text = dice.choice("123456")
            case "sequence":
                text = dice.choice(SEQUENCES)
            case "words":
                text = "\x1b\x1b" + dice.choice(WORDS.split("|"))
            case "click":
                button = dice.choice((0, 0, 0, 2))
                text = f"\x1b[<{button};{x};{y}M\x1b[<{button};{x};{y}m" * dice.choice((1, 1, 2))
            case "wheel":
                text = f"\x1b[<{dice.choice((64, 65))};{x};{y}M" * 3
            case "paste":
                text = f"\x1b[200~{dice.choice(PASTES)}\x1b[201~"
            case "leave":
                text = dice.choice(("q", "\x03", "\x11"))
            case _:
                text = ""
                terminal.resize(*dice.choice(SIZES))
        self.done.append(text or f"{terminal.screen.columns}x{terminal.screen.lines}")
        terminal.send(text)
        for _ in range(4 if dice.random() < 0.8 else 0):
            if not terminal.read_once(0.02):
                break
        if LEFT in terminal.output:
            status = terminal.wait_exit()
            self.check()
            assert status == 0, self.story()
            terminal.close()
            self.terminal = self.start()

    def ask_for_help(self) -> None:
        """The application still answers; one that leaves because a run was ended, does so when it is started again.

        The keys are pressed again where they came in one piece, in which an escape belongs to the key after it.
        """
        deadline = time.monotonic() + PATIENCE
        while "esc closes" not in self.terminal.text:
            assert time.monotonic() < deadline, self.story()
            if LEFT in self.terminal.output:
                self.terminal.close()
                self.terminal = self.start()
            self.terminal.resize(80, 24)
            for key in ("escape", "escape", "escape", "escape", "4", "?"):
                self.terminal.send(key)
                self.terminal.read(0.1)
            self.terminal.read(1.0)

    def check(self) -> None:
        # Before it leaves, what an engine said at its end may be shown.
        assert b"Traceback" not in self.terminal.output.partition(LEFT)[2], self.story()
        assert self.faults.read_text() == "", self.story()
        self.world.unharmed()

    def story(self) -> str:
        seen = self.terminal.text, self.terminal.process.poll(), self.faults.read_text()
        return "\n".join(map(str, (f"seed {SEED}, {len(self.done)} actions, the last: {self.done[-60:]}", *seen)))


def test_random_keys_break_nothing(world: World) -> None:
    hand = Hand(world)
    print(f"RANDOM_SEED={SEED} RANDOM_KEYS={NUMBER}")
    try:
        for number in range(NUMBER):
            hand.act()
            if number % 100 == 99:
                hand.check()
                world.replenish()
        hand.ask_for_help()
        hand.check()
    finally:
        hand.terminal.close()
