"""``backprop-tui``: the application, or the same work as plain lines where a full screen cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from backprop.cli.train import setting_options
from backprop.core.errors import EXIT_USER, BackpropError

from backprop_tui import terminal

if TYPE_CHECKING:
    from backprop.core.settings import RunConfig

    from backprop_tui.app import BackpropApp


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("what", required=False, type=click.Choice(["train", "demo"]))
@click.option("--attach", metavar="RUN", help="watch this run: its id, or the beginning of it")
@click.option("--no-tui", is_flag=True, help="the same work as plain lines (`backprop` has more commands)")
@click.option("--json", "as_json", is_flag=True, help="with --no-tui: events as JSON lines")
@click.option("--config", "file", metavar="FILE", help="settings from a JSON or TOML file; flags win over it")
@setting_options()
def command(what: str | None, attach: str | None, file: str | None, no_tui: bool, as_json: bool, **given: Any) -> int:
    """Fine-tune language models in the terminal.

    Without options: the runs that are there. `backprop-tui demo` runs the demonstration, `--data FILE` starts a run
    with the options of `backprop train`, `--attach RUN` watches one.
    """
    run, config = None, None
    if attach is not None:
        run = find(attach)
    elif what == "demo":
        config = demo(given)
    elif what == "train" or file is not None or any(value not in (None, ()) for value in given.values()):
        config = configured(given, file)
    return show(config, run)


def find(prefix: str) -> Path:
    """The directory of the run to attach to.

    Raises:
        RunError: none or several fit.
    """
    from backprop.runs.index import RunIndex

    with RunIndex() as index:
        index.scan(Path("output"))
        return index.find(prefix)


def demo(given: dict[str, Any]) -> RunConfig:
    from backprop.demo import demo_config

    return demo_config(given["output_dir"]) if given.get("output_dir") else demo_config()


def configured(given: dict[str, Any], file: str | None) -> RunConfig:
    """The configuration of the flags.

    Raises:
        BackpropError: what the flags or the file say cannot be used.
    """
    from backprop.cli import options
    from backprop.cli.train import choose_model

    values = options.gather(given, file)
    return choose_model(options.configure(values), named="model" in values)


def show(config: RunConfig | None, run: Path | None) -> int:
    """Run the application until a person leaves it, then say how the run stands."""
    from backprop_tui.app import BackpropApp

    app = BackpropApp(config, run)
    terminal.watch_terminal()
    terminal.leave_on_signals(app.leave_for)
    app.run()
    if app.error is not None:
        raise app.error
    farewell(app)
    return app.return_code or 0


def farewell(app: BackpropApp) -> None:
    """What a person wants to keep from the screen that is gone."""
    from backprop.runs.describe import number

    watch = app.watch
    if watch is None:
        return
    state = watch.state
    loss = f", loss {number(state.final_loss)}" if state.step else ""
    steps = f"step {state.step}/{state.total_steps}" if state.total_steps else "no step yet"
    print(f"run {state.run_id}: {state.status}, {steps}{loss}")
    print(f"directory: {watch.path}")
    verb = "watch it again" if watch.live else "look at it again"
    print(f"{verb}: backprop-tui --attach {state.run_id}")


def main() -> None:
    """Entry point of the console script."""
    from backprop.cli import output

    output.prepare_streams()
    arguments = sys.argv[1:]
    plain = "--no-tui" in arguments or "--json" in arguments
    asks_only = "--help" in arguments or "-h" in arguments
    reason = "" if plain or asks_only else terminal.obstacle()
    if plain or reason:
        from backprop_tui import headless

        if reason:
            print(f"no full screen here ({reason}): going on with plain lines", file=sys.stderr)
        sys.exit(headless.run([word for word in arguments if word != "--no-tui"]))
    try:
        sys.exit(command.main(arguments, prog_name="backprop-tui", standalone_mode=False))
    except click.ClickException as usage:
        usage.show()
        sys.exit(EXIT_USER)
    except BackpropError as error:
        output.show_error(error, as_json=False)
        sys.exit(error.exit_code)
