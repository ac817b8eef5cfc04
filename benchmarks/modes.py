"""Every mode with every method on a real small model: does it learn, and does a killed run go on to the last bit?

    python benchmarks/modes.py                     # the embedded small model, one thread
    python benchmarks/modes.py --only full --only kto

Four short rows, two a step, six steps: each row is seen three times. A run is made undisturbed; another one is killed
with -9 when its first checkpoint (after three steps) is in place, and resumed. Printed for each: the mean loss of the
first and of the last time over the rows, the step that the resumed run went on after, and in what it differs from the
undisturbed one (losses, gradient norms, learning rates, the bytes of the result). Then each combination that is
refused, before anything is loaded, with the reason.

Exits with 1 where a loss did not fall, a run differs, or a combination is neither trained nor refused.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from backprop.core.errors import BackpropError
from backprop.core.events import RunStarted
from backprop.core.methods import METHODS
from backprop.core.presets import EMBEDDED_MODEL
from backprop.core.settings import RunConfig
from backprop.runs import engine_client, journal
from backprop.runs.engine_client import EngineClient

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))

from forked_engines import EngineHost
from run_outcome import differences, outcome
from tiny_language_model import write_judged, write_model, write_pairs, write_rows

STEPS, SAVED, ROWS = 6, 3, 4
RATES = {"lora": 1e-3, "qlora": 1e-3, "full": 5e-5}
VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "loftq": {"init_lora_weights": "loftq"},
    "dora pissa": {"use_dora": True, "init_lora_weights": "pissa"},
    "not packed": {"packing": False},
    "bf16 weights": {"weights_dtype": "bfloat16"},
    "adamw_8bit": {"optim": "adamw_8bit"},
}


def combinations(model: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Settings of each, by its name."""
    rows = {
        "conversation": write_rows(folder / "rows.jsonl", ROWS),
        "pairs": write_pairs(folder / "pairs.jsonl", ROWS),
        "feedback": write_judged(folder / "judged.jsonl", ROWS),
    }
    common = {"model": model, "backend": "cpu", "steps": STEPS, "save_steps": SAVED, "held_out": "none"}
    common |= {"batch_size": 2, "gradient_accumulation": 1, "lora_r": 8, "max_seq_length": 64, "report_to": ["none"]}

    def settings(mode: str, method: str) -> dict[str, Any]:
        data = str(rows[METHODS[method].rows])
        adapter = {} if mode == "full" else {"lora_dropout": 0.05}
        found = {**common, **adapter, "data": data, "mode": mode, "method": method, "learning_rate": RATES[mode]}
        return {name: value for name, value in found.items() if mode != "full" or name != "lora_r"}

    found = {f"{mode} {method}": settings(mode, method) for mode in RATES for method in METHODS}
    for name, more in VARIANTS.items():
        for mode in ("full",) if name == "bf16 weights" else RATES:
            found[f"{mode} sft {name}"] = settings(mode, "sft") | more
    return found


def drained(engine: EngineClient) -> EngineClient:
    while not engine.over:
        engine.read(1.0)
    engine.wait()
    return engine


def compared(config: RunConfig, host: EngineHost) -> tuple[float, float, int | None, dict[str, Any]]:
    """First and last mean loss, the step that the killed run went on after, and where it differs in the end."""
    host.moments = [None]
    whole = drained(engine_client.start(config)).directory
    expected = outcome(whole)
    if not expected["end"]:
        sys.exit("\n".join(whole.last_lines()))
    losses = [loss for _, loss, *_ in expected["steps"]]
    epoch = ROWS // 2
    host.moments = [{"event": "checkpoint_saved", "signal": int(signal.SIGKILL)}, None]
    killed = drained(engine_client.start(config)).directory
    drained(engine_client.resume(killed.path))
    starts = [event for event in journal.read(killed.journal).events if isinstance(event, RunStarted)]
    unlike = differences(killed, expected)
    return statistics.mean(losses[:epoch]), statistics.mean(losses[-epoch:]), starts[-1].resumed_from, unlike


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a directory, or `tiny`; default: the embedded model")
    parser.add_argument("--only", action="append", default=[], help="combinations with this word; may be repeated")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="backprop-modes-"))
    model = str(write_model(folder / "tiny")) if given.model == "tiny" else given.model
    began, fine, failed, refused = time.monotonic(), 0, 0, []
    with EngineHost() as host, host.in_use():
        for name, settings in combinations(model, folder).items():
            if given.only and not set(given.only) & set(name.split()):
                continue
            here = time.monotonic()
            output = folder / name.replace(" ", "-")
            try:
                config = RunConfig(**settings, output_dir=str(output))
                first, last, after, unlike = compared(config, host)
            except BackpropError as error:
                refused.append(f"{name:24} {error.message}")
                if output.exists():  # it had begun
                    failed += 1
                continue
            good = last < first and after == SAVED and not unlike
            fine, failed = fine + good, failed + (not good)
            how = "equal" if not unlike else f"differs in {', '.join(unlike)}"
            print(
                f"{name:24} loss {first:.4f} -> {last:.4f}   on after step {after}: {how}   "
                f"{time.monotonic() - here:.0f} s",
                flush=True,
            )
            shutil.rmtree(output)
    print("refused before loading:", *refused, sep="\n  ")
    print(f"{fine} of {fine + failed} learn and go on to the last bit; {time.monotonic() - began:.0f} s in all")
    shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
