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

from backprop_tui.keys import Key, bindings
from backprop_tui.screens.base import BaseScreen, ConfigureRun
from backprop_tui.screens.dataset.clean import ask_and_write
from backprop_tui.screens.dataset.file import ENDINGS, OpenFile, open_file
from backprop_tui.screens.dataset.findings import FindingsPane
from backprop_tui.screens.dataset.keys import KEYS, NEED_FILE, useful
from backprop_tui.screens.dataset.lengths import LIMIT_RANGE, LengthsPane
from backprop_tui.screens.dataset.opening import OpeningPane
from backprop_tui.screens.dataset.perplexity import ScoresPane
from backprop_tui.screens.dataset.row_text import error_lines
from backprop_tui.screens.dataset.row_view import VIEWS, RowView
from backprop_tui.screens.dataset.rows import RowTable
from backprop_tui.screens.dataset.run_scores import data_of
from backprop_tui.screens.dataset.statistics import statistics_lines
from backprop_tui.screens.dataset.tokens import MODEL_HELP, Chosen
from backprop_tui.screens.tasks import Delivered, Failed, GoToLine, Notice, RowsChanged, Tasks
from backprop_tui.text import Row, rows_of, safe
from backprop_tui.widgets.bars import Bar, Words
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.path_input import Prompt, between
from backprop_tui.widgets.text_view import TextView

_MISTYPED = ("DATASET_NOT_FOUND", "DATASET_FORMAT_UNKNOWN", "DATASET_AMBIGUOUS", "INPUT_VALIDATION_FAILED")
"""Errors of a path, said while it can still be mended."""


