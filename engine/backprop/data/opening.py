"""What is wrong with a file as a whole, said before any of its rows is read."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

from backprop.core.datasets import is_hub_name
from backprop.core.errors import BackpropError, DatasetError, DatasetNotFoundError, DatasetParseError
from backprop.data.parse import parse_json

Kind = Literal["jsonl", "json", "csv", "parquet", "txt"]
KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "txt",
}


def is_json_lines(head: bytes) -> bool:
    """Whether a ``.json`` file holds one object a line, as many such files do."""
    lines = [line for line in head.split(b"\n", 64) if line.strip()][:2]
    return len(lines) == 2 and lines[0].lstrip().startswith(b"{") and parse_json(lines[0])[1] is None


def refuse_array(path: Path, head: bytes, *, whole: bool) -> None:
    """Stop for JSON of another layout under the name ``.jsonl``: every line would be broken."""
    lines = [line.strip() for line in head.split(b"\n") if line.strip()]
    first = lines[0] if lines else b""
    what = ""
    if first.startswith(b"["):
        value, error = parse_json(first)
        lists_of_rows = isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
        torn = first == b"[" or (error is not None and first[1:].lstrip()[:1] == b"{")
        if torn or (lists_of_rows and len(lines) == 1 and whole):
            what = "one JSON array"
    elif first == b"{":
        what = "one JSON object written over many lines"
    if what:
        raise DatasetParseError(
            f"{path}: line 1: the file holds {what}, but .jsonl means one object in each line",
            hint=f"rename to .json: {path.with_suffix('.json').name}",
            details={"path": str(path), "line": 1},
        )


def check_exists(path: Path, name: str) -> None:
    if path.is_file():
        return
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if set(file.suffixes) & set(KINDS))[:5]
        raise DatasetNotFoundError(
            f"{path} is a directory, not a dataset file",
            hint=f"name one file in it, such as {', '.join(files)}" if files else "name a file",
            details={"path": name},
        )
    if path.exists():
        raise DatasetNotFoundError(
            f"{path} is a pipe or a device, not a file",
            hint="it would have to be read twice: write it into a file first",
            details={"path": name},
        )
    if is_hub_name(name):
        raise DatasetNotFoundError(
            f"no file {name}, and a dataset of that name on the Hugging Face Hub was not fetched yet",
            hint=f"check the path; `backprop validate {name}` fetches the dataset, which needs the network",
            details={"path": name, "hub_name": name},
        )
    near = _similar(path)
    raise DatasetNotFoundError(
        f"no file {path}" + (f" in {Path.cwd()}" if not path.is_absolute() else ""),
        hint=f"did you mean {near}?" if near else "check the path and the spelling",
        details={"path": name},
    )


def _similar(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.iterdir() if file.is_file()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return str(path.parent / close[0]) if close else ""


def unreadable(path: Path, error: OSError) -> BackpropError:
    return DatasetNotFoundError(
        f"{path} cannot be read: {error.strerror or error}",
        hint="check who may read it",
        details={"path": str(path)},
    )


def empty(path: Path) -> DatasetError:
    return DatasetError(
        f"{path}: dataset is empty", hint="write at least one row", code="DATASET_EMPTY", details={"path": str(path)}
    )
