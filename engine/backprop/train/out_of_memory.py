"""Out of memory: the step is taken again in smaller pieces, and the run goes on as if nothing had happened.

A step's rows are fixed before its forward passes are, so halving the batch changes how the rows are spread and nothing
else: same rows, same loss, same learning rate, same effective batch. Weights and optimizer were not touched yet, and
the random state is put back, so the step is the one that would have been taken.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from backprop.core.errors import GPUMemoryError
from backprop.core.settings import RunConfig
from backprop.train.checkpoint import capture_random, restore_random
from backprop.train.packing import Batching

MOST_HALVINGS = 3
_TELLING = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED")

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a device that ran out of memory, by its type or by what CUDA's libraries say of it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TELLING)


def make_room(error: RuntimeError, at_once: int, one: str, hint: str) -> None:
    """Give back what a pass over ``at_once`` held when memory ran out, where fewer can be tried.

    Raises:
        GPUMemoryError: it was ``one``, as the message calls it.
        RuntimeError: it was something else.
    """
    if not is_out_of_memory(error):
        raise error
    if at_once == 1:
        raise GPUMemoryError(f"out of memory at {one}: {str(error).splitlines()[0]}", hint=hint) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Recovery:
    """Counts halvings over a whole run.

    Attributes:
        halvings: how many were made, also in earlier stretches of a resumed run.
        most: how many are allowed; 0 turns recovery off.
    """

    def __init__(self, config: RunConfig | None = None) -> None:
        """``config``: the run's settings as they are in force, of which a failure names smaller ones."""
        self.halvings = 0
        self.most = MOST_HALVINGS if config is None or config.oom_recovery else 0
        self._config = config

    def attempt(
        self,
        work: Callable[[], Result],
        clear: Callable[[], None],
        halved: Callable[[], Batching | None],
        take: Callable[[Batching, BaseException], None],
    ) -> Result:
        """Do ``work``; when memory runs out, undo what it left, make it smaller and do it again.

        Args:
            clear: drops what a broken attempt left behind (gradients).
            halved: the next, smaller batching; ``None`` where nothing smaller exists.
            take: sees to it that ``work`` goes by that, and says so.

        Raises:
            GPUMemoryError: still too large after all halvings, or recovery is off.
        """
        before = capture_random()
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failed = error.with_traceback(None)  # the traceback holds the tensors of the broken attempt
            clear()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            smaller = None if self.halvings >= self.most else halved()
            if smaller is None:
                tried = f" even after the batch was halved {self.halvings} times" if self.halvings else ""
                raise GPUMemoryError(
                    f"out of memory{tried}: {str(failed).splitlines()[0]}",
                    hint="try shorter rows (--max-seq-length), a smaller adapter (--lora-preset fast), "
                    "in full fine-tuning bf16 weights (--weights-dtype bfloat16), or a smaller model",
                    details={"remedy": _remedy(self._config, halved() is not None)} if self._config else {},
                ) from failed
            take(smaller, failed)
            self.halvings += 1
            restore_random(before)


def _remedy(config: RunConfig, several: bool) -> dict[str, Any]:
    """The smaller settings that cost least; ``several``: rows still share a pass, and so can go one by one."""
    if several and isinstance(config.batch_size, int):
        return {"batch_size": 1, "gradient_accumulation": config.batch_size * (config.gradient_accumulation or 1)}
    if config.mode == "full" and config.weights_dtype != "bfloat16":
        return {"weights_dtype": "bfloat16"}
    if isinstance(config.max_seq_length, int) and config.max_seq_length >= 64:
        return {"max_seq_length": config.max_seq_length // 2}
    return {} if config.mode == "full" else {"lora_preset": "fast"}
