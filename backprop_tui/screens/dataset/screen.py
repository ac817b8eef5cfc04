"""The Data screen: panes around one open file; it opens files and passes on what panes report to each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backprop.core.presets import EMBEDDED_MODEL
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import ContentSwitcher

from backprop_tui.keys import EVERYWHERE, Key, bindings
from backprop_tui.screens.base import BaseScreen
from backprop_tui.screens.dataset.browser import Browser
from backprop_tui.screens.dataset.clean import HELP, result_lines, write_copy
from backprop_tui.screens.dataset.file import ENDINGS, WELCOME, OpenFile, open_file
from backprop_tui.screens.dataset.findings import FindingsPane
from backprop_tui.screens.dataset.keys import KEYS
from backprop_tui.screens.dataset.lengths import LengthsPane
from backprop_tui.screens.dataset.messages import GoToLine, Notice, RowsChanged
from backprop_tui.screens.dataset.perplexity import ScoresPane
from backprop_tui.screens.dataset.row_text import error_lines
from backprop_tui.screens.dataset.row_view import RowView
from backprop_tui.screens.dataset.statistics import statistics_lines
from backprop_tui.screens.dataset.tasks import Delivered, Failed, Tasks
from backprop_tui.screens.dataset.tokens import Chosen
from backprop_tui.text import safe
from backprop_tui.widgets.bars import Bar
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.path_input import Prompt
from backprop_tui.widgets.text_view import TextView

if TYPE_CHECKING:
    from backprop.data.clean import CleanResult


class DataScreen(BaseScreen):
    """Browse and check one dataset file.

    Args:
        wanted_path: the file to open at once; later the one that was asked for last.
    """

    NAME, KEYS = "data", KEYS
    BINDINGS = bindings(KEYS)
    CSS_PATH = "screen.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]

    def __init__(self, wanted_path: str = "") -> None:
        super().__init__()
        self.wanted_path = wanted_path
        self.tasks = Tasks(self)
        self.chosen = Chosen()
        self.notice = ""
        self._stepped_to = 0
        """The line of the finding that a step went to last."""
        self._title, self._status = Bar(id="title"), Bar(id="status")
        self._welcome, self._report, self._statistics = (
            TextView(id=name) for name in ("welcome", "report", "statistics")
        )
        self.browser = Browser(self.tasks, id="list")
        self.table = self.browser.table
        self.findings = FindingsPane(self.tasks, id="problems")
        self.detail = RowView(self.chosen, self.findings.of_line, id="detail")
        self.lengths = LengthsPane(self.chosen, self.tasks, id="lengths")
        self.scores = ScoresPane(self.chosen, self.tasks, id="scores")
        self._body = ContentSwitcher(id="body", initial="welcome")
        self._side = ContentSwitcher(id="side", initial="detail")
        self._prompt = Prompt(id="prompt")

    def compose(self) -> ComposeResult:
        yield self._title
        with self._body:
            yield self._welcome
            with Horizontal(id="panes"):
                yield self.browser
                with self._side:
                    yield from (self.detail, self._report, self.findings, self.lengths, self._statistics, self.scores)
        yield self._prompt
        yield self._status
        yield self.keybar

    def on_mount(self) -> None:
        if self.wanted_path:
            self.open_path(self.wanted_path)
        else:
            self.call_after_refresh(self._greet)
        self.flush()

    def _greet(self) -> None:
        self._welcome.show_rows(WELCOME)
        self.action_open()

    def on_unmount(self) -> None:
        self.tasks.stop()
        self.table.close()

    # What is shown

    @property
    def opened(self) -> OpenFile | None:
        return self.browser.opened

    def flush(self) -> None:
        self.browser.flush()
        self._show_words()

    def _show_words(self) -> None:
        title = self.opened.words(self.browser.shown()) if self.opened is not None else "Data"
        self._title.show([(title, "text")], self.chip())
        finding = () if self.opened is None or self.opened.source.complete else ("finding all rows",)
        words = (self.browser.where(), self.tasks.words(*finding), self.notice)
        self._status.show([("  ".join(word for word in words if word), "text")], [])
        self.show_keys()

    def useful_keys(self) -> list[Key]:
        inside = self.has_class("-inside")
        first: tuple[str, ...] = ()
        if self.opened is None:
            first = ("open",)
        elif inside:
            lengths = self._side.current == "lengths"
            first = ("limit", "ask_limit", "model", "back") if lengths else ("back", "next_view", "step")
        if self.tasks.running():
            first = (*first, "stop_work")
        found = [key._replace(rank=1) for key in KEYS if key.name in first and key.keys != "N"]
        if self.opened is not None:
            found += [key for key in KEYS if key.name not in (*first, "stop_work") and key.rank != 9]
        return [*found, *(key for key in EVERYWHERE if key.rank != 9 and key.action != "app.go('data')")]

    def say(self, text: str) -> None:
        """Show a line at the bottom until the next one."""
        self.notice = safe(text)
        self.flush()

    @on(Notice)
    def _noticed(self, event: Notice) -> None:
        """A pane knows more than before."""
        if event.text:
            self.notice = safe(event.text)
        self._draw_statistics()
        self.flush()

    @on(RowsChanged)
    def _rows_changed(self) -> None:
        self.flush()
        self.show_detail(again=True)

    @on(Delivered)
    def _delivered(self, event: Delivered) -> None:
        self.tasks.take(event)
        self.flush()

    def show_pane(self, name: str) -> None:
        """Show one of the panes beside the table, and give it the keys."""
        self._side.current = name
        self.go_inside()
        self.flush()

    def go_inside(self) -> None:
        """Let keys work in the pane beside the table (in a narrow terminal: instead of it)."""
        self.add_class("-inside")
        pane = self._side.visible_content
        if pane is not None:
            pane.focus()
        self.call_after_refresh(self.show_detail)

    def show_detail(self, *, again: bool = False) -> None:
        """Have the row under the cursor drawn, where it is seen."""
        row, reader = self.table.row_of(self.table.cursor), self.table.reader
        seen = (self.has_class("-wide") or self.has_class("-inside")) and self._side.current == "detail"
        if row is not None and reader is not None and seen:
            self.detail.show_row(reader, row, again=again)

    def on_screen_resume(self) -> None:
        self.call_after_refresh(self.show_detail)

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_detail)

    # Opening

    def action_open(self) -> None:
        self._prompt.ask(
            "Open a dataset file, or owner/name of the Hugging Face Hub",
            lambda path: self.open_path(path) if path else None,
            self.wanted_path,
            endings=ENDINGS,
            help="tab completes · enter opens · esc leaves",
        )

    def open_path(self, path: str) -> None:
        """Open a file in place of the one on screen."""
        self.notice, self.wanted_path = "", path
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
        self.browser.open(opened)
        self._body.current = "panes"
        self._side.current = "detail"
        self.remove_class("-inside")
        self.table.focus()
        self.flush()
        self.show_detail(again=True)

    @on(Failed)
    def _show_failure(self, event: Failed) -> None:
        lines = error_lines(event.error)
        if event.work == "open" and self.opened is None:
            self._welcome.show_rows([*lines, [], *WELCOME[2:]])
            self.flush()
            return
        self._report.show_rows(lines)
        self.show_pane("report")
        self.say(event.error.message)

    @on(Prompt.Answered)
    def _answered(self, event: Prompt.Answered) -> None:
        if self.opened is not None or event.text is not None:
            self.table.focus()
        if event.text is not None:
            event.then(event.text)

    def action_stop_work(self) -> None:
        """Stop everything that is running in the background."""
        self.say("stopped" if self.tasks.stop() else "nothing is running")
        if self.opened is None:
            self._welcome.show_rows(WELCOME)

    # Moving over the rows

    @on(ListView.Moved, "#rows")
    def _row_moved(self) -> None:
        self._stepped_to = 0
        self.show_detail()
        self._show_words()

    @on(ListView.Chosen, "#rows")
    def _row_chosen(self) -> None:
        self._side.current = "detail"
        self.go_inside()

    def action_choose(self) -> None:
        """What enter does in the list that has the keys: for whoever comes from the palette."""
        if isinstance(self.focused, ListView):
            self.focused.action_choose()

    def action_next_view(self) -> None:
        """See the row in the next form."""
        self.detail.next_view()
        if self.detail.as_tokens:
            self.chosen.need_tokenizer(self.tasks, self._model_chosen)
        self.show_detail(again=True)

    def action_go(self) -> None:
        if self.opened is not None:
            self._prompt.ask("Go to line", self.browser.go_to_line, help="a number · nothing: the first row")

    def action_last(self) -> None:
        self.browser.last()

    @on(GoToLine)
    def _go_to_line(self, event: GoToLine) -> None:
        """A pane names a row: show it there."""
        self._side.current = "detail"
        self.browser.go_to_line(str(event.line))
        self.go_inside()

    def action_search(self) -> None:
        self._ask_for("search", "Search", "text in any field, in any case · n and N step")

    def action_filter(self) -> None:
        help = "text, or: bad · role:tool · format:alpaca · nothing: all rows"
        self._ask_for("filter", "Show only rows with", help)

    def _ask_for(self, kind: str, label: str, help: str) -> None:
        if self.opened is not None:
            words = self.browser.words.get(kind, "")
            self._prompt.ask(label, lambda text: self.browser.look_for(kind, text), words, help=help)

    def action_step(self, by: int) -> None:
        """The next or previous hit of a search; without a search, the next or previous row with a finding."""
        if "search" in self.browser.words:
            self.browser.step(by)
        elif self.opened is None or self.findings.found is None:
            self.say("c checks the file, then n and N go to the next and the previous finding")
        else:
            line = self.findings.line_after(self._stepped_to or self.table.line_of_cursor(), by)
            if line is None:
                self.say("the check found nothing to look at")
            else:
                self.browser.go_to_line(str(line))
                self._stepped_to = line

    def action_back(self) -> None:
        """One layer out: the pane beside the table, then the search, then the filter."""
        if self.has_class("-inside") or self._side.current != "detail":
            self.remove_class("-inside")
            self._side.current = "detail"
            self.table.focus()
            self.show_detail()
        else:
            self.browser.back()
        self.flush()

    # The panes

    def action_check(self) -> None:
        """Check every row."""
        if self.opened is not None:
            self.notice = ""
            self.findings.check(self.opened)
            self.flush()

    def action_problems(self) -> None:
        """The list of findings; a check is started where there was none."""
        if self.opened is not None:
            self.findings.need_check(self.opened)
            self.show_pane("problems")

    def action_lengths(self) -> None:
        """The lengths of the rows; they are counted where they were not."""
        if self.opened is not None:
            self.show_pane("lengths")
            self._count()

    def _count(self) -> None:
        """Count the lengths where they are seen and were not counted; with the tokenizer, once it was looked for."""
        wanted = self._side.current == "lengths" and self.lengths.counted is None and not self.tasks.goes_on("lengths")
        if self.opened is not None and wanted and not self.chosen.need_tokenizer(self.tasks, self._model_chosen):
            self.lengths.count(self.opened)

    def action_limit(self, by: int) -> None:
        self.lengths.set_limit(str(self.lengths.next_limit(by)))

    def action_ask_limit(self) -> None:
        self._prompt.ask("Longest row in tokens", self.lengths.set_limit, str(self.chosen.limit))

    def action_scores(self) -> None:
        """The rows by how hard the model finds them."""
        if self.opened is not None:
            self.scores.need_scores(self.opened)
            self.show_pane("scores")

    def action_statistics(self) -> None:
        """What is known of the file."""
        if self.opened is not None:
            self.show_pane("statistics")
            self._draw_statistics()

    def _draw_statistics(self) -> None:
        if self.opened is not None and self._side.current == "statistics":
            known = (self.findings.found, self.lengths.counted, self.chosen.model, self.scores.report)
            self._statistics.show_rows(statistics_lines(self.opened, *known))

    def action_model(self) -> None:
        """Ask for the model whose tokenizer is used."""
        help = f"{EMBEDDED_MODEL}, a preset, a Hugging Face name fetched before, or a directory"
        self._prompt.ask(
            "Tokens of the model", self._take_model, self.chosen.model, endings=("tokenizer.json",), help=help
        )

    def _take_model(self, text: str) -> None:
        if text:
            name = text.rstrip("/").removesuffix("/tokenizer.json")
            self.chosen.choose(name, self.tasks, self._model_chosen)
            self.flush()

    def _model_chosen(self) -> None:
        self.lengths.forget()
        if self.chosen.tokenizer is not None and self.chosen.tokenizer.notes:
            self.say(self.chosen.tokenizer.notes[0])
        self.show_detail(again=True)
        self._count()

    def action_clean(self) -> None:
        """Ask, then write a copy without unusable and repeated rows."""
        opened = self.opened
        if opened is None:
            return
        from backprop.data.writing import beside

        name = safe(beside(Path(opened.path), "clean").name)
        self._prompt.ask(
            f"Write {name} beside it, without unusable rows and exact duplicates? enter writes",
            lambda words: write_copy(opened, words, self.scores.scores, self.tasks, self._show_result),
            help=HELP,
        )

    def _show_result(self, result: CleanResult) -> None:
        self._report.show_rows(result_lines(result))
        self.show_pane("report")
        self.say(f"wrote {result.kept:,} of {result.rows:,} rows to {result.output}")
