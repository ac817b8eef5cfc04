"""Runs that are killed at random moments and resumed: is every loss that of a run which nobody disturbed?

    python benchmarks/resume.py                          # 60 kills of the embedded small model (an hour)
    python benchmarks/resume.py --kills 12 --model tiny  # a model of two layers, minutes

Each engine is killed with -9: a third of the times while a checkpoint is half written, else at a random time from its
start on. The next one resumes. When a run has reached its end a new one is begun, until all kills are made. Printed:
for how many kills every value of the run was bit for bit that of the uninterrupted one, what was left behind, how long
a checkpoint held up the step loop, and how long an engine takes to its first step.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from backprop.core.events import CheckpointSaved, Step
from backprop.core.presets import EMBEDDED_MODEL
from backprop.core.settings import RunConfig
from backprop.runs import engine_client, journal
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_client import Link
from backprop.runs.state import read_run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))

from tiny_language_model import write_model, write_rows


@dataclass
class Found:
    """What the kills showed."""

    kills: int = 0
    inside_saves: int = 0
    equal: int = 0
    leftovers: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    """Seconds from starting an engine to its first step."""
    blocked: list[float] = field(default_factory=list)
    """Seconds that a checkpoint held up the step loop."""


def configuration(model: str, steps: int, save_steps: int, folder: Path) -> RunConfig:
    if model == "tiny":
        model = str(write_model(folder / "tiny"))
    return RunConfig(
        data=str(write_rows(folder / "rows.jsonl", 200)),
        model=model,
        backend="cpu",
        steps=steps,
        save_steps=save_steps,
        batch_size=1,
        gradient_accumulation=1,
        held_out="none",
        output_dir=str(folder / "runs"),
    )


def curve(directory: RunDirectory) -> list[tuple[int, float, float, float]]:
    """Step, loss, gradient norm and learning rate, as the journal's fold has them."""
    found = read_run(directory.path).curves
    return list(zip(found.step, found.loss, found.grad_norm, found.learning_rate, strict=True))


def drain(watched: Link) -> None:
    while not watched.over:
        watched.read(1.0)
    watched.wait()


def staged(directory: RunDirectory) -> bool:
    return any(directory.checkpoints.glob(".step-*.partial"))


def kill_inside_save(watched: Link) -> bool:
    """Kill at a moment when a checkpoint is half written; ``False`` where the run ended before one was met."""
    # Until the first step, what lies there may be the last kill's.
    stepped = False
    while watched.alive():
        stepped = any(isinstance(event, Step) for event in watched.read(0.0 if stepped else 1.0)) or stepped
        if stepped and staged(watched.directory) and watched.directory.is_locked():
            # Held still, it is looked at again: the save may have ended in between.
            pid = watched.directory.lock_holder().pid
            os.kill(pid, signal.SIGSTOP)
            if staged(watched.directory):
                watched.kill()
                return True
            os.kill(pid, signal.SIGCONT)
    return False


def kill_at_random(watched: Link, chooser: random.Random, span: float) -> bool:
    """Kill after a random time of at most ``span`` seconds; ``False`` where the run ended before."""
    deadline = time.monotonic() + chooser.uniform(0.0, span)
    while watched.alive() and (left := deadline - time.monotonic()) > 0:
        watched.read(left)
    if not watched.alive():
        return False
    watched.kill()
    return True


def note_speed(directory: RunDirectory, launched: float, found: Found) -> None:
    """Take the times of the stretch that was launched at ``launched`` (seconds since the epoch) into ``found``."""
    stretch = [event for event in journal.read(directory.journal).events if event.time >= launched]
    found.starts += [event.time - launched for event in stretch if isinstance(event, Step)][:1]
    found.blocked += [event.seconds_blocked for event in stretch if isinstance(event, CheckpointSaved)]


def note_files(directory: RunDirectory, found: Found) -> None:
    """After a finished run: is anything there that the policy does not keep, does everything verify?"""
    found.leftovers += [each.name for each in directory.path.rglob("*") if each.suffix in (".partial", ".deleting")]
    store = CheckpointStore(directory.checkpoints, directory.run_id)
    found.broken += [problem for each in store.checkpoints() for problem in store.verify(each.path)]


def killed_run(
    config: RunConfig, plain: list[tuple[int, float, float, float]], wanted: int, span: float, found: Found
) -> None:
    """One run from start to end with kills on its way, at most until ``wanted`` are made in all.

    Its kills count as equal if, after each of them and at the end, every value so far was that of ``plain``.
    """
    chooser = random.Random(found.kills)
    launched = time.time()
    watched = engine_client.start(config)
    directory = watched.directory
    here, same = 0, True
    while True:
        inside = (found.kills + here) % 3 == 2
        killed = False
        if found.kills + here < wanted:
            killed = kill_inside_save(watched) if inside else kill_at_random(watched, chooser, span)
        drain(watched)
        note_speed(directory, launched, found)
        now = curve(directory)
        same = same and now == plain[: len(now)]
        if not killed:
            break
        here += 1
        found.inside_saves += inside
        where = "inside a save" if inside else "at random"
        print(f"kill {found.kills + here:3}  {where:13}  after step {len(now):4}  equal so far: {same}", flush=True)
        launched = time.time()
        watched = engine_client.resume(directory.path)
    found.kills += here
    found.equal += here if now == plain and same else 0
    note_files(directory, found)


def summary(found: Found, seconds: float) -> str:
    blocked = [1e3 * each for each in found.blocked]
    return "\n".join(
        [
            f"{found.equal} of {found.kills} kills equal to the last bit (loss, gradient norm, learning rate); "
            f"{found.inside_saves} of them inside a save",
            f"leftovers: {len(found.leftovers)} {found.leftovers}; checkpoints that do not verify: {len(found.broken)}",
            f"step loop held up by a save: median {statistics.median(blocked):.2f} ms, max {max(blocked):.2f} ms, "
            f"of {len(blocked)}",
            f"launch of an engine to its first step: median {statistics.median(found.starts):.1f} s, "
            f"max {max(found.starts):.1f} s, of {len(found.starts)}",
            f"{seconds:.0f} s in all",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a directory, or `tiny`; default: the embedded model")
    parser.add_argument("--steps", type=int, default=120, help="length of a run")
    parser.add_argument("--save-steps", type=int, default=5)
    parser.add_argument("--span", type=float, default=40.0, help="longest time until a kill at random, in seconds")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="backprop-resume-") as name:
        config = configuration(given.model, given.steps, given.save_steps, Path(name))
        launched = time.time()
        undisturbed = engine_client.start(config)
        drain(undisturbed)
        plain = curve(undisturbed.directory)
        if len(plain) != given.steps:
            print(engine_client.last_words(undisturbed.directory), file=sys.stderr)
            return 2
        found = Found()
        note_speed(undisturbed.directory, launched, found)
        while found.kills < given.kills:
            killed_run(config, plain, given.kills, given.span, found)
        print(summary(found, time.monotonic() - began))
    return 0 if found.equal == found.kills and not found.leftovers and not found.broken else 1


if __name__ == "__main__":
    sys.exit(main())
