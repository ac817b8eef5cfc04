"""How a template writes plain conversations, learned from those whose mask was found by rendering prefixes.

Most templates write fixed text between the turns' own words. Once that text is known, a conversation is put together
from it and compared with what the template rendered: when the two are the same, character for character, the answers'
places are known without rendering any prefix. When they are not, prefixes decide, as always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from backprop.data.chat_template import ChatTemplate
from backprop.data.example import RowError
from backprop.data.loss_mask import Span, answer_spans

_Key: TypeAlias = tuple[str, str, bool]
"""Role before, role after, and whether it is the last turn that follows. No role: begin or end of the text."""


class _Gap(NamedTuple):
    """Text between two turns: its first ``ends`` characters end the answer before it, its last ``opens`` belong to
    the answer after it."""

    text: str
    ends: int
    opens: int


class TemplateShape:
    """Finds the answers in rendered conversations, by comparison where it can and by prefixes where it must."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._gaps: dict[_Key, _Gap] = {}
        self._trims = self._probe()

    def _probe(self) -> bool:
        """True when the template strips the spaces around a turn's text."""
        asked = [{"role": "user", "content": "  a text that is looked for  "}]
        try:
            return asked[0]["content"] not in self.template.render(asked)
        except RowError:
            return False

    def spans(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, text: str
    ) -> list[Span]:
        """As ``answer_spans``.

        Raises:
            RowError: ``mask_unclear``.
        """
        words = None if tools else self._words(messages)
        if words is None:
            return answer_spans(self.template, messages, tools, text)
        keys = _keys(messages)
        found = self._compare(messages, words, keys, text)
        if found is None:
            found = answer_spans(self.template, messages, tools, text)
            self._learn(messages, words, keys, text, found)
        return found

    def _words(self, messages: Sequence[Mapping[str, Any]]) -> list[str] | None:
        """Each turn's own text, or ``None`` where a turn has more than that."""
        words = []
        for message in messages:
            content = message["content"]
            if len(message) > 2 or "think>" in content or not content or content[0].isspace():
                return None
            words.append(content.strip() if self._trims else content)
        return words

    def _compare(
        self, messages: Sequence[Mapping[str, Any]], words: list[str], keys: list[_Key], text: str
    ) -> list[Span] | None:
        gaps = [self._gaps.get(key) for key in keys]
        parts: list[str] = []
        spans: list[Span] = []
        at = 0
        for i, word in enumerate(words):
            before, after = gaps[i], gaps[i + 1]
            if before is None or after is None:
                return None
            at += len(before.text)
            if messages[i]["role"] == "assistant":
                spans.append(Span(i, at - before.opens, at + len(word) + after.ends))
            at += len(word)
            parts += (before.text, word)
        last = gaps[-1]
        return spans if last is not None and "".join(parts) + last.text == text else None

    def _learn(
        self, messages: Sequence[Mapping[str, Any]], words: list[str], keys: list[_Key], text: str, spans: list[Span]
    ) -> None:
        """Keep the text between the turns, when every turn's words are where they are looked for."""
        by_turn = {span.turn: span for span in spans}
        gaps: list[_Gap] = []
        until = ends = 0
        for i, word in enumerate(words):
            span = by_turn.get(i)
            at = text.find(word, span.start if span else until)
            opens = at - span.start if span else 0
            # Between an answer's begin and its words there may be a space, nothing else.
            if at < until or (opens and text[at - opens : at].strip()) or (span and span.end < at + len(word)):
                return
            gaps.append(_Gap(text[until:at], ends, opens))
            until = at + len(word)
            ends = span.end - until if span else 0
        gaps.append(_Gap(text[until:], ends, 0))
        for key, gap in zip(keys, gaps, strict=True):
            self._gaps.setdefault(key, gap)


def _keys(messages: Sequence[Mapping[str, Any]]) -> list[_Key]:
    roles = [message["role"] for message in messages]
    last = len(roles) - 1
    keys = [(roles[i - 1] if i else "", role, i == last) for i, role in enumerate(roles)]
    return [*keys, (roles[-1], "", True)]
