"""The Data screen: panes around one open file; it opens files and passes on what panes report to each other."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path

from backprop.core.errors import InputError
from backprop.core.presets import EMBEDDED_MODEL
from backprop.data.example import describe_mapping
from backprop.data.formats import FORMATS
from backprop.data.reader import KINDS, PACKED
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import ContentSwitcher

from backprop_tui.keys import EVERYWHERE, Key, bindings
from backprop_tui.screens.base import BaseScreen
from backprop_tui.screens.dataset import KEYS
from backprop_tui.screens.dataset.clean import HELP, Cleaned, result_lines, write_copy
from backprop_tui.screens.dataset.file import OpenFile, open_file
from backprop_tui.screens.dataset.findings import FindingsPane
from backprop_tui.screens.dataset.lengths import LIMITS, LengthsPane
from backprop_tui.screens.dataset.messages import GoToLine, LineFound, ModelChosen, Notice, Opened, ScanEnded
from backprop_tui.screens.dataset.perplexity import ScoresPane
from backprop_tui.screens.dataset.row_text import error_lines
from backprop_tui.screens.dataset.row_view import RowView
from backprop_tui.screens.dataset.rows import RowTable
from backprop_tui.screens.dataset.search import Scans, next_in
from backprop_tui.screens.dataset.statistics import statistics_lines
from backprop_tui.screens.dataset.tasks import Failed, Tasks
from backprop_tui.screens.dataset.tokens import Chosen
from backprop_tui.text import Row, rows_of, safe, short_number
from backprop_tui.widgets.bars import Bar
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.path_input import Prompt
from backprop_tui.widgets.text_view import TextView

ENDINGS = tuple(f"{kind}{packed}" for kind in KINDS for packed in ("", *PACKED))
WELCOME: list[Row] = [
    [("No dataset is open", "strong+bold")],
    [],
    [("Press o and name a file; tab completes the path.", "text")],
    [("A name of the Hugging Face Hub (owner/name) is fetched first.", "text")],
    [],
    [("files   ", "muted"), (", ".join(KINDS), "text"), (", each also .gz or .zst", "text")],
    [("rows    ", "muted"), (", ".join(FORMATS), "text")],
    [],
    [("The format is found from the rows. Your file is never changed.", "muted")],
]


class DataScreen(BaseScreen):
    """Browse and check one dataset file.

    Args:
        path: the file to open at once.
    """

    NAME, KEYS = "data", KEYS
    BINDINGS = bindings(KEYS)
    CSS_PATH = "screen.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]

    def __init__(self, path: str = "") -> None:
        super().__init__()
        self.wanted_path = path
        self.opened: OpenFile | None = None
        self.tasks = Tasks(self)
        self.chosen = Chosen()
        self.scans = Scans(self.tasks)
        self.notice = ""
        self._seek = False
        """The first hit of the search is to be gone to, as soon as there is one."""
        self._to_the_end = False
        self._stepped_to = 0
        """The line of the finding that a step went to last."""
        self._title, self._status = Bar(id="title"), Bar(id="status")
        self._welcome, self._report, self._statistics = (
            TextView(id=name) for name in ("welcome", "report", "statistics")
        )
        self.table = RowTable(id="rows")
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
                yield self.table
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

    def flush(self) -> None:
        opened = self.opened
        # Asked first: what is found after that is shown by the next flush.
        complete = opened is None or opened.source.complete
        if opened is not None:
            self._show_rows(opened)
            if self._to_the_end:
                self.table.cursor = self.table.count - 1
                self._to_the_end = not complete
            if self._seek and self.scans.hits.get("search"):
                self._seek = False
                self._step_search(1, stay=True)
        self._show_words()

    def _show_words(self) -> None:
        self._title.show([(self._title_words(), "text")], [])
        self._status.show([(self._status_words(), "text")], [])
        self.show_keys()

    def _show_rows(self, opened: OpenFile) -> None:
        """Show as many rows as are known by now."""
        hits = self.scans.hits.get("filter")
        self.table.show(hits, opened.source.known if hits is None else len(hits))

    def _title_words(self) -> str:
        opened = self.opened
        if opened is None:
            return "Data"
        source, file = opened.source, opened.file
        format = f"mixed: {', '.join(file.counts)}" if file.mixed else file.format or "unknown format"
        rows = f"{'' if source.complete else '> '}{rows_of(source.known)}"
        words = [safe(opened.name), *self.scans.shown(), format, rows, f"{short_number(source.bytes)}B"]
        return " · ".join([*words, f"read as {describe_mapping(file.mapping)}"] if file.mapping else words)

    def _status_words(self) -> str:
        tasks = self.tasks.running()
        running, where = [task.words() for task in tasks], ""
        if self.opened is not None and not self.opened.source.complete:
            running.append("finding all rows")
        if self.opened is not None and self.table.count:
            many = f"{'' if self.opened.source.complete else '> '}{self.table.count:,}"
            where = f"{self.table.cursor + 1:,} of {many}"
        stop = " (x stops it)" if tasks else ""
        return "  ".join(word for word in (where, "; ".join(running) + stop, self.notice) if word)

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

    @on(FindingsPane.Found)
    def _checked(self, event: FindingsPane.Found) -> None:
        if event.whole is not None:
            self.table.forget()
            self.show_detail(again=True)

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
        start = self.opened.path if self.opened and not self.opened.fetched else ""
        self._prompt.ask(
            "Open a dataset file, or owner/name of the Hugging Face Hub",
            lambda path: self.open_path(path) if path else None,
            start,
            endings=ENDINGS,
            help="tab completes · enter opens · esc leaves",
        )

    def open_path(self, path: str) -> None:
        """Open a file in place of the one on screen."""
        self.notice = ""
        self.tasks.begin("open", f"opening {path}", lambda task: self.post_message(Opened(open_file(path, task))))
        self.flush()

    @on(Opened)
    def _show_file(self, event: Opened) -> None:
        """Everything begins anew, but for the model and the limit."""
        opened = self.opened = event.opened
        for kind in ("search", "filter"):
            self.scans.forget(kind)
        self.tasks.stop("go", "clean", "score", "check")
        for pane in (self.findings, self.lengths, self.scores):
            pane.forget()
        self.notice = ""
        self._seek = self._to_the_end = False
        self._stepped_to = 0
        opened.source.start_index()
        self.table.open(opened)
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
        self.table.focus()
        event.then(event.text)

    @on(Prompt.Left)
    def _prompt_left(self) -> None:
        if self.opened is not None:
            self.table.focus()

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
            self.chosen.need_tokenizer(self.tasks)
        self.show_detail(again=True)

    def action_go(self) -> None:
        if self.opened is not None:
            self._prompt.ask("Go to line", self.go_to_line, help="a number · nothing: the first row")

    def action_last(self) -> None:
        """The last row; while rows are still being found, the last known one and on with it."""
        if self.opened is not None:
            self._to_the_end = not self.opened.source.complete
            self._show_rows(self.opened)
            self.table.cursor = self.table.count - 1

    def go_to_line(self, text: str) -> None:
        """Go to the row of a line of the file, as soon as it is found."""
        opened, number = self.opened, text.replace(",", "")
        self._to_the_end = False
        if not text:
            self.table.cursor = 0
        elif number.isdecimal() and opened is not None:
            line, find = int(number), opened.source.find
            self.tasks.begin("go", f"going to line {line:,}", lambda _: self.post_message(LineFound(find(line))))
        else:
            self.say(f"{text!r} is no line number")

    @on(LineFound)
    def _line_found(self, event: LineFound) -> None:
        self.go_to_row(event.row)

    @on(GoToLine)
    def _go_to_line(self, event: GoToLine) -> None:
        """A pane names a row: show it there."""
        self._side.current = "detail"
        self.go_to_line(str(event.line))
        self.go_inside()

    def go_to_row(self, row: int) -> None:
        """Put the cursor on a row of the file; where a filter hides it, on the next one that is shown."""
        self.flush()
        order = self.table.order
        self.table.cursor = row if order is None else bisect_left(order, row)
        self.show_detail()

    def action_step(self, by: int) -> None:
        """The next or previous hit of a search; without a search, the next or previous row with a finding."""
        if "search" in self.scans.words:
            self._step_search(by)
        elif self.opened is None or self.findings.found is None:
            self.say("c checks the file, then n and N go to the next and the previous finding")
        else:
            line = self.findings.line_after(self._stepped_to or self.table.line_of_cursor(), by)
            if line is None:
                self.say("the check found nothing to look at")
            else:
                self.go_to_line(str(line))
                self._stepped_to = line

    def _step_search(self, by: int, *, stay: bool = False) -> None:
        here = self.table.row_of(self.table.cursor) or 0
        row = next_in(self.scans.hits["search"], here, by, stay=stay)
        if row is not None:
            self.go_to_row(row)

    def action_back(self) -> None:
        """One layer out: the pane beside the table, then the search, then the filter."""
        if self.has_class("-inside") or self._side.current != "detail":
            self.remove_class("-inside")
            self._side.current = "detail"
            self.table.focus()
            self.show_detail()
        elif "search" in self.scans.words:
            self.scans.forget("search")
        elif "filter" in self.scans.words:
            row = self.table.row_of(self.table.cursor) or 0
            self.scans.forget("filter")
            self.go_to_row(row)
        self.flush()

    # Search and filter

    def action_search(self) -> None:
        if self.opened is not None:
            words = self.scans.words.get("search", "")
            help = "text in any field, in any case · n and N step"
            self._prompt.ask("Search", lambda text: self.look_for("search", text), words, help=help)

    def action_filter(self) -> None:
        if self.opened is not None:
            words = self.scans.words.get("filter", "")
            help = "text, or: bad · role:tool · format:alpaca · nothing: all rows"
            self._prompt.ask("Show only rows with", lambda text: self.look_for("filter", text), words, help=help)

    def look_for(self, kind: str, words: str) -> None:
        """Search for words, or show only the rows that a filter lets through; without words, forget it."""
        if self.opened is None:
            return
        self.notice = ""
        try:
            self.scans.begin(kind, words, self.opened)
        except InputError as error:
            self.notice = safe(f"{error.message}; {error.hint}")
        self._seek = self._seek or (kind == "search" and bool(words))
        if kind == "filter" and words:
            self.table.cursor = 0
        self.flush()

    @on(ScanEnded)
    def _scan_ended(self, event: ScanEnded) -> None:
        result = self.scans.result(event)
        if result:
            self._seek = self._seek and (event.kind != "search" or bool(event.hits))
            self.say(result)
            if event.kind == "filter":
                self.show_detail(again=True)

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
            self.lengths.need_count(self.opened)
            self.show_pane("lengths")

    def action_limit(self, by: int) -> None:
        self._set_limit(self.lengths.next_limit(by))

    def action_ask_limit(self) -> None:
        self._prompt.ask("Longest row in tokens", self._take_limit, str(self.chosen.limit))

    def _take_limit(self, text: str) -> None:
        number = text.replace(",", "")
        if number.isdecimal() and int(number) >= LIMITS[0]:
            self._set_limit(int(number))
        else:
            self.say(f"{text!r}: a whole number of tokens from {LIMITS[0]} is needed")

    def _set_limit(self, limit: int) -> None:
        self.chosen.limit = limit
        self.lengths.redraw()
        if self.detail.as_tokens:
            self.show_detail(again=True)

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
            self.chosen.choose(text.rstrip("/").removesuffix("/tokenizer.json"), self.tasks)
            self.flush()

    @on(ModelChosen)
    def _model_chosen(self, event: ModelChosen) -> None:
        self.chosen.take(event)
        self.lengths.forget()
        if event.tokenizer is not None and event.tokenizer.notes:
            self.say(event.tokenizer.notes[0])
        self.show_detail(again=True)
        if self.opened is not None and self._side.current == "lengths":
            self.lengths.need_count(self.opened)

    def action_clean(self) -> None:
        """Ask, then write a copy without unusable and repeated rows."""
        opened = self.opened
        if opened is None:
            return
        from backprop.data.writing import beside

        name = safe(beside(Path(opened.path), "clean").name)
        self._prompt.ask(
            f"Write {name} beside it, without unusable rows and exact duplicates? enter writes",
            lambda words: write_copy(opened, words, self.scores.scores, self.tasks),
            help=HELP,
        )

    @on(Cleaned)
    def _show_result(self, event: Cleaned) -> None:
        self._report.show_rows(result_lines(event.result))
        self.show_pane("report")
        self.say(f"wrote {event.result.kept:,} of {event.result.rows:,} rows to {event.result.output}")
