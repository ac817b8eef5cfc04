"""``backprop``: the headless command line. Commands are imported when they are used, so that ``--help`` costs nothing.

Standard output carries answers, standard error the narration. However a command ends, it ends here: with an exit code
and, where something went wrong, one error with its code and the next thing to do.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import NamedTuple, TextIO

import click

from backprop.cli import output
from backprop.core.errors import EXIT_INTERRUPTED, EXIT_OK, BackpropError, InputError
from backprop.core.refused import refused


class Lazy(NamedTuple):
    """Where a command is defined, and its line in ``--help``, which has none of what is no command for people."""

    module: str
    name: str
    help: str


COMMANDS = {
    "train": Lazy("backprop.cli.train", "train", "one training run"),
    "multi-run": Lazy("backprop.cli.multi_run", "multi_run", "several runs in sequence, merged into one adapter"),
    "rewind": Lazy("backprop.cli.multi_run", "rewind", "a session of several runs back to an earlier merge"),
    "demo": Lazy("backprop.cli.train", "demo", "the whole loop on the embedded small model, offline, on a CPU too"),
    "resume": Lazy("backprop.cli.train", "resume", "continue a stopped or crashed run exactly"),
    "extend": Lazy("backprop.cli.train", "extend", "continue a run to a new end"),
    "fork": Lazy("backprop.cli.train", "fork", "a new run from the weights of another one's checkpoint"),
    "tell": Lazy("backprop.cli.tell", "tell", "pause, go-on, checkpoint, sample, stop or abort a living run"),
    "eval": Lazy("backprop.cli.eval", "evaluate", "score a run's model row by row, beside another; a gate for scripts"),
    "queue": Lazy("backprop.cli.queue", "queue", "runs one after another: add, list, move, rm, run"),
    "replay": Lazy("backprop.cli.train", "replay", "the same configuration and data as a new run"),
    "generate": Lazy("backprop.cli.generate", "generate", "ask a run's model"),
    "chat": Lazy("backprop.cli.chat", "chat", "a conversation with a run's model, beside its base where wanted"),
    "export": Lazy("backprop.cli.export", "export", "a trained model as adapter, merged model or GGUF, proved"),
    "ollama": Lazy("backprop.cli.ollama", "ollama", "register a GGUF file with Ollama, list, rm"),
    "push": Lazy("backprop.cli.push", "push", "upload a model to the Hugging Face Hub, with a card"),
    "estimate-vram": Lazy("backprop.cli.estimate", "estimate_vram", "the memory that a run would need"),
    "validate": Lazy("backprop.cli.data", "validate", "check a dataset without training"),
    "data": Lazy("backprop.cli.data", "data", "quality report; train and held-out files"),
    "list-runs": Lazy("backprop.cli.runs", "list_runs", "the runs so far, the newest first"),
    "show-run": Lazy("backprop.cli.runs", "show_run", "one run in detail"),
    "diff-runs": Lazy("backprop.cli.history", "diff_runs", "what is not the same of two runs"),
    "export-runs": Lazy("backprop.cli.history", "export_runs", "every run with its settings, as JSON Lines or CSV"),
    "delete-run": Lazy("backprop.cli.history", "delete_run", "delete a run's directory; asks first"),
    "tag": Lazy("backprop.cli.history", "tag", "give a run tags, or take them away"),
    "note": Lazy("backprop.cli.history", "note", "write a note on a run"),
    "ui": Lazy("backprop_tui.web.command", "ui", "the application in a web browser"),
    "engine": Lazy("backprop_tui.remote.engine", "engine", ""),
    "config": Lazy("backprop.cli.config", "config", "every setting: its value, where it comes from, what it means"),
    "info": Lazy("backprop.cli.info", "info", "this machine: versions, GPUs, extras; the error codes and variables"),
}


class CommandGroup(click.Group):
    """A group that names the nearest command where one is mistyped, and refuses an option which is given twice."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that ``args`` begin with.

        Raises:
            InputError: there is none, or one of its options is given two values.
        """
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], names, n=1)
            path = ctx.command_path
            raise InputError(
                f"there is no command {args[0]!r}",
                hint=f"did you mean `{path} {near[0]}`?" if near else f"`{path} --help` lists the commands",
            )
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and not isinstance(command, click.Group):
            require_once(command, rest, ctx)
        return name, command, rest


def require_once(command: click.Command, arguments: list[str], parent: click.Context | None = None) -> None:
    """Check that no option that holds one value is given two: the first would be lost without a word.

    Raises:
        InputError: one is; the message names both values.
    """
    # With its parent and settings: click makes the help option once, with the names that it has here.
    with click.Context(command, parent, command.name, **command.context_settings) as context:
        try:
            _, _, order = command.make_parser(context).parse_args(list(arguments))
        except click.UsageError:
            return  # said better where the command is run
    for option in order:
        if isinstance(option, click.Option) and order.count(option) > 1 and not (option.multiple or option.is_flag):
            values = _values(option, arguments)
            if len(set(values)) > 1:
                name = max(option.opts, key=len)
                both = " and ".join(map(repr, values[:2]))
                hint = "training reads one dataset: put the rows into one file" if name == "--data" else "give it once"
                raise InputError(f"{name} is given twice: {both}", hint=hint)


def _values(option: click.Option, arguments: list[str]) -> list[str]:
    """What follows an option on the command line, as ``--data x``, ``--data=x`` or ``-dx``."""
    values = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if word in option.opts:
            values.append(following)
        elif name in option.opts and equals:
            values.append(value)
        elif word[:2] in option.opts:
            values.append(word[2:])
    return values


class LazyGroup(CommandGroup):
    """A group whose commands are imported only when one of them is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called ``cmd_name``, imported now."""
        lazy = COMMANDS.get(cmd_name)
        return getattr(importlib.import_module(lazy.module), lazy.name) if lazy else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in ``--help``, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items() if lazy.help])


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="backprop-tui", prog_name="backprop")
@click.pass_context
def backprop(ctx: click.Context) -> None:
    """Fine-tune language models on one GPU, without the screen. `backprop-tui` is the application.

    \b
    The shell completes commands, flags, runs and files after (zsh_source, fish_source in others):
    eval "$(_BACKPROP_COMPLETE=bash_source backprop)"
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: list[str] | None = None, command: click.Command = backprop) -> int:
    """Run one command line; the process's exit code (SPEC section 2)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    output.prepare_streams()
    if (asked := os.environ.get("_BACKPROP_COMPLETE")) is not None:
        from click.shell_completion import shell_complete

        return shell_complete(command, {}, "backprop", "_BACKPROP_COMPLETE", asked)
    as_json = "--json" in arguments
    verbose = "--verbose" in arguments or "-v" in arguments
    try:
        if not isinstance(command, click.Group):
            require_once(command, arguments)
        with command.make_context("backprop", list(arguments), max_content_width=output.width(120)) as context:
            return command.invoke(context) or EXIT_OK
    except click.exceptions.Exit as done:
        return done.exit_code
    except KeyboardInterrupt:
        output.narrate("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop(sys.stdout)  # whoever read has left
        return EXIT_OK
    except click.ClickException as usage:
        error: BackpropError = _usage_error(usage)
        cause: BaseException = usage
    except BackpropError as known:
        error = cause = known
    except OSError as system:
        error, cause = refused(system), system
    except Exception as unexpected:  # the edge of the program: a defect is said as one, with its code
        hint = "this is a defect in the program; --verbose shows where"
        error, cause = BackpropError(f"{type(unexpected).__name__}: {unexpected}", hint=hint), unexpected
    if "backprop.core.log" in sys.modules:
        from backprop.core.log import LOGGER

        if LOGGER.handlers:
            LOGGER.error(f"[{error.code}] {error.message}", exc_info=cause if verbose else None)
    try:
        output.show_error(error, as_json, cause if verbose else None)
        sys.stdout.flush()
    except OSError:
        _drop(sys.stdout)  # its disk is full: what is left in it cannot be written at exit either
        with contextlib.suppress(OSError):
            output.show_error(error, as_json=False)
    return error.exit_code


def _drop(stream: TextIO) -> None:
    """Send what a stream still holds nowhere, so that the interpreter's last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _nearest_option(usage: click.NoSuchOption) -> str:
    """The option that is meant: one of this command in another spelling, or by the name that other trainers have."""
    import difflib

    from backprop.core.definition import nearest, settings

    options = [each for each in usage.ctx.command.params if isinstance(each, click.Option)] if usage.ctx else []
    named = {str(each.name): each for each in options}
    if setting := nearest(usage.option_name, [each for each in settings().values() if each.name in named]):
        return named[setting.name].opts[0]  # a command may have it under a flag of its own
    words = [word for option in options for word in (*option.opts, *option.secondary_opts)]
    return next(iter(difflib.get_close_matches(usage.option_name, usage.possibilities or words, n=1)), "")


def _usage_error(usage: click.ClickException) -> InputError:
    if isinstance(usage, click.NoSuchOption) and (near := _nearest_option(usage)):
        return InputError(f"there is no option {usage.option_name}", hint=f"did you mean {near}?")
    context = usage.ctx if isinstance(usage, click.UsageError) else None
    return InputError(
        " ".join(usage.format_message().split()),
        hint=f"`{context.command_path} --help` lists the options" if context else "",
    )


if __name__ == "__main__":
    sys.exit(main())
