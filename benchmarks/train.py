"""Training speed beside TRL's trainers and a bare loop: same tokens, seed, adapters and steps, in one sitting.

    python benchmarks/train.py [--all] [--method M] [--mode M] [--dora] [--rows dense|ragged|uniform] [--steps 3]
                                [--float32]

Every arm is a process of its own that takes one step when it is its turn (A B C, C B A, …), so that whatever else the
machine does meets all of them alike. The first steps are warm-up and not counted. An arm whose first losses differ
from the first arm's trains something else and is void. Shown are medians of the steps: real and trained tokens (padding
not counted) per second of CPU time, how many times as fast each of our steps was as the arm's neighbouring one (middle
half in brackets), and the peak memory of the process. References of dpo and kto are computed before the first step on
both sides; where bf16 rounds them one way and the policy another, losses differ from the first step on, and
``--float32`` computes without it. ``--all`` goes through every method and mode.
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
from importlib.metadata import version
from itertools import starmap
from pathlib import Path
from typing import Any

ARMS = {
    "ours": "",
    "ours_ckpt": "with gradient checkpointing, as TRL's default has it",
    "bare": "PyTorch and PEFT: logits at trained positions only, padded rows",
    "trl": "as it comes, gradient checkpointing on",
    "trl_plain": "without checkpointing",
    "trl_packed": "that, and packing: its documented best",
}
ALL: list[list[str]] = [
    ["--rows", "dense"],
    ["--rows", "ragged"],
    ["--rows", "uniform"],
    *(["--rows", "ragged", "--method", method] for method in ("dpo", "orpo", "simpo", "kto")),
    *(["--rows", "dense", *mode] for mode in (["--mode", "full"], ["--mode", "qlora"], ["--dora"])),
]
WARMUP = 1
SEED = 42


def sequences(kind: str, count: int, vocabulary: int) -> list[tuple[Any, Any]]:
    """Random tokens with their loss mask. dense: 510, 45 % of them trained. ragged: 94 in the mean, 40 % trained.

    The logarithms of ragged lengths spread as in instruction data (Alpaca's: standard deviation 0.7). Those of uniform
    rows are 24 to 160, 40 % trained.
    """
    import numpy as np

    chooser = np.random.default_rng(SEED)
    made = []
    for _ in range(count):
        length = 510
        if kind != "dense":
            spread = chooser.integers(24, 161) if kind == "uniform" else chooser.lognormal(4.3, 0.7)
            length = int(np.clip(spread, 16, 512))
        trained = round(length * (0.45 if kind == "dense" else 0.4))
        ids = chooser.integers(100, vocabulary, length, dtype=np.int32)
        made.append((ids, np.arange(length) >= length - trained))
    return made


class Rows:
    """A tokenised dataset in memory, as ``Prepared`` gives it."""

    fingerprint = "made"

    def __init__(self, method: str, some: list[tuple[Any, Any]], folder: Path) -> None:
        import numpy as np
        from backprop.data.token_cache import Judged, Pair

        self.folder, self.items = folder / "tokens", list(some)
        if method == "kto":
            self.items = list(starmap(Judged, ((each, place % 2 == 0) for place, each in enumerate(some))))
        elif method != "sft":
            # Both sides share a prompt; of an odd sequence the answer is taken.
            for place, ((ids, mask), (others, answer)) in enumerate(zip(some[::2], some[1::2], strict=True)):
                joined = np.concatenate([ids[~mask], others[answer]])
                self.items[place] = Pair((ids, mask), (joined, np.arange(len(joined)) >= (~mask).sum()))
            del self.items[len(some) // 2 :]
        self.labels = np.array([getattr(item, "good", False) for item in self.items])
        self.lengths = np.array([sum(len(ids) for ids, _ in self.sequences(i)) for i in range(len(self.items))])

    def __len__(self) -> int:
        return len(self.items)

    def row(self, index: int) -> Any:
        return self.items[index]

    def sequences(self, index: int) -> list[tuple[Any, Any]]:
        item = self.items[index]
        return [item.chosen, item.rejected] if hasattr(item, "chosen") else [getattr(item, "row", item)]


class Turns:
    """Takes each step only when it is this arm's turn, and says what the step cost."""

    def __init__(self) -> None:
        self.loss, self.tokens, self.trained = 0.0, 0, 0

    def begin(self) -> None:
        sys.stdin.readline()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def end(self) -> None:
        said = {
            "loss": self.loss,
            "tokens": self.tokens,
            "trained": self.trained,
            "cpu": time.process_time() - self._cpu,
            "wall": time.perf_counter() - self._wall,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print("STEP " + json.dumps(said), flush=True)


def configuration(options: argparse.Namespace) -> Any:
    from backprop.core.settings import RunConfig
    from backprop.train.model import resolved

    per_step = 1 if options.rows == "dense" else {"sft": 8, "kto": 4}.get(options.method, 2)
    return resolved(
        RunConfig(
            data="made for this measurement",
            model=options.model,
            method=options.method,
            mode=options.mode,
            use_dora=options.dora,
            steps=options.steps + WARMUP,
            batch_size=per_step,
            gradient_accumulation=1,
            gradient_checkpointing=True if options.arm == "ours_ckpt" else None,
            scheduler="constant",
            warmup_steps=0,
            max_seq_length=512,
            learning_rate=2e-5 if options.mode == "full" else 2e-4,
            lora_r=16,
            lora_alpha=32.0,
            lora_dropout=0.0,
            seed=SEED,
        )
    )


class Work:
    """What every arm has: the loaded model, and the rows in the order in which they are taken."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        from backprop.core.methods import METHODS
        from backprop.core.schedule import Schedule
        from backprop.fetch.models import fetch_model
        from backprop.train import model as models
        from backprop.train.dataset import Subset
        from backprop.train.packing import step_rows
        from backprop.train.reference import Scorer

        models.use_all_cores()
        self.config = config = configuration(options)
        self.loaded = models.load(config, fetch_model(config.model, lambda event: None), lambda event: None)
        count = config.steps * config.batch_size * (2 if METHODS[config.method].rows == "pairs" else 1)
        some = sequences(options.rows, count, self.loaded.chat.tokenizer.get_vocab_size())
        rows = Rows(config.method, some, folder)
        self.rows: Any = Subset(rows, range(len(rows)))  # type: ignore[arg-type]
        if METHODS[config.method].reference:
            self.rows = Scorer(self.loaded, config, "made").attach(self.rows, range(len(rows)), len(rows))
        self.schedule = Schedule.of(config, len(rows))
        self.steps = [step_rows(len(rows), config.batch_size, SEED, step) for step in range(config.steps)]
        each = [[rows.sequences(index) for index in step] for step in self.steps]
        self.tokens = [sum(len(ids) for row in step for ids, _ in row) for step in each]
        self.trained = [sum(int(mask.sum()) for row in step for _, mask in row) for step in each]

    def in_order(self) -> list[Any]:
        return [self.rows.row(index) for step in self.steps for index in step]


def run_ours(work: Work, turns: Turns) -> None:
    from backprop.train.methods import method_named
    from backprop.train.trainer import StepLoop

    method = method_named(work.config.method)(work.config, work.rows)
    loop = StepLoop(work.loaded, method, work.config, work.rows, work.schedule)

    def after_step(step: int) -> bool:
        turns.loss, turns.tokens, turns.trained = loop.metrics.loss, work.tokens[step - 1], work.trained[step - 1]
        turns.end()
        if step < loop.schedule.steps:
            turns.begin()
        return False

    turns.begin()
    loop.run(after_step)


def run_bare(work: Work, turns: Turns) -> None:
    """What one would write by hand, without this program's loss, packing and layers."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    model, loaded = work.loaded.model, work.loaded
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=work.config.learning_rate)
    model.train()
    for number, step in enumerate(work.steps):
        turns.begin()
        rows = [[torch.from_numpy(each) for each in work.rows.row(index)] for index in step]
        ids = pad_sequence([row[0].long() for row in rows], batch_first=True).to(loaded.device)
        trained = pad_sequence([row[1] for row in rows], batch_first=True)[:, 1:].to(loaded.device)
        attended = pad_sequence([torch.ones(len(row[0]), dtype=torch.long) for row in rows], batch_first=True)
        with loaded.autocast():
            hidden = base.model(input_ids=ids, attention_mask=attended.to(loaded.device), use_cache=False)
            logits = base.lm_head(hidden.last_hidden_state[:, :-1][trained])
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][trained])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, work.config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        turns.loss, turns.tokens, turns.trained = float(loss), work.tokens[number], work.trained[number]
        turns.end()


