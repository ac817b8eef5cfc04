"""From Start to the first step: with an engine that was started ahead, as the Configure screen has it, and without.

``python benchmarks/start.py [--rounds 3] [--trl]``: the embedded small model on the demonstration's rows, in turn; by
the clock and in processor time of the engine, up to each phase. With ``--trl`` also ``trl sft`` on the same rows, from
its command to the end of a run of one step; ``trl`` must be installed.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from backprop.core.events import DatasetPrepared, Evaluated, ModelLoaded, RunStarted, Step
from backprop.core.locate import locate
from backprop.core.models import find_model
from backprop.core.settings import RunConfig
from backprop.demo import demo_config
from backprop.runs import engine_client
from backprop.runs.engine_process import WarmEngine

Marks = dict[str, tuple[float, float]]
"""What was reached after how many seconds by the clock, and of processor time."""
MARKS = (
    (RunStarted, "imported"),
    (DatasetPrepared, "rows"),
    (ModelLoaded, "model"),
    (Evaluated, "base scored"),
    (Step, "first step"),
)


def processor_time(pid: int) -> float:
    """Seconds that a process has computed so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def warm_engine(config: RunConfig | None) -> WarmEngine:
    """An engine that has imported all, with ``config`` loaded all too: it takes no more processor time."""
    engine, before = WarmEngine(), -1.0
    if config is not None:
        engine.hint(config)
    while (now := processor_time(engine.pid)) != before:
        before = now
        time.sleep(3)
    return engine


def measure(config: RunConfig, warm: WarmEngine | None) -> Marks:
    """A run that is ended after its first step."""
    before = processor_time(warm.pid) if warm else 0.0
    began, found = time.perf_counter(), {}
    engine = engine_client.start(config, warm=warm)
    pid = 0
    while "first step" not in found:
        for event in engine.read(1.0):
            pid = event.pid if isinstance(event, RunStarted) else pid
            for kind, name in MARKS:
                if isinstance(event, kind):
                    found.setdefault(name, (time.perf_counter() - began, processor_time(pid) - before))
    engine.kill()
    engine.wait()
    return found


def measure_trl(config: RunConfig, folder: Path) -> Marks:
    """``trl sft`` with the same rows, adapter and batch, to the end of its only step."""
    (folder / "rows").mkdir(exist_ok=True)
    shutil.copy(config.data, folder / "rows")
    words = ["sft", "--model_name_or_path", str(find_model(config.model)), "--dataset_name", str(folder / "rows")]
    words += ["--output_dir", str(folder / "trl"), "--max_steps", "1", "--per_device_train_batch_size", "4"]
    words += ["--use_peft", "--lora_r", "16", "--lora_target_modules", "all-linear", "--max_length", "256"]
    words += ["--report_to", "none", "--save_strategy", "no", "--bf16", "true", "--use_cpu", "true"]
    script = "import sys; from trl.cli import main; sys.exit(main())"
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", script, *words], check=True, stdout=subprocess.DEVNULL, timeout=1500)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"first step": (time.perf_counter() - began, spent)}


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = locate(msgspec.structs.replace(demo_config(folder), sample_prompts=[]))
        found: dict[str, list[Marks]] = {"cold": [], "imports ahead": [], "all ahead": []}
        for _ in range(options.rounds):
            found["cold"].append(measure(config, None))
            found["imports ahead"].append(measure(config, warm_engine(None)))
            found["all ahead"].append(measure(config, warm_engine(config)))
            if options.trl:
                found.setdefault("trl sft", []).append(measure_trl(config, Path(folder)))
    for name, each in found.items():
        print(f"{name:14}", "  ".join(_median(mark, [one[mark] for one in each]) for mark in each[0]))


def _median(mark: str, each: list[tuple[float, float]]) -> str:
    clock, processor = (statistics.median(one) for one in zip(*each, strict=True))
    return f"{mark} {clock:.2f} s ({processor:.2f})"


if __name__ == "__main__":
    main()
