from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PRINTING = """
import logging, os, sys
from pathlib import Path
from backprop.train.stream import take_stdout

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
