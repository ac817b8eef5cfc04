"""Settings as they are written down: TOML and JSON files, ``.env``, environment variables. Each with its place.

A file has a table for each section (``[training]`` with ``learning_rate = 1e-4``), and may have settings by their full
names above the first table (``learning_rate = 1e-4``). Everything that is wrong is collected, not raised: a person
mends several lines at once.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from backprop.core.definition import PREFIX, Setting, all_settings, unknown
from backprop.core.errors import BackpropError, InputError, InvalidSettingError
from backprop.core.files import read_regular, too_deep
from backprop.core.paths import config_dir
from backprop.core.settings import SECTIONS, shown

Kind = Literal[
    "default",
    "settings file",
    ".env",
    "environment",
    "configuration",
    "preset",
    "flag",
    "argument",
    "screen",
    "rule",
    "run",
]
"""Where a value can come from, the weakest first. ``run``: from the run that this one continues or was made from."""
PASSWORD = f"{PREFIX}UI__AUTH"
"""No setting: a password is in no list of values, and no file is read for it unasked."""
FORMAT = 1
"""Version of the form of settings files. One without a version is of this one."""
_OURS = re.compile(r"BACKPROP[A-Z]*_", re.IGNORECASE)
_OTHER_FORMS = {".yaml": "YAML", ".yml": "YAML", ".ini": "INI", ".py": "Python"}


class Given(Struct, frozen=True):
    """One value as it was written, and where: ``place`` is for people (``x.toml:3``), ``label`` begins a message."""

    value: Any
    place: str
    label: str


class Source(Struct):
    """What one source gives: the values by setting, a training preset, and what is wrong in it."""

    kind: Kind
    given: dict[str, Given] = {}
    errors: list[BackpropError] = []
    preset: Given | None = None

    def add(self, setting: Setting, given: Given) -> None:
        """Take a value; a second one for the same setting is an error."""
        if (before := self.given.get(setting.name)) is not None:
            twice = f"{given.label}: {setting.name} is given twice, also at {before.place}"
            self.errors.append(setting.error(twice, "remove one of the two"))
        elif setting.per_run and self.kind in ("settings file", ".env", "environment"):
            alone = f"{given.label}: {setting.name} is taken from the command line alone, or a file that it names"
            hint = f"remove it here, and give {setting.flag} with the model that is trusted"
            self.errors.append(setting.error(alone, hint))
        else:
            self.given[setting.name] = given


def settings_file() -> Path:
    """The user's own settings; the program writes it only for ``config set`` and ``unset``."""
    return config_dir() / "settings.toml"


def keys_file() -> Path:
    """The user's own keys of the application; the program never writes it."""
    return config_dir() / "keys.toml"


def read_settings_file() -> Source:
    """The user's settings file; nothing where there is none."""
    path = settings_file()
    return read_file(path, "settings file") if os.path.lexists(path) else Source("settings file")


def read_file(path: Path, kind: Kind) -> Source:
    """The settings in a TOML or JSON file, by its ending."""
    source = Source(kind)
    try:
        values, line_of = parsed(path)
    except BackpropError as error:
        source.errors.append(error)
        return source
    if (version := values.pop("version", FORMAT)) != FORMAT:
        newer = type(version) is int and version > FORMAT
        what = "a newer backprop wrote this file, in version" if newer else "there is no version"
        hint = "use the version of backprop that wrote it" if newer else "remove the line"
        message = f"{_place(path, line_of('version'))}: {what} {shown(version)} of its form; known is {FORMAT}"
        source.errors.append(InputError(message, hint=hint))
        return source
    for keys, value in _flat(values):
        _take(source, keys, value, _place(path, line_of(*keys)))
    return source


