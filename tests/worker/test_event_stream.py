from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from backprop.core.events import RunStarted
from backprop.runs.journal import JournalWriter
from backprop.worker import event_stream

PRINTING = """
import logging, os, sys
from pathlib import Path
from backprop.worker.event_stream import take_stdout

private = take_stdout(Path(sys.argv[1]))
print("a library prints" * 1000, flush=True)
sys.stderr.write("and complains\\n")
sys.stderr.flush()
logging.warning("and logs")
os.write(private, b"still here")
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_printing_onto_a_full_disk_ends_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTING, "/dev/full"], capture_output=True, check=False, timeout=60)
    assert done.stdout == b"still here"
    assert done.returncode == 0


def test_a_run_that_starts_slowly_is_not_alive_before_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT", 0.01)
    read_end, write_end = os.pipe()
    journal = JournalWriter(tmp_path / "events.jsonl")
    writer = event_stream.EventWriter(journal, event_stream.EventPipe(write_end), "run")
    assert select.select([read_end], [], [], 0.2)[0] == []
    writer.emit(RunStarted(config={}, output_dir="", pid=1))
    with os.fdopen(read_end, "rb") as lines:
        assert [json.loads(lines.readline())["type"] for _ in range(3)] == ["run_started", "heartbeat", "heartbeat"]
        writer.close()
        os.close(write_end)
