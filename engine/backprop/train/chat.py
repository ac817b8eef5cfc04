"""A conversation with a model that stays loaded: ``python -P -m backprop.train.chat FOLDER``.

The request and then one line for each turn come as JSON on standard input. The tuned model answers, then the model
without its adapter where that is asked too: one base in memory, the adapter on and off.
"""

from __future__ import annotations

import queue
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from backprop.core.errors import GPUMemoryError, InputError
from backprop.core.events import ModelLoading
from backprop.core.jobs import ChatLine, ChatReady, ChatRequest, ChatTurn, Delta, Reply, StopReply, TurnEnded
from backprop.core.models import require_weights
from backprop.core.redaction import redact
from backprop.runs.directory import is_run
from backprop.runs.state import read_run
from backprop.worker.job import Send, listen, run_job
from backprop.worker.setup import failure

# Heavy libraries are imported where they are used: the job first sees to its log.
if TYPE_CHECKING:
    from backprop.data.tokenizer import ChatTokenizer


class Speaker(NamedTuple):
    """A model that can be talked to."""

    model: Any
    chat: ChatTokenizer
    has_base: bool
    on_texts: bool = False

    def side(self, tuned: bool) -> AbstractContextManager[Any]:
        """Inside, the model answers with its adapter or without."""
        return nullcontext() if tuned else self.model.disable_adapter()


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


def chat(request: ChatRequest, send: Send) -> None:
    """Load the model and answer turns until the asker goes.

    Raises:
        ModelLoadError: the base model cannot be loaded.
        CheckpointError: the adapter cannot be read.
        InputError: there is no model in the folder.
    """
    told = _Told()
    listen(ChatLine, told.take)
    speaker = open_speaker(request, send)
    from backprop.train.generate import context_of

    model = speaker.model
    send(
        ChatReady(
            model=Path(request.source).name,
            device=str(next(model.parameters()).device),
            has_base=speaker.has_base,
            on_texts=speaker.on_texts,
            context=context_of(model),
        )
    )
    while True:
        turn = told.turns.get()
        ended = TurnEnded(index=turn.turn)
        try:
            _answer(speaker, turn, told, send)
        except Exception as error:  # the model stays: the next turn may do better
            ended.failed = failure(_understood(error))
        send(ended)


def _answer(speaker: Speaker, turn: ChatTurn, told: _Told, send: Send) -> None:
    from backprop.train.generate import reply

    if turn.base and not speaker.has_base:
        raise InputError("this model has no adapter that could be left out", hint="ask it alone")
    for tuned, messages in ((True, turn.tuned), (False, turn.base)):
        if not messages or told.stopped >= turn.turn:
            continue

        def on_text(text: str, tuned: bool = tuned) -> None:
            send(Delta(index=turn.turn, tuned=tuned, text=text))

        with speaker.side(tuned):
            text, tokens, ended = reply(
                speaker.model,
                speaker.chat,
                messages,
                turn.sampling,
                on_text,
                stop_when=lambda: told.stopped >= turn.turn,
                as_text=speaker.on_texts,
            )
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


def open_speaker(request: ChatRequest, send: Send) -> Speaker:
    """Load what the request names.

    Raises:
        ModelLoadError, CheckpointError, InputError: as ``chat``.
    """
    from backprop.data.tokenizer import ChatTokenizer
    from backprop.fetch.models import fetch_model
    from backprop.train import generate
    from backprop.train.result import base_of
    from backprop.train.resume import adapter_notes

    path = Path(request.source)
    if is_run(path):
        state = read_run(path)
        config = {**state.config, "model": request.model or state.config["model"]}
        send(ModelLoading(model=str(config["model"]), stage="load"))
        model, tokenizer = generate.load(path, config, send, request.step)
        return Speaker(model, tokenizer, hasattr(model, "disable_adapter"), generate.on_texts(state.dataset))
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
    return Speaker(generate.load_model(folder, path if adapter else None), tokenizer, adapter)


if __name__ == "__main__":
    run_job(ChatRequest, chat)
