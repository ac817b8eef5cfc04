"""What a session of several runs is made of before it starts: what may be merged, each run's learning rate, when it
ends early, and what a person should know who could train all rows together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backprop.core.errors import InvalidSettingError
from backprop.core.settings import MultiConfig, RunConfig

KIND = "multi_run"
"""What a run's record calls a session."""
RUNS = 5
"""Of a session on one dataset, where nobody said how many."""
FORGOTTEN = 0.1
"""Nats per token by which the loss of earlier tasks may rise before replay is offered."""


def runs_of(multi: MultiConfig) -> int:
    """How many runs there are to be."""
    return multi.runs or (len(multi.tasks) if len(multi.tasks) > 1 else RUNS)


def require_mergeable(config: RunConfig, multi: MultiConfig) -> None:
    """Refuse what cannot be merged or would be without effect.

    Raises:
        InvalidSettingError: it names the setting, and what to do instead.
    """
    from backprop.core.locate import held_out_file  # finds data: the application's first screen names sessions alone

    wrong = {
        "mode": (config.mode == "full", "a whole model has no adapter to merge", "--mode lora or qlora"),
        "method": (config.method != "sft", "runs are merged that learn answers", "--method sft"),
        "backend": (config.backend == "mlx", "runs that MLX trained are not merged", "--backend cpu"),
        "use_dora": (config.use_dora, "DoRA's lengths of the weights cannot be merged", "leave --use-dora out"),
        "init_lora_weights": (
            config.init_lora_weights in ("pissa", "loftq"),
            f"{config.init_lora_weights} begins with the weights of the base, which a merge would count again",
            "--init-lora-weights default",
        ),
        "held_out": (
            held_out_file(config.held_out) is not None,
            "each run holds out rows of its own data, which no run trains",
            "a share such as 0.1, auto or none",
        ),
        "runs": (
            len(multi.tasks) > 1 and multi.runs not in (None, len(multi.tasks)),
            f"{multi.runs} runs of {len(multi.tasks)} datasets: each dataset is one run",
            "leave --runs out",
        ),
        "merge_weight": (
            multi.merge_weight is not None and multi.merge_mode != "linear",
            f"without effect on {multi.merge_mode}",
            "--merge-mode linear",
        ),
        "final_lr": (
            multi.final_lr is not None and config.learning_rate is None,
            "it is where the learning rate falls to, and nobody said from where",
            "give --lr too",
        ),
        "run_patience": (
            config.held_out == "none" and any(each is not None for each in (multi.run_patience, multi.max_forgetting)),
            "it looks at held-out rows, and there are none",
            "leave --held-out none out",
        ),
    }
    for name, (is_wrong, why, instead) in wrong.items():
        if is_wrong:
            raise InvalidSettingError(f"{name}: {why}", hint=instead, details={"field": name})


def learning_rates(first: float, last: float, runs: int, decay: str) -> list[float]:
    """The peak learning rate of each run, from ``first`` to ``last``."""
    done = [i / max(1, runs - 1) for i in range(runs)]
    if decay == "cosine":
        done = [(1 - math.cos(math.pi * each)) / 2 for each in done]
    return [first + (last - first) * each for each in done]


def out_of_patience(losses: Sequence[float], patience: int) -> bool:
    """Whether the best of the losses, one a run, is ``patience`` runs ago."""
    return len(losses) > 1 and len(losses) - 1 - min(range(len(losses)), key=losses.__getitem__) >= patience


def advice(multi: MultiConfig) -> list[str]:
    """What to know before runs in sequence are chosen. The numbers are those of ``benchmarks/slao.py``."""
    together = "where the rows are all there now, one run on all of them learns more: in our benchmark of five tasks "
    together += "that contradict what was known, merging in sequence had .789 of the answers right, one run 1.000"
    if len(multi.tasks) < 2:
        return [
            f"{together}; parts of one dataset gain nothing from merging where its rows are of one kind: `backprop "
            "train` on all of it does as well or better"
        ]
    kept = "" if multi.replay else "; with --replay 0.125 merging had .856"
    return [f"{together}, and sequential training .714{kept}"]
