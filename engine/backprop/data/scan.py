"""One pass over the bytes of many JSON rows: where rows end, and where something hides that needs a closer look."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_NEWLINE, _BACKSLASH, _ANGLE, _SQUARE = 0x0A, 0x5C, 0x3C, 0x5B
_AFTER_ANGLE = np.zeros(256, dtype=bool)
_AFTER_ANGLE[list(b"|/sbepu<")] = True
_HIDING = (b"0000", b"003c", b"003C", b"005b", b"005B")


def scan(data: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    r"""Positions of line breaks, and those where a control token may begin or an escape hides one or a NUL.

    The second are ``<`` before a letter that tokens begin with, ``[I``, ``[/``, and escapes such as ``\u0000``.
    """
    piece = np.frombuffer(data, dtype=np.uint8)
    wanted = piece == _NEWLINE
    wanted |= piece == _BACKSLASH
    wanted |= piece == _SQUARE
    if b"<" in data:
        wanted |= piece == _ANGLE
    marks: npt.NDArray[np.int64] = np.flatnonzero(wanted)
    kinds = piece[marks]
    is_break = kinds == _NEWLINE
    breaks, others, kinds = marks[is_break], marks[~is_break], kinds[~is_break]
    if len(others) and others[-1] == len(data) - 1:
        others, kinds = others[:-1], kinds[:-1]
    following = piece[others + 1]
    found = (kinds == _ANGLE) & _AFTER_ANGLE[following]
    found |= (kinds == _SQUARE) & ((following == 0x49) | (following == 0x2F))
    escapes = np.flatnonzero((kinds == _BACKSLASH) & (following == 0x75))
    for i in escapes.tolist():
        at = int(others[i])
        found[i] = data[at + 2 : at + 6] in _HIDING
    return breaks, others[found]
