from __future__ import annotations

import os

import pytest

from backprop_tui.web.application import write


def test_a_packet_of_which_the_pipe_takes_a_part_is_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bytes] = []

    def takes_seven(descriptor: int, data: bytes) -> int:
        assert descriptor == 1
        taken.append(data[:7])
        return len(taken[-1])

    monkeypatch.setattr(os, "write", takes_seven)
    write(b"D\x00\x00\x00\x11a page of letters")
    assert b"".join(taken) == b"D\x00\x00\x00\x11a page of letters"
