from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from recorded import ev
from rich.cells import cell_len
from textual.app import App, ComposeResult

from backprop_tui.charts.canvas import SYMBOLS, Raster
from backprop_tui.text import Row, clock, percent, safe, wrap_text
from backprop_tui.widgets.cells import changed_stretches, cut, row_width, spread
from backprop_tui.widgets.facts import row_rows
from backprop_tui.widgets.run_table import bars
from backprop_tui.widgets.text_view import TextView


def test_a_number_that_ticks_changes_its_digits_only() -> None:
    before: Row = [("step ", "muted"), ("119", "strong"), (" of 300", "text")]
    after: Row = [("step ", "muted"), ("120", "strong"), (" of 300", "text")]
    assert changed_stretches(before, after, 40) == [(6, 2)]


def test_changes_far_apart_are_two_stretches_and_near_ones_are_one() -> None:
    before: Row = [("a" + "." * 20 + "b", "text")]
    after: Row = [("x" + "." * 20 + "y", "text")]
    assert changed_stretches(before, after, 30) == [(0, 1), (21, 1)]
    assert changed_stretches([("a..b", "text")], [("x..y", "text")], 30) == [(0, 4)]


def test_another_ink_is_a_change_but_not_under_a_blank() -> None:
    assert changed_stretches([("ab", "text")], [("ab", "bad")], 5) == [(0, 2)]
    assert changed_stretches([("  ", "text")], [("  ", "bad")], 5) == []


def test_a_row_with_wide_characters_is_sent_whole() -> None:
    assert changed_stretches([("漢字", "text")], [("漢語", "text")], 10) == [(0, 10)]


@given(st.text(max_size=60), st.text(max_size=60))
def test_stretches_cover_every_difference(one: str, other: str) -> None:
    width = 60
    stretches = changed_stretches([(one, "a")], [(other, "a")], width)
    covered = {x for start, length in stretches for x in range(start, start + length)}
    for x, (a, b) in enumerate(zip(one.ljust(width)[:width], other.ljust(width)[:width], strict=True)):
        assert a == b or x in covered


@given(st.text(max_size=200), st.integers(1, 40))
def test_wrapped_lines_fit_and_lose_nothing_but_spaces(text: str, width: int) -> None:
    lines = wrap_text(text, width)
    wide = any(cell_len(character) > width for character in text)
    assert wide or all(cell_len(line) <= width for line in lines)
    kept = "".join(lines).replace(" ", "")
    assert kept == safe(text.replace("\n", " ")).replace(" ", "")


def test_what_a_model_wrote_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in safe("\x1b[2J\x07\x9b1m")


def test_a_row_that_is_too_long_ends_in_an_ellipsis() -> None:
    assert cut([("hello world", "text")], 6) == [("hello", "text"), ("…", "muted")]
    assert row_width(spread([("left" * 10, "text")], [("right", "text")], 20)) == 20


def test_the_trained_part_of_a_row_is_in_brackets_and_coloured() -> None:
    spans = [ev.TokenSpan(text="Q: why?\nA:", trained=False), ev.TokenSpan(text=" because", trained=True)]
    rows = row_rows(spans, 40)
    assert ["".join(text for text, _ in row) for row in rows] == ["Q: why?", "A:[ because]"]
    assert [ink for row in rows for text, ink in row if "because" in text] == ["trained"]


def test_a_line_between_two_points_has_a_dot_in_every_column() -> None:
    for symbols in SYMBOLS:
        raster = Raster(20, 5, symbols)
        raster.line(0, raster.dots_down - 1, raster.dots_across - 1, 0, "raw")
        columns = zip(*("".join(text for text, _ in raster.row(y)) for y in range(5)), strict=True)
        assert all(set(column) - {" "} for column in columns)


def test_a_missing_value_is_a_gap_in_the_bars() -> None:
    assert bars([1.0, None, 3.0], 10) == "▁ █"
    assert bars([], 10) == ""


def test_durations_are_read_like_a_clock() -> None:
    assert [clock(s) for s in (None, 5, 65, 3725)] == ["–", "0:05", "1:05", "1:02:05"]


def test_only_all_of_them_are_a_hundred_percent() -> None:
    assert [percent(part, 1000) for part in (1000, 999, 968, 14, 0)] == [
        "1,000 (100 %)",
        "999 (99.9 %)",
        "968 (97 %)",
        "14 (1.4 %)",
        "0 (0 %)",
    ]
    assert percent(1, 10_000_000) == "1 (under 0.001 %)"


async def test_a_row_that_fills_its_width_keeps_its_last_letter_beside_the_bar() -> None:
    class Shown(App[None]):
        def compose(self) -> ComposeResult:
            yield TextView()

    async with Shown().run_test(size=(12, 4)) as pilot:
        view = pilot.app.query_one(TextView)
        view.show_rows([[("0123456789 " * 9, "text")]])
        await pilot.pause()
        assert [row_width(row) for row in view.rows(12, 4)] == [12] * 4
        assert all("".join(text for text, _ in row).startswith("0123456789 ") for row in view.rows(12, 4))
