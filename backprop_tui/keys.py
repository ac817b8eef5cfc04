"""Every key of the application, once: bindings, help, the key bar and the palette are made from this table."""

from __future__ import annotations

from typing import NamedTuple

from textual.binding import Binding


class Key(NamedTuple):
    keys: str
    """As Textual names them, separated by commas."""
    shown: str
    action: str
    label: str
    """A word or two for the key bar."""
    help: str
    where: str
    """``everywhere``, ``live``, ``runs`` or ``data``."""
    rank: int
    """The key bar drops the highest first; 9 is never shown there."""

    @property
    def name(self) -> str:
        """The action without its arguments."""
        return self.action.removeprefix("app.").partition("(")[0]


SCREENS = (("live", "Live"), ("runs", "Runs"), ("data", "Data"))
"""Screens in the order of their numbers."""

TABLE = (
    Key("p", "p", "pause", "pause", "pause after this step, or go on", "live", 1),
    Key("s", "s", "stop", "stop", "finish this step, save, and end the run", "live", 2),
    Key("c", "c", "checkpoint", "save", "save a checkpoint now", "live", 4),
    Key("g", "g", "sample", "sample", "answer the sample prompts with the model as it is", "live", 4),
    Key("a", "a", "abort", "abort", "end at once without saving (asks first)", "live", 6),
    Key("tab", "tab", "pane(1)", "panes", "events, samples, data: the next one", "live", 3),
    Key("shift+tab", "shift+tab", "pane(-1)", "previous pane", "the previous one", "live", 9),
    Key("l", "l", "log_y", "log", "logarithmic or linear loss axis", "live", 5),
    Key("plus,equals_sign", "+", "smooth(1)", "smooth", "smooth the loss more", "live", 5),
    Key("minus", "-", "smooth(-1)", "smooth less", "smooth it less", "live", 9),
    Key("b", "b", "symbols", "symbols", "draw with braille, blocks or ASCII", "live", 9),
    Key("enter", "enter", "open", "open", "watch the run: live, or as it was", "runs", 1),
    Key("c", "c", "resume", "resume", "continue a run that was stopped or crashed, exactly", "runs", 2),
    Key("slash", "/", "filter", "filter", "show the runs that hold a word", "runs", 2),
    Key("o", "o", "sort", "sort", "sort by the next column", "runs", 3),
    Key("d", "d", "demo", "demo", "start the demonstration run", "runs", 3),
    Key("x,delete", "x", "delete", "delete", "delete a run that is over (asks first)", "runs", 4),
    Key("r", "r", "rescan", "read again", "look for runs again", "runs", 9),
    Key("o", "o", "open", "open", "open a file by its path; tab completes it", "data", 4),
    Key("enter", "enter", "choose", "row", "see the row under the cursor, or go to the row of a finding", "data", 2),
    Key("v", "v", "next_view", "view", "see the row as a chat, as JSON, as tokens", "data", 1),
    Key("slash", "/", "search", "search", "search in every row; n and N step through the hits", "data", 4),
    Key("f", "f", "filter", "filter", "show only rows with a word, bad ones, a role or a format", "data", 5),
    Key("g", "g", "go", "go to", "go to a line of the file", "data", 5),
    Key("G", "G", "last", "last row", "go to the last row", "data", 9),
    Key("c", "c", "check", "check", "check every row", "data", 2),
    Key("p", "p", "problems", "problems", "list what the check found; enter goes to the row", "data", 2),
    Key("n", "n", "step(1)", "next", "the next hit of the search, or the next row with a finding", "data", 6),
    Key("N", "N", "step(-1)", "previous", "the previous one", "data", 9),
    Key("l", "l", "lengths", "lengths", "how long the rows are, and what the limit cuts", "data", 3),
    Key("plus", "+", "limit(1)", "longer limit", "the next longer limit (in lengths)", "data", 9),
    Key("minus", "-", "limit(-1)", "shorter limit", "the next shorter one", "data", 9),
    Key("equals_sign", "=", "ask_limit", "limit", "type the limit", "data", 9),
    Key("h", "h", "scores", "hardest", "score each row by the model: the hardest first; enter goes there", "data", 6),
    Key("s", "s", "statistics", "statistics", "what is known of the file as a whole", "data", 6),
    Key("m", "m", "model", "model", "choose the model whose tokens are shown and counted", "data", 6),
    Key("w", "w", "clean", "write", "write a cleaned copy beside the file (asks first)", "data", 5),
    Key("x", "x", "stop_work", "stop", "stop what runs in the background", "data", 5),
    Key("escape", "esc", "back", "back", "from the pane to the table, then end the search, then the filter", "data", 9),
    Key("escape", "esc", "app.back", "back", "one layer out", "everywhere", 9),
    Key("question_mark,f1", "?", "app.help", "help", "this list", "everywhere", 1),
    Key("ctrl+p", "ctrl+p", "app.command_palette", "palette", "every command by its name; themes", "everywhere", 9),
    Key("f2", "f2", "app.cadence", "refresh rate", "draw 4, 2 or 1 times a second", "everywhere", 9),
    Key("q,ctrl+q", "q", "app.leave", "leave", "leave; a living run goes on unless you say otherwise", "everywhere", 1),
    Key(
        "ctrl+c",
        "ctrl+c",
        "app.interrupt",
        "leave",
        "the same question; twice: leave, the run goes on",
        "everywhere",
        9,
    ),
    Key(
        "ctrl+z",
        "ctrl+z",
        "app.suspend_process",
        "suspend",
        "back to the shell; fg returns here, the run goes on meanwhile",
        "everywhere",
        9,
    ),
    *(
        Key(str(number), str(number), f"app.go('{name}')", title, f"the {title} screen", "everywhere", 3)
        for number, (name, title) in enumerate(SCREENS, 1)
    ),
)


def keys_of(where: str) -> list[Key]:
    return [key for key in TABLE if key.where == where]


def bindings(where: str) -> list[Binding]:
    """What Textual needs to know. Leaving works on top of every dialog."""
    return [
        Binding(key.keys, key.action, key.label, show=False, priority=key.name in ("interrupt",))
        for key in keys_of(where)
        if key.name != "command_palette"
    ]
