"""A place for a job that belongs to no run: scoring a dataset, fetching one."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from backprop.core.errors import BackpropError
from backprop.core.paths import cache_dir
from backprop.runs import engine_client
from backprop.runs.directory import RunDirectory

_KEPT = 7 * 24 * 3600.0
"""Seconds that the log of a failed job is kept."""


@contextmanager
def engine_job(module: str, request: msgspec.Struct) -> Iterator[engine_client.Job]:
    """Start ``module`` as an engine process on ``request``; it ends with the block.

    Its log lies in the cache, and stays there for some days where the job failed.
    """
    root = cache_dir() / "jobs"
    directory = RunDirectory(root / f"{os.getpid()}-{secrets.token_hex(4)}")
    directory.path.mkdir(parents=True)
    _sweep(root)
    job = engine_client.job(module, directory, request)
    failed = False
    try:
        yield job
    except BackpropError:
        failed = not job.stopped
        raise
    finally:
        job.end()
        if not failed:
            shutil.rmtree(directory.path, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove old logs."""
    for folder in root.iterdir():
        with suppress(FileNotFoundError):  # another process sweeps as well
            if time.time() - folder.stat().st_mtime > _KEPT:
                shutil.rmtree(folder, ignore_errors=True)
