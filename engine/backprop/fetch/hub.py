"""Downloads from the Hugging Face Hub: progress while they go on, and its refusals as errors for a person."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from tqdm import tqdm

from backprop.core.errors import BackpropError

LOOK_SECONDS = 0.5
ReportBytes = Callable[[int, int], object]
"""Called with bytes fetched and their total, twice a second; what it raises ends the waiting."""


def download(
    repository: str, files: Sequence[RepoSibling], wanted: list[str], progress: ReportBytes, **options: Any
) -> Path:
    """Fetch the ``wanted`` files of a repository; the folder that they are in.

    Args:
        files: all files of the repository with their sizes.
        wanted: file names with ``*``, ``?`` and ``[`` as in a shell.
        options: of ``snapshot_download``: ``repo_type``, ``revision``, ``local_dir``, ``ignore_patterns``.
    """
    sizes = {file.rfilename: file.size or 0 for file in files}
    chosen = filter_repo_objects(sizes, allow_patterns=wanted, ignore_patterns=options.get("ignore_patterns"))
    total = sum(sizes[name] for name in chosen)
    counts: dict[int, int] = {}
    """Bytes by bar: those that came, and those that are files already, which is the same or lags behind."""

    class Bar(tqdm):  # type: ignore[misc]
        """Counts bytes in place of drawing them."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            self._in_bytes = settings.get("unit") == "B"
            settings.pop("name", None)
            super().__init__(*args, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._in_bytes:
                counts[id(self)] = counts.get(id(self), 0) + int(n or 0)

    folder: Future[str] = Future()

    def fetch() -> None:
        try:
            folder.set_result(snapshot_download(repository, allow_patterns=wanted, tqdm_class=Bar, **options))
        except BaseException as error:  # raised where it is waited for
            folder.set_exception(error)

    # A daemon: whoever wants out does not wait for the rest of a download.
    threading.Thread(target=fetch, name="download", daemon=True).start()
    while wait([folder], timeout=LOOK_SECONDS).not_done:
        progress(min(max(counts.values(), default=0), total), total)
    return Path(folder.result())


@contextmanager
def refusals(name: str, what: str, failed: Callable[[str, str, bool], BackpropError]) -> Iterator[None]:
    """Turn what the hub's client raises into an error that says why and what to do.

    Args:
        name: ``owner/name``.
        what: ``model`` or ``dataset``.
        failed: makes the error from why, a hint, and whether it is the name that is wrong.
    """
    page = f"https://huggingface.co/{'datasets/' if what == 'dataset' else ''}{name}"
    try:
        yield
    except GatedRepoError as error:
        why = "its owner asks people to agree to terms first"
        raise failed(why, f"agree to them at {page}, then set HF_TOKEN", False) from error
    except RevisionNotFoundError as error:
        raise failed("it has no such revision", f"its branches and tags are at {page}", True) from error
    except DisabledRepoError as error:
        raise failed("the hub has closed it", "take another one", False) from error
    except RepositoryNotFoundError as error:
        why = f"there is no {what} of that name on the Hugging Face Hub, or it is private"
        raise failed(why, "check the name; HF_TOKEN gives access to your own", True) from error
    except OfflineModeIsEnabled as error:
        why = "it is not on this machine, and HF_HUB_OFFLINE forbids to ask the hub"
        raise failed(why, "unset HF_HUB_OFFLINE once, with a network", False) from error
    except HfHubHTTPError as error:
        raise failed(_first_line(error), "try again: what was fetched so far is kept", False) from error
    except (HTTPError, LocalEntryNotFoundError, ConnectionError) as error:  # no connection, no name server, a timeout
        why = f"the hub cannot be reached ({_first_line(error)})"
        raise failed(why, "check the network, then try again: what was fetched so far is kept", False) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
