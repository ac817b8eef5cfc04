"""How an answer compares with the expected one: the metrics of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250)."""

from __future__ import annotations

import re
import string
from collections import Counter

from backprop.core.errors import InputError

METRICS = ("exact_match", "f1", "contains", "regex")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, words one blank apart: ``"The  Cat, sat!"`` → ``"cat sat"``."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, expected: str) -> float:
    """1 where both say the same once normalised."""
    return float(normalised(answer) == normalised(expected))


def f1(answer: str, expected: str) -> float:
    """Harmonic mean of the shares of common words; of two empty texts 1, of one 0."""
    ours, theirs = normalised(answer).split(), normalised(expected).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def contains(answer: str, expected: str) -> float:
    """1 where the answer holds the expected text, whatever their cases."""
    return float(expected.strip().casefold() in answer.casefold())


def pattern_of(text: str) -> re.Pattern[str]:
    """The regular expression in ``text``.

    Raises:
        InputError: it is none.
    """
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"--regex: {text!r} is no regular expression: {error}", hint="see Python's re") from error


def measure(answer: str, expected: str, regex: str = "") -> dict[str, float]:
    """Each metric of one answer by its name; ``regex`` only where a pattern is given: 1 where it is found."""
    found = {"exact_match": exact_match(answer, expected), "f1": f1(answer, expected)}
    found["contains"] = contains(answer, expected)
    return found | ({"regex": float(pattern_of(regex).search(answer) is not None)} if regex else {})
