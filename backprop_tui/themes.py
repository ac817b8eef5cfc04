"""Colours: exact entries of the xterm-256 palette, so that a terminal without true colour shows the same picture.

Every widget draws with inks, named by what a piece of text means (``inks``). For a theme that does not name them they
are mixed from its own colours; the ansi themes take the terminal's sixteen.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from rich.color import Color as RichColor
from textual.color import Color
from textual.css.stylesheet import Stylesheet
from textual.theme import Theme

_COLOURS = {
    #              dark       light      sixteen
    "primary": ("#5fafd7", "#005f87", "ansi_cyan"),
    "secondary": ("#87afd7", "#5f5f87", "ansi_blue"),
    "accent": ("#d7af5f", "#875f00", "ansi_yellow"),
    "warning": ("#d7af5f", "#875f00", "ansi_yellow"),
    "error": ("#ff5f5f", "#af0000", "ansi_red"),
    "success": ("#87d787", "#005f00", "ansi_green"),
    "foreground": ("#d0d0d0", "#303030", "ansi_default"),
    "background": ("#121212", "#ffffff", "ansi_default"),
    "surface": ("#1c1c1c", "#f5f5f5", "ansi_default"),
    "panel": ("#262626", "#e4e4e4", "ansi_default"),
    "boost": (None, None, "ansi_default"),
}
_VARIABLES = {
    "ink-strong": ("#eeeeee", "#080808", "ansi_default"),
    "ink-muted": ("#8a8a8a", "#6c6c6c", None),
    "ink-rule": ("#444444", "#bcbcbc", None),
    "ink-raw": ("#5f87af", "#8787af", "ansi_blue"),
    "ink-smooth": ("#87d7ff", "#005faf", "ansi_bright_cyan"),
    "ink-mark": ("#ffd75f", "#af5f00", "ansi_bright_yellow"),
    "ink-trained": ("#87d787", "#005f00", None),
    "ink-cursor": ("#303030", "#d7d7d7", None),
    "block-cursor-background": ("#303030", "#d7d7d7", "ansi_default"),
    "block-cursor-foreground": ("#eeeeee", "#080808", "ansi_default"),
    "block-cursor-text-style": ("none", "none", "reverse"),
    "block-cursor-blurred-background": ("#262626", None, None),
    "border": ("#5f87af", "#005f87", "ansi_cyan"),
    "border-blurred": ("#444444", "#bcbcbc", "ansi_bright_black"),
    "ansi-background": (None, None, "ansi_black"),
    "ansi-foreground": (None, None, "ansi_white"),
    "scrollbar": (None, None, "ansi_bright_black"),
    "scrollbar-background": (None, None, "ansi_default"),
}


def _theme(name: str, column: int, *, dark: bool = True, ansi: bool = False) -> Theme:
    """A theme from one column of the tables."""
    colours: dict[str, Any] = {key: row[column] for key, row in _COLOURS.items()}
    variables = {key: value for key, row in _VARIABLES.items() if (value := row[column]) is not None}
    return Theme(name=name, dark=dark, ansi=ansi, variables=variables, **colours)


DARK = _theme("backprop-dark", 0)
LIGHT = _theme("backprop-light", 1, dark=False)
SIXTEEN = _theme("backprop-16", 2, ansi=True)
COLOUR_BLIND = Theme(
    **{
        **{name: getattr(DARK, name) for name in (*_COLOURS, "dark")},
        **{"primary": "#5fafd7", "secondary": "#5fafd7", "success": "#00af87", "warning": "#ffd75f"},
        **{"error": "#d75f00", "accent": "#d787af", "name": "backprop-colour-blind"},
        "variables": DARK.variables
        | {"ink-raw": "#0087af", "ink-smooth": "#5fafd7", "ink-mark": "#d787af", "ink-trained": "#00af87"},
    }
)
"""The palette of Okabe and Ito, each colour as the nearest of xterm's 256."""
CONTRAST = 4.5
"""Of a text to its ground, at least (WCAG 2, AA)."""
_CURVE = 3.0
"""Of a curve."""
OWN = (DARK, LIGHT, SIXTEEN, COLOUR_BLIND)


def inks(theme: Theme) -> dict[str, str]:
    """CSS variables ``ink-…`` for ``theme``: its own where it has them, else made from its colours."""
    found = {
        "ink-text": theme.foreground or ("#e0e0e0" if theme.dark else "#202020"),
        "ink-good": theme.success or theme.primary,
        "ink-warn": theme.warning or theme.primary,
        "ink-bad": theme.error or theme.primary,
        "ink-info": theme.primary,
        "ink-key": theme.primary,
        "ink-smooth": theme.primary,
        "ink-mark": theme.accent or theme.primary,
        "ink-trained": theme.success or theme.primary,
    }
    found["ink-strong"] = found["ink-text"]
    if theme.ansi:
        grey = "ansi_bright_black"
        found |= {"ink-muted": grey, "ink-rule": grey, "ink-raw": "ansi_blue", "ink-cursor": "ansi_default"}
        if theme.dark and theme.primary == "ansi_blue":  # blue on black is hard to read in most terminals
            found |= dict.fromkeys(("ink-info", "ink-key", "ink-smooth"), "ansi_bright_cyan")
        elif not theme.dark:  # where two reds are one
            found |= {"ink-raw": "ansi_cyan", "ink-warn": "ansi_magenta"}
    else:
        text = Color.parse(found["ink-text"])
        ground = Color.parse(theme.background or ("#121212" if theme.dark else "#efefef"))
        found["ink-muted"] = text.blend(ground, 0.4, alpha=1).hex
        mixed = found.keys() - theme.variables.keys()
        found |= {name: legible(found[name], ground, dark=theme.dark) for name in mixed}
        found["ink-rule"] = text.blend(ground, 0.75, alpha=1).hex
        found["ink-cursor"] = text.blend(ground, 0.85, alpha=1).hex
        raw = Color.parse(found["ink-smooth"]).blend(ground, 0.55, alpha=1).hex
        found["ink-raw"] = legible(raw, ground, dark=theme.dark, least=_CURVE)
    return found | {name: value for name, value in theme.variables.items() if name.startswith("ink-")}


@lru_cache(maxsize=256)
def legible(colour: str, ground: Color, *, dark: bool, least: float = CONTRAST) -> str:
    """The colour, as much lighter on a dark ground or darker on a light one as it has to be to be read."""
    chosen, end = Color.parse(colour), Color(255, 255, 255) if dark else Color(0, 0, 0)
    steps = (chosen.blend(end, step / 20) for step in range(20))
    return next((mixed for mixed in steps if contrast(mixed, ground) >= least), end).hex


def contrast(a: Color, b: Color) -> float:
    """From 1 (the same) to 21 (black on white), by relative luminance as WCAG 2 has it."""
    low, high = sorted(_luminance(colour) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: Color) -> float:
    linear = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in colour.normalized)
    return sum(share * each for share, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def palette(theme: Theme) -> dict[str, RichColor]:
    """The colour of each ink in ``theme``."""
    return {name.removeprefix("ink-"): Color.parse(value).rich_color for name, value in inks(theme).items()}


class ParsedOnce(Stylesheet):
    """Textual's own parses every rule anew for each screen that brings some, and twice before the first is drawn."""

    def set_variables(self, variables: dict[str, str]) -> None:
        if variables != self._variables:
            super().set_variables(variables)

    def reparse(self) -> None:
        self.parse()
