"""Work of the Data screen that takes longer than a frame: opening, searching, filtering. Runs in threads."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from backprop.core.datasets import is_hub_name
from backprop.core.errors import InputError
from backprop.data.formats import FORMATS, FileFormat, detect_fields, detect_file
from backprop.data.mapping import Fields
from backprop.data.reader import Row, Source, open_source
from msgspec import Struct

from backprop_tui.screens.data_rows import read_row

_SAMPLE_ROWS = 200
_SAMPLE_BYTES = 4_000_000
_ROLES = {"human": "user", "gpt": "assistant"}


class Job:
    """One piece of work: what it is, how far it is, and whether the person stopped it.

    A thread writes ``done`` and ``total``, the screen's timer reads them: no message per step.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.done = 0
        self.total = 0
        self.ended = False
        self._stop = threading.Event()
        self._ends: Callable[[], object] = bool

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def stop(self) -> None:
        self._stop.set()
        self._ends()

    def when_stopped(self, end: Callable[[], object]) -> None:
        """Call ``end`` when the person stops the work: for work that waits for another process."""
        self._ends = end
        if self.stopped():
            end()

    def stopped(self) -> bool:
        return self._stop.is_set()

    def words(self) -> str:
        share = f" {100 * self.done // self.total} %" if self.total else " …"
        return f"{self.name}{share}"


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


def open_file(path: str, job: Job) -> OpenFile:
    """Open a file, or a dataset of the Hugging Face Hub (which is fetched), and look at its first rows.

    Raises:
        BackpropError: the file as a whole cannot be read, with what to do.
    """
    name = path if is_hub_name(path) else ""
    if name:
        path = _fetched(name, job)
    source = open_source(path, progress=job.progress, cancelled=job.stopped)
    return OpenFile(path, source, detect_file(_sample(source)), name)


def _fetched(name: str, job: Job) -> str:
    """The file of a dataset that is on the hub, from the cache or fetched by an engine process."""
    from backprop.runs.engine_jobs import EngineJob, fetch_dataset

    def started(engine: EngineJob) -> None:
        job.name = f"fetching {name}"
        job.when_stopped(engine.stop)

    return fetch_dataset(name, job.progress, started).path


def _sample(source: Source) -> Iterator[tuple[int, Any]]:
    """(line, value) of the first good rows, up to some megabytes."""
    size = 0
    for row in islice(source, _SAMPLE_ROWS):
        size += len(row.raw)
        if row.error is None:
            yield row.line, row.value
        if size > _SAMPLE_BYTES:
            return


Test = Callable[[Row], bool]


def row_test(words: str, file: FileFormat) -> Test:
    """What a filter means: ``bad``, ``role:NAME``, ``format:NAME``, or words that the row holds.

    Raises:
        InputError: a format that does not exist.
    """
    if words == "bad":
        return lambda row: read_row(row, file)[1] is not None
    part, colon, name = words.partition(":")
    name = name.strip().lower()
    if colon and part == "role":
        wanted = _ROLES.get(name, name)
        return lambda row: _has_role(row, file, wanted)
    if colon and part == "format":
        if name not in FORMATS:
            raise InputError(f"no format is called {name!r}", hint=f"formats: {', '.join(FORMATS)}")
        names = Fields(file.mapping)
        return lambda row: row.error is None and detect_fields(row.value, names) == name
    return text_test(words)


def _has_role(row: Row, file: FileFormat, role: str) -> bool:
    example, _ = read_row(row, file)
    return example is not None and any(
        turn.role == role for turn in (*example.turns, *example.chosen, *example.rejected, *example.completion)
    )


def text_test(words: str) -> Test:
    """Whether any text of the row holds ``words``, in whatever case; of a broken row, its bytes."""
    wanted = words.casefold()
    in_bytes = words.lower().encode()
    # JSON may write these characters in another way, so their bytes prove nothing.
    plain = words.isascii() and not set(words) & set('"\\/\n\t')

    def test(row: Row) -> bool:
        if (plain or b"\\" not in row.raw) and words.isascii() and in_bytes not in row.raw.lower():
            return False
        if row.error is not None:
            return wanted in row.raw.decode("utf-8", "replace").casefold()
        return any(wanted in text.casefold() for text in _texts(row.value))

    return test


def _texts(value: Any) -> Iterator[str]:
    """Every text in a row's value; numbers and truth values as JSON writes them. Keys are not texts."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        elif item is not None:
            yield str(item).lower() if isinstance(item, bool) else str(item)


def scan(path: str, test: Test, hits: array[int], job: Job) -> bool:
    """Append the index of every row that passes ``test`` to ``hits`` while the screen shows them.

    Returns:
        whether the whole file was looked at (False when the person stopped it).
    """
    with open_source(path) as source:
        size = max(source.bytes, 1)
        seen = 0
        for index, row in enumerate(source):
            if not index % 256:
                if job.stopped():
                    return False
                job.progress(min(seen, size), size)
            seen += len(row.raw) + 1
            if test(row):
                hits.append(index)
    return True
