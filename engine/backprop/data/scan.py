"""One pass over the bytes of many JSON rows: where rows end, and where something hides that needs a closer look."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_NEWLINE, _BACKSLASH, _ANGLE, _SQUARE = 0x0A, 0x5C, 0x3C, np.uint8(0x5B)
_FOLLOWING = np.zeros(256, dtype=bool)
_FOLLOWING[list(b"|/sbepu<I")] = True
"""What may come second in a token or an escape that needs a look."""
_HIDING = {b"0000", b"003c", b"003C", b"005b", b"005B"}


def scan(data: bytes | bytearray, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    r"""Positions, in the first ``size`` bytes, of line breaks, and of what needs a closer look.

    That is where a control token may begin (``<`` before a letter that tokens begin with, ``[I``, ``[/``), and escapes
    that may hide one, or a NUL, such as ``\u0000``.
    """
    piece = np.frombuffer(data, dtype=np.uint8, count=size)
    # "[" and the backslash are neighbours: one comparison finds both.
    wanted = (piece - _SQUARE) <= 1
    wanted |= piece == _NEWLINE
    if data.find(b"<", 0, size) >= 0:
        wanted |= piece == _ANGLE
    marks: npt.NDArray[np.int64] = np.flatnonzero(wanted)
    breaks = marks[piece[marks] == _NEWLINE]
    if len(marks) and marks[-1] == size - 1:
        marks = marks[:-1]
    odd = marks[_FOLLOWING[piece[marks + 1]]]
    if len(odd):
        odd = odd[[_is_odd(data[at : at + 6]) for at in odd.tolist()]]
    return breaks, odd


def _is_odd(text: bytes | bytearray) -> bool:
    first = text[0]
    if first == _BACKSLASH:
        return text[1:2] == b"u" and bytes(text[2:]) in _HIDING
    if first == _SQUARE:
        return text[1:2] in (b"I", b"/")
    return first == _ANGLE
