"""A place for a job that belongs to no run: scoring a dataset, fetching one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from backprop.core.paths import cache_dir
from backprop.runs import link
from backprop.runs.directory import RunDirectory


@contextmanager
def engine_job(module: str, request: msgspec.Struct) -> Iterator[link.Job]:
    """Start ``module`` as an engine process on ``request``; it ends with the block.

    Its log lies in the cache, and stays there where the block ended with an error.
    """
    directory = RunDirectory(cache_dir() / "jobs" / f"{os.getpid()}-{secrets.token_hex(4)}")
    directory.path.mkdir(parents=True)
    job = link.job(module, directory, request)
    try:
        yield job
    finally:
        job.end()
    shutil.rmtree(directory.path, ignore_errors=True)