class DataScreen(BaseScreen):
    """Browse and check one dataset file."""

    NAME, KEYS = "data", KEYS
    BINDINGS = bindings(KEYS)
    CSS_PATH = "screen.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]

    def __init__(self) -> None:
        super().__init__()
        self.tasks = Tasks(self)
        self.chosen = Chosen(self.tasks, self._model_chosen)
        self.notice = ""
        self._run = ""
        """Directory of the run whose scores are to be shown."""
        self._line = 0
        """The line of the file that is to be shown once it is open."""
        self._stepped_to = 0
        """The line of the finding that a step went to last."""
        self._typed = ""
        """The path that was typed and is being opened."""
        self._title, self._status = Bar(id="title"), Words(id="status")
        self.opening = OpeningPane(self.tasks, id="welcome")
        self._report, self._statistics = TextView(id="report"), TextView(id="statistics")
        self.findings = FindingsPane(self.tasks, id="problems")
        self.table = RowTable(self.tasks, self.findings.lines_of, self.chosen, id="rows")
        self.detail = RowView(self.chosen, self.findings.of_line, self.table.marked, self.tasks, id="detail")
        self.lengths = LengthsPane(self.chosen, self.tasks, id="lengths")
        self.scores = ScoresPane(self.chosen, self.tasks, id="scores")
        self._body = ContentSwitcher(id="body", initial="welcome")
        self._side = ContentSwitcher(id="side", initial="detail")
        self._prompt = Prompt(id="prompt")

    def compose(self) -> ComposeResult:
        yield self.header
        yield self._title
        with self._body:
            yield self.opening
            with Horizontal(id="panes"):
                yield self.table
                with self._side:
                    yield from (self.detail, self._report, self.findings, self.lengths, self._statistics, self.scores)
        yield self._prompt
        yield self._status
        yield self.keybar

    def on_mount(self) -> None:
        self.opening.look()
        self.set_focus(self.opening)
        self.flush()

    def on_unmount(self) -> None:
        self.tasks.end()
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
        return useful(shown, working=bool(self.tasks.running()), checked=self.findings.found is not None)

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
        self._draw_statistics()
        self.say(event.text or self.notice)

    @on(RowsChanged)
    def _rows_changed(self) -> None:
        self.flush()
        self.show_detail(again=True)

    @on(Delivered)
    def _delivered(self, event: Delivered) -> None:
        self.tasks.take(event)
        self.flush()

    def show_pane(self, name: str) -> None:
        """Show one of the panes beside the table (in a narrow terminal: instead of it), and give it the keys."""
        # At once: a pane that is hidden while it has the keys gives them to any other.
        self.set_focus(self._side.query_one(f"#{name}"))
        self._side.current = name
        self.add_class("-inside")
        self.call_after_refresh(self.show_detail)
        self.flush()

    def show_detail(self, *, again: bool = False) -> None:
        """Have the row under the cursor drawn, where it is seen."""
        row = self.table.row_of(self.table.cursor)
        if row is not None and self.opened is not None and self._row_seen():
            self.detail.show_row(self.opened, row, again=again)

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
    @on(Resize)
    def _seen_anew(self) -> None:
        self.call_after_refresh(self.show_detail)

    # Opening

    def action_open(self) -> None:
        self._ask_path("")

    def _ask_path(self, text: str, help: str = "") -> None:
        label = "Open a dataset file, or owner/name of the Hugging Face Hub"
        offered = self.opening.offered
        take = partial(self.open_path, typed=True)
        self._prompt.ask(label, take, text, endings=ENDINGS, offered=offered, help=help)

    @on(ListView.Chosen, "#welcome")
    def _offer_chosen(self) -> None:
        """A folder is no dataset: the path begins with it."""
        path = self.opening.chosen()
        if path.endswith("/"):
            self._ask_path(path)
        else:
            self.open_path(path)

    def open_path(self, path: str, *, typed: bool = False) -> None:
        """Open a file in place of the one on screen; nothing where the path is empty."""
        if not path:
            return
        self.notice, self._typed = "", path if typed else ""
        self.tasks.begin("open", f"opening {path}", lambda task: open_file(path, task), self._show_file)
        self.flush()

    def _show_file(self, opened: OpenFile) -> None:
        """Everything begins anew, but for the model and the limit."""
        self.tasks.forget("clean", "check", "lengths", "score")
        for pane in (self.findings, self.lengths, self.scores):
            pane.forget()
        self.notice = ""
        self._stepped_to = 0
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
            self._ask_path(self._typed, safe(f"✗ {error.message}; {error.hint}"))
        elif event.work == "open" and self.opened is None:
            self.opening.say(lines)
        else:
            self._show_report(lines, error.message)
        self.flush()

    def action_stop_work(self) -> None:
        """Stop everything that is running in the background."""
        self.say("stopped" if self.tasks.stop() else "nothing is running")

    # Moving over the rows

    @on(ListView.Moved, "#rows")
    def _row_moved(self) -> None:
        self._stepped_to = 0
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
        """See the row in the next form."""
        if not self._row_seen():
            self.show_pane("detail")
            return
        self.detail.next_view()
        if VIEWS[self.detail.view] == "tokens":
            self.chosen.need_tokenizer()
        self.show_detail(again=True)

    def action_row(self, by: int) -> None:
        """The next or previous row, wherever the keys go."""
        self.table.cursor += by

    def action_go(self) -> None:
        unit, known = self.file.source.unit, self.file.source.known
        far = "" if self.file.source.complete else " so far"
        help = f"a number · nothing: the first {unit} · {rows_of(known)}{far}"
        self._prompt.ask(f"Go to {unit}", self.table.go_to_line, numbers=range(1, 2**53), help=help)

    def action_last(self) -> None:
        self.table.last(self.file)

    @on(GoToLine)
    def _go_to_line(self, event: GoToLine) -> None:
        """A pane names a row: show it there."""
        self.table.go_to_line(str(event.line))
        self.show_pane("detail")

    def action_search(self) -> None:
        self._ask_for("search", "Search", "text in any field, in any case · n and N step")

    def action_filter(self) -> None:
        """Show some rows alone; in the list of findings, those with the one under the cursor."""
        code = self.findings.at_cursor()[0] if self.findings.has_focus else ""
        help = (
            "text, or: bad · role:tool · format:alpaca · finding:duplicate · finding:cut · finding:lost · nothing: all"
        )
        self._ask_for("filter", "Show only rows with", help, f"finding:{code}" if code else "")

    def _ask_for(self, kind: str, label: str, help: str, text: str = "") -> None:
        self._prompt.ask(label, partial(self._look_for, kind), text or self.table.words.get(kind, ""), help=help)

    def _look_for(self, kind: str, words: str) -> None:
        if kind == "filter":
            self._leave_pane()
        self.table.look_for(kind, words)

    def action_step(self, by: int) -> None:
        """The next or previous hit of a search; without a search, the next or previous row with a finding."""
        if "search" in self.table.words:
            self.table.step(by)
        elif self.findings.found is None:
            self.say("c checks the file, then n and N go to the next and the previous finding")
        elif (line := self.findings.line_after(self._stepped_to or self.table.line_of_cursor(), by)) is None:
            self.say("the check found nothing to look at")
        else:
            self.table.go_to_line(str(line))
            self._stepped_to = line

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

    # Copying

    def action_copy(self) -> None:
        """Copy what has the keys: the finding, what a pane says, or else the row as it stands in the file."""
        opened, row, pane = self.file, self.table.row_of(self.table.cursor), self.focused
        problem = self.findings.at_cursor()[1] if pane is self.findings else None
        if problem is not None:
            place = f"{opened.name}, {opened.source.unit} {problem.line}"
            self._copy(f"{place}: {problem.code}: {problem.message}")
        elif isinstance(pane, TextView) and pane is not self.detail:
            self._copy(pane.text)
        elif row is not None:
            self.tasks.begin("copy", "", lambda _: opened.row(row).raw.decode("utf-8", "replace"), self._copy)

    def action_copy_path(self) -> None:
        self._copy(self.file.fetched or self.file.path)

    def _copy(self, text: str) -> None:
        self.app.copy_to_clipboard(text.encode("utf-8", "replace").decode())

    # The panes

    def action_check(self) -> None:
        """Check every row."""
        self.notice = ""
        self.findings.check(self.file, self.chosen.rows, traces=self.chosen.traces)
        self.flush()

    def action_problems(self) -> None:
        """The list of findings; a check is started where there was none."""
        if self.findings.found is None and not self.tasks.goes_on("check"):
            self.findings.check(self.file, self.chosen.rows, traces=self.chosen.traces)
        self.show_pane("problems")

    def action_lengths(self) -> None:
        """The lengths of the rows; they are counted where they were not."""
        self.show_pane("lengths")
        self._count()

    def _count(self) -> None:
        """Count the lengths where they are seen and were not counted; with the tokenizer, once it was looked for."""
        wanted = self._side.current == "lengths" and self.lengths.counted is None and not self.tasks.goes_on("lengths")
        if wanted and not self.chosen.need_tokenizer():
            self.lengths.count(self.file)

    def action_limit(self, by: int) -> None:
        self.lengths.set_limit(str(self.lengths.next_limit(by)))

    def action_ask_limit(self) -> None:
        label = f"Longest row in tokens, {between(LIMIT_RANGE)}"
        self._prompt.ask(label, self.lengths.set_limit, str(self.chosen.limit), numbers=LIMIT_RANGE)

    def action_scores(self) -> None:
        """The rows by how hard the model finds them."""
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
        """What is known of the file."""
        self.show_pane("statistics")
        self._draw_statistics()

    def _draw_statistics(self) -> None:
        if self._side.current == "statistics":
            known = (self.findings.found, self.lengths.counted, self.chosen, self.scores.report)
            self._statistics.show_rows(statistics_lines(self.file, *known))

    def action_model(self) -> None:
        """Ask for the model whose tokenizer is used."""
        ending = ("tokenizer.json",)
        self._prompt.ask("Tokens of the model", self.chosen.choose, self.chosen.model, endings=ending, help=MODEL_HELP)

    def _model_chosen(self) -> None:
        self.lengths.forget()
        if self.chosen.why_none is not None:
            self.say(self.chosen.why_none.message)
        elif self.chosen.tokenizer is not None and self.chosen.tokenizer.notes:
            self.say(self.chosen.tokenizer.notes[0])
        self.show_detail(again=True)
        self._count()

    def action_train(self) -> None:
        """Go to the Configure screen with this file, and the model and the limit where they were chosen here."""
        self.post_message(ConfigureRun({"data": self.file.fetched or self.file.path, **self.chosen.changes()}))

    def action_clean(self) -> None:
        """Ask, then write a copy without unusable and repeated rows."""
        ask_and_write(self._prompt, self.file, lambda: self.scores.scores, self.tasks, self._show_report)

    def _show_report(self, lines: list[Row], notice: str) -> None:
        self._report.show_rows(lines)
        self.show_pane("report")
        self.say(notice)
