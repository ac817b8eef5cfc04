"""Search and filter: which rows hold some words, found in the background while hits are looked at already."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from backprop.core.errors import InputError
from backprop.data.example import Fields
from backprop.data.formats import FORMATS, FileFormat, detect_fields
from backprop.data.reader import Row as DataRow
from backprop.data.reader import open_source

from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.messages import ScanEnded
from backprop_tui.screens.dataset.row_text import read_row
from backprop_tui.screens.dataset.tasks import Task, Tasks
from backprop_tui.text import rows_of, safe

_ROLES = {"human": "user", "gpt": "assistant"}


class Scans:
    """The search, whose hits are stepped through, and the filter, whose hits alone are shown."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self.words: dict[str, str] = {}
        """What is searched for (``search``) and what is filtered by (``filter``)."""
        self.hits: dict[str, array[int]] = {}
        """Rows found for each so far, in order."""

    def begin(self, kind: str, words: str, opened: OpenFile) -> None:
        """Look for words in place of those looked for before; without words, forget them.

        Raises:
            InputError: a filter that does not exist.
        """
        self.forget(kind)
        if not words:
            return
        test = text_test(words) if kind == "search" else row_test(words, opened.file)
        self.words[kind] = words
        hits = self.hits[kind] = array("Q")
        self._tasks.begin(kind, f"{kind} {safe(words)!r}", partial(self._scan, kind, opened.path, test, hits))

    def _scan(self, kind: str, path: str, test: Test, hits: array[int], task: Task) -> None:
        whole = scan(path, test, hits, task)
        self._tasks.post(ScanEnded(kind, hits, whole=whole))

    def forget(self, kind: str) -> None:
        """End a search or a filter."""
        self._tasks.stop(kind)
        self.words.pop(kind, None)
        self.hits.pop(kind, None)

    def result(self, ended: ScanEnded) -> str:
        """What a scan found, in words; empty where it is no longer wanted."""
        if self.hits.get(ended.kind) is not ended.hits:
            return ""
        part = "" if ended.whole else " so far: stopped before the end"
        if ended.kind == "search" and not len(ended.hits):
            return f"search: {self.words['search']!r} was not found{part}"
        return f"{ended.kind}: {rows_of(len(ended.hits))}{part}"

    def shown(self) -> list[str]:
        """What is shown of the file, where that is not all of it."""
        marks = (("filter", "only "), ("search", "search "))
        return [
            f"{mark}{safe(self.words[kind])!r}: {len(self.hits[kind]):,}" for kind, mark in marks if kind in self.words
        ]


def next_in(places: array[int], here: int, by: int, *, stay: bool = False) -> int | None:
    """The next (``by`` 1) or previous (-1) of sorted ``places``, beginning again at the other end.

    With ``stay`` the place ``here`` counts too.
    """
    if not len(places):
        return None
    if by < 0:
        return places[bisect_left(places, here) - 1]
    return places[(bisect_left if stay else bisect_right)(places, here) % len(places)]


Test = Callable[[DataRow], bool]


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


def _has_role(row: DataRow, file: FileFormat, role: str) -> bool:
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

    def test(row: DataRow) -> bool:
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


def scan(path: str, test: Test, hits: array[int], task: Task) -> bool:
    """Append the index of every row that passes ``test`` to ``hits`` while the screen shows them.

    Returns:
        whether the whole file was looked at (False when the person stopped it).
    """
    with open_source(path) as source:
        size = max(source.bytes, 1)
        seen = 0
        for index, row in enumerate(source):
            if not index % 256:
                if task.stopped():
                    return False
                task.progress(min(seen, size), size)
            seen += len(row.raw) + 1
            if test(row):
                hits.append(index)
    return True
