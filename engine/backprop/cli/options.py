"""Settings as command-line flags, and a configuration as the command line that gives it.

The flags are made from the fields of ``RunConfig``: a new setting is a new flag without a line here. ``NAMES`` holds
the few whose established name is another one.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click
import msgspec
from msgspec import Struct, inspect

from backprop.core.errors import InputError, InvalidSettingError
from backprop.core.files import MOST_BYTES, too_deep
from backprop.core.settings import RunConfig, config_from, locate, override, setting_help, shown

NAMES: dict[str, tuple[str, ...]] = {
    "data": ("--data", "-d"),
    "model": ("--model", "-m"),
    "learning_rate": ("--lr",),
    "output_dir": ("--output", "-o"),
    "mapping": ("--map",),
    "sample_prompts": ("--sample-prompt",),
    "use_unsloth": ("--unsloth",),
}

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|nan|infinity)", re.IGNORECASE)

Kind = Literal["switch", "value", "list", "repeated", "pairs"]


class Flag(Struct, frozen=True):
    """How one setting is written on a command line.

    ``switch`` takes no value; ``value`` one; ``list`` a comma-separated one; ``repeated`` and ``pairs`` (``a=b``) may
    be given several times. ``off`` is the name that turns a switch off, empty for one that can only be turned on.
    """

    setting: str
    names: tuple[str, ...]
    kind: Kind
    choices: tuple[str, ...]
    numbers: tuple[type, ...]
    default: Any
    help: str
    on: bool = True
    """Whether the switch has a name that turns it on."""

    @property
    def off(self) -> str:
        """The name that turns a switch off; empty where there is none."""
        return f"--no-{self.names[0][2:]}" if self.kind == "switch" and self.default is not False else ""

    @property
    def metavar(self) -> str:
        """What ``--help`` shows in place of the value."""
        shown = [*("N" if t is int else "X" for t in self.numbers), *self.choices]
        return {"pairs": "FIELD=COLUMN", "list": "A,B,…"}.get(self.kind) or "|".join(shown) or "TEXT"


@functools.cache
def flags() -> dict[str, Flag]:
    """Every setting's flag, by the setting's name and in the order of ``RunConfig``."""
    info = inspect.type_info(RunConfig)
    assert isinstance(info, inspect.StructType)
    return {field.name: _flag(field) for field in info.fields}


def _flag(field: inspect.Field) -> Flag:
    parts = [_bare(part) for part in getattr(_bare(field.type), "types", (field.type,))]
    default = None if field.required else field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    kind: Kind = "value"
    if any(isinstance(part, inspect.BoolType) for part in parts):
        kind = "switch"
    elif any(isinstance(part, inspect.DictType) for part in parts):
        kind = "pairs"
    elif any(isinstance(part, inspect.ListType) for part in parts):
        # A list that is empty unless given holds sentences; one that is open (None) holds names.
        kind = "list" if default is None else "repeated"
    numbers = {inspect.IntType: int, inspect.FloatType: float}
    return Flag(
        setting=field.name,
        names=NAMES.get(field.name, ("--" + field.name.replace("_", "-"),)),
        kind=kind,
        choices=tuple(str(v) for part in parts if isinstance(part, inspect.LiteralType) for v in part.values),
        numbers=tuple(numbers[type(part)] for part in parts if type(part) in numbers),
        default=default,
        help=setting_help(field.name),
        on=default is not True,
    )


def _bare(kind: inspect.Type) -> inspect.Type:
    return _bare(kind.type) if isinstance(kind, inspect.Metadata) else kind


def flag_name(setting: str) -> str:
    """The flag that a message should name for a setting: ``--lr`` for ``learning_rate``."""
    flag = flags()[setting]
    return flag.names[0] if flag.on else flag.off


def parse(setting: str, given: Any) -> Any:
    """The plain value of what was written for ``setting``; ranges are checked when the configuration is built.

    Args:
        given: text, a tuple of texts for a flag that may be repeated, or a bool for a switch.

    Raises:
        InvalidSettingError: the text is none of the setting's choices and no number where one is needed.
    """
    flag = flags()[setting]
    match flag.kind:
        case "switch":
            return given
        case "list":
            return [part.strip() for part in given.split(",") if part.strip()]
        case "repeated":
            return list(given)
        case "pairs":
            return dict(_pair(flag, text) for text in given)
    for number in flag.numbers:
        # Only 0 to 9 are digits here: what Python also takes (1_000, Arabic digits, blanks) is more likely a slip.
        with contextlib.suppress(ValueError):
            if _NUMBER.fullmatch(given):
                return number(given)
    if given in flag.choices or not (flag.choices or flag.numbers):
        return given
    near = difflib.get_close_matches(given, flag.choices, n=1)
    wanted = " or ".join([*("a whole number" if n is int else "a number" for n in flag.numbers), *flag.choices])
    raise InvalidSettingError(
        f"{flag.names[0]} takes {wanted}, not {shown(given)}",
        hint=f"did you mean {near[0]}?" if near else f"{flag.names[0]}: {flag.help}",
        details={"field": setting},
    )


def _pair(flag: Flag, text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (equals and name.strip() and column.strip()):
        raise InvalidSettingError(
            f"{flag.names[0]} takes FIELD=COLUMN, not {shown(text)}",
            hint=f"for instance {flag.names[0]} instruction=question",
            details={"field": flag.setting},
        )
    return name.strip(), column.strip()


def gather(given: dict[str, Any], file: str | None = None) -> dict[str, Any]:
    """The settings that a command line names, as plain values.

    Args:
        given: setting name to what click parsed; ``None`` and ``()`` where the flag was not given.
        file: a JSON or TOML file of settings; flags win over it.

    Raises:
        InputError: the file is not usable.
        InvalidSettingError: a flag's text cannot be its value.
    """
    values = read_settings(Path(file)) if file else {}
    return override(
        values, {name: parse(name, value) for name, value in given.items() if value is not None and value != ()}
    )


def configure(values: dict[str, Any]) -> RunConfig:
    """The configuration of a run from named settings, its paths absolute.

    Raises:
        InputError: no data was given.
        InvalidSettingError: a value is out of its range; the message names the flag.
        DatasetNotFoundError: the data file does not exist.
    """
    if values.get("data") in (None, ""):
        raise InputError("no dataset was given", hint="name one with --data FILE, or try `backprop demo`")
    return locate(checked(values))


def run_config(given: dict[str, Any], file: str | None) -> RunConfig:
    """The configuration of a new run from flags and a file of settings; says which model is taken if none is named.

    Raises:
        InputError, InvalidSettingError, DatasetNotFoundError: as ``gather`` and ``configure``.
    """
    values = gather(given, file)
    config = configure(values)
    if "model" in values:
        return config
    return msgspec.structs.replace(config, model=usual_model(config.backend))


def checked(values: dict[str, Any]) -> RunConfig:
    """The configuration of named settings, with flags named in its errors.

    Raises:
        InvalidSettingError: a value is out of its range.
    """
    try:
        return config_from(values)
    except InvalidSettingError as error:
        setting = error.details.get("field", "")
        if setting not in flags() or not error.message.startswith(f"{setting}:"):
            raise
        message, hint = (text.replace(setting, flag_name(setting), 1) for text in (error.message, error.hint))
        raise InvalidSettingError(message, hint=hint, details=error.details) from None


def read_settings(file: Path) -> dict[str, Any]:
    """Settings from a JSON or TOML file, by its ending.

    Raises:
        InputError: the file is missing, not readable, or holds no table of settings.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES or too_deep(content):
            raise ValueError("it is larger, or nested deeper, than settings are")
        if file.suffix == ".toml":
            import tomllib

            return tomllib.loads(content.decode())
        values = json.loads(content, object_pairs_hook=_once)
    except FileNotFoundError:
        raise InputError(f"there is no settings file {file}", hint="look at the path after --config") from None
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file} cannot be read: {why}", hint="--config takes a JSON or TOML file") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} holds no settings", hint='a JSON object such as {"steps": 100}')
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return values


