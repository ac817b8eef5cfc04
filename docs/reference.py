"""``docs/reference.md``, made from the code: ``python docs/reference.py > docs/reference.md``.

Nothing is written down here that the code says elsewhere; a test compares the file with what this makes.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple, get_args

import click
from backprop.cli.info import OTHER_VARIABLES, PRESET_VARIABLE
from backprop.cli.main import COMMANDS, backprop
from backprop.core import errors, events
from backprop.core.definition import Setting, all_settings
from backprop.core.settings import SECTIONS
from backprop.data.example import PROBLEM_CODES

_HEAD = """# Reference

Made from the code by `python docs/reference.py`; not written by hand. The README says what all this is for."""
_SETTINGS = """A setting is a key of a section in a settings file (`[training]` with `steps = 100`). Most are a flag,
and all but those that are given anew for every run an environment variable. The nearer one wins: default, user's
settings file (`backprop config path`), `.env`, environment, `--config`, flag or screen."""
_EVENTS = """One JSON object a line, in `events.jsonl` of a run's directory and on standard output with `--json`. Each
has `type`, `schema`, `run_id`, `seq` (1, 2, 3 … without gaps) and `time` (seconds since 1970, UTC). Units are SI or in
the name; a loss that is not finite is `null`. Readers pass over types and keys that they do not know."""
_COMMANDS = """One JSON object a line, as `{"type": "pause"}`, into the named pipe `control` of a run's directory, while
its engine lives."""
_ERRORS = """With `--json` an error is `{"error": {"code", "message", "hint", "retryable"}}` on standard output. The
exit code is the usual one: where a slip of whoever typed it is the cause (a model's name), it is 1."""


class _Field(NamedTuple):
    name: str
    type: str
    meaning: str


def reference() -> str:
    """The whole document."""
    named = {option.name for _, command in commands() for option in command.params}
    parts = [_HEAD, "## Settings", _SETTINGS]
    for section in ("", *SECTIONS):
        rows = [_setting(each, each.name in named) for each in all_settings().values() if each.section == section]
        title = f"`[{section}]`: {SECTIONS[section]}" if section else "Above the first section"
        parts += [f"### {title}", _table("key", "flag", "variable", "takes", "default", "meaning", rows=rows)]
    variables = [(_code(name), meaning) for name, meaning in {**PRESET_VARIABLE, **OTHER_VARIABLES}.items()]
    parts += ["## Other environment variables", _table("variable", "meaning", rows=variables)]
    parts += ["## Commands", "Beside their settings. Every command has `--help`, and those that answer have `--json`."]
    parts.append(_table("command", "option", "meaning", rows=_options()))
    exits = [(str(getattr(errors, name)), meaning or "success") for name, _, meaning in _fields(errors, "EXIT_")]
    parts += ["## Exit codes", _table("code", "meaning", rows=exits), "## Error codes", _ERRORS]
    parts.append(_table("code", "exit", "meaning", "what to do", rows=map(_error, errors.ERROR_CODES)))
    findings = [(_code(name), meaning) for name, meaning in PROBLEM_CODES.items()]
    parts += ["## Findings about rows", _table("code", "meaning", rows=findings)]
    parts += ["## Events", _EVENTS, *_messages(events.AnyEvent), "## Commands to a running engine", _COMMANDS]
    parts += _messages(events.AnyCommand)
    return "\n\n".join(parts) + "\n"


def _table(*head: str, rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _setting(setting: Setting, has_flag: bool) -> list[str]:
    flags = [*setting.flags, setting.off] if has_flag else []
    takes = ", ".join(filter(None, [setting.range, setting.unit if setting.numbers else ""]))
    takes = _code(setting.metavar) + (f" {takes}" if takes else "")
    default = setting.shown_default if setting.rule else _code(setting.shown_default)
    variable = "" if setting.per_run else setting.variable
    return [
        _code(setting.key),
        " ".join(map(_code, filter(None, flags))),
        _code(variable),
        takes,
        default,
        setting.help,
    ]


def _error(code: str) -> list[str]:
    exit_code = errors.error_for(code, "").exit_code
    return [_code(code), str(exit_code), errors.ERROR_CODES[code], errors.REMEDIES[code]]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by its words, those of groups too."""
    waiting: list[tuple[str, click.Command | None]] = [
        (name, backprop.get_command(click.Context(backprop), name)) for name in COMMANDS
    ]
    while waiting:
        name, command = waiting.pop(0)
        assert command is not None, name
        if isinstance(command, click.Group):
            waiting[:0] = [(f"{name} {inner}", each) for inner, each in command.commands.items()]
        yield name, command


def _options() -> Iterator[list[str]]:
    """Options that are neither settings nor everywhere."""
    everywhere = {"verbose", "as_json", "help"}
    for name, command in commands():
        yield [_code(f"backprop {name}"), "", command.get_short_help_str(200)]
        for option in command.params:
            words, meaning = option.get_help_record(click.Context(command)) or ("", "")
            setting = all_settings().get(option.name or "")
            known = option.name in everywhere or (setting is not None and meaning.startswith(setting.help))
            if words and not known:
                yield ["", _code(words), meaning]


def _messages(kinds: Any) -> Iterator[str]:
    for kind in get_args(kinds):
        if kind is not events.Unknown:
            rows = [[_code(name), _code(type_), meaning] for name, type_, meaning in _fields(kind)]
            yield f"### {_code(str(kind.__struct_config__.tag))}\n\n{inspect.cleandoc(kind.__doc__)}"
            if rows:
                yield _table("field", "type", "meaning", rows=rows)


def _fields(holder: ModuleType | type, prefix: str = "") -> Iterator[_Field]:
    """What is assigned at the top of a class or module, each with the text below it."""
    first, *_ = body = ast.parse(inspect.getsource(holder)).body
    body = first.body if isinstance(first, ast.ClassDef) else body
    for statement, below in zip(body, [*body[1:], ast.Pass()], strict=True):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and target.id.startswith(prefix):
            text = below.value if isinstance(below, ast.Expr) else None
            meaning = str(text.value) if isinstance(text, ast.Constant) else ""
            annotation = statement.annotation if isinstance(statement, ast.AnnAssign) else None
            yield _Field(target.id, ast.unparse(annotation) if annotation else "", " ".join(meaning.split()))


if __name__ == "__main__":
    sys.stdout.write(reference())
