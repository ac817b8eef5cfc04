from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from backprop.core.events import Heartbeat, encode
from backprop.runs import journal
from backprop.runs.journal import Follower, JournalWriter


def beat(number: int) -> Heartbeat:
    return Heartbeat(run_id="r", seq=number, time=float(number), step=number)


def write(path: Path, *numbers: int) -> None:
    with path.open("ab") as file:
        for number in numbers:
            file.write(encode(beat(number)))


def test_a_missing_journal_is_empty(tmp_path: Path) -> None:
    assert journal.read(tmp_path / "none").events == []


def test_a_torn_last_line_is_left_out_and_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 1, 2, 3)
    path.write_bytes(path.read_bytes()[:-10])
    read = journal.read(path)
    assert [e.seq for e in read.events] == [1, 2]
    assert read.damaged == []


def test_a_broken_line_in_the_middle_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 1)
    with path.open("ab") as file:
        file.write(b'{"type":"step","st\n')
    write(path, 3)
    read = journal.read(path)
    assert [e.seq for e in read.events] == [1, 3]
    assert read.damaged == [2]


def test_a_writer_continues_the_numbering_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 1, 2)
    with path.open("ab") as file:
        file.write(encode(beat(3))[:-20])
    writer = JournalWriter(path)
    assert writer.seq == 2
    writer.append(beat(3))
    writer.close()
    read = journal.read(path)
    assert [e.seq for e in read.events] == [1, 2, 3]
    assert read.damaged == [3]


def test_the_last_number_is_found_behind_a_long_foreign_tail(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 1, 2)
    with path.open("ab") as file:
        file.write(b"x" * 300_000 + b"\n")
    writer = JournalWriter(path)
    assert writer.seq == 2
    writer.close()


def test_a_follower_gives_each_event_once_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follower = Follower(path)
    assert follower.poll() == []
    write(path, 1, 2)
    assert [e.seq for e in follower.poll()] == [1, 2]
    line = encode(beat(3))
    with path.open("ab") as file:
        file.write(line[:10])
    assert follower.poll() == []
    with path.open("ab") as file:
        file.write(line[10:])
    assert [e.seq for e in follower.poll()] == [3]
    assert follower.poll() == []


def test_a_full_disk_delays_lines_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    writer = JournalWriter(path)
    real_write, full, room = os.write, True, 12

    def nearly_full(descriptor: int, data: bytes) -> int:
        nonlocal room
        if full and room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = real_write(descriptor, data[:room] if full else data)
        room -= count if full else 0
        return count

    monkeypatch.setattr(os, "write", nearly_full)
    writer.append(beat(1))
    writer.append(beat(2))
    assert not writer.write_pending()
    full = False
    writer.append(beat(3))
    writer.close()
    assert [e.seq for e in journal.read(path).events] == [1, 2, 3]


def test_a_journal_of_nothing_but_noise_is_continued_in_no_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(encode(beat(4)) + bytes(64 << 20))
    writer = JournalWriter(path)
    assert writer.seq == 4
    writer.close()
    assert journal.read(path).damaged == [2]


def test_a_follower_passes_over_a_line_longer_than_any_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"[" * (40 << 20) + b"\n" + encode(beat(2)))
    assert [event.seq for event in Follower(path).poll()] == [2]


def test_a_follower_leaves_out_the_events_of_other_runs(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 1, 2)
    assert Follower(path, run_id="another").poll() == []
    path.write_bytes(path.read_bytes() + encode(Heartbeat(run_id="another", seq=3, time=1.0)))
    assert [event.seq for event in Follower(path).poll()] == [1, 2]


def test_events_that_are_taken_one_by_one_are_not_kept(tmp_path: Path) -> None:
    path, taken = tmp_path / "events.jsonl", []
    write(path, 1, 2)

    read = journal.read(path, take=lambda event: taken.append(event.seq))

    assert (taken, read.events) == ([1, 2], [])
