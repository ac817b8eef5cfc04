"""First layer of the Data screen: open a file, move over its rows, see one of them."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from functools import partial

from backprop.data.formats import FORMATS
from backprop.data.mapping import describe_mapping
from backprop.data.opening import KINDS
from backprop.data.reader import Row
from backprop.data.to_jsonl import PACKED
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.css.query import NoMatches
from textual.widgets import ContentSwitcher, Static

from backprop_tui.screens.dataset.file import OpenFile, open_file
from backprop_tui.screens.dataset.messages import DetailMade, Failed, LineFound, Opened, RowsRead
from backprop_tui.screens.dataset.reader import RowReader
from backprop_tui.screens.dataset.row_text import chat_lines, problem_text, raw_lines, summarise
from backprop_tui.screens.dataset.row_view import RowView
from backprop_tui.screens.dataset.rows import RowSummary, RowTable, in_bytes
from backprop_tui.screens.dataset.tasks import JobScreen, defect_in
from backprop_tui.widgets.list_view import LineList
from backprop_tui.widgets.path_input import Prompt
from backprop_tui.widgets.styled import Line, one_line, wrap

ENDINGS = tuple(f"{kind}{packed}" for kind in KINDS for packed in ("", *PACKED))
WELCOME: list[Line] = [
    (("No dataset is open", "heading"),),
    (),
    (("Press o and name a file; tab completes the path.", ""),),
    (("A name of the Hugging Face Hub (owner/name) is fetched first.", ""),),
    (),
    (("files   ", "dim"), (", ".join(KINDS), ""), (", each also .gz or .zst", "")),
    (("rows    ", "dim"), (", ".join(FORMATS), "")),
    (),
    (("The format is found from the rows. Your file is never changed.", "dim"),),
]


class DataBrowser(JobScreen):
    """Opens files and shows rows; work that takes longer than a frame runs in threads.

    Args:
        path: the file to open at once.
    """

    VIEWS: tuple[str, ...] = ("chat", "JSON")

    def __init__(self, path: str = "") -> None:
        super().__init__()
        self.wanted_path = path
        self.opened: OpenFile | None = None
        self.reader: RowReader[RowSummary] | None = None
        self.view = 0
        """Which of ``VIEWS`` the row is seen in."""
        self._shown_row = -1
        self._to_the_end = False

    def compose(self) -> ComposeResult:
        yield Static(id="title", markup=False)
        with ContentSwitcher(id="body", initial="welcome"):
            yield RowView(id="welcome")
            with Horizontal(id="panes"):
                with Vertical(id="list"):
                    yield Static(id="head", markup=False)
                    yield RowTable(id="rows")
                with ContentSwitcher(id="side", initial="detail"):
                    yield RowView(id="detail")
                    yield RowView(id="report")
                    yield from self.compose_side()
        yield Prompt(id="prompt")
        yield Static(id="status", markup=False)

    def compose_side(self) -> ComposeResult:
        """More panes beside the table."""
        yield from ()

    @property
    def table(self) -> RowTable:
        return self.query_one("#rows", RowTable)

    @property
    def side(self) -> ContentSwitcher:
        return self.query_one("#side", ContentSwitcher)

    def on_mount(self) -> None:
        if self.wanted_path:
            self.open_path(self.wanted_path)
        else:
            self.call_after_refresh(self._welcome)
        self.flush()

    def _welcome(self) -> None:
        self.query_one("#welcome", RowView).show_wrapped(WELCOME)
        self.action_open()

    def action_stop_work(self) -> None:
        super().action_stop_work()
        if self.opened is None:
            self.query_one("#welcome", RowView).show_wrapped(WELCOME)

    def on_unmount(self) -> None:
        for job in self.jobs.values():
            job.stop()
        self._let_go()

    def flush(self) -> None:
        """Show what changed since the last time; at rest the timer is off and nothing is drawn."""
        opened = self.opened
        # Asked first: what is found after that is shown by the next flush.
        complete = opened is None or opened.source.complete
        self.drop_ended()
        if opened is not None:
            self.show_rows()
            if self._to_the_end:
                self.table.action_move_to_end()
                self._to_the_end = not complete
        if not self.jobs and complete:
            self.rest()
        self._put("#title", self.title_words())
        self._put("#head", self.table.head(self.table.line_width))
        self._put("#status", self.status_words())

    def _put(self, selector: str, text: str) -> None:
        """Write one line of fixed height, if it is another one."""
        try:
            line = self.query_one(selector, Static)
        except NoMatches:
            return
        if str(line.content) != text:
            line.update(text, layout=False)

    def show_rows(self) -> None:
        """Show as many rows as are known by now."""
        if self.opened is not None:
            self.table.show(None, self.opened.source.known)

    def title_words(self) -> str:
        opened = self.opened
        if opened is None:
            return "Data"
        source, file = opened.source, opened.file
        format = f"mixed: {', '.join(file.counts)}" if file.mixed else file.format or "unknown format"
        words = [
            one_line(opened.name),
            *self.view_words(),
            format,
            f"{'' if source.complete else '> '}{source.known:,} row{'' if source.known == 1 else 's'}",
            f"{in_bytes(source.bytes)}B",
        ]
        if file.mapping:
            words.append(f"read as {describe_mapping(file.mapping)}")
        return " · ".join(words)

    def view_words(self) -> list[str]:
        """What is shown of the file, where that is not all of it."""
        return []

    def status_words(self) -> str:
        running = [job.words() for job in self.jobs.values()]
        if self.opened is not None and not self.opened.source.complete:
            running.append("finding all rows")
        where = ""
        if self.opened is not None and self.table.count:
            many = f"{'' if self.opened.source.complete else '> '}{self.table.count:,}"
            where = f"{self.table.cursor + 1:,} of {many}"
        stop = " (x stops it)" if self.jobs else ""
        return "  ".join(word for word in (where, "; ".join(running) + stop, self.notice) if word)

    # Opening

    def action_open(self) -> None:
        start = self.opened.path if self.opened and not self.opened.fetched else ""
        self.query_one(Prompt).ask(
            "open",
            "Open a dataset file, or owner/name of the Hugging Face Hub",
            start,
            endings=ENDINGS,
            help="tab completes · enter opens · esc leaves",
        )

    def open_path(self, path: str) -> None:
        """Open a file in place of the one on screen."""
        self.begin("open", f"opening {path}", lambda job: self.post_message(Opened(open_file(path, job))))

    @on(Opened)
    def _show_file(self, event: Opened) -> None:
        self._let_go()
        opened = self.opened = event.opened
        self.reader = RowReader(
            opened.source,
            lambda row: summarise(row, opened.file),
            lambda rows: self.post_message(RowsRead(opened, rows)),
            lambda error: self.post_message(Failed("row", defect_in("reading a row", error))),
        )
        opened.source.start_index()
        self.query_one("#body", ContentSwitcher).current = "panes"
        self.side.current = "detail"
        self.remove_class("-inside")
        self.table.clear()
        self.table.focus()
        self.tick()
        self.show_detail(again=True)

    def _let_go(self) -> None:
        """Leave the file that was open, and the work on it."""
        for work, job in self.jobs.items():
            if work not in ("open", "model"):
                job.stop()
        if self.reader is not None:
            self.reader.close()
        self.notice = ""
        self._shown_row, self._to_the_end = -1, False

    @on(Failed)
    def _show_failure(self, event: Failed) -> None:
        lines = problem_text(event.error)
        if event.work == "open" and self.opened is None:
            self.query_one("#welcome", RowView).show_wrapped([*lines, (), *WELCOME[2:]])
            self.flush()
            return
        self.query_one("#report", RowView).show_wrapped(lines)
        self.show_pane("report")
        self.say(event.error.message)

    # Rows, and the row under the cursor

    @on(RowTable.Wanted)
    def _read_rows(self, event: RowTable.Wanted) -> None:
        if self.reader is not None:
            self.reader.want(event.rows)

    @on(RowsRead)
    def _put_rows(self, event: RowsRead) -> None:
        if event.opened is self.opened:
            self.table.put(event.rows)

    @on(LineList.Moved, "#rows")
    def _row_moved(self) -> None:
        self.show_detail()
        self._put("#status", self.status_words())

    @on(LineList.Chosen, "#rows")
    def _row_chosen(self) -> None:
        self.side.current = "detail"
        self.go_inside()

    def action_choose(self) -> None:
        """What enter does in the list that has the keys: for whoever comes from the palette."""
        if isinstance(self.focused, LineList):
            self.focused.action_choose()

    def go_inside(self) -> None:
        """Let keys work in the pane beside the table (in a narrow terminal: instead of it)."""
        self.add_class("-inside")
        pane = self.side.visible_content
        if pane is not None:
            pane.focus()
        self.call_after_refresh(self.show_detail)

    def show_pane(self, name: str) -> None:
        """Show one of the panes beside the table."""
        self.side.current = name
        self.go_inside()
        self.flush()

    def show_detail(self, *, again: bool = False) -> None:
        """Have the row under the cursor drawn in the reader's thread."""
        row = self.table.row_at(self.table.cursor)
        seen = (self.has_class("-wide") or self.has_class("-inside")) and self.side.current == "detail"
        if row is None or self.reader is None or not seen or (row == self._shown_row and not again):
            return
        self._shown_row = row
        width = max(self.query_one("#detail", RowView).line_width, 20)
        self.reader.detail(row, partial(self._draw_row, row, self.view, width))

    def _draw_row(self, index: int, view: int, width: int, row: Row) -> None:
        lines = self.row_lines(row, self.VIEWS[view])
        head: Line = ((f"line {row.line}", "heading"), (f"  as {self.VIEWS[view]}  (v: another view)", "dim"))
        wrapped = [part for line in (head, *lines) for part in wrap(line, width)]
        self.post_message(DetailMade(index, wrapped, width))

    def row_lines(self, row: Row, view: str) -> list[Line]:
        """One row in one of ``VIEWS``; called in a thread."""
        assert self.opened is not None
        return chat_lines(row, self.opened.file) if view == "chat" else raw_lines(row)

    @on(DetailMade)
    def _put_detail(self, event: DetailMade) -> None:
        if event.row == self._shown_row:
            self.query_one("#detail", RowView).show(event.lines, event.width)

    @on(RowView.WidthChanged, "#detail")
    def _wrap_again(self) -> None:
        self.show_detail(again=True)

    def on_screen_resume(self) -> None:
        self.call_after_refresh(self.show_detail)

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_detail)

    def action_next_view(self) -> None:
        """See the row in the next form."""
        self.view = (self.view + 1) % len(self.VIEWS)
        self.show_detail(again=True)

    # Moving about

    def action_go(self) -> None:
        if self.opened is not None:
            self.query_one(Prompt).ask("go", "Go to line", help="a number · nothing: the first row")

    def action_last(self) -> None:
        """The last row; while rows are still being found, the last known one and on with it."""
        if self.opened is not None:
            self._to_the_end = not self.opened.source.complete
            self.show_rows()
            self.table.action_move_to_end()

    def go_to_line(self, text: str) -> None:
        """Go to the row of a line of the file, as soon as it is found."""
        opened, number = self.opened, text.replace(",", "")
        self._to_the_end = False
        if not text:
            self.table.cursor = 0
        elif number.isdecimal() and opened is not None:
            line = int(number)
            self.begin(
                "go", f"going to line {line:,}", lambda _: self.post_message(LineFound(opened.source.find(line)))
            )
        else:
            self.say(f"{text!r} is no line number")

    @on(LineFound)
    def _line_found(self, event: LineFound) -> None:
        self.go_to_row(event.row)

    def go_to_row(self, row: int) -> None:
        """Put the cursor on a row of the file; where a filter hides it, on the next one that is shown."""
        self.flush()
        order = self.table.order
        self.table.cursor = row if order is None else bisect_left(order, row)
        self.show_detail()

    def action_back(self) -> None:
        """One layer out: from the pane beside the table to the table."""
        self.remove_class("-inside")
        self.side.current = "detail"
        self.table.focus()
        self.show_detail()


def next_in(places: array[int], here: int, by: int) -> int | None:
    """The next (``by`` 1) or previous (-1) of sorted ``places``, beginning again at the other end."""
    if not len(places):
        return None
    at = bisect_left(places, here)
    if by < 0:
        return places[at - 1]
    if at < len(places) and places[at] == here:
        at += 1
    return places[at % len(places)]
