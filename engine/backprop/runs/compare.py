"""Two runs beside each other: what is not the same, in groups; what is equal is left out.

Rows of data are told apart by the hash of what each says, which a run keeps in its directory (``source/``): so those
that were changed, added or removed are known by their lines, also where the file has been edited meanwhile.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from math import isnan
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from backprop.core.files import read_json
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.state import RunState

GROUPS = {
    "set": "what you set",
    "followed": "what followed from it",
    "data": "data and base model",
    "environment": "environment",
    "code": "code",
}
_CODE = ("backprop-tui", "code")
"""Facts of the environment that are about this program."""
MOST_ROWS = 200
"""Rows that are named."""
NAMED = 5
"""Rows that are named in one sentence."""
_EXCERPT = 80
_LINES = (".jsonl", ".csv", ".tsv", ".txt")
"""Files in which a line is found again."""

RowChange = tuple[int | None, int | None]
"""Line of a row in the first and in the second data; ``None`` where it is not there."""


class Difference(Struct):
    """One thing that is not the same (SPEC section 13, ``diff-runs``)."""

    key: str
    a: Any
    b: Any
    group: str
    """A word of ``GROUPS``."""


def compare(a: RunState, b: RunState) -> list[Difference]:
    """What is not the same of two runs, group by group."""
    found = [*_settings(a, b), *_unequal("followed", _outcome(a), _outcome(b)), *_data(a, b)]
    for group, names in (("environment", None), ("code", _CODE)):
        facts = [
            {name: value for name, value in run.environment.items() if (name in _CODE) == (names is not None)}
            for run in (a, b)
        ]
        found += _unequal(group, *facts)
    return sorted(found, key=lambda each: list(GROUPS).index(each.group))


def shown_value(value: Any) -> str:
    """A value of a difference for people; what is not there as a dash."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _unequal(group: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    for name in {**a, **b}:
        if a.get(name) != b.get(name):
            yield Difference(name, a.get(name), b.get(name), group)


def _settings(a: RunState, b: RunState) -> Iterator[Difference]:
    """A value that no person gave in either run followed from what they did give."""
    usual = msgspec.to_builtins(RunConfig(data="")) | msgspec.to_builtins(MultiConfig())

    def chosen(run: RunState, name: str) -> bool:
        value = {**run.config, **run.multi}.get(name)
        return not run.origins.get(name, "").startswith("rule") and value != usual.get(name)

    for each in _unequal("set", {**a.config, **a.multi}, {**b.config, **b.multi}):
        each.group = "set" if chosen(a, each.key) or chosen(b, each.key) else "followed"
        yield each


def _outcome(run: RunState) -> dict[str, Any]:
    """What a run came to."""
    held_out = run.evaluations[-1].loss if run.evaluations else None
    smoothed = run.smoothed_loss
    facts = {
        "status": run.status,
        "steps taken": run.step,
        "of steps": run.total_steps,
        "trained parameters": run.model.trainable_parameters if run.model else None,
        "tokens seen": run.tokens_seen,
        "final loss": run.final_loss,
        "smoothed loss": None if smoothed is None or isnan(smoothed) else smoothed,
        "held-out loss": held_out,
        "seconds": round(run.duration_seconds, 1),
    }
    if run.dataset is not None:
        facts["tokens of the data"] = run.dataset.tokens
        facts["trained tokens"] = run.dataset.trained_tokens
        facts["held-out rows"] = run.dataset.held_out
    return facts


