"""From Start to the first step: with an engine that was started ahead, as the Configure screen has it, and without.

``python benchmarks/start.py [--rounds 3]``: the embedded small model on the demonstration's rows, the two in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
from backprop.core.events import ModelLoaded, RunStarted, Step
from backprop.core.locate import locate
from backprop.core.settings import RunConfig
from backprop.demo import demo_config
from backprop.runs import engine_client
from backprop.runs.engine_process import WarmEngine


def warm_engine() -> WarmEngine:
    """An engine that has imported everything: it takes no more CPU time."""
    engine = WarmEngine()
    stat, before = Path(f"/proc/{engine.pid}/stat"), ""
    while (now := " ".join(stat.read_text().split()[13:15])) != before:
        before = now
        time.sleep(2)
    return engine


def measure(config: RunConfig, warm: WarmEngine | None) -> dict[str, float]:
    """Seconds to three events of a run that is ended then."""
    began, found = time.perf_counter(), {}
    engine = engine_client.start(config, warm=warm)
    while "first step" not in found:
        for event in engine.read(1.0):
            for kind, name in ((RunStarted, "run_started"), (ModelLoaded, "model_loaded"), (Step, "first step")):
                if isinstance(event, kind):
                    found.setdefault(name, time.perf_counter() - began)
    engine.kill()
    engine.wait()
    return found


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        plain = msgspec.structs.replace(demo_config(folder), sample_prompts=[])
        config = locate(plain)
        found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
        for _ in range(rounds):
            found["cold"].append(measure(config, None))
            found["warm"].append(measure(config, warm_engine()))
    for name, each in found.items():
        medians = {event: statistics.median(one[event] for one in each) for event in each[0]}
        print(name, "  ".join(f"{event} {seconds:.2f} s" for event, seconds in medians.items()))


if __name__ == "__main__":
    main()
