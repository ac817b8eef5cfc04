"""A conversation with a model that stays loaded in an engine process, as every face leads it.

The job's messages are folded here; what was said can be kept as a row to train on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from backprop.core.errors import BackpropError, InputError
from backprop.core.files import new_output, write_file
from backprop.core.jobs import ChatReady, ChatTurn, Delta, Message, Reply, Sampling, StopReply, TurnEnded
from backprop.core.paths import expand
from backprop.runs.engine_jobs import EngineJob

CHAT, FILE_CHAT = "backprop.train.jobs.chat", "backprop.export.chat"
KEPT = "conversation.jsonl"
"""Beside the job's log: what was said so far, which a process that is killed leaves there."""


def chat_module(source: str) -> str:
    """The job that talks: llama.cpp for a GGUF file, else the model as it was trained."""
    return FILE_CHAT if source.endswith(".gguf") and Path(source).is_file() else CHAT


def sampling_of(text: str) -> Sampling:
    """``temperature=0.7 top_p=0.9``: what is not named has its default.

    Raises:
        InputError: a name or a value is not known; its message says which may be.
    """
    values: dict[str, str] = {}
    for word in text.split():
        name, _, values[name] = word.partition("=")
    limits = {"max_tokens": (1, 1_000_000), "temperature": (0, 5), "top_p": (0.01, 1), "seed": (0, 2**63 - 1)}
    for name, value in values.items():
        if name not in limits:
            raise InputError(f"there is no {name!r} here", hint=f"write name=value of {', '.join(limits)}")
        least, most = limits[name]
        try:
            good = least <= (float(value) if name in ("temperature", "top_p") else int(value)) <= most
        except ValueError:
            good = False
        if not good:
            raise InputError(
                f"{name} is a number from {least} to {most}, not {value!r}", hint=f"for example {name}={most}"
            )
    return msgspec.convert(values, Sampling, strict=False)


def sampling_text(sampling: Sampling) -> str:
    """As ``sampling_of`` reads it."""
    return " ".join(f"{name}={value:g}" for name, value in msgspec.to_builtins(sampling).items())


@dataclass
class Turn:
    """What the person said, and what came back so far from the tuned model (``True``) and its base (``False``)."""

    number: int
    prompt: str
    sampling: Sampling
    text: dict[bool, str] = field(default_factory=dict)
    """By side, in pieces while it comes; a key is there once something came."""
    replies: dict[bool, Reply] = field(default_factory=dict)
    failed: BackpropError | None = None

    @property
    def identical(self) -> bool | None:
        """Whether both sides said the same; ``None`` where not both have answered in full."""
        if len(self.replies) < 2 or any(reply.ended == "stopped" for reply in self.replies.values()):
            return None
        return self.replies[True].text == self.replies[False].text

    def note(self, tuned: bool) -> str:
        """Why the answer of a side is not whole, in words; empty where it is, or is still to come."""
        reply = self.replies.get(tuned)
        if reply is None or reply.ended == "end":
            return ""
        return f"cut after {reply.tokens} tokens" if reply.ended == "length" else "stopped"

    def said(self, tuned: bool) -> str:
        """The answer of a side; the other's where this one was not asked, so that it can go on with it."""
        found = self.replies.get(tuned) or self.replies.get(not tuned)
        return found.text if found else ""


