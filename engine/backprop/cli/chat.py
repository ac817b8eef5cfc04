"""``backprop chat``: a conversation in plain lines with a model that is loaded once, beside its base where wanted."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Iterator
from typing import Any

import click

from backprop.cli import output
from backprop.cli.complete import run_ids
from backprop.cli.export import find_source
from backprop.cli.generate import chat_request, wait_until_ready
from backprop.cli.options import FiniteRange, json_and_verbose
from backprop.core.errors import EXIT_OK, EXIT_PARTIAL, BackpropError
from backprop.core.jobs import Delta, Reply, Sampling, TurnEnded
from backprop.runs.conversation import KEPT, Conversation, Turn, chat_module
from backprop.runs.engine_jobs import EngineJob, engine_job, left_behind

COMMANDS = {
    "base": "ask the model without its adapter too, or no more",
    "system": "TEXT: what the models are told first; alone: nothing",
    "again": "the last question again; where answers are sampled, with the next seed",
    "new": "a new conversation",
    "save": "FILE: write the conversation as a row for training",
    "help": "this list",
    "quit": "leave; Ctrl+D does too",
}


@click.command
@click.argument("run", metavar="RUN-or-PATH", shell_complete=run_ids())
@click.option("--base", is_flag=True, help="ask the model without the adapter too")
@click.option("--system", default="", metavar="TEXT", help="what the models are told first")
@click.option("--step", type=click.IntRange(0), metavar="N", help="the checkpoint to ask; open: the run's result")
@click.option("--model", "-m", default="", metavar="M", help="where the base model is now, if it was moved")
@click.option("--max-tokens", type=click.IntRange(1), default=512, metavar="N", show_default=True, help="longest reply")
@click.option(
    "--temperature", type=FiniteRange(0, 5), default=0.0, metavar="T", show_default=True, help="0: no chance in it"
)
@click.option(
    "--top-p",
    type=FiniteRange(0, 1, min_open=True),
    default=1.0,
    metavar="P",
    show_default=True,
    help="sample from the most likely tokens that have this share together",
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", show_default=True, help="the same for both")
@json_and_verbose
def chat(
    run: str, as_json: bool, verbose: bool, *, base: bool, system: str, step: int | None, model: str, **sampling: Any
) -> int:
    """Talk to the model of RUN (an id, its beginning), of a folder (an adapter or a whole model), or to a GGUF file.

    On a terminal, Ctrl+C stops a reply. From a pipe, each line is one turn. With --json the answer is one document at
    the end.

    Example: backprop chat 3fa2 --base
    """
    source = find_source(run, files=True)
    with engine_job(chat_module(str(source)), chat_request(source, step, model), stays=True) as job:
        talk = Talk(Conversation(system, Sampling(**sampling)), job, base=base, as_json=as_json)
        talk.wait_until_ready()
        for words in talk.questions():
            if not talk.take(words):
                break
    if as_json:
        output.document(talk.document(source.name))
    failed = talk.failures and not talk.on_terminal
    return EXIT_PARTIAL if failed else EXIT_OK


class Talk:
    """What a person types, and what is shown of the answers."""

    def __init__(self, conversation: Conversation, job: EngineJob, *, base: bool, as_json: bool) -> None:
        self.conversation = conversation
        self.base = base
        self.failures = 0
        self.on_terminal = sys.stdin.isatty() and not as_json
        self._as_json = as_json
        self._messages = conversation.attach(job)

    def wait_until_ready(self) -> None:
        """Load the model, and say what it is."""
        ready = wait_until_ready(self._messages)
        if self.base and not ready.has_base:
            output.narrate("this is a whole model without an adapter: it answers alone", "warning")
            self.base = False
        kind = "goes on with what you write: it was trained on plain texts" if ready.on_texts else "answers"
        output.narrate(f"{ready.model} on {ready.device} {kind}")
        for cut_off in left_behind(KEPT)[-1:]:
            output.narrate(f"a conversation that was cut off is kept for some days: {cut_off}")
        if self.on_terminal:
            output.narrate("/help lists the commands, Ctrl+C stops a reply, Ctrl+D leaves")

    def questions(self) -> Iterator[str]:
        """What is typed, line by line, without empty lines. Ctrl+C at the prompt warns once and then leaves."""
        if not self.on_terminal:
            for line in sys.stdin:
                if words := line.strip():
                    if not self._as_json:
                        output.line(f"> {words}", "head")
                    yield words
            return
        import readline  # noqa: F401  (input() then has a history and the usual keys)

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's job in the background begins without
        warned = False
        while True:
            try:
                words = input("> ").strip()
            except EOFError:
                output.line()
                return
            except KeyboardInterrupt:
                output.line()
                if warned:
                    return
                warned = True
                output.narrate("Ctrl+C again leaves")
                continue
            warned = False
            if words:
                yield words

    def take(self, words: str) -> bool:
        """Do what a line says; whether the conversation goes on."""
        if not words.startswith("/"):
            self._show(self.conversation.ask(words, base=self.base))
            return True
        name, _, rest = words[1:].partition(" ")
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean /{near[0]}?" if near else "/help lists them"
            output.narrate(f"there is no command /{name}: {hint}", "warning")
            return True
        try:
            getattr(self, f"_{name}")(rest.strip())
        except (BackpropError, OSError) as error:
            output.narrate(str(error) if isinstance(error, OSError) else f"{error.message}; {error.hint}", "error")
        return name != "quit"

    def _base(self, _: str) -> None:
        ready = self.conversation.ready
        if ready is not None and not ready.has_base:
            output.narrate("this is a whole model without an adapter: there is no base to compare with", "warning")
            return
        self.base = not self.base
        output.narrate("the base model answers too" if self.base else "the tuned model answers alone")

    def _system(self, text: str) -> None:
        self.conversation.system = text
        output.narrate(f"system prompt: {text}" if text else "no system prompt")

    def _again(self, _: str) -> None:
        turn = self.conversation.again(base=self.base)
        if turn is None:
            output.narrate("nothing was asked yet", "warning")
        else:
            self._show(turn)

    def _new(self, _: str) -> None:
        self.conversation.begin_anew()
        output.narrate("a new conversation")

    def _save(self, name: str) -> None:
        if name:
            output.narrate(f"saved: {self.conversation.save(name)}")
        else:
            output.narrate("name the file: /save FILE", "warning")

    def _help(self, _: str) -> None:
        for name, meaning in COMMANDS.items():
            output.narrate(f"/{name:<8}{meaning}")

    def _quit(self, _: str) -> None:
        pass

    def _show(self, turn: Turn) -> None:
        """Show a turn's answers as they come. Ctrl+C ends the reply, a second one the conversation."""

        def interrupt(number: int, frame: object) -> None:
            if stopped:
                raise KeyboardInterrupt
            stopped.append(number)
            self.conversation.stop()

        stopped: list[int] = []
        before = signal.signal(signal.SIGINT, interrupt)
        try:
            self._print_answers(turn)
        finally:
            signal.signal(signal.SIGINT, before)

    def _print_answers(self, turn: Turn) -> None:
        begun: set[bool] = set()
        for message in self._messages:
            match message:
                case Delta() if not self._as_json:
                    if message.tuned not in begun and self.base:
                        sys.stdout.write("tuned: " if message.tuned else "base: ")
                    begun.add(message.tuned)
                    output.piece(message.text)
                case Reply() if not self._as_json:
                    output.line("" if message.tuned in begun else "(an empty answer)")
                    if why := turn.note(message.tuned):
                        output.narrate(f"({why})", "quiet")
                case TurnEnded():
                    if turn.failed is not None:
                        self.failures += 1
                        output.narrate(f"[{turn.failed.code}] {turn.failed.message}; {turn.failed.hint}", "error")
                    same, compared = self.conversation.identical()
                    if turn.identical is not None and not self._as_json:
                        output.line(f"identical on {same} of {compared}", "quiet")
                    return

    def document(self, model: str) -> dict[str, Any]:
        """The whole conversation."""
        turns = []
        for turn in self.conversation.turns:
            sides = {("tuned" if tuned else "base"): reply.text for tuned, reply in turn.replies.items()}
            ended = {("tuned" if tuned else "base"): reply.ended for tuned, reply in turn.replies.items()}
            error = turn.failed.to_dict() if turn.failed else None
            turns.append({"prompt": turn.prompt, **sides, "ended": ended, "identical": turn.identical, "error": error})
        same, compared = self.conversation.identical()
        return {
            "model": model,
            "system": self.conversation.system,
            "turns": turns,
            "identical": same,
            "compared": compared,
        }
