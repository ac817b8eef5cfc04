"""``backprop config``: every setting with its value and where it comes from; the user's settings file."""

from __future__ import annotations

from typing import Any

import click

from backprop.cli import output
from backprop.cli.complete import presets
from backprop.cli.main import CommandGroup
from backprop.cli.options import configuration_options, json_and_verbose, shown_value
from backprop.core.definition import Setting, all_settings, find, require_all, settings
from backprop.core.errors import BackpropError
from backprop.core.resolve import Resolution, merge, resolve, standing
from backprop.core.settings import SECTIONS, RunConfig

_name = click.argument(
    "name", metavar="SETTING", shell_complete=presets([each.path for each in all_settings().values()])
)


@click.group(cls=CommandGroup, invoke_without_command=True)
@configuration_options
@json_and_verbose
@click.pass_context
def config(context: click.Context, file: str | None, preset: str | None, as_json: bool, verbose: bool) -> None:
    """Show every setting with its value, where the value comes from, and what it means.

    Later ones win: defaults, the settings file (`backprop config path`), .env in the working directory, environment
    variables, --config, flags.
    """
    if context.invoked_subcommand is None:
        found = resolve({} if preset is None else {"preset": preset}, file=file)
        require_all(found.errors)
        output.answer([facts(setting, found) for setting in all_settings().values()], as_json, _show)


def facts(setting: Setting, found: Resolution) -> dict[str, Any]:
    """What ``config`` says of one setting."""
    return {
        "name": setting.name,
        "path": setting.path,
        "value": found.values[setting.name],
        "origin": str(found.origins[setting.name]),
        "default": setting.default,
        "rule": setting.rule,
        "takes": setting.metavar,
        "range": setting.range,
        "unit": setting.unit,
        "help": setting.help,
        "flag": setting.flag,
        "variable": setting.variable,
    }


def _show(found: list[dict[str, Any]]) -> None:
    for section in ("", *SECTIONS):
        output.line(f"[{section}] {SECTIONS[section]}" if section else "the program", "head")
        for each in found:
            prefix, _, key = each["path"].rpartition(".")
            if prefix == section:
                value = shown_value(each["value"])
                output.line(f"  {key:<22} {output.inline(value):<12}  {each['origin']}")
                limits = ", ".join(filter(None, (each["range"], each["unit"])))
                output.line(f"    {each['help']}{f' ({limits})' if limits else ''}", "quiet")


@config.command
@_name
@json_and_verbose
def get(name: str, as_json: bool, verbose: bool) -> None:
    """Print the value of one setting."""
    setting, found = find(name), resolve()
    require_all(found.errors)
    output.answer(facts(setting, found), as_json, lambda each: output.line(shown_value(each["value"])))


@config.command("set", context_settings={"ignore_unknown_options": True})  # -1 is a value
@_name
@click.argument("value")
@json_and_verbose
def set_(name: str, value: str, as_json: bool, verbose: bool) -> None:
    """Write a value into the settings file; its comments stay."""
    setting = find(name)
    if setting.per_run:
        hint = f"give {setting.flag} with the run that needs it"
        raise setting.error(f"{setting.name} is given anew for every run", hint)
    _write(setting, setting.parse(value, setting.path), as_json)


@config.command
@_name
@json_and_verbose
def unset(name: str, as_json: bool, verbose: bool) -> None:
    """Take a setting out of the settings file."""
    _write(find(name), None, as_json)


def _write(setting: Setting, value: Any, as_json: bool) -> None:
    from backprop.core.saved_settings import write
    from backprop.core.settings_sources import settings_file

    wrong = _contradiction({setting.name: value})
    if wrong is not None and _contradiction({}) is None:  # what was wrong before is put right one by one
        raise wrong
    write(settings_file(), {setting.name: value})
    found = resolve()
    answer = {**facts(setting, found), "path": str(settings_file())}
    now = f"{setting.path} is {shown_value(found.values[setting.name])} ({found.origins[setting.name]})"
    output.answer(answer, as_json, lambda _: output.line(now))


def _contradiction(changes: dict[str, Any]) -> BackpropError | None:
    """What a run would be refused for, as far as the sources that stand say its settings.

    Args:
        changes: values in the settings file that are to be others; ``None`` is out of it.
    """
    from backprop.core.settings_sources import Given

    file, *others = standing()
    for name, value in changes.items():
        file.given.pop(name, None)
        if value is not None:
            file.given[name] = Given(value, "settings file", name)
    found = merge([file, *others])
    try:
        require_all(found.errors)
        RunConfig(**{**{name: found.values[name] for name in settings()}, "data": " "})
    except BackpropError as error:
        return error
    return None


@config.command
@json_and_verbose
def path(as_json: bool, verbose: bool) -> None:
    """Print where the settings file is, whether it is there or not."""
    from backprop.core.settings_sources import settings_file

    output.answer({"path": str(settings_file())}, as_json, lambda found: output.line(found["path"]))
