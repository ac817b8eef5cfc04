"""How hard a text looks, from its surface: for a curriculum from easy to hard."""

from __future__ import annotations

from collections.abc import Sequence

_LONG_TEXT = 5000
_LONG_WORD = 10


def difficulty(text: str) -> float:
    """From 0 to 1: half for length, a quarter each for varied words and long words.

    Length counts to 5,000 characters, variety is the share of different words (case aside), word length counts to a
    mean of 10 characters. Text without words is as hard as it is long.
    """
    length = min(1.0, len(text) / _LONG_TEXT)
    words = text.lower().split()
    if not words:
        return length
    variety = len(set(words)) / len(words)
    word_length = min(1.0, sum(map(len, words)) / len(words) / _LONG_WORD)
    return 0.5 * length + 0.25 * variety + 0.25 * word_length


def by_difficulty(scores: Sequence[float]) -> list[int]:
    """Places from the easiest to the hardest; equal ones keep their order."""
    return sorted(range(len(scores)), key=scores.__getitem__)


def chunk_sizes(rows: int, chunks: int) -> list[int]:
    """Sizes of a curriculum's stages: equal ones, the last takes the rest. Never more stages than rows."""
    chunks = max(1, min(chunks, rows))
    size = rows // chunks
    return [size] * (chunks - 1) + [rows - size * (chunks - 1)]
