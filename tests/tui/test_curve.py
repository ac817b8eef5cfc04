from __future__ import annotations

from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backprop_tui.charts.canvas import Axis
from backprop_tui.charts.loss_plot import LossPlot
from backprop_tui.charts.series import BUCKETS, SMOOTHING, Curve, shown_steps


def curve_of(values: list[float]) -> Curve:
    curve = Curve()
    for step, value in enumerate(values, 1):
        curve.add(step, value)
    return curve


def test_a_short_curve_keeps_every_value() -> None:
    buckets = curve_of([3.0, 2.0, 1.0]).buckets()
    assert [(step, b.low, b.high) for step, b in buckets] == [(1, 3.0, 3.0), (2, 2.0, 2.0), (3, 1.0, 1.0)]


def test_a_long_curve_stays_within_its_buckets_and_keeps_its_spike() -> None:
    values = [1.0] * 50_000
    values[31_234] = 99.0
    curve = curve_of(values)
    assert len(curve) <= BUCKETS
    assert curve.span() == (1.0, 99.0)
    spike = [step for step, bucket in curve.buckets() if bucket.high == 99.0]
    assert len(spike) == 1
    assert 31_235 <= spike[0] < 31_235 + curve.width


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5000))
def test_no_value_is_outside_of_its_bucket(values: list[float]) -> None:
    curve = curve_of(values)
    assert curve.span() == (min(values), max(values))
    for step, bucket in curve.buckets():
        first = (step - 1) // curve.width * curve.width
        part = values[first : first + curve.width]
        assert (bucket.low, bucket.high) == (min(part), max(part))
        assert bucket.mean == pytest.approx(sum(part) / len(part), rel=1e-6, abs=1e-6)


def test_a_value_that_is_not_finite_is_a_gap_and_counted() -> None:
    curve = curve_of([1.0, nan, 2.0])
    assert [step for step, _ in curve.buckets()] == [1, 3]
    assert curve.buckets()[0][1].has_gap
    assert curve.gaps == 1


def test_the_average_of_a_constant_is_that_constant_from_the_first_step() -> None:
    for _, bucket in curve_of([2.5] * 40).buckets():
        assert bucket.smooth == pytest.approx([2.5] * len(SMOOTHING))


def test_a_heavier_average_follows_a_jump_more_slowly() -> None:
    last = curve_of([0.0] * 50 + [1.0]).buckets()[-1][1]
    assert list(last.smooth) == sorted(last.smooth, reverse=True)


def test_the_horizontal_axis_changes_a_few_times_in_a_run_only() -> None:
    shown = [shown_steps(step, 10_000) for step in range(1, 10_001)]
    assert len(set(shown)) < 12
    assert all(step <= limit for step, limit in enumerate(shown, 1))
    assert shown[-1] == 10_000


def test_limits_stay_while_the_data_wander_inside() -> None:
    axis = Axis()
    axis.follow(1.03, 2.9, log=False, parts=5)
    before = (axis.low, axis.high)
    axis.follow(1.1, 2.8, log=False, parts=5)
    assert (axis.low, axis.high) == before
    axis.follow(1.1, 3.7, log=False, parts=5)
    assert axis.high >= 3.7


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.booleans(), st.integers(3, 8))
def test_the_axis_holds_its_data_and_names_round_values(a: float, b: float, log: bool, parts: int) -> None:
    axis = Axis()
    low, high = sorted((a, b))
    axis.follow(low, high, log=log, parts=parts)
    assert -1e-6 <= axis.share(low) <= axis.share(high) <= 1 + 1e-6
    labels = axis.labels()
    assert 1 <= len(labels) <= 2 * parts + 2
    assert all(-1e-6 <= share <= 1 + 1e-6 for share, _ in labels)


@pytest.mark.parametrize(
    ("values", "labels"),
    [([0.0, 1e30, 2e30], "0 1e30 2e30"), ([0.0, 1e7, 2.0], "0 5e6 1e7"), ([1e-9, 3e-9], "1e-9 2e-9 3e-9")],
)
def test_labels_of_any_size_have_their_six_cells(values: list[float], labels: str) -> None:
    plot = LossPlot()
    plot.curve = curve_of(values)
    rows = ["".join(text for text, _ in row) for row in plot.rows(60, 8)]
    assert [row.partition("┤")[0].strip() for row in rows if "┤" in row][::-1] == labels.split()
    assert {len(row.partition(sign)[0]) for row in rows for sign in "┤│" if sign in row} == {7}


def test_values_whose_difference_is_no_number_are_a_gap() -> None:
    plot = LossPlot()
    plot.curve = curve_of([1e308, -1e308, 2.0])
    assert plot.curve.gaps == 2
    assert plot.rows(60, 8)