class Conversation:
    """The turns of one conversation. ``take`` may be called in another thread than everything else."""

    def __init__(self, system: str = "", sampling: Sampling | None = None) -> None:
        self._job: EngineJob | None = None
        self._number = 0
        self.system = system
        self.sampling = sampling or Sampling()
        self.turns: list[Turn] = []
        self.ready: ChatReady | None = None
        self.waits_for: Turn | None = None
        """The turn that is being answered."""
        self.version = 0
        """Another number whenever something was said."""

    def attach(self, job: EngineJob) -> Iterator[Message]:
        """Go on with the model that ``job`` loads, and take in its messages as they come.

        Raises:
            BackpropError: as ``EngineJob.messages``; where something was said, it names the file that keeps it.
        """
        self._job, self.ready, self.waits_for = job, None, None
        kept = job.folder / KEPT
        try:
            for message in job.messages():
                self.take(message)
                if isinstance(message, TurnEnded):
                    with suppress(BackpropError, OSError):
                        write_file(kept, self.row())
                yield message
        except BackpropError as error:
            if kept.is_file() and not job.stopped:
                error.hint = f"what was said is kept in {kept}; {error.hint}"
            raise

    def take(self, message: Message) -> None:
        """Fold a message of the job into the conversation."""
        match message:
            case ChatReady():
                self.ready = message
            case Delta() if (turn := self._turn(message.index)) is not None:
                turn.text[message.tuned] = turn.text.get(message.tuned, "") + message.text
            case Reply() if (turn := self._turn(message.index)) is not None:
                turn.text[message.tuned] = message.text
                turn.replies[message.tuned] = message
            case TurnEnded():
                if (turn := self._turn(message.index)) is not None:
                    turn.failed = message.failed.error() if message.failed else None
                if self.waits_for is not None and self.waits_for.number == message.index:
                    self.waits_for = None  # also where it was forgotten meanwhile
        self.version += 1

    def _turn(self, number: int) -> Turn | None:
        return next((turn for turn in reversed(self.turns) if turn.number == number), None)

    def ask(self, prompt: str, *, base: bool) -> Turn:
        """Say ``prompt`` to the tuned model, and to its base too."""
        assert self._job is not None
        self._number += 1
        turn = Turn(self._number, prompt, self.sampling)
        self.turns.append(turn)
        self.waits_for = turn
        self.version += 1
        line = ChatTurn(turn=turn.number, tuned=self.messages(True), sampling=self.sampling)
        if base:
            line.base = self.messages(False)
        self._job.tell(line)
        return turn

    def again(self, *, base: bool) -> Turn | None:
        """Ask the last question again, with another seed: where nothing is sampled the answer is the same."""
        if not self.turns:
            return None
        self.sampling = msgspec.structs.replace(self.sampling, seed=self.sampling.seed + 1)
        return self.ask(self.turns.pop().prompt, base=base)

    def begin_anew(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.turns.clear()
        self.version += 1

    def stop(self) -> bool:
        """Stop the reply that is coming; whether there was one."""
        turn = self.waits_for
        if turn is not None and self._job is not None:
            self._job.tell(StopReply(turn=turn.number))
        return turn is not None

    def messages(self, tuned: bool) -> list[dict[str, str]]:
        """The conversation as one side knows it; a turn without an answer is left out, but for the last."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            answer = turn.said(tuned)
            if answer or turn is self.turns[-1]:
                found.append({"role": "user", "content": turn.prompt})
            if answer:
                found.append({"role": "assistant", "content": answer})
        return found

    def identical(self) -> tuple[int, int]:
        """How many of the turns that both sides answered have the same answer, and how many those are."""
        compared = [turn.identical for turn in self.turns if turn.identical is not None]
        return sum(compared), len(compared)

    def row(self) -> bytes:
        """The conversation with the tuned model as a line of training data (OpenAI messages).

        Raises:
            InputError: nothing was answered yet.
        """
        said = self.messages(True)
        if said and said[-1]["role"] == "user":
            said.pop()
        if not any(message["role"] == "assistant" for message in said):
            raise InputError("nothing was answered yet: there is no row to save", hint="ask something first")
        return json.dumps({"messages": said}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"

    def save(self, name: str) -> Path:
        """Write the conversation with the tuned model as one row into a new file.

        Raises:
            InputError: nothing was answered yet, or there is a file of that name.
            OSError: it cannot be written.
        """
        row, path = self.row(), expand(name)
        if path.suffix != ".jsonl":
            path = path.with_name(f"{path.name}.jsonl")
        try:
            with new_output(path, folder=False) as file:
                file.write_bytes(row)
        except FileExistsError:
            raise InputError(f"{path} exists already", hint="choose another name: no file is replaced") from None
        return path
