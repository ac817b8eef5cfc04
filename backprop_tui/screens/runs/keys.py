"""The keys of the Runs screen."""

from __future__ import annotations

from backprop.core.multi_run import KIND as MULTI_RUN
from backprop.runs.summary import RunSummary

from backprop_tui.keys import Key, table
from backprop_tui.run_reader import LIVING

KEYS = table(
    "runs",
    Key("enter", "enter", "open", "open", "watch the run: live, or as it was", 1),
    Key("c", "c", "resume", "resume", "continue a run that was stopped or crashed, exactly", 2),
    Key("slash", "/", "filter", "filter", "show the runs that hold a word", 2),
    Key("o", "o", "sort", "sort", "sort by the next column, or click its title", 5),
    Key("O", "O", "reverse", "reverse", "the other way round; or click the title again", 9),
    Key("space", "space", "mark", "mark", "mark a run, to compare or delete several; back drops the marks", 2),
    Key("v", "v", "compare", "compare", "the marked runs beside each other: their curves, and what differs", 6),
    Key("n", "n", "extend", "extend", "continue the run to a new end (asks how many steps)", 7),
    Key("f", "f", "fork", "fork", "a new run from the weights of its newest checkpoint (asks first)", 7),
    Key("p", "p", "replay", "replay", "the same settings and data as a new run, the curves compared (asks first)", 7),
    Key("u", "u", "queue", "queue", "the runs that are trained one after another: in which order, and why none is", 2),
    Key("d", "d", "demo", "demo", "start the demonstration run", 5),
    Key("e", "e", "configure", "configure", "configure a new run from this one's settings", 4),
    Key("t", "t", "show_on('chat')", "talk", "talk to the run's model on the Chat screen", 2),
    Key("w", "w", "show_on('export')", "export", "write the run's model in another format on the Export screen", 2),
    Key("h", "h", "show_on('data')", "hardest", "the rows that it held out on the Data screen, the hardest first", 5),
    Key("x,delete", "x", "delete", "delete", "delete the run, or the marked ones, if over (asks first)", 4),
    Key("y", "y", "copy", "copy", "copy its id, a command, its error; over SSH too", 5),
    Key("r", "r", "rescan", "read again", "look for runs again", 9),
)
NEED_RUN = (
    *("open", "resume", "filter", "sort", "reverse", "mark", "configure", "show_on", "delete", "copy"),
    *("compare", "extend", "fork", "replay"),
)
"""Actions that need a run in the list."""
TYPING = [
    Key("enter", "enter", "", "keep the filter", "", 1),
    Key("escape", "esc", "", "drop it", "", 1, "everywhere.back"),
]


def useful(run: RunSummary | None, *, queued: bool, marked: bool) -> list[Key]:
    """The keys of the list that do something now.

    Args:
        run: the one under the cursor.
        queued: whether there is a queue to look at.
        marked: whether a run is marked, to be compared with another.
    """
    hidden = set() if run else {*NEED_RUN, "" if queued else "queue"}
    if run and (run.status in LIVING or run.status in ("done", "damaged")):
        hidden.add("resume")
    if run and not run.output_path:
        hidden.add("show_on")
    if run and run.status in LIVING:
        hidden |= {"extend", "delete"}
    if run and not run.steps:
        hidden |= {"extend", "fork"}
    if run and run.kind == MULTI_RUN:
        hidden |= {"extend", "replay"}
    keys = [key._replace(rank=1) if key.name == "compare" and marked else key for key in KEYS]
    return [key for key in keys if key.name not in hidden]
