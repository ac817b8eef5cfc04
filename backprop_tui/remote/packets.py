"""What goes over the line between a terminal here and the application on the other machine.

The far end speaks first, one line: ``MARK`` and a JSON object with ``protocol`` and ``version``, or ``MARK`` and
``missing``. By the mark it is told from what a start-up file prints there. Packets follow, of the form that Textual's
web driver has too: one byte for the kind, four for the length (big endian), the payload.

From here: ``H`` hello (JSON, first: ``host`` as it was written, ``arguments``, ``session`` to come back to, ``size``,
``environment``) · ``K`` keys as the terminal sends them · ``S`` size (JSON, columns and rows) · ``A`` bytes drawn since
the last ``A`` (four bytes) · ``R`` draw everything again.

From there: ``O`` open (JSON, first: ``session``) · ``D`` drawing · ``Z`` stop as Ctrl+Z does · ``P`` is anybody there
(an ``A`` is the answer) · ``E`` end (JSON: ``status``, and ``text`` to leave behind).
"""

from __future__ import annotations

from collections.abc import Iterator

PROTOCOL = 1
"""Changes with the packets and with what their JSON must hold."""
MARK = b"backprop-engine "
TERMINAL = ("TERM", "COLORTERM", "TERM_PROGRAM", "NO_COLOR", "TMUX")
"""Variables that the application has as they are where its terminal is."""
HEAD = 5
"""Bytes before the payload."""


def pack(kind: bytes, payload: bytes = b"") -> bytes:
    """One packet."""
    return kind + len(payload).to_bytes(4, "big") + payload


def unpack(held: bytearray) -> Iterator[tuple[bytes, bytes]]:
    """Kind and payload of each packet that is complete in ``held``, which keeps the rest."""
    while len(held) >= HEAD and len(held) >= (end := HEAD + int.from_bytes(held[1:HEAD], "big")):
        kind, payload = bytes(held[:1]), bytes(held[HEAD:end])
        del held[:end]
        yield kind, payload
