"""Names of datasets on the Hugging Face Hub, and the copies of them that are on this machine.

A name is ``owner/name``, then what is wanted of it: ``@revision``, ``:configuration``, ``:split`` or
``:configuration:split``. The address of its page may stand before it. Nothing in here opens a socket.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from msgspec import Struct

from backprop.core import paths
from backprop.core.jobs import Fetched

RECORD = "dataset.json"
"""Lies beside a fetched copy and says where it came from; written last."""
FILE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".txt", ".gz", ".zst")
_NAME = re.compile(
    r"(https?://huggingface\.co/datasets/)?"
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?(?P<parts>(:[^:/\s]+){0,2})"
)


class HubName(Struct, frozen=True):
    """A dataset on the Hugging Face Hub, as a person names it."""

    repository: str
    """``owner/name``."""
    revision: str | None = None
    """Branch, tag or commit."""
    parts: tuple[str, ...] = ()
    """A configuration and a split, or one of them."""


def hub_name(text: str) -> HubName | None:
    """What ``text`` names on the Hugging Face Hub; ``None`` for a path, and for one that nearly is one."""
    match = _NAME.fullmatch(text)
    path = Path(text)
    if match is None or path.exists() or path.parent.exists():
        return None
    repository: str = match["repository"]
    if Path(repository).suffix.lower() in FILE_ENDINGS:
        return None
    return HubName(repository, match["revision"], tuple(match["parts"].split(":")[1:]))


def is_hub_name(text: str) -> bool:
    """Whether ``text`` can only mean a dataset on the Hugging Face Hub."""
    return hub_name(text) is not None


def find_fetched(name: str) -> Fetched | None:
    """The copy of the dataset ``name`` on this machine, if it was fetched and its file is whole."""
    try:
        found = msgspec.json.decode((paths.dataset_cache(name) / RECORD).read_bytes(), type=Fetched)
        whole = Path(found.path).stat().st_size == found.bytes
    except (OSError, msgspec.DecodeError):
        return None
    return found if whole and found.name == name else None
