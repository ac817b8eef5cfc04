"""What covers a screen for a while: a question with its answers, the help, and the notice of a window too small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

from backprop.runs.state import RunState
from textual import events
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.geometry import Size
from textual.message import Message
from textual.screen import ModalScreen

from backprop_tui.charts.timeline import MARKS
from backprop_tui.keys import Key, shown
from backprop_tui.screens import EVERYWHERE, PANES, SCREENS
from backprop_tui.text import Row, wrap_text
from backprop_tui.widgets.cells import Cells, heading, labelled, paragraph
from backprop_tui.widgets.text_view import TextView

WIDTH, HEIGHT = 60, 16
"""The smallest window in which the screens fit."""
_EDGES = 5
"""Rows of a question that are neither its text nor its answers."""
Result = TypeVar("Result")


class Dialog(ModalScreen[Result]):
    """Covers a screen until it is left, which happens once: keys that come in one burst find it gone, or covered.

    Without an id: another may lie below it, or cover another screen.
    """

    def dismiss(self, result: Result | None = None) -> AwaitComplete:
        return super().dismiss(result) if self.app.screen is self else AwaitComplete()


class Answer(NamedTuple):
    value: str
    key: str
    """A letter that gives it at once."""
    title: str
    meaning: str


LEAVING = (
    Answer("leave", "l", "Leave it running", "training goes on; come back to it any time"),
    Answer("stop", "s", "Stop after a checkpoint", "finish this step, save, end the run, then leave"),
    Answer("kill", "k", "Kill it now", "what came after the last checkpoint is lost"),
)
LOSING = (
    Answer("", "s", "Stay", ""),
    Answer("leave", "l", "Leave", "it ends now, and nothing of it is left"),
)
ABORTING = (
    Answer("no", "n", "Go on training", ""),
    Answer("abort", "a", "Abort the run", "end now; nothing more is saved"),
)

RESUMING = (
    Answer("no", "n", "Leave it as it is", ""),
    Answer("resume", "c", "Continue all the same", "where what was wrong is mended by now"),
)

FORKING = (
    Answer("no", "n", "Leave it", ""),
    Answer("fork", "f", "Fork it", "with its settings; `backprop fork RUN` takes others as flags"),
)
REPLAYING = (
    Answer("no", "n", "Leave it", ""),
    Answer("replay", "r", "Replay it", "`backprop replay RUN` takes other settings as flags"),
)


def copies(state: RunState, log: str = "") -> tuple[Answer, ...]:
    """What of a run can be copied: each answer is the text, of which it shows a line; ``log``: goes with the error."""
    failed = state.last_failure
    error = "\n".join(filter(None, (f"[{failed.code}] {failed.message}", failed.hint, log))) if failed else ""
    texts = (
        ("i", "its id", state.run_id),
        ("d", "its directory", state.path),
        ("w", "the command that watches it", f"backprop-tui --attach {state.run_id}"),
        ("c", "the command that continues it", f"backprop resume {state.run_id}" if state.can_resume else ""),
        ("e", "the error, what to do and the log's end", error),
        ("r", "the directory of its result", state.output_path),
    )
    return tuple(Answer(text, key, title, text.partition("\n")[0]) for key, title, text in texts if text)


def deleting(what: str, path: str) -> tuple[Answer, ...]:
    """``what``: the run or the number of them; ``path``: what is removed."""
    return (
        Answer("no", "n", "Keep", ""),
        Answer("delete", "d", f"Delete {what}", f"removes {path} with checkpoints and result"),
    )


class AnswerList(Cells):
    @dataclass
    class Given(Message):
        value: str

    def __init__(self, answers: tuple[Answer, ...]) -> None:
        super().__init__(id="answers")
        self.answers = answers
        self.at = 0

    def _lines(self, width: int) -> list[tuple[int, Row]]:
        """Each row with the number of its answer."""
        lines: list[tuple[int, Row]] = []
        for i, answer in enumerate(self.answers):
            here = i == self.at
            mark = ("▸ " if here else "  ", "info+bold")
            title = (f"  {answer.title}", "strong+bold" if here else "text")
            lines.append((i, [mark, (answer.key, "key+bold"), title]))
            if answer.meaning:
                lines += [(i, [("     ", "text"), (line, "muted")]) for line in wrap_text(answer.meaning, width - 5)]
        return lines

    def rows(self, width: int, height: int) -> list[Row]:
        return [row for _, row in self._lines(width)]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._lines(width))

    def move(self, by: int) -> None:
        self.at = (self.at + by) % len(self.answers)
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        lines = self._lines(self.size.width)
        if event.y < len(lines):
            self.post_message(self.Given(self.answers[lines[event.y][0]].value))


class _Words(Cells):
    """A text, wrapped, and an empty row; nothing where there is no text. What is below it always has its room."""

    def __init__(self, text: str, below: AnswerList) -> None:
        super().__init__()
        self.text, self.below = text, below

    def rows(self, width: int, height: int) -> list[Row]:
        rows = paragraph(self.text, width)
        room = max(2, self.app.size.height - self.below.get_content_height(Size(), Size(), width) - _EDGES)
        return rows if len(rows) <= room else [*rows[: room - 1], [("…", "muted")]]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.rows(width, 0)) + 1 if self.text else 0


class Question(Dialog[str]):
    """Answers with the chosen value; escape with an empty one. Its keys need no focus: they work from the first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss('')", show=False),
        Binding("up,left,shift+tab", "move(-1)", show=False),
        Binding("down,right,tab", "move(1)", show=False),
        Binding("enter", "give", show=False),
    ]

    def __init__(self, title: str, text: str, answers: tuple[Answer, ...]) -> None:
        super().__init__()
        self.question, self.text, self.answers = title, text, AnswerList(answers)

    def compose(self) -> ComposeResult:
        with Vertical(id="box") as box:
            box.border_title = self.question
            yield _Words(self.text, self.answers)
            yield self.answers

    def action_move(self, by: int) -> None:
        self.answers.move(by)

    def action_give(self) -> None:
        self.dismiss(self.answers.answers[self.answers.at].value)

    def on_key(self, event: events.Key) -> None:
        for answer in self.answers.answers:
            if event.key == answer.key:
                event.stop()
                self.dismiss(answer.value)

    def on_answer_list_given(self, message: AnswerList.Given) -> None:
        self.dismiss(message.value)


