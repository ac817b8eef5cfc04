"""``backprop-tui``: the application, or the same work as plain lines where a full screen cannot be."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from backprop.core.errors import EXIT_USER, BackpropError

from backprop_tui import terminal

if TYPE_CHECKING:
    import click
    from backprop.core.settings import RunConfig

    from backprop_tui.app import BackpropApp

    Show: TypeAlias = Callable[..., int]
    """Shows a configuration (or ``None``), a run to watch (or ``None``) and where the values come from."""


def main() -> None:
    """Entry point of the console script."""
    from backprop.cli import output

    output.prepare_streams()
    arguments = sys.argv[1:]
    if any(word == "--host" or word.startswith("--host=") for word in arguments) and not _asks_only(arguments):
        from backprop_tui.remote.client import remote

        sys.exit(remote(arguments))
    plain = "--no-tui" in arguments or "--json" in arguments
    reason = "" if plain or _asks_only(arguments) else terminal.obstacle()
    if plain or reason:
        if reason:
            print(f"no full screen here ({reason}): going on with plain lines", file=sys.stderr)
        sys.exit(headless([word for word in arguments if word != "--no-tui"]))
    sys.exit(open_with(arguments, show))


def _asks_only(arguments: list[str]) -> bool:
    return not {"--help", "-h", "--version", "--keys"}.isdisjoint(arguments)


def open_with(arguments: list[str], show: Show) -> int:
    """``show`` what the arguments ask for, or say what is wrong with them; the exit code."""
    from backprop.cli import output

    try:
        # No time spent on options that are not there.
        if not arguments:
            return show(None, None)
        if len(arguments) == 2 and arguments[0] == "--attach":
            from backprop.runs.index import RunIndex

            with RunIndex() as index:
                run = index.find_here(arguments[1])
            return show(None, run)
        return _understood(arguments, show)
    except (BackpropError, OSError) as error:
        from backprop.core.refused import refused

        known = refused(error) if isinstance(error, OSError) else error
        output.show_error(known, as_json=False)
        return known.exit_code


def show(config: RunConfig | None, run: Path | None, origins: dict[str, str] | None = None) -> int:
    """Run the application until a person leaves it, then say how the run stands."""
    # What is loaded to begin with stays: searching it for garbage again and again would delay the first screen.
    gc.disable()
    from backprop_tui.app import BackpropApp

    app = BackpropApp(config, run, origins)
    terminal.watch_terminal()
    terminal.leave_on_signals(app.leave_for)
    return run_app(app)


def run_app(app: BackpropApp, command: str = "backprop-tui") -> int:
    """Run the application that ``command`` opens until a person leaves it; the exit code."""
    from backprop_tui.remembered import recall

    app.run(mouse=recall("mouse") != "off")
    if app.error is not None:
        raise app.error
    farewell(app, command)
    return app.return_code or 0


def farewell(app: BackpropApp, command: str = "backprop-tui") -> None:
    """Print what a person wants to keep from the screen that is gone: of the run that was open, and of living ones."""
    from backprop.cli import output
    from backprop.runs.describe import number

    for watch in dict.fromkeys((*app.asked_about, *((app.watched,) if app.watched else ()))):
        state = watch.state
        loss = f", loss {number(state.final_loss)}" if state.step else ""
        steps = f"step {state.step}/{state.total_steps}" if state.total_steps else "no step yet"
        verb = "watch it again" if watch.live else "look at it again"
        output.line(output.inline(f"run {state.run_id}: {state.status}, {steps}{loss}"))
        output.line(output.inline(f"directory: {watch.path}"))
        output.line(output.inline(f"{verb}: {command} --attach {state.run_id}"))


def _understood(arguments: list[str], show: Show) -> int:
    import click
    from backprop.cli.main import require_once

    understood = command(show)
    require_once(understood, arguments)
    try:
        return int(understood.main(arguments, prog_name="backprop-tui", standalone_mode=False))
    except click.ClickException as usage:
        usage.show()
        return EXIT_USER


def command(show: Show) -> click.Command:
    """The words after ``backprop-tui``: what they mean, and the run they ask for."""
    import click
    from backprop.cli.options import (
        SettingCommand,
        begin_log,
        configuration_options,
        log_options,
        run_config,
        setting_options,
    )

    @click.command(cls=SettingCommand, context_settings={"help_option_names": ["-h", "--help"]})
    @click.argument("what", required=False, type=click.Choice(["train", "demo"]))
    @click.version_option(package_name="backprop-tui", prog_name="backprop-tui")
    @click.option("--attach", metavar="RUN", help="watch this run: its id, or the beginning of it")
    @click.option("--host", metavar="[USER@]HOST", help="the application here; data, runs and engine there, over ssh")
    @click.option("--no-tui", is_flag=True, help="the same work as plain lines (`backprop` has more commands)")
    @click.option("--keys", is_flag=True, help="print every key with its id, as a keys.toml of your own")
    @click.option("--json", "as_json", is_flag=True, help="with --no-tui: events as JSON lines")
    @setting_options()
    @configuration_options
    @log_options
    def asked(*, what: str | None, attach: str | None, file: str | None, keys: bool, **given: Any) -> int:
        """Fine-tune language models in the terminal.

        Without options: the runs that are there. `backprop-tui demo` runs the demonstration, `--data FILE` starts a run
        with the options of `backprop train`, `--attach RUN` watches one.
        """
        for said_before in ("host", "no_tui", "as_json"):
            given.pop(said_before)
        begin_log({name: given.pop(name) for name in ("log_level", "log_file")}, screen=True)
        if keys:
            return print_keys()
        if attach is not None:
            from backprop.cli.runs import find_run

            return show(None, find_run(attach))
        if what == "demo":
            from backprop.demo import demo_config

            return show(demo_config(given["output_dir"]) if given.get("output_dir") else demo_config(), None)
        if what == "train" or file is not None or any(value not in (None, ()) for value in given.values()):
            config, origins = run_config(given, file)
            return show(config, None, origins)
        return show(None, None)

    return asked


def print_keys() -> int:
    """Print every key as a ``keys.toml``, and what is wrong in the person's own; the exit code."""
    from backprop_tui.own_keys import listed, own_keys

    chosen, problems = own_keys()
    print("\n".join(listed(chosen)))
    for problem in problems:
        print(problem, file=sys.stderr)
    return EXIT_USER if problems else 0


