"""Answers of a model in memory: greedy, through the model's own chat template, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from backprop.data.tokenizer import ChatTokenizer
from backprop.train.model import evaluating


class _Pieces(BaseStreamer):
    """Turns the token ids that ``generate`` puts in into text, never half a character."""

    def __init__(self, chat: ChatTokenizer, on_text: Callable[[str], None]) -> None:
        self._chat = chat
        self._on_text = on_text
        self._prompt_seen = False
        self._ids: list[int] = []
        self._said = 0

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += value.flatten().tolist()
        self._say(answer_text(self._chat, self._ids).rstrip("\ufffd"))

    def end(self) -> None:
        self._say(answer_text(self._chat, self._ids))

    def _say(self, text: str) -> None:
        if len(text) > self._said:
            self._on_text(text[self._said :])
            self._said = len(text)


class _StopWhen(StoppingCriteria):
    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._asked(), dtype=torch.bool, device=input_ids.device)


def answer_text(chat: ChatTokenizer, ids: Iterable[int]) -> str:
    """The text of generated ids, without the tokens that end an answer."""
    return chat.tokenizer.decode([i for i in ids if i not in chat.end_ids], skip_special_tokens=True)


def generate(
    model: Any,
    chat: ChatTokenizer,
    prompt: str | list[dict[str, Any]],
    max_new_tokens: int,
    on_text: Callable[[str], None] | None = None,
    *,
    stop_when: Callable[[], bool] | None = None,
) -> str:
    """The greedy answer to ``prompt`` (a user's message, or a whole conversation of ``role`` and ``content``).

    Args:
        on_text: gets the answer piece by piece as it comes.
        stop_when: asked after each token; the answer ends there once it says yes. What it raises is raised here.

    The model's train/eval mode is what it was, afterwards.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    encoded = chat.encode([chat.template.render(messages, prompt=True)])[0]
    ids = torch.tensor([encoded.ids], device=next(model.parameters()).device)
    with evaluating(model), torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            eos_token_id=sorted(chat.end_ids) or None,
            pad_token_id=min(chat.end_ids, default=0),
            streamer=_Pieces(chat, on_text) if on_text else None,
            stopping_criteria=[_StopWhen(stop_when)] if stop_when else None,
        )
    return answer_text(chat, output[0, ids.shape[1] :].tolist()).strip()
