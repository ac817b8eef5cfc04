"""Which rows hold what a person looks for: in their texts, by role, by format, by a finding, because they are bad."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Container, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from backprop.core.errors import InputError
from backprop.data.example import PROBLEM_CODES, Fields, RowError
from backprop.data.formats import FORMATS, FileFormat, detect_fields
from backprop.data.reader import Row as DataRow
from backprop.data.reader import open_source

from backprop_tui.keys import press
from backprop_tui.screens.dataset.row_text import all_turns, format_of, read_row
from backprop_tui.screens.tasks import Task

if TYPE_CHECKING:
    from backprop.data.tokenizer import ChatTokenizer

    from backprop_tui.screens.dataset.tokens import Chosen

_BY_LENGTH = ("cut", "answer_lost")
"""Findings that the limit makes."""
_SHORT = {"duplicate": "duplicate_row", "lost": "answer_lost"}
_ROLES = {"human": "user", "gpt": "assistant"}

Test = Callable[[DataRow], bool]
LinesOf = Callable[[str], tuple[Container[int], str]]


def row_test(words: str, file: FileFormat, lines_of: LinesOf, chosen: Chosen) -> tuple[Test, str]:
    """What a filter means: ``bad``, ``role:NAME``, ``format:NAME``, ``finding:CODE``, or words that the row holds; and
    a remark about it.

    Args:
        lines_of: the lines in which a check found a code, with a remark where not all of them are known.

    Raises:
        InputError: a format or a finding that does not exist, or that nothing is known of yet.
    """
    if words == "bad":
        return lambda row: read_row(row, file)[1] is not None, ""
    part, colon, name = words.partition(":")
    name = name.strip().lower()
    if colon and part == "role":
        return partial(_has_role, file=file, role=_ROLES.get(name, name)), ""
    if colon and part == "format":
        if name not in FORMATS:
            raise InputError(f"no format is called {name!r}", hint=f"formats: {', '.join(FORMATS)}")
        names = Fields(file.mapping)
        return lambda row: row.error is None and detect_fields(row.value, names) == name, ""
    if colon and part == "finding":
        code = code_named(name)
        if code in _BY_LENGTH:
            limit, load = chosen.limit, cache(chosen.load)
            how = {"rows": chosen.rows, "traces": chosen.traces}
            return partial(_at_limit, file=file, code=code, limit=limit, load=load, how=how), ""
        lines, note = lines_of(code)
        return lambda row: row.line in lines, note
    return text_test(words), ""


def code_named(name: str) -> str:
    """The code of a finding, for some by a shorter name.

    Raises:
        InputError: there is none of that name.
    """
    code = _SHORT.get(name, name)
    if code not in PROBLEM_CODES:
        raise InputError(f"no finding is called {name!r}", hint=f"{press('data.problems')} lists those of this file")
    return code


def _at_limit(
    row: DataRow, *, file: FileFormat, code: str, limit: int, load: Callable[[], ChatTokenizer], how: dict[str, Any]
) -> bool:
    """Whether the limit does to the row what ``code`` says."""
    from backprop.data.truncate import truncate_value

    tokenizer = load()
    if row.error is not None:
        return False
    try:
        format = format_of(row.value, file)
        done = truncate_value(row.value, tokenizer, limit, format=format, mapping=file.mapping, **how)
    except RowError:
        return False
    return done.split and code == "cut" if done.finding is None else done.finding.code == code


def _has_role(row: DataRow, file: FileFormat, role: str) -> bool:
    example, _ = read_row(row, file)
    return example is not None and any(turn.role == role for _, part in all_turns(example) for turn in part)


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


def scan(path: str, test: Test, hits: array[int], task: Task[bool]) -> bool:
    """Append the index of every row that passes ``test`` to ``hits`` while the screen shows them.

    Returns:
        whether the whole file was looked at (False when the person stopped it).
    """
    with open_source(path) as source:
        size = max(source.size, 1)
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