def headless(arguments: list[str]) -> int:
    """Do what the application would be asked to do by these arguments, as plain lines; the exit code.

    ``--attach RUN`` watches a run, ``demo`` or any other command of ``backprop`` is that command, nothing at all is the
    list of the runs, and settings alone are a training run.
    """
    from backprop.cli import main as cli

    if any(word == "--attach" or word.startswith("--attach=") for word in arguments):
        return cli.main(arguments, command=attach_command())
    if set(arguments) <= {"--json", "--verbose", "-v"}:
        return cli.main(["list-runs", *arguments])
    if arguments[0] in cli.COMMANDS or set(arguments) & {"--help", "-h", "--version"}:
        return cli.main(arguments)
    return cli.main(["train", *arguments])


def attach_command() -> click.Command:
    """``--attach`` without a screen."""
    import click
    from backprop.cli.follow import follow
    from backprop.cli.options import json_and_verbose
    from backprop.cli.runs import find_run
    from backprop.runs import engine_client

    @click.command
    @click.option("--attach", "prefix", required=True, metavar="RUN", help="the run to watch")
    @json_and_verbose
    def attach(prefix: str, as_json: bool, verbose: bool) -> int:
        """Watch a run that is going on, from its first event; Ctrl+C leaves it running."""
        return follow(engine_client.attach(find_run(prefix)), as_json=as_json, verbose=verbose, leave=True)

    return attach
