"""The keys of the Configure screen, for whoever needs nothing else of it."""

from __future__ import annotations

from backprop_tui.keys import Key, table

KEYS = table(
    "configure",
    Key("enter", "enter", "change", "change", "change the setting under the cursor", 2),
    Key("s", "s", "start", "start", "start the run, or go to what is missing", 1),
    Key("l", "l", "queue", "queue", "have it trained after the runs before it: the queue is on Runs", 2),
    Key("right", "→", "turn(1)", "next choice", "the next of the setting's choices", 9),
    Key("left", "←", "turn(-1)", "choice before", "the one before", 9),
    Key("u,backspace,delete", "u", "unset", "default", "take the setting back to its default", 4),
    Key("a", "a", "all", "all", "show every setting, or the common ones", 2),
    Key("e", "e", "presets", "presets", "take the values of a training preset", 5),
    Key("f", "f", "fit", "make it fit", "change what saves the most memory", 5),
    Key("y", "y", "copy", "copy", "copy the command that starts the same run", 3),
    Key("w", "w", "save", "save", "save these settings under a name", 4),
    Key("o", "o", "load", "load", "load settings that were saved", 4),
    Key("n", "n", "anew", "begin anew", "take every setting back to its default", 9),
)