def _flat(values: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting's path and value. What looks like a section and is none is given as a whole."""
    for key, value in values.items():
        if key in SECTIONS and isinstance(value, dict):
            yield from (((key, inner), each) for inner, each in value.items())
        else:
            yield (key,), value


def _take(source: Source, keys: tuple[str, ...], value: Any, place: str) -> None:
    """Add what a file says at ``keys`` to ``source``, or why it cannot be."""
    written = ".".join(keys)
    if keys == ("preset",):
        source.preset = Given(value, place, f"{place}: preset")
        return
    whole = len(keys) > 1 or "." in written
    known = {setting.path if whole else setting.name: setting for setting in all_settings().values()}
    if (setting := known.get(written)) is not None:
        source.add(setting, Given(value, place, f"{place}: {setting.name}"))
    elif len(keys) == 1 and isinstance(value, dict):
        near = next(iter(difflib.get_close_matches(written[:80].lower(), SECTIONS, n=1)), "")
        hint = f"did you mean [{near}]?" if near else f"the sections are {', '.join(SECTIONS)}"
        details = {"field": written, "place": place}
        source.errors.append(
            InvalidSettingError(f"{place}: there is no section {shown(written)}", hint=hint, details=details)
        )
    else:
        what = f"unknown setting {shown(keys[-1])}" + (f" in [{keys[0]}]" if len(keys) > 1 else "")
        source.errors.append(unknown(what, written, _in_file, place=place))


def _in_file(setting: Setting) -> str:
    return f"{setting.key} in [{setting.section}]" if setting.section else f"{setting.key}, above the first section"


def _place(path: Path, line: int) -> str:
    return f"{path}:{line}" if line else str(path)


def parsed(path: Path) -> tuple[dict[str, Any], Callable[..., int]]:
    """What a file holds, and the line at which a path of keys stands in it (0 where that is not found).

    Raises:
        InputError: the file is missing, not readable, or holds no table of settings.
    """
    try:
        content = read_regular(path)
        if too_deep(content):
            raise ValueError("it is nested deeper than settings are")
        text = content.decode("utf-8-sig")
        if path.suffix.lower() in _OTHER_FORMS:
            raise ValueError(f"{_OTHER_FORMS[path.suffix.lower()]} is not read")
        if path.suffix.lower() == ".toml":
            import tomllib

            uncommented = re.sub(r"^[ \t]*#.*", "", text, flags=re.MULTILINE)
            return tomllib.loads(text), lambda *keys: _line(uncommented, keys, _TOML_KEY)
        values = json.loads(text, object_pairs_hook=_once)
    except FileNotFoundError:
        raise InputError(f"there is no settings file {path}", hint="look at the path after --config") from None
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read: {why}", hint="settings are in a TOML or JSON file") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no settings", hint='a JSON object such as {"steps": 100}')
    return values, lambda *keys: _line(text, keys, _JSON_KEY)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return values


_JSON_KEY = r'"{}"\s*:'
_TOML_KEY = r"""(?:^\s*\[?\s*|[.{{,]\s*)["']?{}["']?\s*[].=]"""


def _line(text: str, keys: tuple[str, ...], form: str) -> int:
    """The line at which a path of keys stands, each written in this form after the one before; 0: not found."""
    position, found = 0, None
    for key in keys:
        found = re.compile(form.format(re.escape(key)), re.MULTILINE).search(text, position)
        if found is None:
            return 0
        position = found.end() - 1
    return text.count("\n", 0, position) + 1


def read_environment() -> Source:
    """Settings from environment variables; an empty one gives nothing."""
    source = Source("environment")
    for name, value in sorted(os.environ.items()):
        _take_variable(source, name, value, name)
    return source


def _take_variable(source: Source, name: str, value: str, place: str) -> None:
    if not _OURS.match(name):
        return
    if name == f"{PREFIX}PRESET":
        source.preset = Given(value, place, place) if value else None
        return
    if name == PASSWORD:
        return
    setting = {each.variable: each for each in all_settings().values()}.get(name)
    if setting is None:
        what = f"there is no setting {shown(name)}"
        source.errors.append(unknown(what, name, lambda near: near.variable, place=place))
    elif value:
        source.add(setting, Given(value, place, place))


def read_dotenv() -> Source:
    """Settings from ``.env`` in the working directory; other variables are not read."""
    source, path = Source(".env"), Path(".env")
    try:
        path = Path.cwd() / path
        if not path.is_file():
            return source
        content = read_regular(path)
        if b"\0" in content:  # as UTF-16, which PowerShell writes: every name in it would be passed over
            raise ValueError("it is no text in UTF-8")
        lines = content.decode("utf-8-sig", "surrogateescape").splitlines()
    except FileNotFoundError:  # the working directory is gone
        return source
    except (OSError, ValueError) as error:
        why, hint = str(error), "save it as UTF-8"
        if isinstance(error, OSError):
            why, hint = str(error.strerror), "look at its permissions"
        source.errors.append(InputError(f"{path} cannot be read: {why}", hint=hint))
        return source
    for number, line in enumerate(lines, 1):
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            _take_variable(source, name.strip(), _unquoted(value.strip()), f"{path}:{number}")
    return source


def _unquoted(text: str) -> str:
    """A value without its quotes, or without the comment after it."""
    if quoted := re.match(r"""(["'])(.*?)\1\s*(#.*)?$""", text):
        return quoted[2]
    return re.sub(r"(^|\s+)#.*$", "", text)
