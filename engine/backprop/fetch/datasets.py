"""Fetching a dataset that a person named from the Hugging Face Hub: ``python -P -m backprop.fetch.datasets DIR``.

Which files of a repository are the rows of a configuration and split is what the library ``datasets`` says. They are
put together into one file in the cache, which is then opened like any other, so that every row is seen as it was
written, broken ones too. A copy that is there is used as it is: nobody is asked whether there is a newer one.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import msgspec
from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.hf_api import DatasetInfo

from backprop.core import paths
from backprop.core.datasets import RECORD, HubName, find_fetched, hub_name
from backprop.core.errors import DatasetDownloadError, DatasetError, DatasetFormatError, DatasetNotFoundError, some
from backprop.core.events import Event, PhaseChanged
from backprop.core.files import exclusive, new_file, write_file
from backprop.core.jobs import Fetched, FetchRequest, JobProgress
from backprop.data.examples import line_of
from backprop.data.reader import KINDS, PACKED, open_source
from backprop.fetch import hub
from backprop.worker.job import Send, run_job

CONVERTED = "refs/convert/parquet"
"""Where the hub keeps its own copy of a dataset, in Parquet: ``configuration/split/0000.parquet``."""
_LOOK_ROWS = 10_000
"""Rows that are put together between two looks whether somebody wants to stop."""
_SHOWN = 10


def find(data: str, emit: Callable[[Event], None], look: Callable[[], object]) -> str:
    """The file that a run's ``data`` means: itself, or the fetched copy of a dataset on the hub.

    Args:
        look: called twice a second; what it raises ends the fetching.

    Raises:
        DatasetError: as ``fetch``.
    """
    if Path(data).is_absolute() or Path(data).is_file():
        return data

    def progress(done: int, total: int) -> None:
        look()
        share = f" {100 * done // total} %" if total else ""
        emit(PhaseChanged(phase="preparing_data", detail=f"fetching {data}{share}"))

    return fetch(data, progress).path


def fetch(name: str, progress: hub.ReportBytes) -> Fetched:
    """The dataset ``name`` (see ``core.datasets``) as one file in the cache, downloaded where it is missing.

    Raises:
        DatasetNotFoundError: there is no such dataset, revision, configuration or split, or it is private.
        DatasetDownloadError: gated, offline or broken off; what was fetched is kept for the next try.
        DatasetFormatError: it has no file of a known kind.
        DatasetError: several configurations or splits, and nothing says which.
    """
    wanted = hub_name(name)
    if wanted is None:
        raise DatasetNotFoundError(f"{name} is neither a file nor a name on the Hugging Face Hub")

    def failed(why: str, hint: str, unknown: bool) -> DatasetError:
        details = {"name": name}
        if unknown:
            message = f"there is no file {name}, and it could not be fetched: {why}"
            return DatasetNotFoundError(message, hint=hint, details=details)
        return DatasetDownloadError(f"{name} could not be fetched: {why}", hint=hint, details=details)

    folder = paths.dataset_cache(name)
    folder.mkdir(parents=True, exist_ok=True)
    with hub.refusals(wanted.repository, "dataset", failed), exclusive(folder / "lock"):
        # Another process may have fetched it while this one waited.
        return find_fetched(name) or _download(name, wanted, folder, progress)


def _download(name: str, wanted: HubName, folder: Path, progress: hub.ReportBytes) -> Fetched:
    progress(0, 0)
    info, split, files = _look_up(name, wanted)
    parts = folder / "download"
    hub.download(
        wanted.repository,
        info.siblings or [],
        [glob.escape(file) for file in files],
        progress,
        repo_type="dataset",
        revision=info.sha,
        local_dir=parts,
    )
    target = _put_together(folder, split, [parts / file for file in files], progress)
    record = Fetched(
        name=name, path=str(target), revision=str(info.sha), split=split, files=len(files), bytes=target.stat().st_size
    )
    write_file(folder / RECORD, msgspec.json.encode(record))
    shutil.rmtree(parts, ignore_errors=True)
    return record


def _look_up(name: str, wanted: HubName) -> tuple[DatasetInfo, str, list[str]]:
    """The commit with all its files, the split that is meant, and the split's files."""
    api = HfApi()
    info = api.dataset_info(wanted.repository, revision=wanted.revision, files_metadata=True)
    try:
        split, files = _listed(name, wanted, str(info.sha))
    except DatasetFormatError:
        # Rows in a form of their own, or behind a script: the hub has them in Parquet, for most public datasets.
        with suppress(RevisionNotFoundError):
            info = api.dataset_info(wanted.repository, revision=CONVERTED, files_metadata=True)
            return info, *_converted(name, wanted, [file.rfilename for file in info.siblings or []])
        raise
    return info, split, files


