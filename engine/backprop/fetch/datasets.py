"""Fetching a dataset that a person named from the Hugging Face Hub: ``python -P -m backprop.fetch.datasets DIR``.

The files of its training split are put together into one file in the cache, which is then opened like any other. A
copy that is there is used as it is: nobody is asked whether there is a newer one.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import msgspec

from backprop.core import paths
from backprop.core.errors import (
    DatasetDownloadError,
    DatasetFormatError,
    DatasetNotFoundError,
)
from backprop.core.events import Event, PhaseChanged
from backprop.core.jobs import Fetched, FetchRequest, Progress
from backprop.data.fetched import RECORD, find_fetched
from backprop.data.reader import open_source
from backprop.data.writing import line_of, whole_file
from backprop.fetch.dataset_files import Chosen, choose, choose_converted
from backprop.worker.job import Send, run_job

LOOK_SECONDS = 0.5
CONVERTED = "refs/convert/parquet"
"""Where the hub keeps its own copy of a dataset, in Parquet."""
Look = Callable[[int, int], object]


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


def fetch(name: str, progress: Look) -> Fetched:
    """The dataset ``owner/name`` as one file in the cache, downloaded where it is missing.

    Raises:
        DatasetNotFoundError: there is no such dataset, or it is private.
        DatasetDownloadError: gated, offline or broken off; what was fetched is kept for the next try.
        DatasetFormatError: it has no file of a known kind.
        DatasetError: several configurations, and nothing says which.
    """
    found = find_fetched(name)
    if found is not None:
        return found
    from huggingface_hub.utils import WeakFileLock

    folder = paths.dataset_cache(name)
    folder.mkdir(parents=True, exist_ok=True)
    with _said_in_words(name), WeakFileLock(folder / "lock"):
        # Another process may have fetched it while this one waited.
        return find_fetched(name) or _download(name, folder, progress)


def _download(name: str, folder: Path, progress: Look) -> Fetched:
    progress(0, 0)
    revision, chosen, total = _look_up(name)
    parts = folder / "download"
    files: Future[list[Path]] = Future()
    # A daemon: whoever wants out does not wait for the rest of a download.
    work = threading.Thread(
        target=_get, args=(name, revision, chosen.files, parts, files), name="download", daemon=True
    )
    work.start()
    while wait([files], timeout=LOOK_SECONDS).not_done:
        progress(min(_bytes_in(parts), total), total)
    target = _put_together(folder, chosen, files.result())
    record = Fetched(
        name=name,
        path=str(target),
        revision=revision,
        split=chosen.split,
        files=len(chosen.files),
        bytes=target.stat().st_size,
    )
    with whole_file(folder / RECORD) as file:
        file.write(msgspec.json.encode(record))
    shutil.rmtree(parts, ignore_errors=True)
    return record


def _look_up(name: str) -> tuple[str, Chosen, int]:
    """The commit, the files of the training split, and their size in bytes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    info = HfApi().dataset_info(name, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    try:
        chosen = choose(name, list(sizes), _configs(info.card_data))
    except DatasetFormatError:
        # Rows in a form of their own, behind a script: the hub has them in Parquet, for most public datasets.
        try:
            info = HfApi().dataset_info(name, revision=CONVERTED, files_metadata=True)
        except RevisionNotFoundError:
            info = None
        if info is None:
            raise
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        chosen = choose_converted(name, list(sizes))
    return info.sha, chosen, sum(sizes[path] for path in chosen.files)


def _configs(card: Any) -> list[Mapping[str, Any]]:
    configs = card.get("configs") if card is not None else None
    return [config for config in configs or [] if isinstance(config, Mapping)]


def _get(name: str, revision: str, files: list[str], folder: Path, result: Future[list[Path]]) -> None:
    from huggingface_hub import hf_hub_download

    try:
        result.set_result(
            [
                Path(hf_hub_download(name, file, repo_type="dataset", revision=revision, local_dir=folder))
                for file in files
            ]
        )
    except BaseException as error:  # raised where it is waited for
        result.set_exception(error)


def _bytes_in(folder: Path) -> int:
    """Of the dataset's files, whole or unfinished; what the hub's client notes beside them is not counted."""
    total = 0
    for path in folder.rglob("*"):
        noted = ".cache" in path.relative_to(folder).parts and path.suffix != ".incomplete"
        with contextlib.suppress(FileNotFoundError):  # an unfinished file was renamed meanwhile
            total += path.stat().st_size if path.is_file() and not noted else 0
    return total


def _put_together(folder: Path, chosen: Chosen, files: list[Path]) -> Path:
    """One file of all: moved as it is, Parquet joined where the columns agree, else JSON Lines of all rows."""
    if len(files) == 1:
        target = folder / files[0].name
        files[0].replace(target)
        return target
    if all(file.suffix.lower() == ".parquet" for file in files) and _same_columns(files):
        target = folder / f"{chosen.split}.parquet"
        _join_parquet(files, target)
        return target
    target = folder / f"{chosen.split}.jsonl"
    with whole_file(target) as out:
        for file in files:
            with open_source(file) as source:
                for row in source:
                    out.write(line_of(row, source.kind) if row.error is None else row.raw.replace(b"\n", b" ") + b"\n")
    return target


def _same_columns(files: list[Path]) -> bool:
    from pyarrow import parquet

    first, *others = (parquet.read_schema(file).remove_metadata() for file in files)
    return all(schema.equals(first) for schema in others)


def _join_parquet(files: list[Path], target: Path) -> None:
    from pyarrow import parquet

    with (
        whole_file(target) as out,
        parquet.ParquetWriter(out, parquet.read_schema(files[0]).remove_metadata()) as writer,
    ):
        for file in files:
            source = parquet.ParquetFile(file)
            for number in range(source.num_row_groups):
                writer.write_table(source.read_row_group(number).replace_schema_metadata(None))


@contextlib.contextmanager
def _said_in_words(name: str) -> Iterator[None]:
    """The hub's refusals as errors for a person."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise _failed(
            name,
            "its owner asks people to agree to terms first",
            f"agree at https://huggingface.co/datasets/{name}, then set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise DatasetNotFoundError(
            f"there is no file {name}, and no dataset of that name on the Hugging Face Hub (or it is private)",
            hint="check the name; HF_TOKEN gives access to your own",
            details={"name": name},
        ) from error
    except DisabledRepoError as error:
        raise _failed(name, "the hub has closed the dataset", "take another one") from error
    except OfflineModeIsEnabled as error:
        words = "it is not on this machine, and HF_HUB_OFFLINE forbids to ask the hub"
        raise _failed(name, words, "unset HF_HUB_OFFLINE, or name a file") from error
    except HfHubHTTPError as error:
        raise _failed(name, str(error).splitlines()[0], "try again: what was fetched so far is kept") from error
    except (HTTPError, LocalEntryNotFoundError) as error:  # no connection, no name server, a timeout
        words = f"the hub cannot be reached ({str(error).splitlines()[0]})"
        raise _failed(name, words, "check the network, then try again: what was fetched so far is kept") from error


def _failed(name: str, why: str, hint: str) -> DatasetDownloadError:
    return DatasetDownloadError(f"{name} could not be fetched: {why}", hint=hint, details={"name": name})


def answer(request: FetchRequest, say: Send) -> None:
    """Fetch what is asked for, and say how far it is."""
    doing = f"fetching {request.name}"
    say(fetch(request.name, lambda done, total: say(Progress(doing=doing, done=done, total=total))))


if __name__ == "__main__":
    run_job(FetchRequest, answer)