def _data(a: RunState, b: RunState) -> Iterator[Difference]:
    directories = [RunDirectory(Path(run.path)) for run in (a, b)]
    before, after = map(read_identity, directories)
    base = [
        {f"base model's {name}": value for name, value in each.get("model", {}).items()} for each in (before, after)
    ]
    yield from _unequal("data", *base)
    formats = [{"format": run.dataset.format} if run.dataset else {} for run in (a, b)]
    yield from _unequal("data", *formats)
    rows = [read_rows(each) for each in directories]
    if rows[0] is None or rows[1] is None:
        words = ["not recorded" if each is None else f"recorded: {len(each)}" for each in rows]
        yield from _unequal("data", {"rows": words[0]}, {"rows": words[1]})
        return
    yield from _unequal("data", {"rows": len(rows[0])}, {"rows": len(rows[1])})
    changes = row_changes(rows[0], rows[1])
    texts = [_texts(run, [change[i] for change in changes[:MOST_ROWS]]) for i, run in enumerate((a, b))]
    for old, new in changes[:MOST_ROWS]:
        kind = "added" if old is None else "removed" if new is None else "changed"
        where = f"{new if old is None else old}" + (f" (now {new})" if old and new and old != new else "")
        yield Difference(f"row {where} {kind}", texts[0].get(old), texts[1].get(new), "data")
    if more := len(changes) - MOST_ROWS:
        yield from [Difference("more rows", None, more, "data")] if more > 0 else []
    if not changes and before.get("tokens") != after.get("tokens"):
        yield Difference("tokens of the same rows", before.get("tokens"), after.get("tokens"), "data")


HELD_OUT = "held-out"
"""Folder of what is written down of a file of held-out rows."""


def read_identity(directory: RunDirectory) -> dict[str, Any]:
    """What a run was made from (``train.resume.identity``); empty where it did not get so far."""
    try:
        return read_json(directory.source / "identity.json", dict[str, Any])
    except (OSError, ValueError):
        return {}


def read_rows(directory: RunDirectory, part: str = "") -> dict[int, int] | None:
    """Line → hash of what it says, of each row that a run was given; ``None`` where that is not known.

    Args:
        part: ``HELD_OUT`` for the rows of a file of their own that it held out.
    """
    columns = array("q"), array("q")
    try:
        for name, column in zip(("lines", "contents"), columns, strict=True):
            column.frombytes((directory.source / part / f"{name}.bin").read_bytes())
    except (OSError, ValueError):
        return None
    return dict(zip(*columns, strict=False))


def row_changes(before: Mapping[int, int], after: Mapping[int, int]) -> list[RowChange]:
    """Rows that are not in both, by line. A row that took the place of another, after the same row, is a changed one.

    Args:
        before, after: line → hash of what it says, in the order of the file.
    """
    common = Counter(before.values()) & Counter(after.values())

    def others(rows: Mapping[int, int]) -> Iterator[tuple[tuple[int, int], int]]:
        left, anchor = common.copy(), (0, -1)
        for line, content in rows.items():
            if left[content] > 0:
                left[content] -= 1
                anchor = content, left[content]
            else:
                yield anchor, line

    new: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for anchor, line in others(after):
        new[anchor].append(line)
    found: list[RowChange] = []
    for anchor, line in others(before):
        found.append((line, new[anchor].pop(0) if new[anchor] else None))
    found += [(None, line) for lines in new.values() for line in lines]
    return sorted(found, key=lambda change: (change[0] or change[1] or 0, change[0] is None))


def describe_change(change: RowChange, unit: str = "line") -> str:
    """``line 17 was changed``."""
    old, new = change
    return f"{unit} {old or new} was {'added' if old is None else 'removed' if new is None else 'changed'}"


def describe_changes(changed: list[RowChange], unit: str = "line") -> str:
    """The first of them in words, and how many more there are."""
    more = [f"{len(changed) - NAMED} more rows"] if len(changed) > NAMED else []
    return "; ".join([describe_change(each, unit) for each in changed[:NAMED]] + more)


def _texts(run: RunState, lines: list[int | None]) -> dict[int | None, str]:
    """The beginning of each of these lines, where the file was not touched since the run read it."""
    wanted = {line for line in lines if line is not None}
    found: dict[int | None, str] = {line: f"{run.dataset.unit if run.dataset else 'line'} {line}" for line in wanted}
    path = Path(run.dataset.path) if run.dataset else Path()
    if not wanted or path.suffix.lower() not in _LINES:
        return found
    try:
        if path.stat().st_mtime < run.stretch_started_at:
            with path.open(encoding="utf-8", errors="replace") as file:
                for number, text in enumerate(file, 1):
                    if number in wanted:
                        found[number] = text.strip()[:_EXCERPT]
                    if number >= max(wanted):
                        break
    except OSError:
        pass
    return found
