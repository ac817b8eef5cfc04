"""Questions: a title, what it means, and a few answers. The first answer is the safe one."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen

from backprop_tui.text import wrap
from backprop_tui.widgets.cells import Cells, Row


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
ABORTING = (
    Answer("no", "n", "Go on training", ""),
    Answer("abort", "a", "Abort the run", "end now; nothing more is saved"),
)


def deleting(run_id: str, path: str) -> tuple[Answer, ...]:
    return (
        Answer("no", "n", "Keep it", ""),
        Answer("delete", "d", f"Delete run {run_id}", f"removes {path} with its checkpoints and result"),
    )


class AnswerList(Cells, can_focus=True):
    class Given(Message):
        def __init__(self, value: str) -> None:
            super().__init__()
            self.value = value

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,left,shift+tab", "move(-1)", show=False),
        Binding("down,right,tab", "move(1)", show=False),
        Binding("enter", "give", show=False),
    ]

    def __init__(self, answers: tuple[Answer, ...]) -> None:
        super().__init__(id="answers")
        self.answers = answers
        self.at = 0

    def rows(self, width: int, height: int) -> list[Row]:
        rows: list[Row] = []
        for i, answer in enumerate(self.answers):
            here = i == self.at
            line: Row = [
                ("▸ " if here else "  ", "info+bold"),
                (answer.key, "key+bold"),
                (f"  {answer.title}", "strong+bold" if here else "text"),
            ]
            rows.append(line)
            rows.append([("     ", "text"), (answer.meaning, "muted")] if answer.meaning else [])
        return rows[:-1] if rows and not rows[-1] else rows

    def action_move(self, by: int) -> None:
        self.at = (self.at + by) % len(self.answers)
        self.redraw()

    def action_give(self) -> None:
        self.post_message(self.Given(self.answers[self.at].value))

    def on_key(self, event: events.Key) -> None:
        for answer in self.answers:
            if event.key == answer.key:
                event.stop()
                self.post_message(self.Given(answer.value))

    def on_click(self, event: events.Click) -> None:
        if event.y // 2 < len(self.answers):
            self.post_message(self.Given(self.answers[event.y // 2].value))


class Words(Cells):
    """A few lines of text, wrapped."""

    def __init__(self, text: str, ink: str = "text") -> None:
        super().__init__()
        self.text, self.text_ink = text, ink

    def rows(self, width: int, height: int) -> list[Row]:
        return [[(line, self.text_ink)] for line in wrap(self.text, width)]


class Question(ModalScreen[str]):
    """Answers with the chosen value; escape with an empty one."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss('')", show=False)]
    WIDTH: ClassVar[int] = 66

    def __init__(self, title: str, text: str, answers: tuple[Answer, ...]) -> None:
        super().__init__(id="question")
        self.question, self.text, self.answers = title, text, answers

    def compose(self) -> ComposeResult:
        inner = self.WIDTH - 6
        with Vertical(id="box") as box:
            box.border_title = self.question
            words = Words(self.text)
            words.styles.height = len(wrap(self.text, inner)) + 1
            yield words
            answers = AnswerList(self.answers)
            answers.styles.height = len(answers.rows(inner, 20))
            yield answers

    def on_mount(self) -> None:
        self.query_one(AnswerList).focus()

    def on_answer_list_given(self, message: AnswerList.Given) -> None:
        self.dismiss(message.value)