class KeyList(TextView):
    """Every key by screen, the pane in front and the screen ``first`` on top, and the marks of the timeline."""

    def __init__(self, first: str, pane: Sequence[Key] = ()) -> None:
        super().__init__(id="keys")
        entries = (each for entry in SCREENS for each in (entry, *(pane for pane in PANES if pane.name == entry.name)))
        tables = [(entry.name, entry.title, entry.load_keys()) for entry in entries]
        tables.append(("everywhere", "everywhere", EVERYWHERE))
        order = sorted(tables, key=lambda table: (table[0] != first, table[0] != "everywhere"))
        self.tables = sorted(order, key=lambda table: table[2] is not pane)

    def content(self, width: int) -> list[Row]:
        rows: list[Row] = []
        for _, title, keys in self.tables:
            rows.append(heading(title, width))
            for key in keys:
                rows += labelled(f"{shown(key):>9}  ", key.help, width - 1, label_ink="key+bold")
            rows.append([])
        rows.append(heading("marks under the loss", width))
        rows += [[(f"{mark.sign:>9}  ", mark.ink), (mark.meaning, "text")] for mark in MARKS]
        return rows


class Help(Dialog[None]):
    AUTO_FOCUS = "#keys"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,f1", "dismiss", show=False)]

    def __init__(self, where: str, pane: Sequence[Key] = ()) -> None:
        """``pane``: the keys of what is seen in place of the screen's own."""
        super().__init__()
        self.where, self.pane = where, pane

    def compose(self) -> ComposeResult:
        with Vertical(id="box") as box:
            box.border_title = "keys"
            box.border_subtitle = "esc closes"
            yield KeyList(self.where, self.pane)


class _Need(Cells):
    def rows(self, width: int, height: int) -> list[Row]:
        size = self.app.size
        lines = ["this window is too small (q leaves)", f"needs {WIDTH}x{HEIGHT}, has {size.width}x{size.height}"]
        above = [""] * max(0, (height - len(lines)) // 2)
        return [[(line[:width].center(width), "text")] for line in (*above, *lines)]


class TooSmall(Dialog[None]):
    """Covers everything until the window is large enough. Training and watching go on."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "app.leave", show=False)]

    def on_screen_resume(self) -> None:
        """A question that lay over it was answered; meanwhile the window may have grown."""
        if self.app.size.width >= WIDTH and self.app.size.height >= HEIGHT:
            self.dismiss()

    def compose(self) -> ComposeResult:
        yield _Need()
