"""The dataset that is on screen: a file, or one of the Hugging Face Hub that was fetched."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

from backprop.core.datasets import is_hub_name, recent_datasets, remember_dataset, unquoted
from backprop.core.paths import expand
from backprop.data.example import RowError, describe_mapping
from backprop.data.formats import FileFormat, file_format
from backprop.data.reader import KINDS, PACKED, Source, open_source
from backprop.data.reader import Row as DataRow
from backprop.runs.engine_jobs import fetch_dataset
from msgspec import Struct, field

from backprop_tui.screens.tasks import Task
from backprop_tui.text import rows_of, safe, short_number
from backprop_tui.widgets.path_input import candidates

ENDINGS = tuple(f"{kind}{packed}" for kind in KINDS for packed in ("", *PACKED))


class OpenFile(Struct, eq=False):
    """A dataset that is on screen."""

    path: str
    source: Source
    file: FileFormat
    """What its first rows are."""
    fetched: str = ""
    """The name on the Hugging Face Hub that it was fetched by."""
    reads: int = 0
    """Rows read one by one so far."""
    _lock: Any = field(default_factory=Lock)

    def row(self, index: int) -> DataRow:
        """Row ``index`` of the file, for any thread; one that is gone has an error that says so."""
        with self._lock:
            self.reads += 1
            try:
                return self.source.row(index)
            except (IndexError, OSError):
                gone = "the row is no longer there: the file was changed while it is open here. Open it again"
                return DataRow(index + 1, b"", None, RowError("file_changed", "", gone))

    def close(self) -> None:
        with self._lock:
            self.source.close()

    @property
    def name(self) -> str:
        """What the person knows it by, in short."""
        return self.fetched or self.path.rpartition("/")[2]

    def words(self, shown: list[str]) -> str:
        """Name, format, size, with ``shown`` for what is shown of it where that is not all."""
        source, file = self.source, self.file
        format = f"mixed: {', '.join(file.counts)}" if file.mixed else file.format or "unknown format"
        rows = f"{'' if source.complete else '> '}{rows_of(source.known)}"
        words = [safe(self.name), *shown, format, rows, f"{short_number(source.size)}B"]
        return " · ".join([*words, f"read as {describe_mapping(file.mapping)}"] if file.mapping else words)


def open_file(path: str, task: Task[OpenFile]) -> OpenFile:
    """Open a file, or a dataset of the Hugging Face Hub (which is fetched), and look at its first rows.

    Raises:
        BackpropError: the file as a whole cannot be read, with what to do.
    """
    path = unquoted(path)
    name = path if is_hub_name(path) else ""
    path = fetch_dataset(name, task.report, task.when_started).path if name else str(expand(path))
    source = open_source(path, progress=task.progress, cancelled=task.stopped)
    remember_dataset(name or path)
    return OpenFile(path, source, file_format(source), name)


def offers() -> list[str]:
    """What can be opened without typing a path: datasets opened before, then files and folders of this directory."""
    here = candidates("", ENDINGS)
    recent = recent_datasets()
    known = set(recent)
    return [*recent, *(name for name in here if str(Path(name).absolute()) not in known)]
