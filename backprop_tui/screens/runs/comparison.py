"""Several runs beside each other: their curves in one plot, and what is not the same."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from backprop.core.errors import BackpropError
from backprop.runs.compare import GROUPS, compare, shown_value
from backprop.runs.state import RunState, read_run
from rich.cells import cell_len
from textual.app import ComposeResult
from textual.containers import Horizontal

from backprop_tui.charts.overlay import Overlaid, OverlayPlot
from backprop_tui.keys import Key, bindings, table
from backprop_tui.text import Row, fit, from_home, safe
from backprop_tui.widgets.cells import heading
from backprop_tui.widgets.text_view import TextView

COMPARING = table(
    "comparison",
    Key("escape", "esc", "screen.back", "back", "back to the list of runs", 1),
    Key("tab", "tab", "pane", "curves, differences", "from the curves to what differs, and back", 1),
    Key("a", "a", "axis", "by step, time, tokens", "draw over steps, over time, or over tokens", 2),
    Key("y", "y", "copy", "copy", "copy what differs, or the directories of the runs", 4),
    Key("plus,equals_sign", "+", "smooth(1)", "smooth", "smooth the curves more", 3),
    Key("minus", "-", "smooth(-1)", "less", "smooth them less; raw at last, with every spike", 3),
    Key("l", "l", "log_y", "log", "logarithmic or linear loss axis", 3),
    Key("b", "b", "symbols", "symbols", "draw with braille, blocks or ASCII", 4),
)
"""While runs are beside each other."""
OF_CURVES = ("axis", "smooth", "log_y", "symbols")
"""Actions of which nothing is seen where only the differences are."""
_KEY = 0.42
"""The most of the width for what it is that differs."""
_KEY_OF_SEVERAL = 0.24
"""The same where there are more than two runs."""
_ROOM_FOR_BOTH = 110


class Differing(NamedTuple):
    """One thing that is not the same of several runs."""

    group: str
    """A word of ``GROUPS``."""
    key: str
    values: list[Any]
    """One of each run."""


def differing(states: Sequence[RunState]) -> list[Differing]:
    """What is not the same of at least two runs, group by group: each is compared with the first."""
    found: dict[tuple[bool, str], Differing] = {}
    for place, state in enumerate(states[1:], 1):
        for group, key, a, b in ((one.group, one.key, one.a, one.b) for one in compare(states[0], state)):
            setting = group in ("set", "followed")  # which of them may be another for each pair
            line = found.get((setting, key)) or Differing(group, key, [a] * len(states))
            line.values[place] = b
            found[setting, key] = line._replace(group=min(group, line.group, key=list(GROUPS).index))
    return sorted(found.values(), key=lambda line: list(GROUPS).index(line.group))


class Differences(TextView):
    """What is not the same: a column for each run."""

    found: Sequence[Differing] = ()
    names: Sequence[str] = ()

    def show(self, names: Sequence[str], found: Sequence[Differing]) -> None:
        self.names, self.found = names, found
        self.redraw()

    def content(self, width: int) -> list[Row]:
        if not self.names:
            return [[("reading the runs …", "muted")]]
        several = len(self.names) > 2
        share = _KEY_OF_SEVERAL if several else _KEY
        key = min(int(share * width), max((cell_len(one.key) + 1 for one in self.found), default=0))
        each = (width - key) // len(self.names)
        # Of several the number says which curve it is.
        names = [f"{number} {name}" if several else name[:12] for number, name in enumerate(self.names, 1)]
        rows: list[Row] = [
            [(fit("", key), "text"), *((fit(fit(name, each - 1), each), "strong+bold") for name in names)],
            *([] if self.found else [[("nothing differs", "text")]]),
        ]
        for group, those in groupby(self.found, lambda difference: difference.group):
            rows += [[], heading(GROUPS[group], width)]
            for one in those:
                sides = (from_home(safe(shown_value(value))) for value in one.values)
                cells = [(fit(side, each - 1) + " ", "text") for side in sides]
                rows.append([(fit(safe(one.key), key - 1) + " ", "muted"), *cells])
        return rows


class Comparison(Horizontal):
    """Curves and differences; where there is no room for both, one of them."""

    BINDINGS = bindings(COMPARING)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.plot, self.differences = OverlayPlot(id="overlay"), Differences(id="differences")
        self._two = self._at_differences = False
        self.paths: list[str] = []
        """Directories of the runs; empty while none are compared."""

    def compose(self) -> ComposeResult:
        yield self.plot
        yield self.differences

    def open(self, paths: list[str]) -> None:
        """Compare the runs in these directories, beginning with the curves."""
        self.paths = paths
        self.show((), ())
        self._at_differences = False
        self._arrange()
        self.screen.set_focus(self.plot)
        self.look()

    def look(self) -> None:
        """Read the runs in a thread."""
        self.run_worker(self._read, thread=True, exclusive=True, exit_on_error=False)

    def _read(self) -> None:
        states = []
        for path in self.paths:
            with contextlib.suppress(BackpropError, OSError):  # deleted meanwhile
                states.append(read_run(Path(path)))
        found = differing(states)
        self.app.call_from_thread(self.show, [Overlaid(state) for state in states], found)

    def show(self, runs: Sequence[Overlaid], found: Sequence[Differing]) -> None:
        """Show these runs, and what differs."""
        self._two = len(runs) == 2
        self.plot.show(runs)
        self.differences.show([run.run_id for run in runs], found)
        self._arrange()

    def _arrange(self) -> None:
        both = self._two and self.app.size.width >= _ROOM_FOR_BOTH
        self.plot.display = both or not self._at_differences
        self.differences.display = both or self._at_differences

    def on_resize(self) -> None:
        self._arrange()

    def own_keys(self) -> list[Key]:
        """The keys that do something now; the one to the other pane is called as that is."""
        if self.plot.display and self.differences.display:
            return list(COMPARING)
        other = "curves" if self._at_differences else "differences"
        keys = (key._replace(label=other) if key.name == "pane" else key for key in COMPARING)
        return [key for key in keys if not self._at_differences or key.name not in OF_CURVES]

    def action_pane(self) -> None:
        self._at_differences = not self._at_differences
        self.screen.set_focus(self.differences if self._at_differences else self.plot)
        self._arrange()

    def action_copy(self) -> None:
        seen = self.differences.display and self.differences.found
        self.app.copy_to_clipboard(self.differences.text if seen else "\n".join(self.paths))

    def action_axis(self) -> None:
        self.plot.next_axis()

    def action_smooth(self, by: int) -> None:
        self.plot.smooth_more(by)

    def action_log_y(self) -> None:
        self.plot.toggle_log()

    def action_symbols(self) -> None:
        self.plot.next_symbols()
