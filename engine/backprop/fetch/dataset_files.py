"""Which files of a dataset's repository are its training rows: the rules of the Hugging Face Hub, without its library.

A dataset's card may name configurations and the files of their splits. Otherwise the split is in the path
(``train-00000-of-00002.parquet``, ``data/test.jsonl``), and files without any split word are all for training.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from msgspec import Struct

from backprop.core.errors import DatasetError, DatasetFormatError, DatasetNotFoundError
from backprop.data.reader import KINDS, PACKED

_NO_DATA = re.compile(
    r"(dataset_infos?|dataset_dict|state|config|metadata)\.json|(licen[cs]e|requirements|readme)\.txt", re.IGNORECASE
)
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHOWN = 10


class Chosen(Struct, frozen=True):
    """Files to fetch, in order, and the split that they are."""

    split: str
    files: list[str]


def is_data(path: str) -> bool:
    """Whether a file of a repository holds rows, by its name."""
    name = PurePosixPath(path)
    suffixes = [suffix.lower() for suffix in name.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    hidden = any(part.startswith((".", "_")) for part in name.parts)
    return bool(suffixes) and suffixes[-1] in KINDS and not hidden and not _NO_DATA.fullmatch(name.name)


def choose(name: str, paths: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> Chosen:
    """The files of the training split.

    Args:
        name: ``owner/name``, for messages.
        paths: all files of the repository.
        configs: the card's ``configs``.

    Raises:
        DatasetFormatError: no file holds rows.
        DatasetError: several configurations or splits, and nothing says which; they are listed.
    """
    data = sorted(path for path in paths if is_data(path))
    if not data:
        raise DatasetFormatError(
            f"{name}: the dataset has no file of a known kind ({', '.join(KINDS)})",
            hint="fetch it with its own tools, and name a file",
            details={"name": name},
        )
    named = [config for config in configs if config.get("data_files") or config.get("data_dir")]
    if named:
        config = _only_config(name, named, data)
        splits = _named_splits(config, data)
    else:
        splits = _splits_by_path(data)
    return _training(name, splits)


def choose_converted(name: str, paths: Sequence[str]) -> Chosen:
    """The same for the hub's own copy in Parquet: ``configuration/split/0000.parquet``."""
    configs: dict[str, dict[str, list[str]]] = {}
    for path in sorted(path for path in paths if path.endswith(".parquet") and path.count("/") == 2):
        config, split, _ = path.split("/")
        configs.setdefault(config, {}).setdefault(split.removeprefix("partial-"), []).append(path)
    if not configs:
        return choose(name, [], [])
    chosen = "default" if "default" in configs else next(iter(configs))
    if len(configs) > 1 and chosen != "default":
        raise _several(name, list(configs), "")
    return _training(name, configs[chosen])


def _only_config(name: str, configs: list[Mapping[str, Any]], data: list[str]) -> Mapping[str, Any]:
    if len(configs) == 1:
        return configs[0]
    for config in configs:
        if config.get("default") or config.get("config_name") == "default":
            return config
    raise _several(name, [str(config.get("config_name")) for config in configs], data[0])


def _several(name: str, configs: list[str], example: str) -> DatasetError:
    more = f" and {len(configs) - _SHOWN} more" if len(configs) > _SHOWN else ""
    return DatasetError(
        f"{name} has several configurations: {', '.join(configs[:_SHOWN])}{more}",
        hint=f"fetch the file of the one that you want and name it: {_by_hand(name, example)}",
        code="DATASET_AMBIGUOUS",
        details={"name": name, "configurations": configs},
    )


def _by_hand(name: str, example: str) -> str:
    return f"hf download {name} {example or 'FILE'} --repo-type dataset --local-dir ."


def _named_splits(config: Mapping[str, Any], data: list[str]) -> dict[str, list[str]]:
    """Files of each split, as the card says."""
    files = config.get("data_files")
    folder = str(config.get("data_dir") or "").strip("/")
    if folder:
        data = [path for path in data if path.startswith(f"{folder}/")]
    if not files:
        return _splits_by_path(data)
    if isinstance(files, Mapping):
        files = [{"split": split, "path": path} for split, path in files.items()]
    elif isinstance(files, str) or all(isinstance(part, str) for part in files):
        files = [{"split": "train", "path": files}]
    splits: dict[str, list[str]] = {}
    for part in files:
        patterns = [part["path"]] if isinstance(part["path"], str) else part["path"]
        splits[str(part["split"])] = [path for path in data if any(_matches(path, each, folder) for each in patterns)]
    return splits


def _matches(path: str, pattern: str, folder: str) -> bool:
    wanted = pattern.removeprefix("./").replace("**/", "*")
    return fnmatch.fnmatchcase(path, wanted) or (bool(folder) and fnmatch.fnmatchcase(path, f"{folder}/{wanted}"))


def _splits_by_path(data: list[str]) -> dict[str, list[str]]:
    """Files of each split, as the words of their paths say."""
    splits: dict[str, list[str]] = {}
    for path in data:
        words = re.split(r"[^a-z]+", path.lower())
        split = next((split for split, names in _SPLITS.items() if set(words) & set(names)), None)
        if split is not None:
            splits.setdefault(split, []).append(path)
    return splits or {"train": data}


def _training(name: str, splits: Mapping[str, list[str]]) -> Chosen:
    filled = {split: files for split, files in splits.items() if files}
    if not filled:
        raise DatasetNotFoundError(
            f"{name}: the files that its card names are not there", hint="look at the dataset's page"
        )
    split = "train" if "train" in filled else next(iter(filled))
    if split != "train" and len(filled) > 1:
        raise DatasetError(
            f"{name} has no split for training, but these: {', '.join(filled)}",
            hint=f"fetch the file of the one that you want and name it: {_by_hand(name, filled[split][0])}",
            code="DATASET_AMBIGUOUS",
            details={"name": name, "splits": list(filled)},
        )
    # The same rows may lie there in two forms: the one of most files is meant.
    kinds = Counter(PurePosixPath(path).suffixes[0].lower() for path in filled[split])
    usual = kinds.most_common(1)[0][0]
    return Chosen(split, [path for path in filled[split] if PurePosixPath(path).suffixes[0].lower() == usual])
