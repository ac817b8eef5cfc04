"""The keys of the Data screen, for whoever needs nothing else of it."""

from __future__ import annotations

from backprop_tui.keys import Key, table

KEYS = table(
    "data",
    Key("o", "o", "open", "open", "open a file by its path, or one opened before; tab completes it", 2),
    Key("enter", "enter", "choose", "row", "see the row under the cursor, or go to the row of a finding", 4),
    Key("v", "v", "next_view", "view", "see the row as a chat, as JSON, as tokens", 2),
    Key("slash", "/", "search", "find", "search in every row; next and previous step through the hits", 2),
    Key("f", "f", "filter", "filter", "show only rows with a word, a finding, a role or a format", 2),
    Key("c", "c", "check", "check", "check every row", 3),
    Key("l", "l", "lengths", "lengths", "how long the rows are, and what the limit cuts", 2),
    Key("w", "w", "clean", "write", "write a cleaned copy beside the file (asks first)", 2),
    Key("t", "t", "train", "train", "configure a run on this dataset", 1),
    Key("p", "p", "problems", "problems", "list what the check found; choosing one goes to its row", 4),
    Key("n", "n", "step(1)", "next", "the next hit of the search, or the next row with a finding", 6),
    Key("N", "N", "step(-1)", "previous", "the previous one", 9),
    Key("g", "g", "go", "go to", "go to a line of the file", 5),
    Key("G", "G", "last", "last row", "go to the last row", 9),
    Key("right", "→", "row(1)", "next row", "the next row, also while one is seen", 9),
    Key("left", "←", "row(-1)", "previous row", "the row before", 9),
    Key("plus", "+", "limit(1)", "longer limit", "the next longer limit (in lengths)", 9),
    Key("minus", "-", "limit(-1)", "shorter limit", "the next shorter one", 9),
    Key("equals_sign", "=", "ask_limit", "limit", "type the limit", 9),
    Key("h", "h", "scores", "hardest", "score each row by the model: the hardest first; choosing one goes there", 6),
    Key(
        "H", "H", "run_scores", "hardest of a run", "the same of the rows that the newest run on this file held out", 9
    ),
    Key("s", "s", "statistics", "statistics", "what is known of the file as a whole", 6),
    Key("m", "m", "model", "model", "choose the model whose tokens are shown and counted", 6),
    Key("e", "e", "error", "error", "the whole error: to scroll, to copy, and what can be done about it", 1),
    Key("y", "y", "copy", "copy", "copy the row, the finding, or what the pane says to the terminal's clipboard", 6),
    Key("Y", "Y", "copy_path", "copy path", "copy the path of the file", 9),
    Key("x", "x", "stop_work", "stop", "stop what runs in the background", 5),
    Key("escape", "esc", "back", "back", "from the pane to the table, then end the search, then the filter", 9),
)
NEED_FILE = {key.name for key in KEYS} - {"open", "choose", "model", "ask_limit", "limit", "stop_work", "back", "error"}
"""Actions that need an open file."""
_OF_PANE = {
    "detail": ("next_view", "row", "step", "copy"),
    "problems": ("choose", "step", "filter", "copy"),
    "lengths": ("limit", "ask_limit", "model"),
}
"""What matters most in a pane."""


def useful(pane: str | None, *, working: bool, checked: bool, failed: bool, steps_to: str) -> list[Key]:
    """The keys that do something now, what matters most first.

    Args:
        pane: the one that has the keys; empty for the table, ``None`` where no file is open.
        working: whether something goes on that can be stopped.
        checked: whether every row was; before that a check is of more use than a cleaned copy.
        failed: whether an error is shown.
        steps_to: what the next step goes to, in a word; empty where there is nothing.
    """
    first = ["stop_work"] * working + ["error"] * failed
    if pane is None:
        labels = {"choose": "open", "open": "path", "stop_work": "stop", "error": "error"}
        shown = ("choose", "open", *first)
        return [key._replace(rank=1, label=labels[name]) for name in shown for key in KEYS if key.name == name]
    first += ["back", *_OF_PANE.get(pane, ("copy",))] if pane else ["choose"]
    keys = [key._replace(label=steps_to) if key.action == "step(1)" else key for key in KEYS]
    keys = [key for key in keys if steps_to or key.name != "step"]
    found = [key._replace(rank=1) for key in keys if key.name in first and key.keys not in ("N", "left", "minus")]
    ranks = {} if checked else {"check": 2, "clean": 3}
    others = (key for key in keys if key.name not in (*first, "stop_work", "error"))
    return [*found, *(key._replace(rank=ranks.get(key.name, key.rank)) for key in others)]
