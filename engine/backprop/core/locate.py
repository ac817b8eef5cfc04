"""Where the files are that settings name: paths made absolute, and what is not there said before anything starts."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

import msgspec

from backprop.core.architecture import blocks
from backprop.core.datasets import data_files, is_hub_name, missing
from backprop.core.errors import DatasetNotFoundError, InputError, InvalidSettingError, ModelLoadError
from backprop.core.models import find_architecture
from backprop.core.paths import expand
from backprop.core.presets import MODEL_PRESETS
from backprop.core.rules import require_layers
from backprop.core.settings import RunConfig, shown


def locate(config: RunConfig, *, rows_in_memory: bool = False) -> RunConfig:
    """Make the paths of a configuration absolute: the engine and whoever looks at the run may stand elsewhere.

    The name of a dataset on the Hugging Face Hub stays as it is: the engine fetches it. With ``rows_in_memory`` the
    data is no file yet, and is left alone.

    Raises:
        DatasetNotFoundError: the data file, or that of held-out rows, does not exist; the nearest name is suggested.
        InvalidSettingError: the model is known to lack a layer that is to have an adapter.
    """
    _require_layers(config)
    changes = {"output_dir": str(_expand("output_dir", config.output_dir)), "model": locate_model(config.model)}
    if not rows_in_memory:
        data = _expand("data", config.data)
        if _is_there(data):
            changes["data"] = str(data)
        elif not is_hub_name(config.data):
            raise _no_data(data, "data")
    held_out = held_out_file(config.held_out)
    if held_out is not None:
        if not _is_there(held_out):
            raise _no_data(held_out, "held_out")
        changes["held_out"] = str(held_out)
    return msgspec.structs.replace(config, **changes)


def locate_model(name: str) -> str:
    """The absolute path of a model's folder; a preset, or a name on the Hugging Face Hub, as it is.

    Raises:
        InputError: the path begins in the home directory of somebody unknown.
    """
    if name in MODEL_PRESETS:
        return name
    folder = _expand("model", name)
    return str(folder) if folder.is_dir() else name


def held_out_file(held_out: str) -> Path | None:
    """The file that the setting ``held_out`` names, absolute; ``None`` where it is a word or a share.

    Raises:
        InvalidSettingError: it is a number and no share.
        InputError: the path begins in the home directory of somebody unknown.
    """
    if held_out in ("auto", "none"):
        return None
    try:
        share = float(held_out)
    except ValueError:
        return _expand("held_out", held_out)
    if 0 < share < 1:
        return None
    raise InvalidSettingError(
        f"held_out: {held_out!r} is no share between 0 and 1, and no file",
        hint="auto, none, a share such as 0.05, or a dataset file",
        details={"field": "held_out"},
    )


def _require_layers(config: RunConfig) -> None:
    """Refuse names of layers that the model lacks, where its architecture says without its weights which it has."""
    if config.mode == "full" or not config.target_modules:
        return
    with suppress(ModelLoadError):  # said where the model is looked for
        model = find_architecture(config.model)
        if model.is_known and not model.others:
            parts = [layer for _, *both in blocks(model) for part in both for layer in part]
            require_layers(config, {layer.kind for layer in parts})


def _expand(setting: str, text: str) -> Path:
    details = {"field": setting}
    try:
        path = expand(text)
        if setting != "output_dir":  # which is refused when a run is made in it
            path.stat()
    except InputError as error:
        raise InputError(f"{setting}: {error.message}", hint=error.hint, details=details) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            why = f"a name is longer than the file system allows: {shown(text)}"
            raise InputError(f"{setting}: {why}", hint="shorten it", details=details) from None
    return path


def _is_there(path: Path) -> bool:
    try:
        return bool(data_files(path))
    except OSError:  # a name that no file can have
        return False


def _no_data(path: Path, field: str) -> DatasetNotFoundError:
    error = missing(path, "file" if field == "data" else "file of held-out rows")
    error.details["field"] = field
    return error
