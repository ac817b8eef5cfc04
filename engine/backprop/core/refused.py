"""What the system would not do, as an error of this program: a disk, a permission or a name is no defect here."""

from __future__ import annotations

import errno
import os
from typing import Any, TypeVar

from backprop.core.errors import BackpropError, InputError

FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)

Kind = TypeVar("Kind", bound=BackpropError)


def is_full(error: OSError) -> bool:
    """Whether the disk or the quota has no room for what was to be written: where it is freed it can be tried again."""
    return error.errno in FULL


def refused(error: OSError) -> BackpropError:
    """``error`` with its place, where it has one, and what to do."""
    if error.filename is None and error.errno == errno.ENOENT:
        return InputError("the working directory is gone", hint="change to one that exists: cd")
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if error.errno == errno.ENAMETOOLONG:
        from backprop.core.settings import shown

        return InputError(f"a name is longer than the file system allows: {shown(name)}", hint="shorten it")
    return refusal(error, name, BackpropError)


def refusal(
    error: OSError, what: str, kind: type[Kind], *, otherwise: str = "", details: dict[str, Any] | None = None
) -> Kind:
    """An error of ``kind`` that says of ``what`` why it failed. Its code is the same wherever room was lacking.

    Args:
        what: the place, or what could not be done with it; empty where nothing is known but the reason.
        otherwise: what can be done but to free space or to look at the permissions, in words.
    """
    reason = error.strerror or str(error)
    hint = "look at the disk and at the path"
    if is_full(error):
        hint = "free some space"
    elif error.errno in NOT_ALLOWED:
        hint = "look at the permissions of the path"
        otherwise = otherwise or "write somewhere else"
    elif error.errno is None or isinstance(error, ConnectionError | TimeoutError):  # a library's, of its network
        hint = "look at the connection and at the path"
    return kind(
        f"{what}: {reason}" if what else reason,
        hint=f"{hint}, or {otherwise}" if otherwise else hint,
        code="RUNTIME_DISK_FULL" if is_full(error) else "RUNTIME_IO_FAILED",
        retryable=True,
        details=details,
    )
