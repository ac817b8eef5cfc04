"""Two tasks in sequence with a real model, by the command line: what is forgotten of the first, merged and not.

    python benchmarks/multi_run.py FIRST.jsonl SECOND.jsonl [--seeds 3] [--model M] [--steps 20] [--flags '--lr 1e-3']

For each seed the same two runs are made by ``backprop multi-run`` with SLAO, and with ``--merge-mode linear
--merge-weight 1``, which keeps the last adapter: plain sequential LoRA. The first run is the same in both. Printed: the
loss on the first task's held-out rows after each run, how much it rose (BWT), the loss of the second task, and the mean
of both (AA). Ends with 1 where sequential LoRA forgot less with any seed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

MODES = {"slao": ["--merge-mode", "slao"], "sequential": ["--merge-mode", "linear", "--merge-weight", "1"]}


def backprop(*words: str) -> str:
    """The standard output of a command.

    Raises:
        CalledProcessError: it failed.
    """
    program = str(Path(sys.executable).with_name("backprop"))
    return subprocess.run([program, *words, "--json"], check=True, stdout=subprocess.PIPE, text=True).stdout


def losses(mode: str, seed: int, given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train both tasks; the losses that the session's own table has."""
    words = ["multi-run", "--data", given.first, "--data", given.second, "--model", given.model]
    words += ["--steps", str(given.steps), "--seed", str(seed), "--output", str(folder), *shlex.split(given.flags)]
    events = [json.loads(line) for line in backprop(*words, *MODES[mode]).splitlines()]
    shown: dict[str, Any] = json.loads(backprop("show-run", events[0]["output_dir"]))
    cells = {(cell["after"], cell["held_out"]): cell["loss"] for cell in shown["forgetting"]["cells"]}
    return {
        "first: base": cells[0, 1],
        "after run 1": cells[1, 1],
        "after run 2": cells[2, 1],
        "BWT": shown["forgetting"]["backward"],
        "second: base": cells[0, 2],
        "after it": cells[2, 2],
        "AA": shown["forgetting"]["average"],
        "last run as tuned": shown["merges"][-1]["tuned_loss"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=20)
    usual = (
        "--lr 1e-3 --lora-r 8 --batch-size 4 --gradient-accumulation 1 --held-out 0.2 --eval-steps 1000 --no-eval-base"
    )
    parser.add_argument("--flags", default=usual)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory(prefix="backprop-multi-run-") as folder:
        for seed in range(given.seeds):
            for mode, those in found.items():
                began = time.monotonic()
                those.append(losses(mode, seed, given, Path(folder) / f"{mode}-{seed}"))
                values = "  ".join(f"{name} {value:.3f}" for name, value in those[-1].items())
                print(f"seed {seed} {mode:11} {values}  ({time.monotonic() - began:.0f} s)", flush=True)
    for mode, those in found.items():
        means = {name: fmean(each[name] for each in those) for name in those[0]}
        print(f"mean   {mode:11} " + "  ".join(f"{name} {value:.3f}" for name, value in means.items()))
    less = [ours["BWT"] < theirs["BWT"] for ours, theirs in zip(found["slao"], found["sequential"], strict=True)]
    passed = "passed" if all(less) else "FAILED"
    print(f"{passed} less forgetting than sequential LoRA: {sum(less)} of {len(less)} seeds")
    return 0 if all(less) else 1


if __name__ == "__main__":
    sys.exit(main())