def examples(work: Work) -> list[dict[str, Any]]:
    """The rows as TRL's collators take them."""

    def labels(ids: Any, mask: Any) -> list[int]:
        return [int(i) if used else -100 for i, used in zip(ids, mask, strict=True)]

    def parts(ids: Any, mask: Any) -> tuple[list[int], list[int]]:
        return ids[~mask].tolist(), ids[mask].tolist()

    made: list[dict[str, Any]] = []
    for row in work.in_order():
        match work.config.method:
            case "sft":
                made.append({"input_ids": row[0].tolist(), "labels": labels(*row)})
            case "dpo":
                (prompt, chosen), (_, rejected) = parts(*row.row.chosen), parts(*row.row.rejected)
                known = dict(zip(("ref_chosen_logps", "ref_rejected_logps"), row.reference.tolist(), strict=True))
                made.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, **known})
            case "kto":
                prompt, answer = parts(*row.row.row)
                known = dict(zip(("ref_logps", "ref_KL_logps"), row.reference.tolist(), strict=True))
                texts = {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": parts(*row.other)[1]}
                made.append({**texts, "label": row.row.good, **known})
            case _:
                each: dict[str, Any] = {}
                for side in ("chosen", "rejected"):
                    ids, mask = getattr(row, side)
                    each |= {f"{side}_input_ids": ids.tolist(), f"{side}_attention_mask": [1] * len(ids)}
                    each[f"{side}_labels"] = labels(ids, mask)
                made.append(each)
    return made


def of_trl(config: Any, packed: bool) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """TRL's trainer and settings for a method, what these are given beside the usual, and rows that it may look at."""
    import trl
    from trl.experimental import cpo, orpo

    pairs = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}
    judged = {"prompt": ["a"] * 2, "completion": ["b"] * 2, "label": [True, False]}
    kind, settings, more, shown = {
        "sft": (trl.SFTTrainer, trl.SFTConfig, {}, {}),
        "dpo": (trl.DPOTrainer, trl.DPOConfig, {"beta": config.dpo_beta}, pairs),
        "kto": (trl.KTOTrainer, trl.KTOConfig, {"beta": config.kto_beta}, judged),
        "orpo": (orpo.ORPOTrainer, orpo.ORPOConfig, {"beta": config.orpo_beta}, pairs),
        "simpo": (
            *(cpo.CPOTrainer, cpo.CPOConfig),
            {"beta": config.simpo_beta, "loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": config.simpo_gamma},
            pairs,
        ),
    }[config.method]
    if config.method != "sft":
        more = {**more, "max_length": 512, "remove_unused_columns": False}
    elif packed:
        more = {"packing": True, "packing_strategy": "bfd", "max_length": 512}
    else:
        more = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return kind, settings, more, shown


