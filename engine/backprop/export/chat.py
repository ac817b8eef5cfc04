"""A conversation with a GGUF file, as llama.cpp answers: ``python -P -m backprop.export.chat FOLDER``.

The file alone speaks: its template, its vocabulary, its end tokens. llama.cpp ends the process over a file that it does
not like, and cannot be stopped: this process is there for that.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from backprop.core.errors import GGUFError, InputError, MissingDependencyError
from backprop.core.events import ModelLoading
from backprop.core.extras import install_command
from backprop.core.jobs import ChatReady, ChatRequest, Sampling
from backprop.data.chat_template import ChatTemplate
from backprop.export import llama
from backprop.export.ollama.served import read_served
from backprop.train.generate import Answer
from backprop.train.jobs.chat import converse
from backprop.worker.job import Send, run_job

CONTEXT = 4096
"""Tokens that a conversation may have: more takes memory before anything is said."""


class FileSpeaker:
    """A GGUF file that can be talked to.

    Raises:
        MissingDependencyError: llama.cpp is not installed.
        InputError: the file holds no whole model.
        GGUFError: llama.cpp does not load it.
    """

    has_base = False

    def __init__(self, path: Path) -> None:
        if not llama.is_installed():
            raise MissingDependencyError(
                "a GGUF file answers through llama-cpp-python, which is not installed",
                hint=f"{install_command('llama')} (it is built: minutes, and a C++ compiler)",
            )
        served = read_served(path)
        if served.kind != "model":
            raise InputError(f"{path} holds an {served.kind} alone, no model that answers", hint="name a whole model")
        import llama_cpp

        threads = max((os.cpu_count() or 2) - 1, 1)
        context = min(served.context or CONTEXT, CONTEXT)
        try:
            self._model: Any = llama_cpp.Llama(
                str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False
            )
        except ValueError as error:
            raise GGUFError(f"llama.cpp does not load {path}: {error}", hint="export it again") from error
        self._context, self._vocab = context, self._model._model.vocab
        self._is_end: Callable[[Any, int], bool] = llama_cpp.llama_vocab_is_eog
        ends = {name: self._text(getattr(self._model, f"token_{name}")()) for name in ("bos", "eos")}
        self._template = (
            ChatTemplate(served.template, {f"{name}_token": text for name, text in ends.items()})
            if served.template
            else None
        )

    def _text(self, token: int) -> str:
        return str(self._model.detokenize([token], special=True).decode("utf-8", "replace")) if token >= 0 else ""

    def ready(self, name: str) -> ChatReady:
        """What it is."""
        texts = self._template is None
        return ChatReady(model=name, device="llama.cpp", has_base=False, on_texts=texts, context=self._context)

    def reply(
        self,
        tuned: bool,
        messages: list[dict[str, str]],
        sampling: Sampling,
        on_text: Callable[[str], None],
        stop_when: Callable[[], bool],
    ) -> Answer:
        """As ``train.generate.reply``."""
        asked = (
            "".join(message["content"] for message in messages)
            if self._template is None
            else self._template.render(messages, prompt=True)
        )
        prompt = self._model.tokenize(asked.encode(), add_bos=self._template is None, special=True)
        room = min(sampling.max_tokens, self._context - len(prompt))
        if room < 1:
            raise InputError(
                f"the conversation is {len(prompt)} tokens long, and there is room for {self._context}",
                hint="begin a new conversation, or shorten the system prompt",
            )
        self._model.set_seed(sampling.seed)
        decoder, text, made = codecs.getincrementaldecoder("utf-8")("replace"), "", 0
        ended: Literal["end", "length", "stopped"] = "length"

        def give(piece: str) -> None:
            nonlocal text
            if piece:
                text += piece
                on_text(piece)

        for token in self._model.generate(prompt, top_k=0, top_p=sampling.top_p, min_p=0.0, temp=sampling.temperature):
            made += 1
            if self._is_end(self._vocab, token):
                ended = "end"
                break
            give(decoder.decode(self._model.detokenize([token], prev_tokens=prompt)))
            if made >= room:
                break
            if stop_when():
                ended = "stopped"
                break
        give(decoder.decode(b"", True))
        return Answer(text.strip(), made, ended)


def open_file(request: ChatRequest, send: Send) -> FileSpeaker:
    """Load the file that the request names.

    Raises:
        InputError: a checkpoint or a base model is asked for, which a file has not.
        BackpropError: as ``FileSpeaker``.
    """
    if request.step is not None or request.model is not None:
        raise InputError(f"{request.source} is one file: it has no checkpoints and no base model", hint="name it alone")
    send(ModelLoading(model=Path(request.source).name, stage="load"))
    return FileSpeaker(Path(request.source))


if __name__ == "__main__":
    run_job(ChatRequest, lambda request, send: converse(request, send, open_file), listens=True)
