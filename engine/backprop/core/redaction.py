"""What no text may carry to a person's terminal or log: secrets, and characters that control the terminal."""

from __future__ import annotations

import re
from functools import cache

MASK = "[redacted]"

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""C0 and C1 controls, line separators, marks that turn the writing direction around, and halves of surrogate pairs."""


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    """One per family; made when a text leaves the process first, not while a program starts.

    The last takes a quoted value up to its end, also where the quotes are escaped as in JSON inside JSON.
    """
    return (
        (re.compile(r"\b(authorization\s*:\s*\w+)\s+\S+", re.IGNORECASE), rf"\1 {MASK}"),
        (re.compile(r"\b(bearer|basic)\s+(?=\S{20}|\S{,19}[\d=])[a-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {MASK}"),
        (re.compile(r"\bsk-[A-Za-z0-9_-]{8,}"), MASK),
        (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), MASK),
        (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), MASK),
        (re.compile(r"(\b[a-z][a-z0-9+.-]{,20}://)[^\s/:@]+:[^\s/@]+@", re.IGNORECASE), rf"\1{MASK}@"),
        (
            re.compile(
                r"""(?ix)
            (?<![a-z0-9])
            (password|passwd|pwd|token|api[_-]?key|secret|secret[_-]access[_-]key|access[_-]key)
            (\\*["']?\s*[=:]\s*(\\*["'])?)
            (?!\[redacted\])
            ([^\s"'&,;}\])](?(3)(?:(?!\3)[^\n])*(?=\3)|(?!))|[^\s"'&,;}\])]+)
            """
            ),
            rf"\1\2{MASK}",
        ),
    )


# ``max_tokens=5`` and ``token: 3`` in counts are prose, not secrets: the keyword is the plural or the value a number
# below a million. A token that is written out, as ``eos_token=</s>``, is none either.
_COUNT = re.compile(r"\d{1,6}(?:\.\d+)?|<.*")
_NAME = re.compile(r"\s*[\w-]*")
"""What may stand in a line before the keyword where it is the last part of a name: ``wandb_api_key``."""
_UNLIKE_A_WORD = re.compile(r"\d|[a-z][A-Z]|.{20}")


def redact(text: str) -> str:
    """Return ``text`` with every secret replaced by ``[redacted]``."""
    *families, (keyword, _) = _patterns()
    for pattern, replacement in families:
        text = pattern.sub(replacement, text)
    return keyword.sub(_mask_value, text)


def _mask_value(match: re.Match[str]) -> str:
    """A value that is assigned or quoted is masked whatever it is: a short password is still a password. After a mere
    colon it may be prose, unless it is all that the line says or does not look like a word."""
    key, separator, _, value = match.groups()
    before, after = match.string[: match.start()].rpartition("\n")[2], match.string[match.end() :].partition("\n")[0]
    alone = _NAME.fullmatch(before) and not after.strip()
    prose = separator.strip() == ":" and not alone and not _UNLIKE_A_WORD.search(value)
    if prose or (key.lower().endswith("token") and _COUNT.fullmatch(value)):
        return match.group(0)
    return f"{key}{separator}{MASK}"
