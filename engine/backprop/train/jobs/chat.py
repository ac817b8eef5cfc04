"""A conversation with a model that stays loaded: ``python -P -m backprop.train.jobs.chat FOLDER``.

The request and then one line for each turn come as JSON on standard input. The tuned model answers, then the model
without its adapter where that is asked too: one base in memory, the adapter on and off.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from backprop.core.errors import GPUMemoryError, InputError
from backprop.core.events import ModelLoading
from backprop.core.jobs import ChatLine, ChatReady, ChatRequest, ChatTurn, Delta, Reply, Sampling, StopReply, TurnEnded
from backprop.core.models import require_weights, settings_of
from backprop.core.redaction import redact
from backprop.runs.directory import is_run
from backprop.runs.result_files import IDENTITY
from backprop.runs.state import read_run
from backprop.worker.job import Send, listen, run_job
from backprop.worker.setup import failure

# Heavy libraries are imported where they are used: the job first sees to its log.
if TYPE_CHECKING:
    from backprop.data.tokenizer import ChatTokenizer
    from backprop.train.generate import Answer


class Speaker(Protocol):
    """A model that can be talked to."""

    @property
    def has_base(self) -> bool: ...

    def ready(self, name: str) -> ChatReady:
        """What it is, under this name."""
        ...

    def reply(
        self,
        tuned: bool,
        messages: list[dict[str, str]],
        sampling: Sampling,
        on_text: Callable[[str], None],
        stop_when: Callable[[], bool],
    ) -> Answer:
        """The answer with its adapter or without, as ``train.generate.reply``."""
        ...


class ModelSpeaker(NamedTuple):
    """A model with its adapter, in this process."""

    model: Any
    chat: ChatTokenizer
    has_base: bool
    on_texts: bool = False

    def ready(self, name: str) -> ChatReady:
        from backprop.train.generate import context_of

        return ChatReady(
            model=name,
            device=str(next(self.model.parameters()).device),
            has_base=self.has_base,
            on_texts=self.on_texts,
            context=context_of(self.model),
        )

    def reply(
        self,
        tuned: bool,
        messages: list[dict[str, str]],
        sampling: Sampling,
        on_text: Callable[[str], None],
        stop_when: Callable[[], bool],
    ) -> Answer:
        from backprop.train.generate import reply

        with nullcontext() if tuned else self.model.disable_adapter():
            return reply(self.model, self.chat, messages, sampling, on_text, stop_when=stop_when, as_text=self.on_texts)


class _Told:
    """What the asker said: turns in their order, and which of them is to stop."""

    def __init__(self) -> None:
        self.turns: queue.SimpleQueue[ChatTurn] = queue.SimpleQueue()
        self.stopped = -1

    def take(self, line: ChatLine) -> None:
        if isinstance(line, StopReply):
            self.stopped = max(self.stopped, line.turn)
        else:
            self.turns.put(line)


def converse(request: ChatRequest, send: Send, open_model: Callable[[ChatRequest, Send], Speaker]) -> None:
    """Load the model and answer turns until the asker goes.

    Raises:
        BackpropError: as ``open_model``.
    """
    told = _Told()
    listen(ChatLine, told.take)
    speaker = open_model(request, send)
    send(speaker.ready(Path(request.source).name))
    while True:
        turn = told.turns.get()
        ended = TurnEnded(index=turn.turn)
        try:
            _answer(speaker, turn, told, send)
        except Exception as error:  # the model stays: the next turn may do better
            ended.failed = failure(_understood(error))
        send(ended)


def _answer(speaker: Speaker, turn: ChatTurn, told: _Told, send: Send) -> None:
    if turn.base and not speaker.has_base:
        raise InputError("this model has no adapter that could be left out", hint="ask it alone")

    def stopped() -> bool:
        return told.stopped >= turn.turn

    for tuned, messages in ((True, turn.tuned), (False, turn.base)):
        if not messages or stopped():
            continue

        def on_text(text: str, tuned: bool = tuned) -> None:
            send(Delta(index=turn.turn, tuned=tuned, text=text))

        text, tokens, ended = speaker.reply(tuned, messages, turn.sampling, on_text, stopped)
        send(Reply(index=turn.turn, tuned=tuned, text=text, tokens=tokens, ended=ended))


def _understood(error: Exception) -> Exception:
    """An error of a turn in a person's words, where more than its name is known."""
    import torch

    from backprop.data.example import RowError
    from backprop.train.out_of_memory import is_out_of_memory

    if isinstance(error, RowError):
        return InputError(f"the chat template refuses this conversation: {error}", hint="leave the system prompt out")
    if not is_out_of_memory(error):
        return error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return GPUMemoryError(
        f"out of memory: {redact(str(error)).splitlines()[0]}", hint="begin a new conversation, or a shorter one"
    )


def open_speaker(request: ChatRequest, send: Send) -> ModelSpeaker:
    """Load what the request names.

    Raises:
        ModelLoadError: the base model cannot be loaded.
        CheckpointError: the adapter cannot be read.
        InputError: there is no model in the folder.
    """
    from backprop.data.tokenizer import ChatTokenizer
    from backprop.fetch.models import fetch_model
    from backprop.train import generate
    from backprop.train.persistence.result import base_of
    from backprop.train.persistence.resume import adapter_notes

    path = Path(request.source)
    if is_run(path):
        state = read_run(path)
        config = {**state.config, "model": request.model or state.config["model"]}
        send(ModelLoading(model=str(config["model"]), stage="load"))
        model, tokenizer = generate.load(path, config, send, request.step)
        return ModelSpeaker(model, tokenizer, hasattr(model, "disable_adapter"), generate.on_texts(state.dataset))
    if request.step is not None:
        raise InputError(f"{path} is no run, so it has no checkpoint of step {request.step}", hint="leave --step out")
    adapter = (path / "adapter_config.json").is_file()
    name = (request.model or base_of(path)) if adapter else str(path)
    send(ModelLoading(model=name, stage="load"))
    folder = fetch_model(name, send) if adapter else require_weights(path)
    if adapter:
        for note in adapter_notes(path, folder):
            send(note)
    learned = adapter and (path / "chat_template.jinja").is_file()
    tokenizer = ChatTokenizer.load(path if learned else folder)
    nf4 = (path / IDENTITY).is_file() and settings_of(path, IDENTITY).get("mode") == "qlora"
    return ModelSpeaker(generate.load_model(folder, path if adapter else None, nf4=nf4), tokenizer, adapter)


if __name__ == "__main__":
    run_job(ChatRequest, lambda request, send: converse(request, send, open_speaker), listens=True)
