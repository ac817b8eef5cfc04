"""Training speed beside TRL's ``SFTTrainer``: same tokens, same seed, same adapters, same step, in one sitting.

    python benchmarks/train.py [--steps 9] [--rows dense|short] [--model DIRECTORY]

Every arm is a process of its own that takes one step when it is its turn (A B C, C B A, …), so that whatever else the
machine does meets all of them alike. The first steps are warm-up and not counted. An arm whose first losses differ
from TRL's trains something else and is void. Shown are medians of the steps: real tokens (padding not counted) per
second of CPU time and of wall time, the ratio to TRL's neighbouring step (middle half in brackets), and
the peak memory of the process.
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

from transformers import TrainerCallback

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


class Turns(TrainerCallback):
    """Takes each step only when it is this arm's turn, and says what the step cost."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.tokens = 0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        sys.stdin.readline()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        said = {
            "loss": self.loss,
            "tokens": self.tokens,
            "cpu": time.process_time() - self._cpu,
            "wall": time.perf_counter() - self._wall,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print("STEP " + json.dumps(said), flush=True)


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
            learning_rate=2e-4,
            lora_r=16,
            lora_alpha=32.0,
            lora_dropout=0.0,
            seed=SEED,
        )
    )


def run_ours(options: argparse.Namespace, turns: Turns) -> None:
    import numpy as np
    from backprop.core.schedule import Schedule
    from backprop.train.methods.sft import SFT
    from backprop.train.trainer import StepLoop

    loaded, config, plain = prepare(options)

    class InMemory:
        lengths = np.array([len(ids) for ids, _ in plain])

        def __len__(self) -> int:
            return len(plain)

        def row(self, index: int) -> Any:
            ids, trained = plain[index]
            return np.array(ids, dtype=np.int32), np.array(trained)

    loop = StepLoop(loaded, SFT(loaded.model), config, InMemory(), Schedule.of(config, len(plain)))

    def after_step(step: int) -> bool:
        turns.loss, turns.tokens = loop.metrics.loss, loop.metrics.tokens
        turns.on_step_end()
        if step < loop.schedule.steps:
            turns.on_step_begin()
        return False

    turns.on_step_begin()
    loop.run(after_step)


def run_trl(options: argparse.Namespace, turns: Turns, folder: Path, *, packed: bool) -> None:
    """TRL as documented: labels given, its own collator, loss and defaults; packed is its documented best."""
    from backprop.train.packing import epoch_order
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    loaded, config, plain = prepare(options)
    order = epoch_order(len(plain), SEED, 0)
    rows = [
        {"input_ids": ids, "labels": [i if used else -100 for i, used in zip(ids, trained, strict=True)]}
        for ids, trained in (plain[index] for index in order)
    ]

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            turns.tokens = int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            loss = super().training_step(model, inputs, *args, **kwargs)
            turns.loss = float(loss)
            return loss

    settings: dict[str, Any] = {}
    if packed:
        settings = {"packing": True, "packing_strategy": "bfd", "max_length": 512}
    else:
        settings = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    tokens = loaded.chat.template.tokens
    known = {name: tokens[name] for name in ("bos_token", "eos_token", "pad_token") if name in tokens}
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
        processing_class=PreTrainedTokenizerFast(tokenizer_object=loaded.chat.tokenizer, **known),
        callbacks=[turns],
    )
    trainer.train()


def prepare(options: argparse.Namespace) -> tuple[Any, Any, list[tuple[list[int], list[bool]]]]:
    from backprop.fetch.models import fetch_model
    from backprop.train import model as models

    models.use_all_cores()
    config = configuration(options)
    loaded = models.load(config, fetch_model(config.model, lambda event: None), lambda event: None)
    count = (options.steps + WARMUP) * config.batch_size * 4
    return loaded, config, make_rows(options.rows, count, loaded.chat.tokenizer.get_vocab_size())


def one_arm(options: argparse.Namespace) -> None:
    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        if options.arm == "ours":
            run_ours(options, turns)
        else:
            run_trl(options, turns, Path(folder), packed=options.arm == "trl_packed")


class Arm:
    """A process that trains one way, step by step."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.steps: list[dict[str, float]] = []
        command = [sys.executable, __file__, "--arm", name, "--steps", str(options.steps), "--rows", options.rows]
        command += ["--model", options.model]
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, **quiet},
        )

    def step(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("STEP "):
                self.steps.append(json.loads(line.removeprefix("STEP ")))
                return
        self._said.seek(0)
        raise SystemExit(f"{self.name} ended early:\n{self._said.read()[-3000:]}")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def speeds(self, kind: str) -> list[float]:
        return [step["tokens"] / step[kind] for step in self.steps[WARMUP:]]


def compare(options: argparse.Namespace) -> None:
    arms = [Arm(name, options) for name in ARMS if options.rows == "short" or name != "trl_packed"]
    try:
        for number in range(options.steps + WARMUP):
            for arm in arms if number % 2 == 0 else reversed(arms):
                arm.step()
    finally:
        for arm in arms:
            arm.end()
    print(", ".join(f"{name} {number}" for name, number in versions().items()))
    print(f"{options.rows} rows, {options.steps} steps of each arm")
    print(f"{'arm':10} {'tokens/CPU-s':>12} {'tokens/s':>9} {'peak MB':>8}  {'ratio to trl':18}  first losses")
    trl = arms[1]
    for arm in arms:
        ratios = [ours / theirs for ours, theirs in zip(arm.speeds("cpu"), trl.speeds("cpu"), strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{arm.name:10} {statistics.median(arm.speeds('cpu')):12.1f} {statistics.median(arm.speeds('wall')):9.1f} "
            f"{arm.steps[-1]['peak_mb']:8.0f}  {middle:5.2f} ({low:.2f} to {high:.2f})   {verdict(arm, trl, options)}"
        )


def verdict(arm: Arm, trl: Arm, options: argparse.Namespace) -> str:
    losses = [step["loss"] for step in arm.steps[:2]]
    shown = ", ".join(f"{loss:.4f}" for loss in losses)
    if arm.name == "trl_packed":
        return f"{shown}: other rows in a step, not comparable"
    same = all(abs(loss / step["loss"] - 1) < options.parity for loss, step in zip(losses, trl.steps, strict=False))
    return shown if same else f"{shown}: DIFFERENT, this arm is void"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--rows", choices=["dense", "short"], default="dense")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--parity", type=float, default=1e-2, help="largest relative difference of first losses")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    one_arm(options) if options.arm else compare(options)


if __name__ == "__main__":
    main()
