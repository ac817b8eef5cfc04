"""The Chat screen: talk to a tuned model and to the model it came from, beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, ClassVar

from backprop.core.errors import BackpropError, InputError
from backprop.core.events import ModelLoading, Warning  # noqa: A004
from backprop.core.jobs import ChatReady, ChatRequest
from backprop.runs.conversation import Conversation, Turn, chat_module, sampling_of, sampling_text
from backprop.runs.engine_jobs import engine_job
from rich.cells import cell_len
from textual import on
from textual.app import ComposeResult
from textual.widgets import Input

from backprop_tui.hints import keys_here
from backprop_tui.keys import Key, bindings, press, table
from backprop_tui.run_reader import last_result
from backprop_tui.screens.base import BaseScreen
from backprop_tui.screens.dialogs import Answer
from backprop_tui.screens.tasks import Failed, Task
from backprop_tui.screens.trouble import show_error
from backprop_tui.text import Row, safe, short_path, wrap_text
from backprop_tui.widgets.bars import Bar
from backprop_tui.widgets.cells import cut, heading, paragraph
from backprop_tui.widgets.path_input import Prompt
from backprop_tui.widgets.text_view import TextView

KEYS = table(
    "chat",
    Key("enter,i", "enter", "write", "write", "write to the model; where none is loaded, load it", 1),
    Key("x", "x", "stop", "stop", "stop the reply, or the loading", 1),
    Key("b", "b", "base", "base on/off", "whether the model without its adapter answers too", 2),
    Key("a", "a", "again", "again", "ask the last question again; where answers are sampled, with the next seed", 3),
    Key("p", "p", "system", "system prompt", "what the models are told first", 3),
    Key("s", "s", "sampling", "sampling", "temperature, top_p, longest reply, seed", 3),
    Key("w", "w", "save", "save", "save the conversation as a row for training", 2),
    Key("y", "y", "copy", "copy", "copy an answer, the question, or the conversation as a row", 4),
    Key("n", "n", "anew", "new", "begin a new conversation", 4),
    Key("u", "u", "unload", "unload", "let the model go, to have its memory back", 5),
)
_ASK = Key("enter", "enter", "", "ask", "", 1)
_LEAVE = Key("escape", "esc", "", "other keys and screens", "", 1, "everywhere.back")
_STOP = Key("escape", "esc", "", "stop the reply", "", 1, "everywhere.back")
DROPPING = (
    Answer("no", "n", "Keep it", ""),
    Answer("drop", "d", "Drop it", "nothing of it is left"),
)
_GAP = 3
"""Cells between the two answers."""


class ChatView(TextView):
    """The conversation: answers beside each other where there is room, else below each other."""

    tail: ClassVar[bool] = True
    conversation = Conversation()
    base = True
    words = ""
    """Shown while nothing was said."""
    warnings: Sequence[str] = ()
    """What has to be known of the model: they stay above the conversation."""

    def head(self) -> list[Row]:
        return [row for text in self.warnings for row in paragraph(f"! {text}", self.text_width, "warn")]

    def content(self, width: int) -> list[Row]:
        turns = self.conversation.turns
        if not turns:
            return paragraph(self.words, width, "muted")
        wide = self.app.size.width >= 110
        rows: list[Row] = []
        for turn in turns:
            rows += [*paragraph("› " + turn.prompt, width, "strong+bold"), *self._answers(turn, width, wide), []]
        return rows[:-1]

    def _answers(self, turn: Turn, width: int, wide: bool) -> list[Row]:
        """What came so far, and what has to be said of it."""
        both = False in turn.text or (self.base and turn is self.conversation.waits_for)
        rows: list[Row] = []
        if wide and both:
            left = (width - _GAP) // 2
            right = width - _GAP - left
            gap = (" " * _GAP, "text")
            rows.append([*heading("tuned", left, turn.note(True)), gap, *heading("base", right, turn.note(False))])
            for a, b in zip_longest(self._lines(turn, True, left), self._lines(turn, False, right), fillvalue=""):
                rows.append([(a, "trained"), (" " * (left - cell_len(a) + _GAP), "text"), (b, "text")])
        elif turn.text or turn.failed is None:
            for tuned in (True, False) if both else (True,):
                if both:
                    rows.append(heading("tuned" if tuned else "base", width, turn.note(tuned)))
                rows += [[(line, "trained" if tuned else "text")] for line in self._lines(turn, tuned, width)]
            if not both and (note := turn.note(True)):
                rows.append([(note, "muted")])
        if turn.identical:
            rows.append([("= both say the same", "muted")])
        if turn.failed is not None:
            rows += paragraph(f"✗ {turn.failed.message}; {keys_here(turn.failed.hint)}", width, "bad")
        return rows

    def _lines(self, turn: Turn, tuned: bool, width: int) -> list[str]:
        text = turn.text.get(tuned, "").strip()
        if text or tuned not in turn.replies:
            waiting = "…" if turn is self.conversation.waits_for else "–"
            return wrap_text(text or waiting, width)
        return ["(an empty answer)"]


class ChatScreen(BaseScreen):
    """One model is loaded at a time, in an engine process; it stays until another is chosen or the application ends."""

    NAME, KEYS, STOP = "chat", KEYS, "chat.stop"
    BINDINGS = bindings(KEYS)
    CSS_PATH = "chat.tcss"

    def __init__(self) -> None:
        super().__init__()
        self.source = ""
        """The directory of the run that is talked to."""
        self.conversation = Conversation()
        self.base = True
        self.waiting = ""
        """A question that is asked when the model is loaded."""
        self.notice = ""
        self._saved = b""
        """The row that was saved last."""
        self._too_early = False
        """A question was sent while a reply comes."""
        self._title, self._status = Bar(id="title"), Bar(id="status")
        self.view = ChatView(id="conversation")
        self.entry = Input(id="entry", compact=True, placeholder="write here; enter asks")
        self.entry.cursor_blink = False
        self._prompt = Prompt(id="prompt")

    def compose(self) -> ComposeResult:
        yield self.header
        yield self._title
        yield self.view
        yield self._prompt
        yield self._status
        yield self.entry
        yield self.keybar

    def on_mount(self) -> None:
        self.set_focus(self.entry)
        if not self.source:
            self.tasks.begin("find", "", lambda _: last_result(), self._offer)
        self.flush()

    # The model

    def take(self, values: Mapping[str, Any]) -> None:
        """Talk to the run whose directory is ``source``."""
        self.tasks.forget("find")
        if self.source != values["source"] or not self.loaded:
            self._unless_dropped(partial(self._talk_to, str(values["source"])))
        self.entry.focus()

    def _talk_to(self, source: str) -> None:
        self.action_unload()
        self.source = source
        self.conversation = Conversation(self.conversation.system, self.conversation.sampling)
        self._load()

    def offer(self, source: str) -> None:
        self.tasks.forget("find")
        idle = not self.conversation.turns and not self.waiting
        if idle and not self.source.startswith(source):  # nor is one of its own files given up for the run
            self.action_unload()
            self._offer(source)

    @property
    def looked_at(self) -> str:
        return "" if self.source.endswith(".gguf") else self.source

    def _offer(self, source: str) -> None:
        """By its number the screen shows a run. Beside one that is being trained nothing is loaded unasked."""
        self.source = source
        if source and not self.living:
            self._load()
        elif not source:
            self.set_focus(self.view)  # nobody would read what is typed, and the digits lead away

    @property
    def loaded(self) -> bool:
        """Whether a model is there, or on its way."""
        return self.tasks.goes_on("chat")

    def _load(self) -> None:
        request, conversation = ChatRequest(source=self.source), self.conversation

        def work(task: Task[Warning | ChatReady]) -> None:
            with engine_job(chat_module(request.source), request, stays=True) as job:
                task.when_started(job)
                for message in conversation.attach(job):
                    match message:
                        case ModelLoading():
                            task.report(message)
                        case Warning():
                            task.deliver(message)
                        case ChatReady():
                            task.name = ""
                            task.deliver(message)

        self.notice, self.view.warnings = "", []
        self.tasks.begin("chat", "starting", work, self._take_news)
        self.flush()

    def _take_news(self, message: Warning | ChatReady) -> None:
        if isinstance(message, Warning):
            hint = f"; {keys_here(message.hint)}" if message.hint else ""
            self.view.warnings = [*self.view.warnings, f"{message.message}{hint}"]
        elif self.waiting:
            words, self.waiting, self.notice = self.waiting, "", ""
            self.conversation.ask(words, base=self.compares)

    @on(Failed)
    def _failed(self, event: Failed) -> None:
        self.conversation.waits_for = self.conversation.ready = None
        self.notice = f"✗ {event.error.message}"
        show_error(self, event.error)
        self.flush()

    # What is shown

    def flush(self) -> None:
        talk, ready = self.conversation, self.conversation.ready
        title: Row = [(" chat ", "strong+bold"), (safe(short_path(self.source)), "text")]
        title.append((f"  on {ready.device}" if ready and self.loaded else "", "muted"))
        self._title.show(title)
        self.view.conversation, self.view.base = talk, self.compares
        self.view.words = self._empty()
        seen = (id(talk), talk.version, self.view.words, self.compares, *self.view.warnings)
        self.view.redraw_for(seen)
        same, compared = talk.identical()
        tally = f"identical on {same} of {compared}" if compared else ""
        settings = sampling_text(talk.sampling) if talk.sampling.temperature else "greedy"
        settings += ", system prompt" if talk.system else ""
        self._too_early = self._too_early and talk.waits_for is not None
        coming = f"a reply is coming: {press('everywhere.back')} stops it" if self._too_early else ""
        words = "  ".join(filter(None, [self.tasks.words(""), coming or self.notice, tally]))
        width = max(20, self.size.width - len(settings) - 2)
        self._status.show(cut([(f" {safe(words)}", "text")], width), [(f"{settings} ", "muted")])
        self.show_keys()

    def _empty(self) -> str:
        if self.conversation.ready is not None and self.loaded:
            if self.conversation.ready.on_texts:
                return "This model was trained on plain texts: it goes on with what you write."
            who = "the tuned model answers" + (", beside it the model it came from" if self.compares else "")
            return f"Ask something: {who}."
        if self.loaded:
            return "The model is being loaded. You can write already."
        if not self.source:
            return f"no run with a result yet: {press('runs.talk')} on the Runs screen talks to one when it is finished"
        beside = " beside the run that is being trained" if self.living else ""
        what = "" if self.source.endswith(".gguf") else "the model of run "
        return f"{press('chat.write')} loads {what}{short_path(self.source)}{beside}."

    @property
    def compares(self) -> bool:
        """Whether the base answers too."""
        ready = self.conversation.ready
        return self.base and (ready is None or ready.has_base)

    def own_keys(self) -> list[Key]:
        if self.focused is self.entry:
            return [_STOP] if self.conversation.waits_for else [_ASK, _LEAVE]
        hidden = set() if self.source else {"write", "again", "unload"}
        hidden |= set() if self.conversation.turns else {"again", "save", "anew", "copy"}
        hidden |= set() if self.loaded else {"unload"}
        hidden |= set() if self.conversation.waits_for or self.tasks.running() else {"stop"}
        return [key for key in KEYS if key.name not in hidden]

    # Talking

    @on(Input.Submitted, "#entry")
    def _submitted(self, event: Input.Submitted) -> None:
        words = event.value.strip()
        if not self.loaded:
            self.action_write()
        if self.conversation.ready is None and self.waiting:
            self.notice = f"one question waits for the model already: {self.waiting}"
        elif self.conversation.ready is None and words and self.loaded:
            self.waiting, self.entry.value = words, ""
            self.notice = f"asked when the model is loaded: {words}"
        elif self.conversation.waits_for is not None:
            self._too_early = True
        elif words and self.loaded:
            self.entry.value = self.notice = ""
            self.view.follows = True
            self.conversation.ask(words, base=self.compares)
        self.flush()

    def action_write(self) -> None:
        """Go to the input line; where no model is there, load it."""
        if self.source and not self.loaded:
            self._load()
        if self.source:
            self.entry.focus()

    def action_back(self) -> None:
        """Stop the reply; else leave the input line."""
        if not self.conversation.stop():
            self.view.focus()

    def action_stop(self) -> None:
        if not self.conversation.stop() and self.tasks.running():
            self.action_unload()

    def action_unload(self) -> None:
        self.tasks.forget("chat")
        self.waiting = ""
        self.conversation.ready = self.conversation.waits_for = None
        self.flush()

    def action_base(self) -> None:
        self.base = not self.base
        self.notice = "the base model answers too" if self.compares else "the tuned model answers alone"
        self.flush()

    def action_again(self) -> None:
        if self.loaded and self.conversation.ready is not None and self.conversation.waits_for is None:
            self.conversation.again(base=self.compares)
        self.flush()

    def action_anew(self) -> None:
        self._unless_dropped(self._begin_anew)

    def _begin_anew(self) -> None:
        self.conversation.stop()
        self.conversation.begin_anew()
        self.notice = ""
        self.flush()

    @property
    def unsaved(self) -> str:
        """What of the conversation is in no file, in words; empty where that is nothing."""
        turns = len(self.conversation.turns)
        try:
            row = self.conversation.row()
        except InputError:
            return ""
        words = f"The conversation, {turns} question{'' if turns == 1 else 's'}, is not saved"
        return "" if row == self._saved else words

    def losing(self) -> str:
        return f"{self.unsaved}." if self.unsaved else ""

    def _unless_dropped(self, go_on: Callable[[], None]) -> None:
        """Go on with what ends the conversation; before one that was not saved is dropped, ask."""
        if self.unsaved:
            words = f"{self.unsaved}: {press('chat.save')} would save it as a row."
            self.confirm("new conversation", words, DROPPING, go_on)
        else:
            go_on()

    def action_copy(self) -> None:
        turns = self.conversation.turns
        if not turns:
            return
        last = turns[-1]
        texts = (
            ("t", "the tuned model's answer", last.text.get(True, "")),
            ("b", "the base model's answer", last.text.get(False, "")),
            ("u", "the question", last.prompt),
            ("r", "the conversation as a row", self.conversation.row().decode() if turns[0].replies.get(True) else ""),
        )
        self.copy_one(tuple(Answer(text, key, title, "") for key, title, text in texts if text))

    # Settings and files

    def action_system(self) -> None:
        self._prompt.ask("system prompt: what the models are told first", self._set_system, self.conversation.system)

    def _set_system(self, text: str) -> None:
        self.conversation.system = text

    def action_sampling(self) -> None:
        label = "sampling: temperature 0 is greedy; the same seed for both models"
        self._prompt.ask(label, self._set_sampling, sampling_text(self.conversation.sampling), check=_wrong_sampling)

    def _set_sampling(self, text: str) -> None:
        self.conversation.sampling = sampling_of(text)

    def action_save(self, name: str = "", help: str = "") -> None:
        if not self.conversation.turns:
            self.notice = "nothing was said yet: there is nothing to save"
            self.flush()
            return
        self._prompt.ask("save the conversation as a row in the new file (.jsonl)", self._save, name, help=help)

    def _save(self, name: str) -> None:
        if not name:
            return
        try:
            self.notice = f"saved: {self.conversation.save(name)}"
            self._saved = self.conversation.row()
        except (BackpropError, OSError) as error:
            self.action_save(name, safe(f"✗ {error}"))  # the name can be mended


def _wrong_sampling(text: str) -> str:
    try:
        sampling_of(text)
    except InputError as error:
        return error.message
    return ""
