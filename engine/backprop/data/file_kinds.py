"""What a dataset file holds: by its name, and by its first bytes where they say otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

from backprop.core.errors import DatasetFormatError, DatasetParseError
from backprop.data.parse import BOM, Found, Note, parse_text
from backprop.data.read_arrow import read_arrow, read_parquet
from backprop.data.read_csv import read_csv
from backprop.data.read_json import read_json

Kind = Literal["jsonl", "json", "csv", "parquet", "arrow", "txt", "shards"]
"""``shards``: several files that are read as one."""
KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "txt",
}
PACKED = (".gz", ".zst")
_PACKED_BY = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_KIND_BY: dict[bytes, Kind] = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
_REFUSED = {
    b"version https://git-lfs": ("a Git LFS pointer in place of the data", "fetch the data with: git lfs pull"),
    b"<!doctype html": ("a web page", "fetch the file itself, not the page that shows it"),
    b"<html": ("a web page", "fetch the file itself, not the page that shows it"),
    b"pk\x03\x04": ("a zip archive or a spreadsheet", "unpack it; save a spreadsheet as CSV"),
    b"\xd0\xcf\x11\xe0": ("a spreadsheet or another Office file", "save it as CSV"),
    b"bzh": ("packed with bzip2", "unpack it with: bunzip2"),
    b"\xfd7zxz": ("packed with xz", "unpack it with: unxz"),
}
"""First bytes, in lower case → what such a file is, and what to do."""


def packing(path: Path) -> str:
    """How a file is packed: its ending, or what its first bytes say; empty where it is not."""
    if path.suffix.lower() in PACKED:
        return path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(4)
    return next((ending for mark, ending in _PACKED_BY.items() if head.startswith(mark)), "")


def held_kind(path: Path, head: bytes) -> tuple[Kind, list[str]]:
    """What a file that begins with ``head``, unpacked, holds, and where its name says otherwise.

    Raises:
        DatasetFormatError: the ending is none of the known ones.
        DatasetParseError: something that has no rows.
    """
    endings = [suffix.lower() for suffix in path.suffixes]
    packed = packing(path)
    is_said = endings[-1:] == [packed]
    ending = "".join(endings[-2:-1] if is_said else endings[-1:])
    start = head.removeprefix(BOM).lstrip()[:32].lower()
    for mark, (what, hint) in _REFUSED.items():
        if start.startswith(mark) and not (ending == ".txt" and mark.startswith(b"<")):
            raise DatasetParseError(f"{path} holds no rows: it is {what}", hint=hint, details={"path": str(path)})
    if ending not in KINDS:
        raise DatasetFormatError(
            f"{path}: the ending {ending or 'of the name'} is not one of {', '.join(KINDS)} (each also .gz or .zst)",
            hint="rename the file to say what it holds",
            details={"path": str(path)},
        )
    kind = next((held for mark, held in _KIND_BY.items() if head.startswith(mark)), KINDS[ending])
    notes = [f"the file is packed as {packed}, whatever its name says"] if packed and not is_said else []
    return kind, notes if kind == KINDS[ending] else [*notes, f"the file is {kind}, whatever its name says"]


def _read_txt(path: Path, source: IO[bytes], note: Note) -> Iterator[Found]:
    offset = 0
    for number, line in enumerate(source, 1):
        raw = line.rstrip(b"\n").removesuffix(b"\r")
        if raw.removeprefix(BOM).strip():
            yield number, raw, *parse_text(raw, offset)
        offset += len(line)


READERS: dict[Kind, Callable[[Path, IO[bytes], Note], Iterator[Found]]] = {
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "txt": _read_txt,
}
