"""``backprop-tui``: the application, or the same work as plain lines where a full screen cannot be."""

from __future__ import annotations

import sys

from backprop.core.errors import EXIT_USER, BackpropError

from backprop_tui import terminal


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
        sys.exit(_show(arguments))
    except BackpropError as error:
        output.show_error(error, as_json=False)
        sys.exit(error.exit_code)


def _show(arguments: list[str]) -> int:
    if not arguments:  # no words, no time spent on the options they could be
        from backprop_tui.show import show

        return show(None, None)
    import click
    from backprop.cli.main import require_once

    from backprop_tui.command import command

    require_once(command, arguments)
    try:
        return int(command.main(arguments, prog_name="backprop-tui", standalone_mode=False))
    except click.ClickException as usage:
        usage.show()
        return EXIT_USER