def run_trl(work: Work, turns: Turns, folder: Path, arm: str) -> None:
    """TRL as documented, its own collators and losses, on rows that are tokens already."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast, TrainerCallback

    config, loaded, packed = work.config, work.loaded, arm == "trl_packed"
    kind, settings, more, shown = of_trl(config, packed)
    taken = iter(zip(work.tokens, work.trained, strict=True))

    class InOrder(kind):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if packed:
                turns.tokens, turns.trained = inputs["input_ids"].numel(), int((inputs["labels"] != -100).sum())
            else:
                turns.tokens, turns.trained = next(taken)
            loss = super().training_step(model, inputs, *args, **kwargs)
            turns.loss = float(loss)
            return loss

    class OnTurn(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.end()

    tokens = loaded.chat.template.tokens
    known = {name: tokens[name] for name in ("bos_token", "eos_token", "pad_token") if name in tokens}
    rows = Dataset.from_list(examples(work))
    trainer = InOrder(
        model=loaded.model,
        args=settings(
            output_dir=str(folder),
            max_steps=config.steps,
            per_device_train_batch_size=1 if packed else config.batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=config.max_grad_norm,
            bf16=loaded.dtype.itemsize == 2,
            gradient_checkpointing=arm == "trl",
            seed=SEED,
            use_cpu=loaded.device.type == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **more,
        ),
        train_dataset=Dataset.from_dict(shown) if shown else rows,
        processing_class=PreTrainedTokenizerFast(tokenizer_object=loaded.chat.tokenizer, **known),
        callbacks=[OnTurn()],
    )
    if shown:
        trainer.train_dataset, trainer.precompute_ref_logps = rows, True
    trainer.train()


def one_arm(options: argparse.Namespace) -> None:
    turns = Turns()
    if options.float32:
        from backprop.train import model

        model.choose_dtype = lambda device: model.torch.float32
    with tempfile.TemporaryDirectory() as folder:
        work = Work(options, Path(folder))
        if options.arm in ("ours", "ours_ckpt"):
            run_ours(work, turns)
        elif options.arm == "bare":
            run_bare(work, turns)
        else:
            run_trl(work, turns, Path(folder), options.arm)


class Arm:
    """A process that trains one way, step by step."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: list[dict[str, float]] = []
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--arm", name],
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

    def speeds(self, tokens: str = "tokens") -> list[float]:
        return [step[tokens] / step["cpu"] for step in self.steps[WARMUP:]]


