"""Settings as command-line flags, and a configuration as the command line that gives it.

The flags are made from ``core.definition``: a new setting is a new flag without a line here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from backprop.cli import output
from backprop.cli.complete import files_and, presets
from backprop.core.definition import Setting, all_settings, multi_settings, require_all, settings
from backprop.core.errors import InputError, InvalidSettingError, ModelLoadError, RunError
from backprop.core.models import require_model
from backprop.core.presets import TRAINING_PRESETS
from backprop.core.resolve import Resolution, direct, merge, resolve, standing
from backprop.core.settings import SECTIONS, AppConfig, MultiConfig, RunConfig

if TYPE_CHECKING:
    from backprop.runs.record import Replays
    from backprop.runs.state import RunState


class Planned(NamedTuple):
    """The configuration of a run to start, and where each value comes from that is no default."""

    config: RunConfig
    origins: dict[str, str]


def run_config(given: dict[str, Any], file: str | None) -> Planned:
    """The configuration of a new run from every source; says which model is taken if none is named.

    Raises:
        InputError: no data was given.
        InvalidSettingError: something is wrong with a setting; the place of each is named.
        DatasetNotFoundError: the data file does not exist.
    """
    found = resolve(given, file=file)
    planned = plan(found)
    with named_model():
        require_model(planned.config.model)
    if found.origins["model"].kind != "default":
        return planned
    model, why = usual_model(planned.config.backend)
    config = msgspec.structs.replace(planned.config, model=model)
    return Planned(config, {**planned.origins, "model": f"rule: {why}"})


@contextlib.contextmanager
def named_model(hint: str = "") -> Iterator[None]:
    """What is wrong with a model inside is a slip of whoever named it.

    Args:
        hint: in place of the error's own.

    Raises:
        InputError: for a ``ModelLoadError``, with its code.
    """
    try:
        yield
    except ModelLoadError as error:
        details = {**error.details, "field": "model"}
        raise InputError(error.message, hint=hint or error.hint, code=error.code, details=details) from None


def plan(found: Resolution) -> Planned:
    """What a resolution comes to, its paths absolute.

    Raises:
        InputError, InvalidSettingError, DatasetNotFoundError: as ``run_config``.
    """
    from backprop.core.locate import locate

    if not found.errors and not found.values["data"]:
        raise InputError("no dataset was given", hint="name one with --data FILE, or try `backprop demo`")
    located = locate(found.config())
    from backprop.data.startable import require_rows  # what is wrong with settings is said before numpy is imported

    return Planned(require_rows(located), found.notes())


def forked_config(parent: RunConfig, run_id: str, given: dict[str, Any]) -> Planned:
    """The configuration of a run from another one's weights: that one's, where no flag says otherwise.

    Raises:
        InputError, InvalidSettingError, DatasetNotFoundError: as ``run_config``.
    """
    from backprop.runs.directory import is_run

    usual = msgspec.to_builtins(RunConfig(data=""))
    before = {name: value for name, value in msgspec.to_builtins(parent).items() if value != usual[name]}
    folder = Path(parent.output_dir)
    if folder.name == "runs" and is_run(folder.parent):  # of a session: beside it, and no longer one of its runs
        before["output_dir"] = str(folder.parent.parent)
        before = {name: value for name, value in before.items() if name not in ("run_name", "report_to")}
    return plan(merge([direct(before, "run", f"run {run_id}"), direct(given, "flag")]))


def replayed_config(state: RunState, given: dict[str, Any]) -> tuple[Planned, Replays]:
    """What repeats a run: its settings as they came to be, with what is given in their place.

    Raises:
        InputError, InvalidSettingError, DatasetNotFoundError: as ``run_config``.
        RunError: its settings cannot be read, or the weights that it was forked from are gone.
    """
    from backprop.runs.directory import RunDirectory
    from backprop.runs.record import Replays

    record = RunDirectory(Path(state.path)).find_record()
    if record.multi is not None:
        hint = (
            "start it again with `backprop multi-run`, into another --output; `backprop replay` takes one of its runs"
        )
        raise InputError(f"{state.run_id} is a session of several runs", hint=hint)
    if record.forked_from and not Path(record.forked_from).is_dir():
        gone = f"the checkpoint that run {state.run_id} was forked from is gone: {record.forked_from}"
        raise RunError(gone, hint="put it back, or fork again from another one")
    try:
        before = msgspec.convert(state.config, RunConfig)
    except (ValueError, InvalidSettingError) as error:
        raise RunError(f"the settings of run {state.run_id} cannot be used: {error}", code="RUN_DAMAGED") from error
    overrides = [name for name, value in given.items() if value is not None and value != ()]
    replays = Replays(path=state.path, run_id=state.run_id, created=record.created, overrides=overrides)
    if record.replays is not None:
        replays.created = record.replays.created
    return forked_config(before, state.run_id, given), replays


def arguments(config: RunConfig, multi: MultiConfig | None = None) -> list[str]:
    """The flags that give a run, or a session, here: model, data, and what would be something else without them.

    In the order of the settings.
    """
    usual = merge(standing()).values
    words = []
    of_session = multi_settings() if multi is not None else {}
    for setting in (of_session | settings()).values():
        if of_session and setting.name == "data":
            continue
        value = getattr(multi if setting.name in of_session else config, setting.name)
        # Which model is taken when none is named depends on the machine.
        other_length = setting.name in ("steps", "epochs") and value in (None, "auto")
        other_length = other_length and (config.steps is not None or config.epochs not in (None, "auto"))
        if setting.name == "model" or (value != usual[setting.name] and not other_length):
            words += _written(setting, value)
    return words


def _written(setting: Setting, value: Any) -> list[str]:
    name = setting.flags[0]
    if value is None:
        return [name, setting.written(value)] if setting.written(value) else []
    match setting.kind:
        case "switch":
            return [name if value else setting.off]
        case "list":
            return [name, ",".join(value)]
        case "repeated":
            return [word for text in value for word in (name, text)]
        case "pairs":
            return [word for key, column in value.items() for word in (name, f"{key}={column}")]
    return [name, str(value)]


def command_line(config: RunConfig, multi: MultiConfig | None = None) -> str:
    """The command that starts a run, or a session, with this configuration, quoted for a shell."""
    return f"backprop {'multi-run' if multi else 'train'} {shlex.join(arguments(config, multi))}"


def show_settings(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Print each setting, its value and where that comes from, and an empty line."""
    for name, value in values.items():
        setting = all_settings()[name]
        origin = origins.get(name) or (f"default, by rule: {setting.rule}" if setting.rule else "default")
        output.line(f"{name:<24} {shown_value(value):<24}  {origin}".rstrip())
    output.line()


