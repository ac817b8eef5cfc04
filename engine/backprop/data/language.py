"""The language that a text is most likely in, by ``py3langid`` (Lui & Baldwin 2012, 97 languages)."""

from __future__ import annotations

_SEEN = 1000
_LEAST_LETTERS = 12
UNKNOWN = "unknown"


def language(text: str) -> str:
    """ISO 639-1 code, or ``unknown`` for texts with too few letters to tell."""
    import py3langid

    text = text[:_SEEN]
    if sum(map(str.isalpha, text)) < _LEAST_LETTERS:
        return UNKNOWN
    return str(py3langid.classify(text)[0])
