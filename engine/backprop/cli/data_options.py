"""What the commands about data share: the dataset, its field mapping, progress on long work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from backprop.cli import output
from backprop.cli.shared_options import json_and_verbose
from backprop.core.errors import InputError

_EVERY = 0.2
"""Seconds between two updates of the progress line."""


class Progress:
    """One line on a terminal's standard error, rewritten in place; nothing where nobody watches."""

    def __init__(self, doing: str, *, in_bytes: bool = True) -> None:
        self.doing = doing
        self._in_bytes = in_bytes
        self._last = 0.0
        self._shown = False
        self._wanted = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._wanted and now - self._last >= _EVERY and total:
            self._last, self._shown = now, True
            size = f" of {total / 1e6:,.0f} MB" if self._in_bytes else ""
            sys.stderr.write(f"\r\x1b[K{self.doing} {done / total:4.0%}{size}")
            sys.stderr.flush()

    def close(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False


def read_mapping(pairs: tuple[str, ...]) -> dict[str, str] | None:
    """``--map`` as part → field, ``None`` where it was not given."""
    from backprop.data.example import PARTS, unknown_parts

    mapping = {}
    for pair in pairs:
        part, sign, name = pair.partition("=")
        if not sign or not part or not name:
            raise InputError(f"--map {pair!r} is not PART=FIELD", hint="for instance --map instruction=question")
        mapping[part] = name
    wrong = unknown_parts(mapping)
    if wrong:
        raise InputError(f"--map: {wrong[0]!r} is no part of a row", hint=f"the parts are {', '.join(PARTS)}")
    return mapping or None


def dataset_file(path: str) -> str:
    """The file that ``DATASET`` means: itself, or the copy of a dataset on the Hugging Face Hub, fetched if need be."""
    from backprop.core.datasets import is_hub_name

    if not is_hub_name(path):
        return path
    from backprop.runs.engine_jobs import fetch_dataset

    progress = Progress("fetching")
    try:
        found = fetch_dataset(path, progress, lambda job: output.narrate(f"fetching {path} from the Hugging Face Hub"))
    finally:
        progress.close()
    files = f", {found.files} files" if found.files > 1 else ""
    output.narrate(f"{path}: split {found.split}{files}, commit {found.revision[:8]}, in {found.path}")
    return found.path


def dataset_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """``DATASET`` (a file, or a Hugging Face name that is fetched), ``--map``, ``--json`` and ``--verbose``."""
    function = json_and_verbose(function)
    function = click.option("--map", "pairs", multiple=True, metavar="PART=FIELD", help="which field plays which part")(
        function
    )
    return click.argument("path", metavar="DATASET", callback=lambda context, parameter, path: dataset_file(path))(
        function
    )
