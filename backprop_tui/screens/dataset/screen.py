"""The Data screen: panes around one open file; it opens files and passes on what panes report to each other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from backprop.core.datasets import is_hub_name
from backprop.core.errors import BackpropError
from backprop.runs.directory import RunDirectory
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.events import DescendantFocus, Resize, ScreenResume
from textual.widgets import ContentSwitcher

from backprop_tui.hints import hint_here
from backprop_tui.keys import Key, bindings
from backprop_tui.screens.base import BaseScreen, ConfigureRun
from backprop_tui.screens.dataset.clean import ask_and_write
from backprop_tui.screens.dataset.file import ENDINGS, OpenFile, open_file
from backprop_tui.screens.dataset.keys import KEYS, NEED_FILE, useful
from backprop_tui.screens.dataset.opening import OpeningPane
from backprop_tui.screens.dataset.row_text import error_lines
from backprop_tui.screens.dataset.run_scores import data_of
from backprop_tui.screens.dataset.side import Side
from backprop_tui.screens.dataset.tokens import Chosen
from backprop_tui.screens.tasks import Failed, GoToLine, Notice, RowsChanged
from backprop_tui.screens.trouble import show_error
from backprop_tui.text import Row, safe
from backprop_tui.widgets.bars import Bar, Words
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.path_input import Prompt

_MISTYPED = ("DATASET_NOT_FOUND", "DATASET_FORMAT_UNKNOWN", "DATASET_AMBIGUOUS", "INPUT_VALIDATION_FAILED")
"""Errors of a path, said while it can still be mended."""


class DataScreen(BaseScreen):
    """Browse and check one dataset file."""

    NAME, KEYS, STOP = "data", KEYS, "data.stop"
    BINDINGS = bindings(KEYS)
    CSS_PATH = "screen.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]

    def __init__(self) -> None:
        super().__init__()
        self.chosen = Chosen(self.tasks, self._model_chosen)
        self.notice = ""
        self._run = ""
        """Directory of the run whose scores are to be shown."""
        self._line = 0
        """The line of the file that is to be shown once it is open."""
        self._failure: BackpropError | None = None
        """What went wrong last, until another file or report is shown."""
        self._typed = ""
        """The path that was typed and is being opened."""
        self._title, self._status = Bar(id="title"), Words(id="status")
        self.opening = OpeningPane(self.tasks, id="welcome")
        self._side = Side(self.chosen, self.tasks, id="side")
        self.table, self.detail, self.findings = self._side.table, self._side.detail, self._side.findings
        self.lengths, self.scores = self._side.lengths, self._side.scores
        self._body = ContentSwitcher(id="body", initial="welcome")
        self._prompt = Prompt(id="prompt")

    def compose(self) -> ComposeResult:
        yield self.header
        yield self._title
        with self._body:
            yield self.opening
            with Horizontal(id="panes"):
                yield self.table
                yield self._side
        yield self._prompt
        yield self._status
        yield self.keybar

    def on_mount(self) -> None:
        self.opening.look()
        self.set_focus(self.opening)
        self.flush()

    def on_unmount(self) -> None:
        self.table.close()

    def losing(self) -> str:
        going = [task.words() for task in self.tasks.running() if task.is_long]
        return f"Work on the dataset goes on: {', '.join(going)}" if going else ""

    # What is shown

    @property
    def opened(self) -> OpenFile | None:
        return self.table.opened

    @property
    def file(self) -> OpenFile:
        """The open file, for what is done only where there is one."""
        assert self.opened is not None
        return self.opened

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool:
        """Most keys do nothing without an open file."""
        return self.opened is not None or action not in NEED_FILE

    def flush(self) -> None:
        self.table.flush()
        title = self.opened.words(self.table.shown()) if self.opened is not None else "Data"
        self._title.show([(title, "text")])
        finding = "" if self.opened is None or self.opened.source.complete else "finding all rows"
        words = (self.table.where(), self.tasks.words(finding), self.notice)
        self._status.show("  ".join(word for word in words if word))
        self.show_keys()

    def own_keys(self) -> list[Key]:
        pane = self._side.current if self.has_class("-inside") else ""
        shown = pane if self.opened is not None else None
        working, checked = bool(self.tasks.running()), self.findings.found is not None
        failed = self._failure is not None and (self.opened is None or self._side.current == "report")
        return useful(shown, working=working, checked=checked, failed=failed, steps_to=self._side.steps_to)

    def say(self, text: str) -> None:
        """Show a line at the bottom until the next one, or the next key."""
        self.notice = safe(text)
        self.flush()

    def on_key(self) -> None:
        """What was said of the last key is over."""
        self.notice = ""

    @on(Notice)
    def _noticed(self, event: Notice) -> None:
        """A pane knows more than before."""
        self._side.draw_statistics(self.opened)
        self.say(event.text or self.notice)

    @on(RowsChanged)
    def _rows_changed(self) -> None:
        self.flush()
        self.show_detail(again=True)

    def show_pane(self, name: str) -> None:
        """Show one of the panes beside the table (in a narrow terminal: instead of it), and give it the keys."""
        # At once: a pane that is hidden while it has the keys gives them to any other.
        self.set_focus(self._side.query_one(f"#{name}"))
        self._side.current = name
        self.add_class("-inside")
        self._side.draw_statistics(self.opened)
        self.call_after_refresh(self.show_detail)
        self.flush()

    def show_detail(self, *, again: bool = False) -> None:
        """Have the row under the cursor drawn, where it is seen."""
        if self._row_seen():
            self._side.show_row(again=again)

    def _row_seen(self) -> bool:
        return (self.has_class("-wide") or self.has_class("-inside")) and self._side.current == "detail"

    @on(DescendantFocus)
    def _focus_moved(self, event: DescendantFocus) -> None:
        """What has the keys, by the mouse too, is what the key bar is about; the prompt is no pane."""
        widget = event.widget
        # Where the keys were given on meanwhile, the news is old.
        if widget is self.focused and (widget is self.table or widget.parent is self._side):
            self.set_class(widget is not self.table, "-inside")
            self.flush()

    @on(ScreenResume)
    def _open_run_data(self) -> None:
        """Where nothing was opened yet: the file of the run that is open, at the row on which it failed."""
        state = self.watch_run.state if self.watch_run is not None else None
        if state is None or self.opened is not None or self.tasks.goes_on("open") or self._failure is not None:
            return
        path = str(state.config.get("data") or "")
        details = state.last_failure.details if state.last_failure is not None else {}
        if path and Path(path).is_file():
            lines = details.get("lines") or [details.get("line", 0)]
            self._line = int(lines[0]) if details.get("path") == path else 0
            self.open_path(path)

    @on(ScreenResume)
    @on(Resize)
    def _seen_anew(self) -> None:
        self.call_after_refresh(self.show_detail)

    # Opening

    def action_open(self, text: str = "", help: str = "") -> None:
        label = "Open a dataset file, or owner/name of the Hugging Face Hub"
        offered = self.opening.offered
        take = partial(self.open_path, typed=True)
        self._prompt.ask(label, take, text, endings=ENDINGS, offered=offered, help=help)

    @on(ListView.Chosen, "#welcome")
    def _offer_chosen(self) -> None:
        """A folder is no dataset: the path begins with it."""
        path = self.opening.chosen()
        if path.endswith("/"):
            self.action_open(path)
        else:
            self.open_path(path)

    def open_path(self, path: str, *, typed: bool = False) -> None:
        """Open a file in place of the one on screen; nothing where the path is empty."""
        if not path:
            return
        self.notice, self._typed, self._failure = "", path if typed else "", None
        self.tasks.begin("open", f"opening {path}", lambda task: open_file(path, task), self._show_file)
        self.flush()

    def _show_file(self, opened: OpenFile) -> None:
        """Everything begins anew, but for the model and the limit."""
        self._side.forget()
        self.notice = ""
        opened.source.start()
        self.opening.look()
        self.table.open(opened)
        self._body.current = "panes"
        if self._run:  # and the table does not get the keys first, which would hide the pane
            self.action_run_scores()
        else:
            self._leave_pane()
            self.show_detail(again=True)
            self._show_line()

    def _show_line(self) -> None:
        line, self._line = self._line, 0
        if line:
            self.post_message(GoToLine(line))

    @on(Failed)
    def _show_failure(self, event: Failed) -> None:
        if event.work in self.table.words:
            self.table.forget(event.work)
        lines, error = error_lines(event.error), event.error
        if event.work == "open":
            self._run = ""
        if event.work == "open" and self._typed and error.code in _MISTYPED and not is_hub_name(self._typed):
            self.action_open(self._typed, safe(f"✗ {error.message}; {hint_here(error.hint)}"))
        elif event.work == "open" and self.opened is None:
            self.opening.say(lines)
        else:
            self._show_report(lines, error.message)
        self._failure = error
        self.flush()

    def action_error(self) -> None:
        if self._failure is not None:
            show_error(self, self._failure)

    def action_stop_work(self) -> None:
        self.say("stopped" if self.tasks.stop() else "nothing is running")

    # Moving over the rows

    @on(ListView.Moved, "#rows")
    def _row_moved(self) -> None:
        self._side.stepped_to = 0
        self.show_detail()
        self.flush()

    @on(ListView.Chosen, "#rows")
    def _row_chosen(self) -> None:
        self.show_pane("detail")

    def action_choose(self) -> None:
        """What enter does in the list that has the keys: for whoever comes from the palette."""
        if isinstance(self.focused, ListView):
            self.focused.action_choose()

    def action_next_view(self) -> None:
        if self._row_seen():
            self._side.next_view()
        else:
            self.show_pane("detail")

    def action_row(self, by: int) -> None:
        """The next or previous row, wherever the keys go."""
        self.table.cursor += by

    def action_go(self) -> None:
        self.table.ask_line(self._prompt, self.file)

    def action_last(self) -> None:
        self.table.last(self.file)

    @on(GoToLine)
    def _go_to_line(self, event: GoToLine) -> None:
        """A pane names a row: show it there."""
        self.table.go_to_line(str(event.line))
        self.show_pane("detail")

    def action_search(self) -> None:
        self.table.ask_words(self._prompt, "search", partial(self.table.look_for, "search"))

    def action_filter(self) -> None:
        """Show some rows alone; in the list of findings, those with the one under the cursor."""
        code = self.findings.at_cursor()[0] if self.focused is self.findings else ""
        self.table.ask_words(self._prompt, "filter", self._filter, f"finding:{code}" if code else "")

    def _filter(self, words: str) -> None:
        self._leave_pane()
        self.table.look_for("filter", words)

    def action_step(self, by: int) -> None:
        """The next or previous hit of a search; without a search, the next or previous row with a finding."""
        if words := self._side.step(by):
            self.say(words)

    def action_back(self) -> None:
        """One layer out: the pane beside the table, then the search, then the filter."""
        if self.has_class("-inside") or self._side.current != "detail":
            self._leave_pane()
            self.show_detail()
        else:
            self.table.back()
            self.show_detail(again=True)
            self.flush()

    def _leave_pane(self) -> None:
        self.set_focus(self.table)
        self.remove_class("-inside")
        self._side.current = "detail"
        self.flush()

    def action_copy(self) -> None:
        """Copy what has the keys."""
        self._side.copy(self.file, self.focused, self._copy)

    def action_copy_path(self) -> None:
        self._copy(self.file.fetched or self.file.path)

    def _copy(self, text: str) -> None:
        self.app.copy_to_clipboard(text.encode("utf-8", "replace").decode())

    # The panes

    def action_check(self) -> None:
        self.notice = ""
        self._side.check(self.file)
        self.flush()

    def action_problems(self) -> None:
        """The list of findings; a check is started where there was none."""
        self._side.check(self.file, anew=False)
        self.show_pane("problems")

    def action_lengths(self) -> None:
        self.show_pane("lengths")
        self._side.count(self.file)

    def action_limit(self, by: int) -> None:
        self.lengths.set_limit(str(self.lengths.next_limit(by)))

    def action_ask_limit(self) -> None:
        self.lengths.ask_limit(self._prompt)

    def action_scores(self) -> None:
        self.scores.need_scores(self.file)
        self.show_pane("scores")

    def take(self, values: Mapping[str, Any]) -> None:
        """Show what a run scored on the rows that it held out, or a line of a file."""
        if (line := values["line"]) is not None:
            self._line = line
            if self.opened is not None and values["source"] in (self.opened.path, self.opened.fetched):
                self._show_line()
            else:
                self.open_path(values["source"])
            return
        self._run = values["source"]
        try:
            path = data_of(RunDirectory(Path(self._run)))
        except BackpropError as error:
            self.say(error.message)
            return
        if self.opened is not None and path in (self.opened.path, self.opened.fetched):
            self.action_run_scores()
        else:
            self.open_path(path)

    def action_run_scores(self) -> None:
        """What the run that was asked for, or else the newest on this file, scored on rows that it held out."""
        self.scores.show_run(self.file, self._run)
        self._run = ""
        self.show_pane("scores")

    def action_statistics(self) -> None:
        self.show_pane("statistics")

    def action_model(self) -> None:
        self.chosen.ask(self._prompt)

    def _model_chosen(self) -> None:
        self.lengths.forget()
        self.say(self.chosen.remark() or self.notice)
        self.show_detail(again=True)
        if self.opened is not None:
            self._side.count(self.opened)

    def action_train(self) -> None:
        """Go to the Configure screen with this file, and the model and the limit where they were chosen here."""
        self.post_message(ConfigureRun({"data": self.file.fetched or self.file.path, **self.chosen.changes()}))

    def action_clean(self) -> None:
        """Ask, then write a copy without unusable and repeated rows."""
        scores, rows = lambda: self.scores.scores, self.chosen.rows
        ask_and_write(self._prompt, self.file, scores, self.tasks, self._show_report, rows=rows)

    def _show_report(self, lines: list[Row], notice: str) -> None:
        self._failure = None
        self._side.report.show_rows(lines)
        self.show_pane("report")
        self.say(notice)