def shown_value(value: Any) -> str:
    """A setting's value for people; lists and objects as JSON, which ``config set`` takes too."""
    if value in (None, [], {}):
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def require_effect(**needs: tuple[object, str]) -> None:
    """Refuse options that were given and would do nothing.

    Args:
        needs: by an option's name, what it needs to be of use, and the flag that gives it.

    Raises:
        InputError: what one needs is not there.
    """
    context = click.get_current_context()
    for name, (there, flag) in needs.items():
        if not there and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            given = f"--{name.replace('_', '-')}"
            raise InputError(f"{given} is without effect here", hint=f"add {flag}, or leave {given} out")


class FiniteRange(click.FloatRange):
    """Numbers within bounds, which NaN and infinity pass unseen: every comparison with NaN is false."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"a finite number is needed, not {value}", param, ctx)
        return number


def json_and_verbose(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--json`` and ``--verbose``, passed on as ``as_json`` and ``verbose``; ``--log-level`` and ``--log-file``."""

    @functools.wraps(function)
    def logged(*words: Any, log_level: str | None, log_file: str | None, **rest: Any) -> Any:
        begin_log({"log_level": log_level, "log_file": log_file})
        return function(*words, **rest)

    verbose = click.option("--verbose", "-v", is_flag=True, help="show the traceback of an error")
    as_json = click.option(
        "--json", "as_json", is_flag=True, help="for programs: JSON on standard output, nothing else"
    )
    return as_json(verbose(log_options(logged)))


