"""The forgetting table, its averages, and what a session's events come to."""

from __future__ import annotations

import pytest
from backprop.core import events as ev
from backprop.runs.forgetting import Averages, Forgetting
from backprop.runs.state import RunState
from made_events import started

LOSSES = {0: [3.0, 3.0, 3.0], 1: [1.0, 3.1, 3.2], 2: [1.5, 1.1, 3.0], 3: [1.8, 1.3, 1.2]}


def cells(exact: bool = False) -> list[ev.HeldOutScored]:
    return [
        ev.HeldOutScored(after=after, held_out=j + 1, loss=loss, rows=20, exact=1 - loss / 4 if exact else None)
        for after, row in LOSSES.items()
        for j, loss in enumerate(row)
    ]


def table(learned: list[int], exact: bool = False) -> Forgetting:
    made = Forgetting(learned=learned)
    for cell in reversed(cells(exact)):
        made.add(cell)
    return made


def test_averages_are_over_what_was_learned_and_measured_against_when_it_was() -> None:
    found = table([1, 2, 3], exact=True).averages()
    assert found.average == pytest.approx((1.8 + 1.3 + 1.2) / 3)
    assert found.backward == pytest.approx(((1.8 - 1.0) + (1.3 - 1.1)) / 2)
    assert found.exact_backward == pytest.approx(-found.backward / 4)
    first = table([1, 2, 3]).averages(1)
    assert (first.average, first.backward, first.exact) == (1.0, None, None)


def test_a_run_that_was_kept_out_is_no_task_that_could_be_forgotten() -> None:
    found = table([1, 3]).averages()
    assert found.average == pytest.approx((1.8 + 1.2) / 2)
    assert found.backward == pytest.approx(0.8)


def test_nothing_is_averaged_over_cells_that_are_missing_or_not_finite() -> None:
    assert Forgetting().averages() == Averages()
    broken = table([1, 2, 3])
    broken.add(ev.HeldOutScored(after=3, held_out=1, loss=None, rows=20))
    assert broken.averages() == Averages()
    assert len(broken.cells) == 12


def session(*told: ev.AnyEvent) -> RunState:
    state = RunState(alive=True)
    for number, event in enumerate([started(kind="multi_run", multi={"runs": 3}), *told], 1):
        event.seq = number
        state.apply(event)
    return state


def begun(index: int, run: str) -> ev.RunBegun:
    return ev.RunBegun(index=index, of=3, run=run, data="a", rows=9, replayed=0, held_out=2, step=4 * (index - 1))


def test_a_session_folds_runs_merges_and_table_and_a_rewind_takes_the_later_ones_away() -> None:
    told = [
        *(begun(1, "a"), ev.MergeDone(index=1, run="a", merged=True, count=1)),
        *(begun(2, "b"), begun(2, "b"), ev.MergeDone(index=2, run="b", merged=False, reason="why", count=1)),
        *(begun(3, "c"), ev.MergeDone(index=3, run="c", merged=True, count=2)),
        *cells(),
    ]
    state = session(*told)
    assert [run.run for run in state.runs] == ["a", "b", "c"]
    assert [merge.run for merge in state.merges] == ["a", "b", "c"]
    assert state.forgetting.learned == [1, 3]
    assert (state.forgetting.rows, state.forgetting.columns) == ([0, 1, 2, 3], [1, 2, 3])
    assert not any(isinstance(event, ev.HeldOutScored) for event in state.notable)
    again = session(*told, ev.Rewound(index=1), begun(2, "d"), ev.MergeDone(index=2, run="d", merged=True, count=2))
    assert [run.run for run in again.runs] == ["a", "d"]
    assert [merge.run for merge in again.merges] == ["a", "d"]
    assert again.forgetting.learned == [1, 2]
    assert again.forgetting.rows == [0, 1]
