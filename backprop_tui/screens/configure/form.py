"""Every setting, one a row under its section: value, where it comes from, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from backprop.core.definition import Setting, all_settings, multi_settings, settings
from backprop.core.multi_run import KIND as MULTI_RUN
from backprop.core.resolve import Resolution
from backprop.core.settings import SECTIONS

from backprop_tui.keys import press
from backprop_tui.text import Row, from_home, safe
from backprop_tui.widgets.cells import cut, heading, row_width
from backprop_tui.widgets.list_view import ListView

NAME_WIDTH = 24
MORE = "more"
"""Stands for the row that opens the settings that are not shown."""


class Line(NamedTuple):
    """A row of the form: a setting, or where there is none a section's title or ``MORE``."""

    setting: Setting | None
    title: str = ""


def value_text(setting: Setting, value: Any) -> str:
    """A value as a person writes it; empty where nothing is chosen."""
    match value:
        case None:
            return ""
        case bool():
            return "on" if value else "off"
        case float():
            return f"{value:g}"
        case dict():
            return ",".join(f"{name}={column}" for name, column in value.items())
        case list():
            return (" | " if setting.kind == "repeated" else ",").join(value)
    return str(value)


def changes(resolution: Resolution) -> set[str]:
    """The settings of a run, or of a session, that were given, and differ from their defaults."""
    given = resolution.given()
    return {name for name, value in given.items() if value != all_settings()[name].default}


class SettingsForm(ListView):
    """The settings of a resolution; the cursor goes from setting to setting, over the titles."""

    resolution: Resolution | None = None
    everything = False
    wrong: Mapping[str, str]
    """What is wrong, by setting."""
    becomes: Mapping[str, str]
    """What a value that is chosen by rule comes to, by setting."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.lines: list[Line] = []
        self.wrong, self.becomes = {}, {}

    def show(self, resolution: Resolution, wrong: Mapping[str, str], becomes: Mapping[str, str]) -> None:
        """Show these values; the cursor stays on its setting."""
        at = self.chosen
        self.resolution, self.wrong, self.becomes = resolution, wrong, becomes
        self.lines = []
        known = (settings() | multi_settings()).values()
        for section in SECTIONS:
            shown = [each for each in known if each.section == section and self._is_shown(each)]
            if shown:
                self.lines += [Line(None, section), *map(Line, shown)]
        self.lines.append(Line(None, MORE))
        self.resize_list(len(self.lines))
        self.go_to(at.name if at else "data")

    def _is_shown(self, setting: Setting) -> bool:
        several = self.resolution is not None and self.resolution.several
        common = several if setting.section == MULTI_RUN else setting.common
        return self.everything or common or setting.name in self.wrong

    @property
    def chosen(self) -> Setting | None:
        """The setting under the cursor."""
        return self.lines[self.cursor].setting if self.cursor < len(self.lines) else None

    @property
    def on_more(self) -> bool:
        return self.cursor < len(self.lines) and self.lines[self.cursor].title == MORE

    def go_to(self, name: str) -> None:
        """Put the cursor on a setting, showing all of them where it is not among the common ones."""
        at = next((i for i, line in enumerate(self.lines) if line.setting and line.setting.name == name), None)
        if at is None and not self.everything and self.resolution is not None:
            self.everything = True
            self.show(self.resolution, self.wrong, self.becomes)
            self.go_to(name)
        elif at is not None:
            self.cursor = at
            self._show_first_title()

    def action_by(self, rows: int) -> None:
        """Move; a title is no place to stay, and at the very top the first one is seen as well."""
        at = max(0, min(self.cursor + rows, self.count - 1))
        step = -1 if rows < 0 and any(line.setting for line in self.lines[:at]) else 1
        while at < self.count - 1 and self.lines[at].setting is None:
            at += step
        self.cursor = at
        self._show_first_title()

    def _show_first_title(self) -> None:
        if self.cursor == 1:
            self.bring_into_view(0)

    def row_at(self, index: int, width: int) -> Row:
        setting, title = self.lines[index]
        assert self.resolution is not None
        differ = changes(self.resolution)
        if setting is None:
            return self._more(differ) if title == MORE else heading(title, width, SECTIONS[title])
        value, origin = self.resolution.values[setting.name], self.resolution.origins[setting.name]
        changed = setting.name in differ
        mark = ("✗ ", "bad") if setting.name in self.wrong else ("• ", "info") if changed else ("  ", "text")
        name = cut([(setting.name, "strong" if changed else "text")], NAME_WIDTH - 1)
        row: Row = [mark, *name, (" " * (NAME_WIDTH - row_width(name)), "text")]
        text = safe(from_home(value_text(setting, value)))
        becomes = self.becomes.get(setting.name, "")
        if setting.name in self.wrong:
            row.append((text or "missing", "bad"))
        elif text and text != "auto":
            row.append((text, "strong" if changed else "text"))
            row.append((f" {setting.unit}" if setting.unit else "", "muted"))
        elif becomes:
            row.append((becomes, "text"))
        else:
            row.append((setting.rule or "–", "muted"))
        tail = safe(str(origin)) if changed and origin.kind != "screen" else ""
        gap = width - row_width(row) - row_width([(tail, "muted")])
        return [*row, (" " * gap, "text"), (tail, "muted")] if tail and gap > 1 else row

    def _more(self, differ: set[str]) -> Row:
        if self.everything:
            return [("  fewer settings", "info"), (f"  {press('configure.all')}", "key+bold")]
        hidden = {each.name for each in (settings() | multi_settings()).values() if not self._is_shown(each)}
        words = f", {len(hidden & differ)} of them changed" if hidden & differ else ""
        return [(f"  {len(hidden)} more settings{words}", "info"), (f"  {press('configure.all')}", "key+bold")]

    def under_cursor(self, row: Row, width: int) -> Row:
        return super().under_cursor([("▸ ", "info+bold"), *row[1:]] if self.chosen else row, width)
