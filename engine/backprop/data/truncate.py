"""How long rows are, and what a limit on their length does: the one rule for training, checking, scoring and screens.

A conversation that is too long loses its beginning, so that its last answer stays whole; where that does not fit, the
row is left out, never trained in part. A raw text is split, so that nothing of it is lost. Of a pair, and of a judged
answer, the prompt loses its beginning and nothing else: as much for both sides, so that both answer the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct, structs

from backprop.core.events import LEFT_OUT, LengthLimit
from backprop.core.methods import Rows
from backprop.data.encode import BATCH_ROWS, Encoded, EncodedRow, Rendered, Renderer, Side, encode_value, encoded_rows
from backprop.data.example import Format, RowError
from backprop.data.examples import Reader
from backprop.data.formats import FileFormat
from backprop.data.line_index import Cancelled, Progress
from backprop.data.reader import Source, open_source
from backprop.data.split import SEED, Places, places
from backprop.data.token_cache import Flags, Ids
from backprop.data.tokenizer import ChatTokenizer

Counts = npt.NDArray[np.int64]
_NONE: Counts = np.empty(0, dtype=np.int64)


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


def truncate_sides(sides: Sequence[Side], limit: int, bos_id: int | None) -> list[Truncated]:
    """Fit a row into ``limit`` tokens, or each side of a pair: one result a side, none of which has samples where the
    longer one does not fit."""
    if sides[0].rendered.opens is None:
        return [truncate(side.encoded, side.rendered, limit, bos_id) for side in sides]
    prompt, end, head = _judged(sides, bos_id)
    first = max(end - limit + head, head)
    if end > limit and first >= prompt:
        words = f"the answer is {end - prompt} tokens: it does not fit into {limit} with something before it"
        return [Truncated([], finding=RowError("answer_lost", "", words)) for _ in sides]
    found = []
    for side in sides:
        encoded = side.encoded
        # What follows the last answer teaches nothing.
        ids, trained = encoded.ids[: encoded.answers[-1][1]], encoded.trained[: encoded.answers[-1][1]]
        if first > head:
            ids = np.concatenate((ids[:head], ids[first:]))
            trained = np.concatenate((trained[:head], trained[first:]))
        found.append(Truncated([(ids, trained)], cut=first - head))
    if first > head:
        words = f"{first - head} of {prompt} tokens were cut from the beginning of its prompt"
        found[0].finding = RowError("cut", "", words, "warning")
    return found


def truncate_value(
    value: Any,
    tokenizer: ChatTokenizer,
    limit: int,
    *,
    format: Format | None = None,
    mapping: Mapping[str, str] | None = None,
    rows: Rows = "conversation",
    traces: bool = False,
) -> Truncated:
    """What a limit does to one row alone; of a pair, to its chosen side.

    Raises:
        RowError: the row cannot be trained.
    """
    sides = encode_value(value, tokenizer, format=format, mapping=mapping, rows=rows, traces=traces)
    return truncate_sides(sides, limit, tokenizer.bos_id)[0]


def row_size(sides: Sequence[Side], bos_id: int | None) -> tuple[int, int]:
    """The smallest limit into which a row fits whole, or each side of a pair, and the largest at which its answer is
    lost; no text, which has no answer."""
    if sides[0].rendered.opens is None:
        encoded = sides[0].encoded
        (start, end), head = encoded.answers[-1], _begin_tokens(encoded.ids, bos_id)
    else:
        start, end, head = _judged(sides, bos_id)
    return end, min(end - 1, end - start + head)


def _judged(sides: Sequence[Side], bos_id: int | None) -> tuple[int, int, int]:
    """Tokens of the prompt that the sides share, of the longest side to the end of its last answer, and of a begin
    token that stays where it is."""
    encoded = [side.encoded for side in sides]
    prompt, head = (
        min(each.answers[0][0] for each in encoded),
        min(_begin_tokens(each.ids, bos_id) for each in encoded),
    )
    differ = np.flatnonzero(encoded[0].ids[:prompt] != encoded[-1].ids[:prompt])
    return int(differ[0]) if len(differ) else prompt, max(each.answers[-1][1] for each in encoded), head


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
    """The rows counted so far, before anything is cut, in tokens or characters; an array has one value a row."""

    sizes: Counts
    """Length: of a conversation to the end of its last answer, since what follows it goes first; of a pair, that of its
    longer side."""
    losing: Counts
    """The largest limit at which the last answer no longer fits; -1 for a raw text, which is split."""
    tails: Counts
    """Tokens behind the last answer: they are kept where all of it fits."""
    others: Counts
    """Length of the shorter side of a pair; 0 of any other row."""
    answers: Counts
    """Trained tokens of conversations, with the smallest limit at which they are trained: [n, 2], limits first."""

    @property
    def rows(self) -> int:
        """Rows that were counted."""
        return len(self.sizes)

    @property
    def longest(self) -> int:
        """The length of the longest row."""
        return int(self.sizes.max(initial=0))

    @property
    def _is_text(self) -> Flags:
        return self.losing < 0

    def first(self, rows: int) -> Lengths:
        """The first rows alone, but for the trained tokens."""
        kept = {name: getattr(self, name)[:rows] for name in ("sizes", "losing", "tails", "others")}
        return structs.replace(self, **kept)

    def percentile(self, share: float) -> int:
        """The length that ``share`` (0 to 1) of the rows do not exceed."""
        return int(np.quantile(self.sizes, share, method="inverted_cdf")) if self.rows else 0

    @property
    def answers_fit(self) -> int:
        """The smallest limit at which no answer is lost, at least 1."""
        return int(self.losing.max(initial=0)) + 1

    def samples_at(self, limit: int) -> Counts:
        """How many samples each row gives at ``limit``: none where its answer is lost, the pieces of a text."""
        # A last piece of one token is none: nothing of it would be trained.
        alone = (self.sizes > limit) & (self.sizes % limit == 1)
        return np.where(self._is_text, -(-self.sizes // limit) - alone, self.losing < limit)

    def at(self, limit: int) -> LengthLimit:
        """What ``limit`` costs, at least 1."""
        long, lost = self.sizes > limit, self.losing >= limit
        return LengthLimit(
            max_length=limit,
            whole=int((~long).sum()),
            cut=int((long & ~lost & ~self._is_text).sum()),
            split=int((long & self._is_text).sum()),
            answer_lost=int(lost.sum()),
        )

    def tokens_at(self, limit: int) -> tuple[int, int]:
        """Tokens that are left at ``limit``, and how many of them are trained (where answers were counted)."""
        texts, chats = self.sizes[self._is_text], ~self._is_text & (self.losing < limit)
        sizes, tails, others = self.sizes[chats], self.tails[chats], self.others[chats]
        # The first token of each piece is not trained.
        alone = (texts > limit) & (texts % limit == 1)
        tokens = np.minimum(sizes, limit).sum() + tails[sizes + tails <= limit].sum() + (texts - alone).sum()
        tokens += np.maximum(others - np.maximum(sizes - limit, 0), 0).sum()
        trained = self.answers[self.answers[:, 0] <= limit, 1].sum() + (texts - -(-texts // limit)).sum()
        return int(tokens), int(trained)

    def limits(self, chosen: int) -> list[LengthLimit]:
        """What is lost at the chosen limit, at p50, p90, p99, and at the length of the longest row, if any."""
        if not self.rows:
            return []
        return [self.at(max(at, 1)) for at in (chosen, *map(self.percentile, (0.5, 0.9, 0.99)), self.longest)]

    def buckets(self, edges: list[int]) -> list[int]:
        """Rows of each stretch from one edge up to (not including) the next."""
        found: list[int] = np.diff(np.searchsorted(np.sort(self.sizes), edges)).tolist()
        return found


class LengthCounter:
    """The counts behind ``Lengths`` while they grow.

    Args:
        answers: count the trained tokens of answers too.
    """

    def __init__(self, *, answers: bool = False) -> None:
        self._count_answers = answers
        self._sizes, self._losing, self._tails, self._others, self._answers = (array("q") for _ in range(5))

    def add(self, rows: Iterable[Sequence[Side]], bos_id: int | None) -> None:
        """Count rows in tokens, each by its sides."""
        for sides in rows:
            rendered, encoded = sides[0].rendered, sides[0].encoded
            if rendered.raw:
                self.add_text(len(encoded.ids))
                continue
            last, losing = row_size(sides, bos_id)
            self._sizes.append(last)
            self._losing.append(losing)
            ends = [side.encoded.answers[-1][1] for side in sides]
            self._tails.append(len(encoded.ids) - last if rendered.opens is None else 0)
            self._others.append(min(ends) if len(ends) == 2 else 0)
            if not self._count_answers:
                continue
            if rendered.opens is None:
                self._add_answers(encoded, _begin_tokens(encoded.ids, bos_id), last, losing)
            else:
                self._answers.extend((losing + 1, sum(int(side.encoded.trained.sum()) for side in sides)))

    def _add_answers(self, encoded: Encoded, head: int, last: int, losing: int) -> None:
        """At which limits the answers of a conversation are trained, as ``truncate`` cuts them."""
        for start, end in encoded.answers:
            least = min(last, last + head - start)
            # Where an answer is the first that is left, nothing tells its first token.
            first = int(losing < least < last and not head)
            least = max(least, losing + 1)
            self._answers.extend((least, int(encoded.trained[start:end].sum()) - first, least + 1, first))

    def add_text(self, length: int) -> None:
        """Count a text, which no limit cuts: a longer one is split."""
        self._sizes.append(length)
        self._losing.append(-1)
        self._tails.append(0)
        self._others.append(0)

    def snapshot(self) -> Lengths:
        """The counts until now, which do not grow any more."""
        found = map(np.array, (self._sizes, self._losing, self._tails, self._others, self._answers))
        sizes, losing, tails, others, answers = found
        return Lengths(sizes, losing, tails, others, answers.reshape(-1, 2))


class CountedLengths(Struct):
    """What is known of the rows counted so far, in tokens, or in characters where no tokenizer was given."""

    unit: str
    lengths: Lengths
    rows: int = 0
    whole: bool = False
    """True when every row was counted."""
    numbers: Counts = _NONE
    """Of each usable row: its number in the file, from 0."""
    places: Places = _NONE.astype(np.uint64)
    """Of each usable row: what decides whether it is held out (``split.places``)."""
    bad: Counts = _NONE
    """Numbers of the rows that training refuses, whatever the limit."""
    labels: npt.NDArray[np.int8] = _NONE.astype(np.int8)
    """Of each usable row: 1 where a label calls its answer good, 0 where bad, -1 where none does."""

    left_out: Counts = _NONE
    """Numbers of the rows that are left out on purpose (``core.events.LEFT_OUT``)."""

    @property
    def unusable(self) -> int:
        """Rows that training refuses, or skips when told to, whatever the limit."""
        return len(self.bad)


def count_lengths(
    path: str | Path,
    file: FileFormat,
    tokenizer: ChatTokenizer | None,
    *,
    rows: Rows = "conversation",
    everything: bool = False,
    traces: bool = False,
    seed: int = SEED,
    progress: Progress,
    cancelled: Cancelled,
    so_far: Callable[[Callable[[], CountedLengths]], object],
) -> CountedLengths:
    """Count the rows of a file as they are made for training, or their characters without a tokenizer.

    Args:
        rows: what the method learns from.
        everything: all tokens are trained, not the answers alone.
        traces: reasoning traces are trained as rows have them (``data.traces``); with a tokenizer only.
        seed: of the split into trained and held-out rows.
        so_far: called now and then with what makes the counts until then.
    """
    counter = LengthCounter(answers=True)
    numbers, bad, left_out, contents, labels = array("q"), array("q"), array("q"), array("Q"), array("b")
    read = done = 0

    def snapshot() -> CountedLengths:
        return CountedLengths(
            unit="tokens" if tokenizer is not None else "characters",
            lengths=counter.snapshot(),
            rows=read,
            numbers=np.array(numbers),
            places=np.array(contents, dtype=np.uint64),
            bad=np.array(bad),
            left_out=np.array(left_out),
            labels=np.array(labels, dtype=np.int8),
        )

    with open_source(path) as source:
        renderer = None
        if tokenizer is not None:
            renderer = Renderer(tokenizer, rows=rows, everything=everything, traces=traces)
        batches = encoded_rows(source, file, renderer) if renderer is not None else _characters(source, file)
        for batch in batches:
            if cancelled():
                break
            for item in batch:
                if item.error is None:
                    numbers.append(read)
                    labels.append(-1 if item.good is None else item.good)
                    if renderer is None:
                        counter.add_text(len(item.sides[0].rendered.text))
                elif item.error.code in LEFT_OUT:
                    left_out.append(read)
                else:
                    bad.append(read)
                read += 1
                done += len(item.row.raw) + 1
            usable = [item for item in batch if item.error is None]
            contents.extend(places([item.content.to_bytes(8, "little", signed=True) for item in usable], seed).tolist())
            if tokenizer is not None:
                counter.add([item.sides for item in usable], tokenizer.bos_id)
            progress(min(done, source.size), source.size)
            so_far(snapshot)
    return structs.replace(snapshot(), whole=not cancelled())


def _characters(source: Source, file: FileFormat) -> Iterator[list[EncodedRow]]:
    """Every row with its text, unrendered."""
    rows = iter(Reader(source, file.mapping))
    while batch := list(islice(rows, BATCH_ROWS)):
        made = []
        for read in batch:
            item = EncodedRow(read.row)
            if isinstance(read.became, RowError):
                item.error = read.became
            else:
                example = read.became
                turns = (*example.turns, *example.chosen, *example.rejected, *example.completion)
                item.sides = [Side(Rendered((example.text or "") + "".join(turn.content for turn in turns), []))]
            made.append(item)
        yield made
