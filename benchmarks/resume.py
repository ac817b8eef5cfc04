"""Runs that are killed at random moments and resumed: is all that they compute what undisturbed runs compute?

    python benchmarks/resume.py                            # 60 kills of the embedded small model (an hour)
    python benchmarks/resume.py --kills 1000 --model tiny  # a model of two layers, seconds each

Each engine is killed with -9: a third of the times while a checkpoint is half written, else at a random time from its
start on. The next one resumes. When a run has reached its end the next kind is begun (a plain one, one with a share or
a file of held-out rows, by epochs, a fork, one that is extended, one that stops early, a session of five runs that are
merged), until all kills are made. ``--kind multi-run`` takes that kind alone.
Engines of the tiny model are forked from one process that has imported the libraries
(``tests/fixtures/forked_engines.py``); those of other models are started as the command line starts them.

Printed: for how many kills every value of the run (losses, gradient norms, learning rates, evaluations, samples, the
bytes of the result) was that of the undisturbed one, what was left behind, how long a checkpoint held up the step
loop, and how long an engine takes to its first step.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from backprop.core.events import CheckpointSaved, Step
from backprop.core.presets import EMBEDDED_MODEL
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs import engine_client, journal
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_client import EngineClient
from backprop.runs.state import read_run
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))

from forked_engines import EngineHost
from run_outcome import differences, outcome
from tiny_language_model import write_model, write_rows


@dataclass
class Found:
    """What the kills showed."""

    kills: int = 0
    inside_saves: int = 0
    equal: int = 0
    of_kind: Counter[str] = field(default_factory=Counter)
    """Kills by the kind of run."""
    unequal: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    """Seconds from starting an engine to its first step."""
    blocked: list[float] = field(default_factory=list)
    """Seconds that a checkpoint held up the step loop."""


@dataclass
class Kind:
    """A kind of run: how it is begun in an output directory, and what it comes to when nobody disturbs it."""

    name: str
    begin: Callable[[Path], EngineClient]
    again: Callable[[Path], EngineClient] = engine_client.resume
    """How it is begun once more where it was killed before it had begun."""
    expected: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """How long it takes undisturbed."""


def kinds(model: str, steps: int, save_steps: int, folder: Path) -> list[Kind]:
    """The kinds of run. ``fork`` and ``extend`` go on from the undisturbed run of the first kind."""
    config = RunConfig(
        data=str(write_rows(folder / "rows.jsonl", 200)),
        model=str(write_model(folder / "tiny")) if model == "tiny" else model,
        backend="cpu",
        steps=steps,
        save_steps=save_steps,
        batch_size=1,
        gradient_accumulation=1,
        lora_dropout=0.05,
        held_out="none",
    )
    new_end = steps + steps // 2
    others = write_rows(folder / "held-out.jsonl", 220)
    others.write_text("".join(others.open().readlines()[200:]))
    asked = ["Where is the harbour?"]
    often = max(1, steps // 6)
    share = replace(config, held_out="0.1", eval_steps=often, sample_prompts=asked, sample_tokens=4)
    early = replace(share, eval_steps=max(1, often // 2), early_stopping=2, learning_rate=0.1)
    variants = {
        "train": config,
        "held-out share": share,
        "held-out file": replace(share, held_out=str(others)),
        "epochs": replace(config, steps=None, epochs=steps / 200 + 0.001, lora_dropout=0.2),
        "early stop": early,
    }

    def begin(config: RunConfig) -> Callable[[Path], EngineClient]:
        return lambda output: engine_client.start(replace(config, output_dir=str(output)))

    parents: list[RunDirectory] = []

    def parent() -> RunDirectory:
        if not parents:
            link = engine_client.start(replace(share, output_dir=str(folder / "parents")))
            drain(link)
            parents.append(link.directory)
        return parents[0]

    def fork(output: Path) -> EngineClient:
        store = CheckpointStore(parent().checkpoints, parent().run_id)
        start = str(store.require_valid()[0].path)
        return engine_client.start(replace(share, output_dir=str(output)), forked_from=start)

    def extend(output: Path) -> EngineClient:
        path = output / parent().run_id
        shutil.copytree(parent().path, path, ignore=shutil.ignore_patterns("control"))
        return engine_client.extend(path, new_end)

    def session(output: Path) -> EngineClient:
        each = replace(config, held_out="0.1", steps=max(2, steps // 5), output_dir=str(output), save_steps=2)
        return engine_client.start(each, "multi_run", multi=MultiConfig(tasks=[config.data], runs=5, replay=0.125))

    plain = [Kind(name, begin(config)) for name, config in variants.items()]
    extended = Kind("extend", extend, lambda path: engine_client.extend(path, new_end))
    return [*plain, Kind("fork", fork), extended, Kind("multi-run", session)]


def drain(watched: EngineClient) -> None:
    while not watched.over:
        watched.read(1.0)
    watched.wait()


def staged(directory: RunDirectory) -> bool:
    return any(directory.checkpoints.glob(".step-*.partial"))


def kill_inside_save(watched: EngineClient) -> bool:
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


def kill_at_random(watched: EngineClient, chooser: random.Random, span: float) -> bool:
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


def undisturbed(kind: Kind, output: Path, found: Found) -> None:
    """Run ``kind`` once from start to end.

    Raises:
        BackpropError, SystemExit: it did not get there.
    """
    launched = time.time()
    link = kind.begin(output)
    drain(link)
    kind.seconds = time.time() - launched
    kind.expected = outcome(link.directory)
    if not kind.expected["end"] or kind.expected["end"][0] != "done":
        sys.exit(f"{kind.name}: {link.directory.last_lines()}")
    note_speed(link.directory, launched, found)


def killed_run(kind: Kind, output: Path, wanted: int, span: float, found: Found) -> None:
    """One run from start to end with kills on its way, at most until ``wanted`` are made in all.

    Its kills count as equal if all that it computed in the end is what the undisturbed run did.
    """
    chooser = random.Random(output.name)
    launched = time.time()
    watched = kind.begin(output)
    directory = watched.directory
    here = 0
    while found.kills + here < wanted:
        inside = (found.kills + here) % 3 == 2
        killed = kill_inside_save(watched) if inside else kill_at_random(watched, chooser, span)
        drain(watched)
        note_speed(directory, launched, found)
        state = read_run(directory.path)
        begun = kind.name != "extend" or state.resumes > 0
        # A kill between the last event and the end of the process found nothing left to end.
        if not killed or (begun and state.status == "done"):
            break
        here += 1
        found.inside_saves += inside
        launched = time.time()
        # Killed before it had begun, an extended run is what it was: done.
        watched = engine_client.resume(directory.path) if begun else kind.again(directory.path)
    drain(watched)
    unlike = differences(directory, kind.expected)
    found.kills += here
    found.of_kind[kind.name] += here
    if unlike:
        found.unequal.append(f"{kind.name}, {here} kills: {', '.join(unlike)} differ; {directory.path}")
    else:
        found.equal += here
    print(
        f"{found.kills:5} kills  {kind.name:15} {here} in this run  {found.unequal[-1] if unlike else 'equal'}",
        flush=True,
    )
    note_files(directory, found)
    if not unlike:
        shutil.rmtree(output)


def summary(found: Found, seconds: float) -> str:
    blocked = [1e3 * each for each in found.blocked]
    return "\n".join(
        [
            f"{found.equal} of {found.kills} kills equal to the last bit (losses, gradient norms, learning rates, "
            f"evaluations, samples, the result's bytes); {found.inside_saves} of them inside a save",
            "by kind: " + ", ".join(f"{name} {count}" for name, count in found.of_kind.items()),
            *found.unequal,
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
    parser.add_argument("--kind", help="this kind of run alone")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a directory, or `tiny`; default: the embedded model")
    parser.add_argument("--steps", type=int, help="length of a run; default: 120, of the tiny model 30")
    parser.add_argument("--save-steps", type=int, default=5)
    parser.add_argument(
        "--span", type=float, help="longest time until a kill at random, in seconds; default: an undisturbed run's"
    )
    parser.add_argument("--keep", action="store_true", help="keep the directories of runs that differ")
    given = parser.parse_args()
    tiny = given.model == "tiny"
    began = time.monotonic()
    found = Found()
    folder = Path(tempfile.mkdtemp(prefix="backprop-resume-"))
    with ExitStack() as stack:
        if not given.keep:
            stack.callback(shutil.rmtree, folder)
        if tiny:
            # One thread each: a second one gains nothing on two layers.
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            stack.enter_context(stack.enter_context(EngineHost()).in_use())
        chosen = kinds(given.model, given.steps or (30 if tiny else 120), given.save_steps, folder)
        chosen = [kind for kind in chosen if given.kind in (None, kind.name)]
        for number, kind in enumerate(cycle(chosen)):
            if found.kills >= given.kills:
                break
            if not kind.expected:
                undisturbed(kind, folder / "undisturbed" / kind.name, found)
            killed_run(kind, folder / f"killed-{number}", given.kills, given.span or kind.seconds, found)
        print(summary(found, time.monotonic() - began))
    return 0 if found.equal == found.kills and not found.leftovers and not found.broken else 1


if __name__ == "__main__":
    sys.exit(main())