def _listed(name: str, wanted: HubName, commit: str) -> tuple[str, list[str]]:
    """The split that is meant and its files, by the dataset's card and the hub's rules for names of files."""
    from datasets import get_dataset_config_names, get_dataset_default_config_name, load_dataset_builder
    from datasets.exceptions import DatasetsError

    repository = wanted.repository
    try:
        configurations = get_dataset_config_names(repository, revision=commit)
        default = get_dataset_default_config_name(repository, revision=commit)
        chosen, split = _configuration(name, wanted.parts, configurations, default)
        with TemporaryDirectory() as unused:
            builder = load_dataset_builder(repository, chosen, revision=commit, cache_dir=unused)
    except (ValueError, RuntimeError, FileNotFoundError, DatasetsError) as error:
        raise _no_rows(name, str(error)) from error
    start = f"hf://datasets/{repository}@{commit}/"
    found: Mapping[str, list[str]] = builder.config.data_files or {}
    splits = {str(key): [file.removeprefix(start) for file in files] for key, files in found.items()}
    return _split(name, split, splits)


def _converted(name: str, wanted: HubName, files: list[str]) -> tuple[str, list[str]]:
    """The split that is meant and its files, in the hub's own copy."""
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(file for file in files if file.endswith(".parquet") and file.count("/") == 2):
        configuration, split, _ = file.split("/")
        found.setdefault(configuration, {}).setdefault(split.removeprefix("partial-"), []).append(file)
    default = "default" if "default" in found else next(iter(found)) if len(found) == 1 else None
    chosen, asked = _configuration(name, wanted.parts, list(found), default)
    return _split(name, asked, found[chosen])


def _configuration(
    name: str, parts: Sequence[str], configurations: Sequence[str], default: str | None
) -> tuple[str, str | None]:
    """The configuration that is meant, and the split where one was named. A single part may be either."""
    if parts and parts[0] in configurations:
        return parts[0], parts[1] if len(parts) == 2 else None
    if len(parts) == 2:
        raise DatasetNotFoundError(
            f"{name}: there is no configuration {parts[0]!r}, but these: {some(configurations, _SHOWN)}",
            hint="name one",
        )
    if default is None:
        raise _several(name, "configurations", configurations)
    return default, parts[0] if parts else None


def _split(name: str, asked: str | None, splits: Mapping[str, list[str]]) -> tuple[str, list[str]]:
    """The split that is meant and its files: the one that was named, the one for training, or the only one."""
    readable = {split: [file for file in files if _is_readable(file)] for split, files in splits.items()}
    filled = {split: files for split, files in readable.items() if files}
    if not filled:
        raise _no_rows(name, f"it holds nothing that ends in {', '.join(KINDS)}")
    chosen = asked or ("train" if "train" in filled or len(filled) > 1 else next(iter(filled)))
    if chosen in filled:
        return chosen, filled[chosen]
    if asked is None:
        raise _several(name, "splits and none for training", list(filled))
    raise DatasetNotFoundError(f"{name}: there is no split {asked!r}, but these: {some(list(filled), _SHOWN)}")


def _is_readable(file: str) -> bool:
    endings = [ending.lower() for ending in PurePosixPath(file).suffixes]
    if endings and endings[-1] in PACKED:
        endings.pop()
    return "::" not in file and bool(endings) and endings[-1] in KINDS


def _several(name: str, what: str, names: Sequence[str]) -> DatasetError:
    return DatasetError(
        f"{name} has several {what}: {some(names, _SHOWN)}",
        hint=f"say which: {name}:{names[0]}",
        code="DATASET_AMBIGUOUS",
        details={"name": name, "choices": list(names)},
    )


def _no_rows(name: str, why: str) -> DatasetFormatError:
    return DatasetFormatError(
        f"{name}: the dataset has no file of a known kind: {why}",
        hint="fetch it with its own tools, and name a file",
        details={"name": name},
    )


def _put_together(folder: Path, split: str, files: list[Path], progress: hub.ReportBytes) -> Path:
    """One file of all: moved as it is where there is only one, else JSON Lines of all rows."""
    if len(files) == 1:
        target = folder / files[0].name
        files[0].replace(target)
        return target
    target = folder / f"{split}.jsonl"
    with new_file(target) as out:
        for number, file in enumerate(files):
            with open_source(file) as source:
                for count, row in enumerate(source):
                    if count % _LOOK_ROWS == 0:
                        progress(number, len(files))
                    out.write(line_of(row) if row.error is None else row.raw.replace(b"\n", b" ") + b"\n")
    return target


def answer(request: FetchRequest, send: Send) -> None:
    """Fetch what is asked for, and send how far it is."""
    doing = f"fetching {request.name}"
    send(fetch(request.name, lambda done, total: send(JobProgress(doing=doing, done=done, total=total))))


if __name__ == "__main__":
    run_job(FetchRequest, answer)
