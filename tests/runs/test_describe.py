"""Every event has a wording."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from backprop.core import events as ev
from backprop.runs.describe import bytes_text, describe, duration, number, share, verdict_words
from made_events import example

NO_NEWS = {ev.Gpu, ev.Heartbeat, ev.Unknown}


@pytest.mark.parametrize("kind", get_args(ev.AnyEvent), ids=lambda kind: kind.__name__)
def test_every_event_that_is_news_is_worded(kind: type[ev.Event]) -> None:
    assert bool(describe(example(kind))) != (kind in NO_NEWS)  # type: ignore[arg-type]


def test_an_event_without_a_wording_is_noticed() -> None:
    class Unworded(ev.Event):
        pass

    with pytest.raises(AssertionError):
        describe(Unworded())  # type: ignore[arg-type]


def test_numbers_are_written_for_people() -> None:
    assert [bytes_text(n) for n in (999, 1_500_000, 2.5e12)] == ["999 B", "1.5 MB", "2.5 TB"]
    assert [duration(s) for s in (59, 61, 3725)] == ["59 s", "1 min 01 s", "1 h 02 min"]
    assert [number(None), number(1.23456), share(1, 8), share(0, 0)] == ["not finite", "1.2346", "12.5 %", "none"]


@pytest.mark.parametrize(
    ("word", "rows", "said"),
    [
        ("cannot tell", 1, "cannot tell: held-out loss −0.500 on 1 row: too few, 6 at least are needed"),
        ("cannot tell", 5, "cannot tell: held-out loss −0.500 on 5 rows: too few, 6 at least are needed"),
        ("cannot tell", 6, "which show 0.300 or more"),
        ("better", 6, "better: held-out loss −0.500, with 95 % between −0.900 and −0.100, on 6 rows"),
    ],
)
def test_why_it_cannot_be_told_is_said(word: Any, rows: int, said: str) -> None:
    low, high, smallest = (None, None, None) if rows == 1 else (-0.9, -0.1, 0.3)
    verdict = ev.Verdict(word=word, difference=-0.5, low=low, high=high, rows=rows, smallest=smallest)
    assert verdict_words(verdict).endswith(said)