def arguments(config: RunConfig) -> list[str]:
    """The flags that give ``config``: model, data and what differs from the defaults, in the order of the settings."""
    words = []
    for flag in flags().values():
        value = getattr(config, flag.setting)
        # Which model is taken when none is named depends on the machine.
        if value != flag.default or flag.setting == "model":
            words += _written(flag, value)
    return words


def _written(flag: Flag, value: Any) -> list[str]:
    name = flag.names[0]
    match flag.kind:
        case "switch":
            return [name if value else flag.off]
        case "list":
            return [name, ",".join(value)]
        case "repeated":
            return [word for text in value for word in (name, text)]
        case "pairs":
            return [word for key, column in value.items() for word in (name, f"{key}={column}")]
    return [name, str(value)]


def command_line(config: RunConfig) -> str:
    """The command that starts a run with this configuration, quoted for a shell."""
    return f"backprop train {shlex.join(arguments(config))}"


def json_and_verbose(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--json`` and ``--verbose``, passed on as ``as_json`` and ``verbose``."""
    verbose = click.option("--verbose", "-v", is_flag=True, help="show the traceback of an error")
    as_json = click.option(
        "--json", "as_json", is_flag=True, help="for programs: JSON on standard output, nothing else"
    )
    return as_json(verbose(function))


def setting_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the flags of the named settings, of all where none is named."""
    chosen = [flags()[name] for name in names] if names else list(flags().values())

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for flag in reversed(chosen):
            function = _option(flag)(function)
        return function

    return decorate


def _option(flag: Flag) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    # Which model is taken when none is named depends on the machine.
    open_ended = flag.default in (None, [], {}) or flag.setting == "model"
    shown = "" if open_ended else f"  [default: {flag.default}]"
    if flag.kind == "switch":
        parts = [*(flag.names if flag.on else ()), *([flag.off] if flag.off else ())]
        if flag.on:
            return click.option("/".join(parts), flag.setting, is_flag=True, default=None, help=flag.help)
        return click.option(
            flag.off, flag.setting, flag_value=False, default=None, type=bool, help=f"turn off: {flag.help}"
        )
    return click.option(
        *flag.names,
        flag.setting,
        metavar=flag.metavar,
        multiple=flag.kind in ("repeated", "pairs"),
        help=flag.help + shown,
    )


def usual_model(backend: str) -> str:
    """The model to take when none was named: the default one on a GPU, the embedded one elsewhere; says which."""
    from backprop.cli import output
    from backprop.core.presets import default_model
    from backprop.hardware.devices import info

    model, why = default_model(backend, gpu=info().gpu_problem is None)
    output.narrate(f"no model was named: taking {model} ({why}); --model names another")
    return model
