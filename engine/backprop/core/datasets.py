"""How a person names a dataset: a path, or a name of the Hugging Face Hub; the hub's copies that are on this machine;
and what was opened last.

A hub name is ``owner/name``, then what is wanted of it: ``@revision``, ``:configuration``, ``:split`` or
``:configuration:split``. The address of its page may stand before it. Nothing in here opens a socket.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import glob
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from backprop.core import files, paths
from backprop.core.errors import DatasetError, DatasetNotFoundError, some
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
RECENT = "recent-datasets.json"
"""In the user's data directory: the list of paths and names opened last."""
_MOST_RECENT = 20
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
    if match is None or _exists(Path(text)) or _exists(Path(text).parent):
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
        raise DatasetError(
            f"{path} holds files that are not parts of one dataset: {some([file.name for file in files], _SHOWN)}",
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
    if path.is_symlink():
        if _in_circle(path):
            hint = "name the file itself"
            return DatasetNotFoundError(f"{path} is a link that leads back to itself", hint=hint, details=details)
        hint = "put that back, or link to where it is now"
        return DatasetNotFoundError(f"{path} is a link to {path.readlink()}, which is gone", hint=hint, details=details)
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        beside = []
    near = difflib.get_close_matches(path.name, beside, n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else "check the path and the spelling"
    return DatasetNotFoundError(f"no {what} {path}", hint=hint, details=details)


def _in_circle(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def empty(path: Path) -> DatasetError:
    """The error for a dataset without a row."""
    details = {"path": str(path)}
    return DatasetError(
        f"{path}: dataset is empty", hint="write at least one row", code="DATASET_EMPTY", details=details
    )


def _fitting(pattern: Path) -> Iterable[Path]:
    if not glob.has_magic(os.fspath(pattern)) or _exists(pattern):
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


def unquoted(text: str) -> str:
    """The path in ``text`` without the quotes or backslashes that a shell, or a file dropped on a terminal, needs."""
    if not set(text) & set("'\"\\") or _exists(Path(text)):
        return text
    try:
        words = shlex.split(text)
    except ValueError:
        return text
    return words[0] if len(words) == 1 else text


def recent_datasets() -> list[str]:
    """Absolute paths and hub names of the datasets opened last, the latest first, without files that are gone."""
    try:
        names = files.read_json(paths.data_dir() / RECENT, list[str])
    except (OSError, ValueError):
        return []
    return [name for name in names if is_hub_name(name) or _exists(Path(name)) or any(_fitting(Path(name)))]


def remember_dataset(name: str) -> None:
    """Put a path (absolute) or a hub name first in the list; one that cannot be written is not remembered."""
    with contextlib.suppress(OSError, UnicodeEncodeError):
        names = [name, *(other for other in recent_datasets() if other != name)]
        paths.data_dir().mkdir(parents=True, exist_ok=True)
        files.write_file(paths.data_dir() / RECENT, msgspec.json.encode(names[:_MOST_RECENT]))


def _exists(path: Path) -> bool:
    """Whether something is there; nothing can be under a name longer than a file system takes."""
    try:
        return path.exists()
    except OSError:
        return False
