"""The Export screen: a run's model in another format; size and quality before, progress, and the proof afterwards."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from backprop.cli.export import ollama_name_of, show_export
from backprop.cli.ollama import show_registered
from backprop.cli.push import show_pushed
from backprop.core.errors import BackpropError
from backprop.core.events import Warning  # noqa: A004
from backprop.core.exports import FORMATS
from backprop.core.jobs import (
    Exported,
    ExportRequest,
    Message,
    OllamaRequest,
    Pushed,
    PushRequest,
    Registered,
    Sizes,
    SizesRequest,
)
from backprop.runs.describe import describe
from backprop.runs.engine_jobs import OLLAMA, PUSH, SIZES, ask_engine, export_model
from msgspec import Struct
from textual import on
from textual.app import ComposeResult
from textual.containers import Container

from backprop_tui.hints import keys_here
from backprop_tui.keys import Key, bindings, press, table
from backprop_tui.run_reader import last_result
from backprop_tui.screens.base import BaseScreen, ShowOn
from backprop_tui.screens.dialogs import Answer
from backprop_tui.screens.export.detail import ExportDetail, failure, outlook, proof
from backprop_tui.screens.export.formats import CHOICES, Choice, ChoiceList, Source, look_at
from backprop_tui.screens.tasks import Failed, Task
from backprop_tui.screens.trouble import show_error
from backprop_tui.text import Row, safe, short_path
from backprop_tui.widgets.bars import Bar
from backprop_tui.widgets.cells import bar, heading, paragraph
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.path_input import Prompt

KEYS = table(
    "export",
    Key("enter", "enter", "export", "export", "write the run's model in the chosen format", 1),
    Key("x", "x", "cancel", "cancel", "end the export; nothing of it is left", 1),
    Key("e", "e", "error", "error", "the whole error: to scroll, to copy, and what can be done about it", 1),
    Key("o", "o", "place", "where to", "choose another file or folder to write", 3),
    Key("r", "r", "register", "to Ollama", "register the GGUF file with Ollama, under a name", 2),
    Key("p", "p", "push", "to the hub", "upload what was written to the Hugging Face Hub, private, with a card", 3),
    Key("t", "t", "talk", "talk", "talk to the GGUF file on the Chat screen, through llama.cpp", 3),
    Key("y", "y", "copy", "copy command", "copy the command that does the same, or what comes next", 2),
)
REPLACING = (
    Answer("no", "n", "Keep it", ""),
    Answer("replace", "r", "Replace it", "what Ollama has under that name is gone"),
)
Say = Callable[[str, str], None]
T = TypeVar("T")


class ExportScreen(BaseScreen):
    """One export at a time, in an engine process; what was written is named with its proof."""

    NAME, KEYS, STOP = "export", KEYS, "export.cancel"
    BINDINGS = bindings(KEYS)
    CSS_PATH = "screen.tcss"

    def __init__(self) -> None:
        super().__init__()
        self.source: Source | None = None
        self.output = ""
        """Where it is written; open: in the run's directory."""
        self.written: dict[Choice, Exported] = {}
        """What was written of the run here; each stays to be looked at and handed on."""
        self.failed: BackpropError | None = None
        """Why nothing was written."""
        self.not_handed: BackpropError | None = None
        """Why a step after the export, which stands, was not done."""
        self.warnings: list[str] = []
        self.handed: list[tuple[str, str]] = []
        """Lines about what became of the steps after the export, with their kinds."""
        self.notice = ""
        self._title, self._status = Bar(id="title"), Bar(id="status")
        self.list = ChoiceList(id="choices-of-format")
        self.list.count = len(CHOICES)
        self.list._cursor = CHOICES.index(Choice("gguf", FORMATS["gguf"].precisions[0]))
        self.detail = ExportDetail(self._detail, id="about")
        self._prompt = Prompt(id="prompt")

    def compose(self) -> ComposeResult:
        yield self.header
        yield self._title
        with Container(id="panes"):
            yield self.list
            yield self.detail
        yield self._prompt
        yield self._status
        yield self.keybar

    def on_mount(self) -> None:
        self.list.focus()
        if self.source is None and not self.tasks.goes_on("look"):
            self.tasks.begin("find", "", lambda _: last_result(), self._offer)
        self.flush()

    def take(self, values: Mapping[str, Any]) -> None:
        """Export the run whose directory is ``source``."""
        self.tasks.forget("find")
        if self.source is not None and self.source.path == values["source"]:
            pass
        elif self.tasks.running():
            self.notice = "an export goes on: the other run is for later"
        else:
            self._offer(str(values["source"]))
        self.list.focus()

    def offer(self, source: str) -> None:
        if not self.tasks.running():
            self.take({"source": source})

    @property
    def looked_at(self) -> str:
        return self.source.path if self.source else ""

    def _offer(self, path: str) -> None:
        if path:
            self.source = self.list.source = None
            self._forget_news()
            self.warnings, self.output, self.notice = [], "", ""
            self.written.clear()
            self.tasks.forget("sizes")
            self.tasks.begin("look", "", lambda _: look_at(path), self._take_source)
        self.flush()

    def _take_source(self, source: Source) -> None:
        self.source = self.list.source = source
        self.list.redraw()
        if source.here and not source.gguf:
            asked = SizesRequest(model=source.model)

            def work(task: Task[Source]) -> Source:
                found = ask_engine(SIZES, asked, Sizes, started=task.when_started)
                return source._replace(gguf=found.gguf)

            self.tasks.begin("sizes", "", work, self._take_source)

    def losing(self) -> str:
        going = [task.words() for task in self.tasks.running()]
        return f"An export goes on: {', '.join(going)}" if going else ""

    @property
    def exporting(self) -> bool:
        return self.tasks.goes_on("export")

    @property
    def done(self) -> Exported | None:
        """What was written in the format under the cursor."""
        return self.written.get(self.choice)

    @property
    def choice(self) -> Choice:
        """The format and precision under the cursor."""
        return CHOICES[self.list.cursor]

    @on(Failed)
    def _failed(self, event: Failed) -> None:
        if event.work == "sizes":  # what llama.cpp cannot compute is said by its export
            return
        if event.work == "hand":
            self.not_handed = error = event.error
            taken = str(error.details.get("taken", ""))
            if taken:
                error.hint = f"{press('export.to-ollama')} registers it under another name, or replaces that one"
            self.handed = [(f"✗ [{error.code}] {error.message}. {keys_here(error.hint)}", "error")]
            self.handed.append(("the export stands", "quiet"))
            if taken and self.is_current:
                self.confirm("to Ollama", f"{error.message}.", REPLACING, lambda: self._register(taken, replace=True))
        else:
            self.failed = event.error
        self.flush()

    @on(ListView.Moved, "#choices-of-format")
    def _moved(self) -> None:
        if not self.tasks.running():
            self._forget_news()
        self.notice = ""
        self.flush()

    def _forget_news(self) -> None:
        self.failed = self.not_handed = None
        self.handed = []

    # What is shown

    @property
    def looking(self) -> bool:
        """Whether a run is still looked for, or at."""
        return self.tasks.goes_on("find") or self.tasks.goes_on("look")

    def flush(self) -> None:
        name = short_path(self.source.path) if self.source else ""
        self._title.show([(" export ", "strong+bold"), (safe(name), "text")])
        words = "  ".join(filter(None, [self.tasks.words(""), self.notice]))
        self._status.show([(f" {safe(words)}", "text")])
        if self.has_class("-result") == (self.done is None and self.failed is None):
            self.toggle_class("-result")
        going = [(task.name, task.done, task.total) for task in self.tasks.running()]
        self.detail.redraw_for(
            (
                self.source,
                self.looking,
                self.output,
                id(self.done),
                id(self.failed),
                len(self.warnings),
                self.choice,
                going,
                *self.handed,
            )
        )
        self.show_keys()

    def _detail(self, width: int) -> list[Row]:
        if self.source is None and self.failed is None:
            where = f"{press('runs.export')} on the Runs screen exports one when it is finished"
            return [] if self.looking else paragraph(f"no run with a result yet: {where}", width, "muted")
        rows = [row for text in self.warnings for row in paragraph(f"! {text}", width, "warn")]
        if self.tasks.running():
            rows.append(heading("exporting" if self.exporting else "handing it on", width))
            for task in self.tasks.running():
                rows += [[(task.words(), "text")], bar(task.done / task.total if task.total else 0.0, width, "info")]
            return rows
        if self.failed is not None:
            rows += failure(self.failed, width)
        if self.done is not None:
            return rows + proof(self.done, self.handed, width)
        return rows + outlook(self.source, self.choice, self.output, self.command(), width) if self.source else rows

    def command(self) -> str:
        """The command that does the same; after a GGUF export what comes next."""
        if self.done is not None:
            found = [text for text, _ in self.handed]
            show_export(self.done, lambda text, kind: found.append(text))
            following = [text.removeprefix("next: ") for text in found if text.startswith("next: ")]
            return following[0] if following else self.done.path
        where = f" --output {shlex.quote(self.output)}" if self.output else ""
        name = short_path(self.source.path) if self.source else "RUN"
        return f"backprop export {name} --format {self.choice.format} -q {self.choice.precision}{where}"

    def own_keys(self) -> list[Key]:
        hidden = {"export", "place", "register", "push"} if self.tasks.running() else {"cancel"}
        if self.done is None or self.done.format != "gguf":
            hidden |= {"register", "talk"}
        if self.done is None or self.done.format == "lora-gguf":
            hidden.add("push")
        if self.source is None:
            hidden |= {key.name for key in KEYS}
        hidden = hidden - {"error"} if self.failed or self.not_handed else hidden | {"error"}
        label = "copy next command" if self.done else "copy command"
        keys = [key._replace(label=label) if key.name == "copy" else key for key in KEYS]
        return [key for key in keys if key.name not in hidden]

    # Doing

    @on(ListView.Chosen, "#choices-of-format")
    def _chosen(self) -> None:
        self.action_export()

    def action_export(self) -> None:
        if self.source is None or self.tasks.running():
            return
        choice = self.choice
        request = ExportRequest(
            source=self.source.path, format=choice.format, precision=choice.precision, output=self.output
        )
        self._forget_news()
        self.warnings, self.notice = [], ""

        def work(task: Task[Exported | str]) -> Exported:
            def report(message: Message) -> None:
                if isinstance(message, Warning):
                    task.deliver(describe(message))
                else:
                    task.report(message)

            return export_model(request, report, task.when_started)

        def take(news: Exported | str) -> None:
            if isinstance(news, str):
                self.warnings.append(news)
            else:
                self.written[choice] = news
                self.list.cursor = CHOICES.index(choice)

        self.tasks.begin("export", "starting", work, take)
        self.flush()

    def action_cancel(self) -> None:
        self.tasks.forget("hand")
        if self.exporting:
            self.tasks.forget("export")
            self.notice = "cancelled: nothing was written"
        self.flush()

    def action_register(self) -> None:
        if self.done is not None and self.done.format == "gguf" and not self.tasks.running():
            label = "its name in Ollama; before one that is taken is replaced you are asked"
            self._prompt.ask(label, self._register, ollama_name_of(self.done.path))

    def _register(self, name: str, *, replace: bool = False) -> None:
        assert self.done is not None
        run = self.source.path if self.source else ""
        request = OllamaRequest(path=self.done.path, name=name, run=run, replace=replace)
        self._hand_on(name, OLLAMA, request, Registered, show_registered)

    def action_talk(self) -> None:
        if self.done is not None and self.done.format == "gguf":
            self.post_message(ShowOn("chat", self.done.path))

    def action_push(self) -> None:
        if self.done is not None and self.done.format != "lora-gguf" and not self.tasks.running():
            self._prompt.ask("owner/name on the Hugging Face Hub; it is private", self._push)

    def _push(self, repo: str) -> None:
        assert self.done is not None
        self._hand_on(repo, PUSH, PushRequest(path=self.done.path, repo=repo), Pushed, show_pushed)

    def _hand_on(
        self, name: str, module: str, request: Struct, answer: type[T], show: Callable[[T, Say], None]
    ) -> None:
        """Do a step after the export, in an engine process too."""
        if not name:
            return

        def hand(task: Task[list[tuple[str, str]]]) -> list[tuple[str, str]]:
            said: list[tuple[str, str]] = []
            done = ask_engine(module, request, answer, task.report, task.when_started)
            show(done, lambda text, kind: said.append((text, kind)))
            return said

        self._forget_news()
        self.tasks.begin("hand", f"handing on {name}", hand, self._take_handed)
        self.flush()

    def _take_handed(self, said: list[tuple[str, str]]) -> None:
        self.handed = said

    def action_copy(self) -> None:
        if self.source is not None:
            self.app.copy_to_clipboard(self.command())

    def action_error(self) -> None:
        if error := self.failed or self.not_handed:
            show_error(self, error)

    def action_place(self) -> None:
        if self.source is not None and not self.exporting:
            self._prompt.ask(
                "file or folder to write; nothing is replaced", self._set_place, self.output, endings=("",)
            )

    def _set_place(self, text: str) -> None:
        self.output = str(Path(text).expanduser().absolute()) if text else ""
