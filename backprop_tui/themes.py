"""Colours: exact entries of the xterm-256 palette, so that a terminal without true colour shows the same picture.

Every widget draws with inks, named by what a piece of text means (``inks``). For a theme that does not name them they
are mixed from its own colours; the ansi themes take the terminal's sixteen.
"""

from __future__ import annotations

from rich.color import Color as RichColor
from textual.color import Color
from textual.theme import Theme

DARK = Theme(
    name="backprop-dark",
    primary="#5fafd7",
    secondary="#87afd7",
    accent="#d7af5f",
    warning="#d7af5f",
    error="#ff5f5f",
    success="#87d787",
    foreground="#d0d0d0",
    background="#121212",
    surface="#1c1c1c",
    panel="#262626",
    dark=True,
    variables={
        "ink-strong": "#eeeeee",
        "ink-muted": "#8a8a8a",
        "ink-rule": "#444444",
        "ink-raw": "#5f87af",
        "ink-smooth": "#87d7ff",
        "ink-mark": "#ffd75f",
        "ink-trained": "#87d787",
        "ink-cursor": "#303030",
        "block-cursor-background": "#303030",
        "block-cursor-foreground": "#eeeeee",
        "block-cursor-text-style": "none",
        "block-cursor-blurred-background": "#262626",
        "border": "#5f87af",
        "border-blurred": "#444444",
    },
)

LIGHT = Theme(
    name="backprop-light",
    primary="#005f87",
    secondary="#5f5f87",
    accent="#875f00",
    warning="#875f00",
    error="#af0000",
    success="#005f00",
    foreground="#303030",
    background="#ffffff",
    surface="#f5f5f5",
    panel="#e4e4e4",
    dark=False,
    variables={
        "ink-strong": "#080808",
        "ink-muted": "#6c6c6c",
        "ink-rule": "#bcbcbc",
        "ink-raw": "#afafd7",
        "ink-smooth": "#005faf",
        "ink-mark": "#d75f00",
        "ink-trained": "#005f00",
        "ink-cursor": "#d7d7d7",
        "block-cursor-background": "#d7d7d7",
        "block-cursor-foreground": "#080808",
        "block-cursor-text-style": "none",
        "border": "#005f87",
        "border-blurred": "#bcbcbc",
    },
)

SIXTEEN = Theme(
    name="backprop-16",
    ansi=True,
    primary="ansi_cyan",
    secondary="ansi_blue",
    warning="ansi_yellow",
    error="ansi_red",
    success="ansi_green",
    accent="ansi_yellow",
    foreground="ansi_default",
    background="ansi_default",
    surface="ansi_default",
    panel="ansi_default",
    boost="ansi_default",
    variables={
        "ansi-background": "ansi_black",
        "ansi-foreground": "ansi_white",
        "ink-strong": "ansi_default",
        "ink-raw": "ansi_blue",
        "ink-smooth": "ansi_bright_cyan",
        "ink-mark": "ansi_bright_yellow",
        "block-cursor-foreground": "ansi_default",
        "block-cursor-background": "ansi_default",
        "block-cursor-text-style": "reverse",
        "border": "ansi_cyan",
        "border-blurred": "ansi_bright_black",
        "scrollbar": "ansi_bright_black",
        "scrollbar-background": "ansi_default",
    },
)

OWN = (DARK, LIGHT, SIXTEEN)


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
    else:
        text = Color.parse(found["ink-text"])
        ground = Color.parse(theme.background or ("#121212" if theme.dark else "#efefef"))
        found["ink-muted"] = text.blend(ground, 0.4, alpha=1).hex
        found["ink-rule"] = text.blend(ground, 0.75, alpha=1).hex
        found["ink-cursor"] = text.blend(ground, 0.85, alpha=1).hex
        found["ink-raw"] = Color.parse(found["ink-smooth"]).blend(ground, 0.55, alpha=1).hex
    return found | {name: value for name, value in theme.variables.items() if name.startswith("ink-")}


_palettes: dict[str, dict[str, RichColor]] = {}


def palette(theme: Theme) -> dict[str, RichColor]:
    """The colour of each ink in ``theme``."""
    if theme.name not in _palettes:
        _palettes[theme.name] = {
            name.removeprefix("ink-"): Color.parse(value).rich_color for name, value in inks(theme).items()
        }
    return _palettes[theme.name]