def compare(options: argparse.Namespace) -> None:
    packs = options.rows != "dense" and options.method == "sft"
    left_out = {"trl_packed": not packs, "bare": options.method != "sft"}
    arms = [Arm(name) for name in ARMS if not left_out.get(name)]
    try:
        for number in range(options.steps + WARMUP):
            for arm in arms if number % 2 == 0 else reversed(arms):
                arm.step()
    finally:
        for arm in arms:
            arm.end()
    mode = options.mode + (" with DoRA" if options.dora else "")
    what = f"{options.method}, {mode}, {options.rows} rows, {options.steps} steps of each arm"
    print(f"\n{what}; load {os.getloadavg()[0]:.1f}")
    print(f"{'arm':10} {'tokens/CPU-s':>12} {'trained':>8} {'peak MB':>8}  {'ours is':22}  first losses")
    ours = arms[0]
    for arm in arms:
        ratios = [mine / other for mine, other in zip(ours.speeds(), arm.speeds(), strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        times = f"{middle:5.2f} ({low:.2f} to {high:.2f})" if arm is not ours else ""
        peak = arm.steps[-1]["peak_mb"]
        memory = f" {ours.steps[-1]['peak_mb'] / peak:.2f} mem" if arm is not ours else ""
        print(
            f"{arm.name:10} {statistics.median(arm.speeds()):12.1f} {statistics.median(arm.speeds('trained')):8.1f} "
            f"{peak:8.0f}  {times + memory:30}  {verdict(arm, ours, options)}",
            flush=True,
        )


def verdict(arm: Arm, ours: Arm, options: argparse.Namespace) -> str:
    losses = [step["loss"] for step in arm.steps[:2]]
    shown = ", ".join(f"{loss:.4f}" for loss in losses)
    if arm.name == "trl_packed":
        return f"{shown}: other rows in a step, not comparable"
    if options.method == "orpo" and arm is not ours:
        return f"{shown}: it learns prompts too, not comparable"
    same = all(abs(loss / step["loss"] - 1) < options.parity for loss, step in zip(losses, ours.steps, strict=False))
    return shown if same else f"{shown}: DIFFERENT, this arm is void"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every method and mode, each as a call of its own")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--rows", choices=["dense", "ragged", "uniform"], default="dense")
    parser.add_argument("--method", choices=["sft", "dpo", "orpo", "simpo", "kto"], default="sft")
    parser.add_argument("--mode", choices=["lora", "qlora", "full"], default="lora")
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--parity", type=float, default=1e-2, help="largest relative difference of first losses")
    parser.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        one_arm(options)
    elif options.all:
        print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl")), flush=True)
        for words in ALL:
            subprocess.run([sys.executable, __file__, "--model", options.model, *words], check=False)
    else:
        compare(options)


if __name__ == "__main__":
    main()
