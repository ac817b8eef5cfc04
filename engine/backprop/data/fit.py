"""Rows that are longer than a sample may be: what is cut, what is left out.

A conversation loses its beginning, so that its last answer stays whole; where that does not fit, the row is left out,
never trained in part. A raw text is split, so that nothing of it is lost.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from backprop.data.encode import Encoded, Rendered
from backprop.data.example import RowError
from backprop.data.token_cache import Flags, Ids


class Fitted(Struct):
    """The samples of one row: none where its answer does not fit, several where a text was split."""

    samples: list[tuple[Ids, Flags]]
    cut: bool = False
    finding: RowError | None = None


def fit(encoded: Encoded, rendered: Rendered, limit: int, bos_id: int | None) -> Fitted:
    """Fit one row into ``limit`` tokens. A begin token that stands at the start alone stays there."""
    ids, trained = encoded.ids, encoded.trained
    if len(ids) <= limit:
        return Fitted([(ids, trained)])
    if rendered.raw:
        return Fitted(_split(ids, trained, limit))
    start, end = encoded.answers[-1]
    # What follows the last answer teaches nothing: it goes first.
    ids, trained = ids[:end], trained[:end]
    head = _begin_tokens(ids, bos_id)
    first = max(end - limit + head, head)
    if first >= start:
        words = f"the answer is {end - start} tokens: it does not fit into {limit} with something before it"
        return Fitted([], finding=RowError("answer_lost", "", words))
    if first == head:
        return Fitted([(ids, trained)])
    kept = trained[first:].copy()
    if not rendered.everything:
        for begin, stop in encoded.answers:
            if begin < first < stop:
                # The rest of an answer whose beginning is gone is context, never a target.
                kept[: stop - first] = False
    ids = np.concatenate((ids[:head], ids[first:]))
    kept = np.concatenate((np.zeros(head, np.bool_), kept))
    kept[:1] = False
    lost = sum(stop <= first or begin < first for begin, stop in encoded.answers)
    words = f"{first - head} of {len(encoded.ids)} tokens were cut from its beginning"
    words += f", with {lost} of {len(encoded.answers)} answers" if lost else ""
    return Fitted([(ids, kept)], cut=True, finding=RowError("cut", "", words, "warning"))


def chat_size(encoded: Encoded, bos_id: int | None) -> tuple[int, int]:
    """The smallest limit into which ``fit`` takes a conversation whole, and the largest at which its answer is lost."""
    start, end = encoded.answers[-1]
    return end, min(end - 1, end - start + _begin_tokens(encoded.ids, bos_id))


def _begin_tokens(ids: Ids, bos_id: int | None) -> int:
    """1 where a begin token stands at the start alone, else 0."""
    return int(bos_id is not None and ids[0] == bos_id and np.count_nonzero(ids == bos_id) == 1)


def _split(ids: Ids, trained: Flags, limit: int) -> list[tuple[Ids, Flags]]:
    """Pieces of a text, one after the other. The first token of each has nothing before it to be told from."""
    pieces = []
    for start in range(0, len(ids), limit):
        flags = trained[start : start + limit].copy()
        flags[:1] = False
        if flags.any():
            pieces.append((ids[start : start + limit], flags))
    return pieces