def log_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--log-level`` and ``--log-file``."""
    for name in ("log_file", "log_level"):
        function = _option(all_settings()[name])(function)
    return function


def begin_log(given: dict[str, Any], *, screen: bool = False) -> None:
    """Open the log that is asked for: on standard error only where its level or form was chosen, and no ``screen`` is.

    Raises:
        InvalidSettingError: a setting of the log has no such value.
        InputError: the log file cannot be written.
    """
    from backprop.core import log

    found = merge([*standing(), direct(given, "flag")])
    require_all([error for error in found.errors if error.details.get("field") in AppConfig.__struct_fields__])
    log.choose(found.app())
    if found.app() != AppConfig():
        chosen = found.values["log_json"] or found.values["log_level"] is not None
        log.open_log(found.app(), stderr=chosen and not screen)


class SettingCommand(click.Command):
    """A command whose ``--help`` has the common settings first, then the others by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in groups."""
        titles = ["Common settings", *map(_title, SECTIONS), "Options"]
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in titles}
        for option in self.get_params(ctx):
            if record := option.get_help_record(ctx):
                setting = all_settings().get(option.name or "")
                section = setting.section if setting else ""
                common = setting is not None and setting.common
                groups["Common settings" if common else _title(section) if section else "Options"].append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _title(section: str) -> str:
    return f"{section.capitalize().replace('_', '-')}: {SECTIONS[section]}"


def setting_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the flags of the named settings, of all where none is named."""
    chosen = [all_settings()[name] for name in names] if names else list(settings().values())
    trains = any(setting.name == "steps" for setting in chosen)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for setting in reversed(chosen):
            # A command that trains nothing takes no model unasked, or another one.
            function = _option(setting, default=trains or setting.name != "model")(function)
        return function

    return decorate


def configuration_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--config`` and ``--preset``, passed on as ``file`` and ``preset``."""
    config = click.option(
        "--config",
        "file",
        metavar="FILE|NAME",
        shell_complete=files_and(_saved),
        help="a configuration: a TOML or JSON file, or one saved under a name; flags win over it",
    )
    preset = click.option(
        "--preset",
        metavar="|".join(TRAINING_PRESETS),
        shell_complete=presets(TRAINING_PRESETS),
        help="rank, rows per step and learning rate at once; other flags win over it",
    )
    return config(preset(function))


def _saved() -> list[str]:
    from backprop.core.saved_settings import names

    return names()


def _option(setting: Setting, *, default: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    text = setting.help
    if default and setting.shown_default:
        text += f"  [{'' if setting.rule else 'default: '}{setting.shown_default}]"
    if setting.kind == "switch":
        name = f"{setting.flags[0]}/{setting.off}"
        return click.option(name, setting.name, is_flag=True, default=None, help=text)
    return click.option(
        *setting.flags,
        setting.name,
        metavar=setting.metavar,
        multiple=setting.kind in ("repeated", "pairs"),
        shell_complete=_completion(setting),
        help=text,
    )


def _completion(setting: Setting) -> Any:
    if setting.name == "model":
        from backprop.core.presets import MODEL_PRESETS

        return files_and(lambda: list(MODEL_PRESETS))
    if setting.choices:
        return presets(setting.choices)
    return files_and(list) if setting.name in ("data", "output_dir", "held_out") else None


def usual_model(backend: str) -> tuple[str, str]:
    """The model to take when none was named, and why: the default one on a GPU, the embedded one elsewhere.

    Says so too.
    """
    from backprop.core.presets import default_model
    from backprop.hardware.devices import info

    model, why = default_model(backend, gpu=info().gpu_problem is None)
    output.narrate(f"no model was named: taking {model} ({why}); --model names another")
    return model, why
