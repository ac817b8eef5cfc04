"""What no text may carry to a person's terminal or log: secrets, and characters that control the terminal."""

from __future__ import annotations

import re

MASK = "[redacted]"

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""C0 and C1 controls, line separators, marks that turn the writing direction around, and halves of surrogate pairs."""

# One pattern per family. Keyword patterns mask a value of any length: a short password is still a password.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]+", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{8,}"), MASK),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), MASK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), MASK),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/:@]+:[^\s/@]+@", re.IGNORECASE), rf"\1{MASK}@"),
    (
        re.compile(
            r"""(?ix)
            (?<![a-z0-9])
            ((?:[a-z0-9]+[_-])*
             (?:password|passwd|pwd|token|api[_-]?key|secret|secret[_-]access[_-]key|access[_-]key))
            (["']?\s*[=:]\s*["']?)
            (?!\[redacted\])
            ([^\s"'&,;}\])]+)
            """
        ),
        rf"\1\2{MASK}",
    ),
)

# ``max_tokens=5`` and ``token: 3`` in counts are prose, not secrets: the keyword is the plural or the value a number
# below a million.
_COUNT = re.compile(r"\d{1,6}(?:\.\d+)?")


def redact(text: str) -> str:
    """Return ``text`` with every secret replaced by ``[redacted]``."""
    for pattern, replacement in _PATTERNS[:-1]:
        text = pattern.sub(replacement, text)
    keyword, _ = _PATTERNS[-1]
    return keyword.sub(_mask_value, text)


def _mask_value(match: re.Match[str]) -> str:
    key, separator, value = match.groups()
    if key.lower().endswith("token") and _COUNT.fullmatch(value):
        return match.group(0)
    return f"{key}{separator}{MASK}"
