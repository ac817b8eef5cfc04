"""The keys of the Runs screen."""

from __future__ import annotations

from backprop_tui.keys import Key, table

KEYS = table(
    "runs",
    Key("enter", "enter", "open", "open", "watch the run: live, or as it was", 1),
    Key("c", "c", "resume", "resume", "continue a run that was stopped or crashed, exactly", 2),
    Key("slash", "/", "filter", "filter", "show the runs that hold a word", 2),
    Key("o", "o", "sort", "sort", "sort by the next column, or click its title", 5),
    Key("O", "O", "reverse", "reverse", "the other way round; or click the title again", 9),
    Key("space", "space", "mark", "mark", "mark a run, to compare or delete several; esc drops the marks", 6),
    Key("v", "v", "compare", "compare", "the marked runs beside each other: their curves, and of two what differs", 2),
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
TYPING = [Key("enter", "enter", "", "keep the filter", "", 1), Key("escape", "esc", "", "drop it", "", 1)]
