"""Training speed beside TRL's ``SFTTrainer``: same tokens, same seed, same adapters, same step, in one sitting.

    python benchmarks/train.py [--steps 6] [--rounds 3] [--rows dense|short] [--model DIRECTORY]

Every arm is a process of its own. Arms are interleaved (A B B A A B …), their first steps are warm-up and not counted.
An arm whose first losses differ from the others' trains something else and is void. Medians, with least and most.
Shown are real tokens (padding not counted) per second of CPU time, of wall time, and peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ARMS = ("ours", "trl", "trl_plain", "trl_packed")
"""trl: as it comes (gradient checkpointing on); trl_plain: without checkpointing; trl_packed: that, and packing."""
WARMUP = 2
SEED = 42


def make_rows(kind: str, count: int, vocabulary: int) -> list[tuple[list[int], list[bool]]]:
    """Rows of random tokens. dense: 510 tokens, 45 % of them trained. short: 24 to 160 tokens, 40 % trained."""
    import numpy as np

    chooser = np.random.default_rng(SEED)
    rows = []
    for _ in range(count):
        length = 510 if kind == "dense" else int(chooser.integers(24, 161))
        prompt = length - round(length * (0.45 if kind == "dense" else 0.4))
        ids = chooser.integers(100, vocabulary, length)
        rows.append((ids.tolist(), [place >= prompt for place in range(length)]))
    return rows


class Clock:
    """CPU and wall time of the counted steps, and the losses of all."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.tokens = 0
        self._cpu = self._wall = 0.0

    def step(self, loss: float, tokens: int) -> None:
        self.losses.append(loss)
        if len(self.losses) <= WARMUP:
            self._cpu, self._wall = time.process_time(), time.perf_counter()
            return
        self.tokens += tokens

    def result(self, arm: str, versions: dict[str, str]) -> dict[str, Any]:
        return {
            "arm": arm,
            "losses": self.losses,
            "tokens": self.tokens,
            "per_cpu_second": self.tokens / (time.process_time() - self._cpu),
            "per_second": self.tokens / (time.perf_counter() - self._wall),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "versions": versions,
        }


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", "trl")}


def configuration(options: argparse.Namespace) -> Any:
    from backprop.core.settings import RunConfig
    from backprop.train.model import resolved

    return resolved(
        RunConfig(
            data="made for this measurement",
            model=options.model,
            steps=options.steps + WARMUP,
            batch_size=1 if options.rows == "dense" else 4,
            gradient_accumulation=1,
            scheduler="constant",
            warmup_steps=0,
            max_seq_length=512,
            lora_r=16,
            lora_dropout=0.0,
            seed=SEED,
        )
    )


def run_ours(options: argparse.Namespace, clock: Clock, folder: Path) -> None:
    import numpy as np
    from backprop.train.objectives import StepTrainer, plan
    from transformers import TrainerCallback

    loaded, config, plain = prepare(options)

    class InMemory:
        lengths = np.array([len(ids) for ids, _ in plain])

        def __len__(self) -> int:
            return len(plain)

        def row(self, index: int) -> Any:
            ids, trained = plain[index]
            return np.array(ids, dtype=np.int32), np.array(trained)

    trainer = StepTrainer(loaded, config, InMemory(), plan(config, len(plain)), folder)

    class Report(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.step(trainer.measured.loss, trainer.measured.tokens)

    trainer.add_callback(Report())
    trainer.train()


def run_trl(options: argparse.Namespace, clock: Clock, folder: Path, *, packed: bool) -> None:
    """TRL as documented: labels given, its own collator, loss and defaults; packed is its documented best."""
    from backprop.train.packing import epoch_order
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    loaded, config, plain = prepare(options)
    order = epoch_order(len(plain), SEED, 0)
    rows = [
        {"input_ids": ids, "labels": [i if used else -100 for i, used in zip(ids, trained, strict=True)]}
        for ids, trained in (plain[index] for index in order)
    ]

    class InOrder(SFTTrainer):
        seen: list[int] = []

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            self.seen.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
            loss = super().training_step(model, inputs, *args, **kwargs)
            clock.step(float(loss), self.seen[-1])
            return loss

    settings: dict[str, Any] = {}
    if packed:
        settings = {"packing": True, "packing_strategy": "bfd", "max_length": 512}
    else:
        settings = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = InOrder(
        model=loaded.model,
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=config.steps,
            per_device_train_batch_size=1 if packed else config.batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=config.max_grad_norm,
            bf16=loaded.dtype.itemsize == 2,
            gradient_checkpointing=options.arm == "trl",
            seed=SEED,
            use_cpu=loaded.device.type == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        callbacks=[TrainerCallback()],
    )
    trainer.train()


def prepare(options: argparse.Namespace) -> tuple[Any, Any, list[tuple[list[int], list[bool]]]]:
    from backprop.train import model as models

    models.use_all_cores()
    config = configuration(options)
    loaded = models.load(config, models.find(config.model, lambda event: None), lambda event: None)
    count = (options.steps + WARMUP) * config.batch_size * 4
    return loaded, config, make_rows(options.rows, count, loaded.chat.tokenizer.get_vocab_size())


def one_arm(options: argparse.Namespace) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", PYTHONWARNINGS="ignore")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        if options.arm == "ours":
            run_ours(options, clock, Path(folder))
        else:
            run_trl(options, clock, Path(folder), packed=options.arm == "trl_packed")
    print("RESULT " + json.dumps(clock.result(options.arm, versions())))


def measure(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--arm", arm, "--steps", str(options.steps), "--rows", options.rows]
    command += ["--model", options.model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def compare(options: argparse.Namespace) -> None:
    arms = [arm for arm in ARMS if options.rows == "short" or arm != "trl_packed"]
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for number in range(options.rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            result = measure(arm, options)
            found[arm].append(result)
            print(f"  {arm:11} {result['per_cpu_second']:7.1f} tokens/CPU-s", file=sys.stderr)
    print(", ".join(f"{name} {number}" for name, number in found["ours"][0]["versions"].items()))
    print(f"{options.rows} rows, {options.steps} steps counted, {options.rounds} rounds")
    print(f"{'arm':11} {'tokens/CPU-s':>24} {'tokens/s':>10} {'peak MB':>9}  ratio to trl (least, most)  first losses")
    base = [each["per_cpu_second"] for each in found["trl"]]
    reference = found["trl"][0]["losses"]
    for arm, results in found.items():
        speeds = [each["per_cpu_second"] for each in results]
        ratios = [ours / theirs for ours, theirs in zip(speeds, base, strict=True)]
        # Packing by TRL chooses other rows for a step, so its losses cannot be held against the others'.
        same = all(abs(a / b - 1) < options.parity for a, b in zip(results[0]["losses"][:2], reference, strict=False))
        verdict = "other rows per step" if arm == "trl_packed" else "equal" if same else "DIFFERENT: void"
        print(
            f"{arm:11} {statistics.median(speeds):8.1f} ({min(speeds):6.1f}-{max(speeds):6.1f}) "
            f"{statistics.median(each['per_second'] for each in results):10.1f} "
            f"{statistics.median(each['peak_mb'] for each in results):9.0f}  "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}){'':14}"
            f"{verdict} {[round(loss, 4) for loss in results[0]['losses'][:2]]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", choices=["dense", "short"], default="dense")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--parity", type=float, default=1e-2, help="largest relative difference of first losses")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    one_arm(options) if options.arm else compare(options)


if __name__ == "__main__":
    main()
