"""What the untouched model makes of a run's rows: computed once, before the first step, and kept beside the tokens.

Methods that compare with it (``core.methods``) would else ask it anew with every step. Only rows that the run takes are
asked for, in the order in which it takes them, a piece at a time. Which rows share a pass reaches the last bits: so the
values are kept under a name for the model, its precision, that order and the batching, and pieces are never divided.
Values that were lost are then found again as they were.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from backprop.core.files import write_file
from backprop.core.settings import RunConfig
from backprop.data.token_cache import Judged, Prepared
from backprop.train.dataset import Referenced, Subset, now_and_then
from backprop.train.loss import sequence_logps
from backprop.train.model import Loaded, evaluating
from backprop.train.out_of_memory import Recovery
from backprop.train.packing import Batching, MicroBatch, Row
from backprop.train.trainer import first_batching

Logps: TypeAlias = npt.NDArray[np.float64]
Order: TypeAlias = Sequence[int] | npt.NDArray[np.int64]
PIECE = 64
"""Rows of a piece."""
SAVE_SECONDS = 30.0


class ReferencedRows(Subset):
    """A subset whose rows come with ``values``, which has two for each row of the dataset ([rows, 2])."""

    def __init__(self, subset: Subset, values: Logps) -> None:
        super().__init__(subset.rows, subset.places)
        self.values = values
        self._longest = int(subset.rows.lengths.max())

    def row(self, index: int) -> Referenced:
        place = int(self.places[index])
        item = self.rows.row(place)
        other = _with_another_answer(self.rows, place, self._longest) if isinstance(item, Judged) else None
        return Referenced(item, self.values[place], other)

    def known(self, indices: Order) -> bool:
        """Whether the values of all these rows are."""
        return not np.isnan(self.values[self.places[np.asarray(indices, dtype=np.int64)]]).any()

    def scored(self, index: int) -> list[Row]:
        """The two sequences that ``values`` speaks of."""
        item, _, other = self.row(index)
        return [item.chosen, item.rejected] if other is None else [item.row, other]


def _with_another_answer(rows: Prepared, place: int, longest: int) -> Row:
    """The prompt of a judged row with the answer of the row half the dataset away: neighbours often share a prompt.

    That answer is only scored, whichever part of the dataset it is from. The prompt loses its beginning where both
    together were longer than ``longest``.
    """
    (ids, mask), _ = rows.row(place)
    (others, answers), _ = rows.row((place + len(rows) // 2) % len(rows))
    prompt, begin = ids[: int(mask.argmax())], int(answers.argmax())
    prompt = prompt[max(0, len(prompt) + len(others) - begin - longest) :]
    trained = np.concatenate([np.zeros(len(prompt), dtype=np.bool_), answers[begin:]])
    return np.concatenate([prompt, others[begin:]]), trained


def name_of(loaded: Loaded, config: RunConfig, model: Mapping[str, str]) -> str:
    """Names a model and its precision.

    Args:
        model: the hash of each of its files.
    """
    base = {name: value for name, value in model.items() if name == "config.json" or name.endswith(".safetensors")}
    how = [base, str(loaded.dtype), loaded.device.type, config.mode]
    return hashlib.blake2b(json.dumps(how, sort_keys=True).encode(), digest_size=12).hexdigest()


class Scorer:
    """Asks the untouched model.

    Args:
        model: its name (``name_of``).
        look: called before each pass; where it says yes the work ends.
        on_halved: called with the batching from then on and the error when memory ran out.
        on_progress: called now and then with how many of the rows are done.
    """

    def __init__(
        self,
        loaded: Loaded,
        config: RunConfig,
        model: str,
        *,
        look: Callable[[], bool] = lambda: False,
        on_halved: Callable[[Batching, BaseException], object] = lambda batching, error: None,
        on_progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> None:
        self._loaded, self._config, self._model = loaded, config, model
        self._look, self._on_halved, self._on_progress = look, on_halved, on_progress
        self._recovery = Recovery(config)

    def attach(self, subset: Subset, order: Order, count: int) -> ReferencedRows | None:
        """``subset`` with the values of its first ``count`` rows by ``order``; ``None`` where the work was ended.

        Raises:
            GPUMemoryError: not even a single row fits.
        """
        model, saved, show = self._loaded.model, time.monotonic(), now_and_then(self._on_progress)
        batching = first_batching(self._loaded, self._config, subset)
        places = subset.places[np.asarray(order, dtype=np.int64)]
        how = f"{self._model} {subset.rows.fingerprint} {batching} ".encode() + places.tobytes()
        file = subset.rows.folder.parent / f"reference-{hashlib.blake2b(how, digest_size=20).hexdigest()}.bin"
        rows = ReferencedRows(subset, _read(file, len(subset.rows)))
        todo = [start for start in range(0, count, PIECE) if not rows.known(order[start : start + PIECE])]
        if not todo:
            return rows
        try:
            with torch.no_grad(), evaluating(model), self._loaded.mode.base_answers(model), self._loaded.autocast():
                for number, start in enumerate(todo):
                    some = [int(i) for i in order[start : start + PIECE]]
                    found, batching = self._score([each for i in some for each in rows.scored(i)], batching)
                    if found is None:
                        return None
                    rows.values[subset.places[some]] = found.reshape(-1, 2)
                    show(number + 1, len(todo))
                    if time.monotonic() - saved > SAVE_SECONDS:
                        saved = _write(file, rows.values)
        finally:
            _write(file, rows.values)
        return rows

    def _score(self, sequences: list[Row], batching: Batching) -> tuple[Logps | None, Batching]:
        """The log-probability of each sequence, ``None`` where the work was ended; and the batching that it took."""
        batches: list[MicroBatch] = []

        def work() -> Logps | None:
            groups = batching.groups([len(ids) for ids, _ in sequences])
            batches[:] = [batching.join([sequences[place] for place in group]) for group in groups]
            found = np.empty(len(sequences))
            for group, batch in zip(groups, batches, strict=True):
                if self._look():
                    return None
                plain = self._loaded.traits.plain_head
                logps = sequence_logps(self._loaded.model, batch.to(self._loaded.device), plain_head=plain)
                found[group] = logps.cpu().numpy()
            return found

        def take(smaller: Batching, error: BaseException) -> None:
            nonlocal batching
            batching = smaller
            self._on_halved(smaller, error)

        return self._recovery.attempt(work, lambda: None, lambda: batching.halved(batches), take), batching


def fingerprint(rows: Subset, order: Order, count: int) -> str:
    """Hash of the values of ``count`` rows, the first by ``order``, to the last bit; empty where they have none."""
    if not isinstance(rows, ReferencedRows):
        return ""
    return hashlib.sha256(rows.values[rows.places[np.asarray(order[:count], dtype=np.int64)]].tobytes()).hexdigest()


def _read(file: Path, rows: int) -> Logps:
    """What is known already ([rows, 2]), NaN elsewhere."""
    with suppress(OSError):
        known = file.read_bytes()
        if len(known) == 2 * rows * np.dtype(np.float64).itemsize:
            return np.frombuffer(known, dtype=np.float64).reshape(rows, 2).copy()
    return np.full((rows, 2), np.nan)


def _write(file: Path, values: Logps) -> float:
    """Keep what is known; the time. Where there is no room it is computed again after a restart."""
    with suppress(OSError):
        write_file(file, values.tobytes())
    return time.monotonic()
