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


def locate(config: RunConfig, *, rows_in_memory: bool = False) -> RunConfig:
    """Make paths absolute: the engine and whoever looks at the run later may stand elsewhere.

    The name of a dataset on the Hugging Face Hub stays as it is: the engine fetches it. With ``rows_in_memory`` the
    data is no file yet, and is left alone.

    Raises:
        DatasetNotFoundError: the data file, or that of held-out rows, does not exist; the nearest name is suggested.
    """
    changes = {"output_dir": str(Path(config.output_dir).expanduser().absolute())}
    data = Path(config.data).expanduser().absolute()
    if not rows_in_memory and data.is_file():
        changes["data"] = str(data)
    elif not rows_in_memory and not is_hub_name(config.data):
        raise _no_data(data, "data")
    held_out = held_out_file(config.held_out)
    if held_out is not None:
        if not held_out.is_file():
            raise _no_data(held_out, "held_out")
        changes["held_out"] = str(held_out)
    model = Path(config.model).expanduser()
    if config.model not in MODEL_PRESETS and model.is_dir():
        changes["model"] = str(model.absolute())
    return msgspec.structs.replace(config, **changes)


def held_out_file(held_out: str) -> Path | None:
    """The file that the setting ``held_out`` names, absolute; ``None`` where it is a word or a number."""
    if held_out in ("auto", "none"):
        return None
    try:
        float(held_out)
    except ValueError:
        return Path(held_out).expanduser().absolute()
    return None


def is_hub_name(text: str) -> bool:
    """Whether ``text`` can only mean a dataset on the Hugging Face Hub: ``owner/name``, and no path that nearly is."""
    path = Path(text)
    return (
        _HUB_NAME.fullmatch(text) is not None
        and path.suffix.lower() not in _FILE_ENDINGS
        and not path.exists()
        and not path.parent.exists()
    )


def _no_data(data: Path, field: str) -> DatasetNotFoundError:
    details = {"path": str(data), "field": field}
    if data.is_dir():
        hint = "a dataset is a file: .jsonl, .json, .csv, .parquet or .txt"
        return DatasetNotFoundError(f"{data} is a directory", hint=hint, details=details)
    beside = [entry.name for entry in data.parent.iterdir() if entry.is_file()] if data.parent.is_dir() else []
    near = difflib.get_close_matches(data.name, beside, n=1)
    what = "dataset" if field == "data" else "file of held-out rows"
    hint = f"did you mean {data.parent / near[0]}?" if near else f"look at the path of the {what}"
    return DatasetNotFoundError(f"there is no {what} {data}", hint=hint, details=details)


def default_model(backend: str, gpu: bool) -> tuple[str, str]:
    """The model to take when none was named, and why.

    Args:
        gpu: whether a GPU can be used on this machine.
    """
    if gpu and backend != "cpu":
        return DEFAULT_MODEL, "the default on a GPU"
    return EMBEDDED_MODEL, "no GPU can be used here" if backend != "cpu" else "the CPU was asked for"
