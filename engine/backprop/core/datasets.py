"""Names of datasets on the Hugging Face Hub, and the copies of them that are on this machine.

A name is ``owner/name``, then what is wanted of it: ``@revision``, ``:configuration``, ``:split`` or
``:configuration:split``. Nothing in here opens a socket.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from backprop.core import paths
from backprop.core.errors import DatasetError, DatasetNotFoundError
from backprop.core.jobs import Fetched

RECORD = "dataset.json"
"""Lies beside a fetched copy and says where it came from; written last."""
FILE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst")
_BESIDE = (".", "dataset_info.json", "state.json", "dataset_dict.json")
"""How files in a folder begin that are no rows: hidden ones, and what the library ``datasets`` writes beside them."""
_SHOWN = 5
_NUMBER = re.compile(r"(\d+)")
_PART = re.compile(r"-[0-9a-f]{16}(?=\.)|\d+")
"""What tells the name of one part from that of another: its number, and its hash in older files of the hub."""
_NAME = re.compile(
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


def data_files(path: Path) -> list[Path]:
    """The files that a person names by ``path``: itself, the parts of one dataset in a folder, or those that a pattern
    with ``*`` fits, in the order of the numbers in their names. None: there is no such file.

    Raises:
        DatasetError: the files of a folder are not parts of one (``DATASET_AMBIGUOUS``).
    """
    if path.is_file():
        return [path]
    is_folder = path.is_dir()
    found = path.iterdir() if is_folder else _fitting(path)
    names = [file for file in found if file.suffix.lower() in FILE_ENDINGS and not file.name.startswith(_BESIDE)]
    files = sorted((file for file in names if file.is_file()), key=lambda file: _by_number(file.name))
    if is_folder and len({_PART.sub("0", file.name) for file in files}) > 1:
        shown = [file.name for file in files[:_SHOWN]]
        more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        raise DatasetError(
            f"{path} holds files that are not parts of one dataset: {', '.join(shown)}{more}",
            hint=f"name one of them, or several with a pattern: '{path}/*{files[0].suffix}'",
            code="DATASET_AMBIGUOUS",
            details={"path": str(path), "choices": shown},
        )
    return files


def missing(path: Path, what: str = "file") -> DatasetNotFoundError:
    """The error for a ``path`` that has no ``data_files``; it suggests the nearest name."""
    details = {"path": str(path)}
    if path.is_dir():
        hint = f"the rows are in files that end in {', '.join(FILE_ENDINGS)}"
        return DatasetNotFoundError(f"{path} is a directory without a dataset file", hint=hint, details=details)
    if path.exists():
        hint = "it would have to be read twice: write it into a file first"
        return DatasetNotFoundError(f"{path} is a pipe or a device, not a file", hint=hint, details=details)
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        beside = []
    near = difflib.get_close_matches(path.name, beside, n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else "check the path and the spelling"
    return DatasetNotFoundError(f"no {what} {path}", hint=hint, details=details)


def _fitting(pattern: Path) -> Iterable[Path]:
    if pattern.exists() or not glob.has_magic(os.fspath(pattern)):
        return []
    return Path(pattern.anchor or ".").glob(os.fspath(pattern.relative_to(pattern.anchor)))


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBER.split(name)]


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
