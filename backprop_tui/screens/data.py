"""The Data screen: open any dataset, see every row as it will be trained, know what is wrong with it."""

from __future__ import annotations

from textual.binding import Binding

from backprop_tui.screens.data_cleaning import DataCleaning


class DataScreen(DataCleaning):
    """Browse and check one dataset file."""

    CSS_PATH = "data.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]
    BINDINGS = [
        Binding("o", "open", "Open"),
        Binding("v", "next_view", "View"),
        Binding("g", "go", "Go to line"),
        Binding("G", "last", "Last row"),
        Binding("slash", "search", "Search"),
        Binding("f", "filter", "Filter"),
        Binding("n", "step(1)", "Next"),
        Binding("N", "step(-1)", "Previous"),
        Binding("c", "check", "Check"),
        Binding("p", "problems", "Problems"),
        Binding("l", "lengths", "Lengths"),
        Binding("s", "statistics", "Statistics"),
        Binding("m", "model", "Model"),
        Binding("plus", "limit(1)", "Longer limit"),
        Binding("minus", "limit(-1)", "Shorter limit"),
        Binding("equals_sign", "ask_limit", "Limit"),
        Binding("w", "clean", "Write cleaned copy"),
        Binding("x", "stop_work", "Stop"),
        Binding("escape", "back", "Back"),
    ]
