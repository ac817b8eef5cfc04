"""How long rows are, and what a limit on their length does: the one rule for training, checking, scoring and screens.

A conversation that is too long loses its beginning, so that its last answer stays whole; where that does not fit, the
row is left out, never trained in part. A raw text is split, so that nothing of it is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import Struct, structs

from backprop.core.events import LengthLimit
from backprop.data.convert import convert
from backprop.data.encode import Encoded, Rendered, Renderer, encode_row, encode_value
from backprop.data.example import Fields, Format, RowError
from backprop.data.formats import FileFormat, read_as
from backprop.data.line_index import Cancelled, Progress
from backprop.data.reader import Row, open_source
from backprop.data.token_cache import Flags, Ids
from backprop.data.tokenizer import ChatTokenizer

Counts = npt.NDArray[np.int64]
Read = TypeVar("Read")
_BATCH_ROWS = 500
_BATCH_BYTES = 1_000_000
_LONGEST = 1_000_000
"""Rows longer than this are counted as this long."""


class Truncated(Struct):
    """The samples of one row: none where its answer does not fit, several where a text was split."""

    samples: list[tuple[Ids, Flags]]
    cut: int = 0
    """Tokens cut from the beginning of a conversation."""
    split: bool = False
    """Whether a text was split. A last piece of one token is none, as nothing of it would be trained."""
    finding: RowError | None = None

    def at(self, ids: Sequence[int] | Ids) -> list[bool | None]:
        """Whether each token of the whole row, ``ids``, is trained; ``None`` for one that is cut."""
        kept: list[bool | None] = [None] * len(ids)
        start = self.cut
        for sample, trained in self.samples:
            kept[start : start + len(sample)] = trained.tolist()
            start += len(sample)
        if self.cut and self.samples[0][0][0] != ids[self.cut]:
            # The begin token stays where it was.
            kept[0], kept[self.cut] = False, None
        return kept


def truncate(encoded: Encoded, rendered: Rendered, limit: int, bos_id: int | None) -> Truncated:
    """Fit one row into ``limit`` tokens. A begin token that stands at the start alone stays there."""
    ids, trained = encoded.ids, encoded.trained
    if len(ids) <= limit:
        return Truncated([(ids, trained)])
    if rendered.raw:
        return Truncated(_split(ids, trained, limit), split=True)
    start, end = encoded.answers[-1]
    # What follows the last answer teaches nothing: it goes first.
    ids, trained = ids[:end], trained[:end]
    head = _begin_tokens(ids, bos_id)
    first = max(end - limit + head, head)
    if first >= start:
        words = f"the answer is {end - start} tokens: it does not fit into {limit} with something before it"
        return Truncated([], finding=RowError("answer_lost", "", words))
    if first == head:
        return Truncated([(ids, trained)])
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
    return Truncated([(ids, kept)], cut=first - head, finding=RowError("cut", "", words, "warning"))


def truncate_value(
    value: Any,
    tokenizer: ChatTokenizer,
    limit: int,
    *,
    format: Format | None = None,
    mapping: Mapping[str, str] | None = None,
) -> Truncated:
    """What a limit does to one row alone.

    Raises:
        RowError: the row cannot be trained.
    """
    rendered, _, encoded = encode_value(value, tokenizer, format=format, mapping=mapping)
    return truncate(encoded, rendered, limit, tokenizer.bos_id)


def chat_size(encoded: Encoded, bos_id: int | None) -> tuple[int, int]:
    """The smallest limit into which ``truncate`` takes a conversation whole, and the largest at which its answer is
    lost."""
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


class Lengths(Struct, frozen=True):
    """Lengths of the rows counted so far, before anything is cut, in tokens or characters."""

    chats: Counts
    """Conversations by their length: to the end of the last answer, since what follows it goes first."""
    texts: Counts
    """Raw texts by their length."""
    losing: Counts
    """Rows by the largest limit at which their last answer no longer fits; 0: never."""
    tails: Counts
    """Tokens behind the last answer, by the length of their row: they are kept where all of it fits."""
    answers: Counts
    """Trained tokens of conversations, by the smallest limit at which they are trained."""

    @property
    def rows(self) -> int:
        """Rows that were counted."""
        return int(self.chats.sum() + self.texts.sum())

    @property
    def longest(self) -> int:
        """The length of the longest row."""
        return max(int(np.flatnonzero(counts)[-1]) if counts.any() else 0 for counts in (self.chats, self.texts))

    def percentile(self, share: float) -> int:
        """The length that ``share`` (0 to 1) of the rows do not exceed."""
        sums = np.cumsum(self._all())
        return int(np.searchsorted(sums, share * sums[-1])) if sums[-1] else 0

    @property
    def answers_fit(self) -> int:
        """The smallest limit at which no answer is lost, at least 1."""
        return int(np.flatnonzero(self.losing[1:])[-1]) + 2 if self.losing[1:].any() else 1

    def tokens_within(self, limit: int) -> int:
        """All tokens, of conversations no more than ``limit`` each."""
        chats = np.minimum(np.arange(len(self.chats)), limit) * self.chats
        return int(chats.sum() + (np.arange(len(self.texts)) * self.texts).sum())

    def at(self, limit: int) -> LengthLimit:
        """What ``limit`` costs, at least 1."""
        whole = int(self.chats[: limit + 1].sum())
        lost = int(self.losing[limit:].sum())
        fit = int(self.texts[: limit + 1].sum())
        return LengthLimit(
            max_length=limit,
            whole=whole + fit,
            cut=int(self.chats.sum()) - whole - lost,
            split=int(self.texts.sum()) - fit,
            answer_lost=lost,
        )

    def tokens_at(self, limit: int) -> tuple[int, int]:
        """Tokens that are left at ``limit``, and how many of them are trained (``LengthCounter.add_trained``)."""
        over = int(self.chats[limit + 1 :].sum() - self.losing[limit:].sum())
        whole, texts = self.chats[: limit + 1], np.flatnonzero(self.texts)
        tokens = int(whole @ np.arange(len(whole))) + limit * over + int(self.tails[: limit + 1].sum())
        # The first token of each piece is not trained; a last piece of one token is none.
        pieces = -(-texts // limit)
        alone = (texts > limit) & (texts % limit == 1)
        counts = self.texts[texts]
        return (
            tokens + int(counts @ (texts - alone)),
            int(self.answers[: limit + 1].sum()) + int(counts @ (texts - pieces)),
        )

    def limits(self, chosen: int) -> list[LengthLimit]:
        """What is lost at the chosen limit, at p50, p90, p99, and at the length of the longest row, if any."""
        if not self.rows:
            return []
        return [self.at(max(at, 1)) for at in (chosen, *map(self.percentile, (0.5, 0.9, 0.99)), self.longest)]

    def buckets(self, edges: list[int]) -> list[int]:
        """Rows of each stretch from one edge up to (not including) the next."""
        sums = np.concatenate(([0], np.cumsum(self._all())))
        found: list[int] = np.diff(sums[np.minimum(edges, len(sums) - 1)]).tolist()
        return found

    def _all(self) -> Counts:
        everything = np.zeros(max(len(self.chats), len(self.texts)), dtype=np.int64)
        everything[: len(self.chats)] += self.chats
        everything[: len(self.texts)] += self.texts
        return everything


class LengthCounter:
    """The counts behind ``Lengths`` while they grow."""

    def __init__(self) -> None:
        self._chats, self._texts, self._losing, self._tails, self._answers = np.zeros((5, 1), dtype=np.int64)

    def add(self, rows: Iterable[tuple[Rendered, Encoded]], bos_id: int | None) -> None:
        """Count rows in tokens."""
        texts, chats = [], []
        for rendered, encoded in rows:
            if rendered.raw:
                texts.append(len(encoded.ids))
            else:
                chats.append(chat_size(encoded, bos_id))
        self.add_texts(texts)
        if chats:
            lengths, losing = zip(*chats, strict=True)
            self._chats = _added(self._chats, lengths)
            self._losing = _added(self._losing, losing)

    def add_trained(self, rows: Iterable[tuple[Rendered, Encoded]], bos_id: int | None) -> None:
        """Count at which limits the answers of conversations are trained, as ``truncate`` cuts them."""
        tails, answers = [(0, 0)], [(0, 0)]
        for rendered, encoded in rows:
            if rendered.raw:
                continue
            head, (last, losing) = _begin_tokens(encoded.ids, bos_id), chat_size(encoded, bos_id)
            tails.append((len(encoded.ids), len(encoded.ids) - last))
            for start, end in encoded.answers:
                least = min(last, last + head - start)
                # Where an answer is the first that is left, nothing tells its first token.
                first = int(losing < least < last and not head)
                least = max(least, losing + 1)
                answers += [(least, int(encoded.trained[start:end].sum()) - first), (least + 1, first)]
        self._tails = _added(self._tails, *zip(*tails, strict=True))
        self._answers = _added(self._answers, *zip(*answers, strict=True))

    def add_texts(self, lengths: Sequence[int]) -> None:
        """Count texts, which no limit cuts: a longer one is split."""
        if lengths:
            self._texts = _added(self._texts, lengths)

    def snapshot(self) -> Lengths:
        """The counts until now, which do not grow any more."""
        return Lengths(self._chats, self._texts, self._losing, self._tails, self._answers)


class CountedLengths(Struct):
    """What is known of the rows counted so far, in tokens, or in characters where no tokenizer was given."""

    unit: str
    lengths: Lengths
    rows: int = 0
    unusable: int = 0
    """Rows that training would skip, whatever the limit."""
    tokens: int = 0
    trained: int = 0
    whole: bool = False
    """True when every row was counted."""


def count_lengths(
    path: str | Path,
    file: FileFormat,
    tokenizer: ChatTokenizer | None,
    *,
    progress: Progress,
    cancelled: Cancelled,
    so_far: Callable[[Callable[[], CountedLengths]], object],
) -> CountedLengths:
    """Count the rows of a file with a tokenizer, or their characters without one.

    Args:
        so_far: called now and then with what makes the counts until then.
    """
    counter = LengthCounter()
    known = CountedLengths("tokens" if tokenizer is not None else "characters", counter.snapshot())
    renderer = Renderer(tokenizer) if tokenizer is not None else None
    seen = 0
    with open_source(path) as source:
        for batch in _batches(source):
            if cancelled():
                break
            if renderer is None:
                used = _count_characters(batch, file, counter)
            else:
                used = _count_tokens(batch, file, renderer, counter, known)
            known.rows += len(batch)
            known.unusable += len(batch) - used
            seen += sum(len(row.raw) + 1 for row in batch)
            progress(min(seen, source.size), source.size)
            so_far(lambda: structs.replace(known, lengths=counter.snapshot()))
    return structs.replace(known, lengths=counter.snapshot(), whole=not cancelled())


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.raw)
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read(batch: list[Row], file: FileFormat, read: Callable[[Any, Format], Read]) -> list[Read]:
    """What ``read`` makes of the rows; those that cannot be used are left out."""
    found = []
    for row in batch:
        format = None if row.error is not None else read_as(row.value, file.format, Fields(file.mapping))
        if format is not None:
            with contextlib.suppress(RowError):
                found.append(read(row.value, format))
    return found


def _count_characters(batch: list[Row], file: FileFormat, counter: LengthCounter) -> int:
    """Count a batch; how many of its rows can be used."""
    examples = _read(batch, file, lambda value, format: convert(value, format, file.mapping))
    lengths = []
    for example in examples:
        turns = (*example.turns, *example.chosen, *example.rejected, *example.completion)
        lengths.append(len(example.text or "") + sum(len(turn.content) for turn in turns))
    counter.add_texts(lengths)
    return len(lengths)


def _count_tokens(
    batch: list[Row], file: FileFormat, renderer: Renderer, counter: LengthCounter, known: CountedLengths
) -> int:
    """Count a batch; how many of its rows can be used."""
    tokenizer, names, counted = renderer.tokenizer, Fields(file.mapping), []
    rendered = _read(batch, file, lambda value, format: renderer.render(value, format, names))
    for raw in (False, True):
        items = [item for item in rendered if item.raw == raw]
        encodings = tokenizer.encode([item.text for item in items], special=raw) if items else []
        for item, encoding in zip(items, encodings, strict=True):
            encoded = encode_row(item, encoding, tokenizer)
            trained = int(encoded.trained.sum())
            if trained:
                known.trained += trained
                known.tokens += len(encoded.ids)
                counted.append((item, encoded))
    counter.add(counted, tokenizer.bos_id)
    counter.add_trained(counted, tokenizer.bos_id)
    return len(counted)


def _added(counts: Counts, values: Sequence[int], weights: Sequence[int] | None = None) -> Counts:
    """``counts`` with one (or its weight) more at each of ``values``; a new array, because somebody may be reading the
    old one."""
    more: Counts = np.bincount(np.minimum(values, _LONGEST), weights, len(counts)).astype(np.int64)
    more[: len(counts)] += counts
    return more
