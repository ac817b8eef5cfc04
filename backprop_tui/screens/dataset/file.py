"""The dataset that is on screen: a file, or one of the Hugging Face Hub that was fetched."""

from __future__ import annotations

from pathlib import Path

from backprop.core.datasets import is_hub_name
from backprop.data.formats import FileFormat, file_format
from backprop.data.reader import Source, open_source
from msgspec import Struct

from backprop_tui.screens.dataset.tasks import Task


class OpenFile(Struct):
    """A dataset that is on screen."""

    path: str
    source: Source
    file: FileFormat
    """What its first rows are."""
    fetched: str = ""
    """The name on the Hugging Face Hub that it was fetched by."""

    @property
    def name(self) -> str:
        """What the person knows it by, in short."""
        return self.fetched or self.path.rpartition("/")[2]


def open_file(path: str, task: Task) -> OpenFile:
    """Open a file, or a dataset of the Hugging Face Hub (which is fetched), and look at its first rows.

    Raises:
        BackpropError: the file as a whole cannot be read, with what to do.
    """
    name = path if is_hub_name(path) else ""
    path = _fetched(name, task) if name else str(Path(path).expanduser())
    source = open_source(path, progress=task.progress, cancelled=task.stopped)
    return OpenFile(path, source, file_format(source), name)


def _fetched(name: str, task: Task) -> str:
    """The file of a dataset that is on the hub, from the cache or fetched by an engine process."""
    from backprop.runs.engine_jobs import EngineJob, fetch_dataset

    def started(engine: EngineJob) -> None:
        task.name = f"fetching {name}"
        task.when_stopped(engine.stop)

    return fetch_dataset(name, task.progress, started).path
