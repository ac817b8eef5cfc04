"""Paths in a configuration, made absolute and looked at before an engine starts."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import msgspec

from backprop.core.errors import DatasetNotFoundError
from backprop.core.presets import MODEL_PRESETS
from backprop.core.settings import DEFAULT_MODEL, EMBEDDED_MODEL, RunConfig

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".txt", ".gz", ".zst")


def locate(config: RunConfig) -> RunConfig:
    """Make paths absolute: the engine and whoever looks at the run later may stand elsewhere.

    The name of a dataset on the Hugging Face Hub stays as it is: the engine fetches it.

    Raises:
        DatasetNotFoundError: the data file does not exist; the nearest name beside it is suggested.
    """
    data = Path(config.data).expanduser().absolute()
    if not data.is_file() and not is_hub_name(config.data):
        raise _no_data(data)
    changes = {
        "data": str(data) if data.is_file() else config.data,
        "output_dir": str(Path(config.output_dir).expanduser().absolute()),
    }
    model = Path(config.model).expanduser()
    if config.model not in MODEL_PRESETS and model.is_dir():
        changes["model"] = str(model.absolute())
    return msgspec.structs.replace(config, **changes)


def is_hub_name(text: str) -> bool:
    """Whether ``text`` can only mean a dataset on the Hugging Face Hub: ``owner/name``, and no path that nearly is."""
    path = Path(text)
    return (
        _HUB_NAME.fullmatch(text) is not None
        and path.suffix.lower() not in _FILE_ENDINGS
        and not path.exists()
        and not path.parent.exists()
    )


def _no_data(data: Path) -> DatasetNotFoundError:
    details = {"path": str(data), "field": "data"}
    if data.is_dir():
        hint = "a dataset is a file: .jsonl, .json, .csv, .parquet or .txt"
        return DatasetNotFoundError(f"{data} is a directory", hint=hint, details=details)
    beside = [entry.name for entry in data.parent.iterdir() if entry.is_file()] if data.parent.is_dir() else []
    near = difflib.get_close_matches(data.name, beside, n=1)
    hint = f"did you mean {data.parent / near[0]}?" if near else "look at the path of the data"
    return DatasetNotFoundError(f"there is no dataset {data}", hint=hint, details=details)


def default_model(backend: str, gpu: bool) -> tuple[str, str]:
    """The model to take when none was named, and why.

    Args:
        gpu: whether a GPU can be used on this machine.
    """
    if gpu and backend != "cpu":
        return DEFAULT_MODEL, "the default on a GPU"
    return EMBEDDED_MODEL, "no GPU can be used here" if backend != "cpu" else "the CPU was asked for"
