"""Writing settings: the user's settings file, and configurations saved under a name. Comments of a person stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backprop.core.definition import all_settings, multi_settings, settings
from backprop.core.errors import InputError
from backprop.core.files import write_file
from backprop.core.paths import config_dir, expand
from backprop.core.settings_sources import FORMAT, Kind, Source, read_file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}")


def folder() -> Path:
    """Where saved configurations are, one TOML file each."""
    return config_dir() / "configurations"


def names() -> list[str]:
    """The saved configurations, in the order of the alphabet."""
    return sorted(path.stem for path in folder().glob("*.toml")) if folder().is_dir() else []


def path_of(name: str) -> Path:
    """The file of the configuration called ``name``, whether it is there or not.

    Raises:
        InputError: no file can have this name.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for a configuration", hint="use letters, digits, - and _")
    return folder() / f"{name}.toml"


def read_configuration(file: str | Path) -> Source:
    """What ``--config`` names: a file, or a saved configuration where no file is called so."""
    path = expand(file)
    if not path.exists() and _NAME.fullmatch(str(file)) and (saved := path_of(str(file))).exists():
        path = saved
    return read_file(path, "configuration")


def save(name: str, values: Mapping[str, Any], *, replace: bool = False) -> Path:
    """Save values of settings as the configuration ``name``; returns its file.

    Args:
        values: those that are not named are left to the defaults of the day.
        replace: write over a configuration of this name; its comments stay.

    Raises:
        InputError: there is one already, and ``replace`` was not asked for.
    """
    path = path_of(name)
    if path.exists() and not replace:
        raise InputError(f"there is a configuration {name} already: {path}", hint="choose another name, or replace it")
    known = (settings() | multi_settings()).items()
    write(path, {name: setting.written(values[name]) if name in values else None for name, setting in known})
    return path


def write(path: Path, changes: Mapping[str, Any]) -> None:
    """Write settings into a TOML file, or take those out that are ``None``; whatever else is in it stays.

    Raises:
        InputError: what is there cannot be read.
    """
    import tomlkit  # a third of what --help costs

    kind: Kind = "settings file"
    text = ""
    if path.exists():
        source = read_file(path, kind)
        if unreadable := [error for error in source.errors if isinstance(error, InputError)]:
            raise unreadable[0]
        text = path.read_text("utf-8-sig")
    document = tomlkit.parse(text)
    document.setdefault("version", FORMAT)
    for name, value in changes.items():
        setting = all_settings()[name]
        table: Any = document
        # A value may stand by its full name at the top: there it is changed.
        if setting.section and (name not in document or isinstance(document[name], dict)):
            if setting.section not in document and value is None:
                continue
            table, name = document.setdefault(setting.section, tomlkit.table()), setting.key
        if value is not None:
            table[name] = value
        elif name in table:
            del table[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever keeps the file elsewhere and links to it keeps the link.
    write_file(path.resolve(), tomlkit.dumps(document).encode())
