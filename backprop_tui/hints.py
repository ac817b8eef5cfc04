"""What to do, as an error says it, in the application's own words.

Errors come from the engine, whose hints are written for a shell: they name commands and flags. Here the keys that do
the same are named instead, and the settings as the Configure screen names them. What has no key stays as it is.
"""

from __future__ import annotations

import re

from backprop.core.definition import all_settings

from backprop_tui.keys import press

_COMMANDS = {
    r"backprop-tui --attach \S+|backprop show-run(?: \S+)?": ("runs.open", "runs"),
    r"backprop list-runs[^`]*": ("", "runs"),
    r"backprop resume(?: \S+)?": ("runs.resume", "runs"),
    r"backprop extend[^`]*": ("runs.extend", "runs"),
    r"backprop fork[^`]*": ("runs.fork", "runs"),
    r"backprop replay[^`]*": ("runs.replay", "runs"),
    r"backprop queue (?:list|run|rm)[^`]*": ("runs.queue", "runs"),
    r"backprop queue add[^`]*": ("configure.queue", "configure"),
    r"backprop train[^`]*": ("configure.start", "configure"),
    r"backprop validate[^`]*": ("data.check", "data"),
    r"backprop export RUN[^`]*": ("export.export", "export"),
    r"stop": ("live.stop", "live"),
    r"abort": ("live.abort", "live"),
}
"""A command without its backquotes; the key that does the same, and the screen that has it."""
_QUOTED = re.compile("|".join(f"(?:`({command})`)" for command in _COMMANDS))
_ATTACH = re.compile(r"(?<!`)(backprop-tui --attach \S+)")
_FLAG = re.compile(r"`[^`]*`|(?<![\w-])--(no-)?([a-z][a-z0-9-]*)")
"""A flag, but for those of a command, which is run in a shell as it stands."""


def hint_here(hint: str) -> str:
    """``hint`` with keys and settings in place of commands and flags, where there are such.

    >>> hint_here("train on the others with --skip-bad, or repair them: `backprop validate` lists them all")
    'train on the others with skip_bad on, or repair them: c on Data (1) lists them all'
    """
    return _FLAG.sub(_setting, keys_here(hint))


def keys_here(hint: str) -> str:
    """The same of commands alone: where no setting is meant by a flag."""
    return _QUOTED.sub(_key, _ATTACH.sub(r"`\1`", hint))


def _key(found: re.Match[str]) -> str:
    assert found.lastindex is not None
    key, screen = list(_COMMANDS.values())[found.lastindex - 1]
    if screen == "live":  # where the run is: its keys are at hand
        return press(key)
    there = f"{screen.capitalize()} ({press(f'everywhere.{screen}')})"
    return f"{press(key)} on {there}" if key else there


def _setting(found: re.Match[str]) -> str:
    off, flag = bool(found[1]), f"--{found[2]}"  # of a command none: the setting is not found
    setting = next((each for each in all_settings().values() if flag in each.flags), None)
    if setting is None:
        return found[0]
    switch = f" {'off' if off else 'on'}" if setting.kind == "switch" else ""
    return f"{setting.name}{switch}"
