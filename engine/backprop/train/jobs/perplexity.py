"""How hard each row of a dataset is for a model: ``python -P -m backprop.train.jobs.perplexity DIRECTORY``.

The request comes as JSON on standard input, scores go to the private stream as they are made. Rows are tokenised,
masked and cut as training does it, so a score is the loss that the row would begin its training with, and its
perplexity is e to that. Whoever asks for a second time gets the answer from the cache.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from backprop.core import paths
from backprop.core.files import write_file
from backprop.core.jobs import JobProgress, RowScore, RowScores, Scored
from backprop.core.settings import RunConfig
from backprop.data import preprocess
from backprop.data.tokenizer import ChatTokenizer
from backprop.worker.job import Send, run_job

if TYPE_CHECKING:
    from backprop.train.dataset import Subset

PASS_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Positions in one forward pass, padding included."""


class _Kept(Struct):
    """A finished scoring in the cache."""

    summary: Scored
    rows: list[RowScore]


def score(request: RunConfig, say: Send) -> None:
    """Score every row of a dataset and say so, row by row.

    Raises:
        DatasetError: the file cannot be read, or nothing in it can be trained.
        ModelLoadError: the model cannot be had.
        GPUMemoryError: even a single row does not fit.
    """
    from backprop.fetch.models import fetch_model
    from backprop.train import model as models
    from backprop.train.dataset import now_and_then

    models.use_all_cores()
    path = fetch_model(request.model, say)
    prepared = preprocess.prepare(
        request.data,
        path,
        max_length=request.max_seq_length,
        most=models.longest_rows(request),
        train_on_responses=request.train_on_responses,
        traces=request.reasoning_trace,
        mapping=request.mapping or None,
        progress=now_and_then(lambda done, total: say(JobProgress(doing="counting tokens", done=done, total=total))),
    )
    device = models.choose_device(request.backend)
    dtype = models.choose_dtype(device)
    place = paths.cache_dir() / "scores" / f"{_key(path, prepared.key, f'{device.type} {dtype}')}.json"
    kept: _Kept | None = None
    with suppress(OSError, msgspec.DecodeError):
        kept = msgspec.json.decode(place.read_bytes(), type=_Kept)
    if kept is None:
        base = models.load_base(path, device, dtype, request.trust_remote_code)
        models.require_known_tokens(base, prepared.ids, ChatTokenizer.load(path))
        rows: list[RowScore] = []
        for some in scores(
            base, prepared, device, dtype, lambda done, total: say(JobProgress(doing="scoring", done=done, total=total))
        ):
            rows += some
            say(RowScores(rows=some))
        found = prepared.summary
        summary = Scored(
            rows=found.rows,
            scored=len(rows),
            cut=found.cut,
            max_length=found.max_length,
            answer_lost=found.answer_lost,
            dropped=found.rows - found.answer_lost - len(rows),
            problems=[problem for problem in found.problems if problem.severity == "error"],
        )
        kept = _Kept(summary, rows)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_file(place, msgspec.json.encode(kept))
    else:
        say(RowScores(rows=kept.rows))
        kept.summary.cached = True
    say(kept.summary)


def _key(path: Path, data_key: str, how: str) -> str:
    """Everything that decides about the scores: rows as tokens, weights, and the arithmetic."""
    from backprop.runs.model_files import file_hash

    digest = hashlib.blake2b(f"{data_key} {how}".encode(), digest_size=20)
    for file in sorted([*path.glob("*.safetensors"), path / "config.json"]):
        digest.update(f" {file.name} {file_hash(file)}".encode())
    return digest.hexdigest()


def scores(
    model: Any,
    prepared: preprocess.Prepared | Subset,
    device: Any,
    dtype: Any,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    pass_tokens: int | None = None,
) -> Iterator[list[RowScore]]:
    """Mean loss over the supervised tokens of every row, some rows at a time, the longest first.

    A text that was split into several samples has one score. When memory runs out, passes become half as large.

    Args:
        model: a causal language model on ``device``, weights in ``dtype``.
        pass_tokens: positions in one forward pass; by the kind of device where not given.

    Raises:
        GPUMemoryError: not even one row fits.
    """
    import torch

    from backprop.train.loss import traits_of
    from backprop.train.model import evaluating
    from backprop.train.out_of_memory import make_room

    lengths = prepared.lengths
    order = np.argsort(-lengths, kind="stable")
    left = Counter(prepared.lines.tolist())
    sums: dict[int, tuple[float, int]] = {}
    room = pass_tokens or PASS_TOKENS[device.type]
    done, total, at = 0, int(lengths.sum()), 0
    with evaluating(model), torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        plain = traits_of(model).plain_head
        while at < len(order):
            chosen = order[at : at + max(1, room // int(lengths[order[at]]))]
            try:
                parts = _sums(model, [prepared.row(int(i)) for i in chosen], device, plain)
            except RuntimeError as error:
                longest = int(lengths[order[at]])
                make_room(
                    error, len(chosen), f"a single row of {longest} tokens", "cut rows shorter with --max-seq-length"
                )
                room = len(chosen) // 2 * longest
                continue
            at += len(chosen)
            done += int(lengths[chosen].sum())
            progress(done, total)
            ready = []
            for line, (loss, count) in zip(prepared.lines[chosen].tolist(), parts, strict=True):
                before = sums.pop(line, (0.0, 0))
                loss, count = before[0] + loss, before[1] + count
                left[line] -= 1
                if left[line]:
                    sums[line] = loss, count
                elif count and math.isfinite(loss):
                    ready.append(RowScore(line, loss / count, count))
            if ready:
                yield ready


def _sums(model: Any, rows: Sequence[Any], device: Any, plain: bool) -> list[tuple[float, int]]:
    """Loss summed over the supervised tokens of each row, and their number."""
    from backprop.train.loss import row_losses
    from backprop.train.packing import pad

    batch = pad(rows).to(device)
    return list(zip(row_losses(model, batch, plain_head=plain).tolist(), batch.row_weights.tolist(), strict=True))


if __name__ == "__main__":
    run_job(RunConfig, score)
