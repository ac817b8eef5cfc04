"""What the system refuses: one code for each reason, wherever it happens, with the place and what to do."""

from __future__ import annotations

import errno
import os

import pytest
from backprop.core.errors import BackpropError, ConfigurationError, RunError
from backprop.core.refused import refusal, refused
from backprop.worker.setup import failure


@pytest.mark.parametrize("kind", [BackpropError, RunError, ConfigurationError])
def test_a_disk_without_room_is_no_bad_argument_whatever_was_to_be_written(kind: type[BackpropError]) -> None:
    error = refusal(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "it cannot be kept in /x", kind)
    assert (error.code, error.exit_code, error.retryable) == ("RUNTIME_DISK_FULL", 2, True)
    assert (error.message, error.hint) == ("it cannot be kept in /x: No space left on device", "free some space")


@pytest.mark.parametrize(
    ("number", "code", "hint"),
    [
        (errno.ENOSPC, "RUNTIME_DISK_FULL", "free some space"),
        (errno.EDQUOT, "RUNTIME_DISK_FULL", "free some space"),
        (errno.EROFS, "RUNTIME_IO_FAILED", "look at the permissions of the path, or write somewhere else"),
        (errno.EIO, "RUNTIME_IO_FAILED", "look at the disk and at the path"),
        (errno.ECONNREFUSED, "RUNTIME_IO_FAILED", "look at the connection and at the path"),
    ],
)
def test_command_and_engine_say_the_same_of_one_error(number: int, code: str, hint: str) -> None:
    system = OSError(number, os.strerror(number), "/disk/rows")
    command, engine = refused(system), failure(system)
    assert (command.code, command.message, command.hint) == (code, f"/disk/rows: {os.strerror(number)}", hint)
    assert (engine.code, engine.message, engine.hint) == (command.code, command.message, command.hint)
    assert engine.error().exit_code == 2
