"""A row as the tokens that the model will see, the trained ones marked; and the tokenizer that makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from backprop.core.errors import ModelLoadError
from backprop.core.methods import METHODS, Rows
from backprop.core.models import find_tokenizer
from backprop.core.presets import EMBEDDED_MODEL
from backprop.core.resolve import resolve
from backprop.core.rules import usual_length
from backprop.data.example import RowError
from backprop.data.formats import FileFormat
from backprop.data.reader import Row as DataRow
from msgspec import structs

from backprop_tui.screens.dataset.row_text import format_of, problem_lines
from backprop_tui.screens.tasks import Task, Tasks
from backprop_tui.text import Row, many_lines
from backprop_tui.widgets.cells import fact
from backprop_tui.widgets.path_input import Prompt

if TYPE_CHECKING:
    from backprop.data.encode import Token
    from backprop.data.tokenizer import ChatTokenizer
    from backprop.data.truncate import Truncated

MOST_TOKENS = 50_000
"""Tokens of one row that are drawn."""
MODEL_HELP = f"{EMBEDDED_MODEL}, a preset, a Hugging Face name fetched before, or a directory"
_SHADES = {True: ("trained+light", "trained+lighter"), False: ("text", "text+shade")}
"""Of tokens that are trained and of others, by turns."""


class Chosen:
    """What rows are looked at with: the model whose tokens are shown, and the longest row in tokens."""

    def __init__(self, tasks: Tasks, then: Callable[[], object]) -> None:
        """``then`` is called when a tokenizer was looked for."""
        self._tasks, self._then = tasks, then
        usual = resolve({}, kind="screen").values
        self.model: str = usual["model"]
        self.rows: Rows = METHODS[usual["method"]].rows
        """What a run by the usual settings learns from."""
        self.traces: bool = usual["reasoning_trace"]
        """Whether it trains reasoning traces as rows have them."""
        limit = usual["max_seq_length"]
        self.limit: int = usual_length(traces=self.traces) if limit == "auto" else limit
        self.limit_chosen = False
        """Whether the person chose the limit here; else a run goes by its settings or its data."""
        self._usual = {"model": self.model, "max_seq_length": limit}
        self.tokenizer: ChatTokenizer | None = None
        self.why_none: ModelLoadError | None = None
        """Why there is no tokenizer, once it was looked for."""

    @property
    def by_rows(self) -> bool:
        """Whether a run would take its limit from the rows' lengths."""
        return self._usual["max_seq_length"] == "auto" and not self.limit_chosen

    def changes(self) -> dict[str, Any]:
        """The settings of a run that were chosen here."""
        chosen: dict[str, Any] = {"model": self.model}
        if self.limit_chosen:
            chosen["max_seq_length"] = self.limit
        return {name: value for name, value in chosen.items() if value != self._usual[name]}

    def need_tokenizer(self) -> bool:
        """Look for the tokenizer where that was not done yet: it takes a moment, so it is done when it is used.

        Returns:
            whether it is being looked for.
        """
        if self.tokenizer is None and self.why_none is None and not self._tasks.goes_on("model"):
            self.choose(self.model)
        return self._tasks.goes_on("model")

    def load(self) -> ChatTokenizer:
        """The tokenizer, for any thread.

        Raises:
            ModelLoadError: there is none.
        """
        return self.tokenizer or load_tokenizer(self.model)

    def remark(self) -> str:
        """Why there is no tokenizer, or what has to be known of it; empty where there is nothing to say."""
        if self.why_none is not None:
            return self.why_none.message
        return next(iter(self.tokenizer.notes), "") if self.tokenizer is not None else ""

    def ask(self, prompt: Prompt) -> None:
        """Ask for the model whose tokenizer is used."""
        prompt.ask("Tokens of the model", self.choose, self.model, endings=("tokenizer.json",), help=MODEL_HELP)

    def choose(self, name: str) -> None:
        """Load the tokenizer of a model (a name, its directory or its tokenizer.json) in a thread."""
        name = name.rstrip("/").removesuffix("/tokenizer.json")
        if not name:
            return
        self.tokenizer = self.why_none = None

        def load(_: Task[ChatTokenizer | ModelLoadError]) -> ChatTokenizer | ModelLoadError:
            try:
                return load_tokenizer(name)
            except ModelLoadError as error:
                return error

        def take(found: ChatTokenizer | ModelLoadError) -> None:
            self.model = name
            if isinstance(found, ModelLoadError):
                self.why_none = found
            else:
                self.tokenizer = found
            self._then()

        self._tasks.begin("model", f"reading the tokenizer of {name}", load, take)


def load_tokenizer(model: str) -> ChatTokenizer:
    """The tokenizer of a model on this machine.

    Raises:
        ModelLoadError: there is none, with what to do.
    """
    from backprop.data.tokenizer import ChatTokenizer

    return ChatTokenizer.load(find_tokenizer(model))


def token_lines(
    row: DataRow,
    file: FileFormat,
    tokenizer: ChatTokenizer,
    limit: int,
    *,
    rows: Rows = "conversation",
    traces: bool = False,
    brackets: bool = False,
) -> list[Row]:
    """The row as tokens, in two shades so that their borders show; what is marked is what is trained at the limit.

    Args:
        limit: the longest row in tokens; what it would do to this row is said.
        rows: what is learned from; of a pair both sides are shown, one after the other.
        traces: reasoning traces are trained as the row has them.
        brackets: put trained tokens in brackets, for a terminal without colour.
    """
    from backprop.data.encode import encode_value, tokens_of
    from backprop.data.truncate import truncate_sides

    if row.error is not None:
        return problem_lines(row.error)
    try:
        format = format_of(row.value, file)
        sides = encode_value(row.value, tokenizer, format=format, mapping=file.mapping, rows=rows, traces=traces)
    except RowError as error:
        return problem_lines(error)
    lines: list[Row] = []
    headings = ("chosen", "rejected") if len(sides) == 2 else ("",)
    for side, cut, heading in zip(sides, truncate_sides(sides, limit, tokenizer.bos_id), headings, strict=True):
        lines += [[(f"── {heading} ──", "strong+bold")]] if heading else []
        lines += [*_side_lines(tokens_of(side, tokenizer), cut, tokenizer, limit, brackets=brackets), []]
    return lines[:-1]


def _side_lines(
    tokens: list[Token], cut: Truncated, tokenizer: ChatTokenizer, limit: int, *, brackets: bool
) -> list[Row]:
    kept = cut.at([token.id for token in tokens])
    tokens = [structs.replace(token, trained=bool(trained)) for token, trained in zip(tokens, kept, strict=True)]
    left = len(tokens) - kept.count(None)
    lines: list[Row] = [*_summary(tokens, left, tokenizer), *_cut(cut, limit), []]
    lines += _body(tokens[:MOST_TOKENS], kept, brackets=brackets)
    if len(tokens) > MOST_TOKENS:
        lines.append([(f"… {len(tokens) - MOST_TOKENS:,} more tokens, not shown", "muted")])
    return lines


def _summary(tokens: Sequence[Token], left: int, tokenizer: ChatTokenizer) -> list[Row]:
    """Counts, the begin token and the terminators; ``left`` tokens are not cut."""
    trained = sum(token.trained for token in tokens)
    share = 100 * trained / max(left, 1)
    of = "" if left == len(tokens) else f" of {len(tokens):,}"
    counts = [(f"{left:,}{of} tokens, ", "text"), (f"{trained:,} trained", "trained+light")]
    lines: list[Row] = [[*counts, (f" ({share:.0f} %)", "text")]]
    if tokenizer.bos_id is None:
        lines.append(fact("BOS", "this tokenizer has none", width=8))
    else:
        count = next((i for i, token in enumerate(tokens) if token.id != tokenizer.bos_id), len(tokens))
        words = {0: " is not at the start", 1: " once, at the start"}.get(count, f" {count} times at the start")
        if count == 1 and (all_told := sum(token.id == tokenizer.bos_id for token in tokens)) > 1:
            words = f" at the start, {all_told} times in the row"
        ink = "mark+bold" if count <= 1 else "bad"
        lines.append([*fact("BOS", tokenizer.token(tokenizer.bos_id), ink, width=8), (words, "text")])
    ends = _ends(tokens)
    if ends:
        names = ", ".join(dict.fromkeys(many_lines(token.text) for token in ends))
        known = all(token.special or token.id in tokenizer.end_ids for token in ends)
        note = ", trained" if known else ", trained, but no special token: the model may not learn to stop"
        lines.append([("answers end with ", "muted"), (names, "mark+bold" if known else "warn"), (note, "text")])
    return lines


def _ends(tokens: Sequence[Token]) -> list[Token]:
    """The last trained token of each answer."""
    return [
        token
        for token, after in zip(tokens, [*tokens[1:], None], strict=True)
        if token.trained and (after is None or not after.trained)
    ]


def _cut(cut: Truncated, limit: int) -> list[Row]:
    """What training at this limit does to the row."""
    if not cut.samples:
        words = f"its last answer does not fit the limit of {limit:,}: the row is left out"
    elif cut.split:
        words = f"longer than the limit of {limit:,}: the text is split into pieces"
    elif cut.cut:
        words = f"{cut.cut:,} tokens are cut from its beginning to fit the limit of {limit:,}"
    else:
        return []
    return [[(f"! {words}", "warn")]]


def _body(tokens: Sequence[Token], kept: Sequence[bool | None], *, brackets: bool) -> list[Row]:
    lines: list[Row] = []
    line: Row = []
    inside = False
    for number, token in enumerate(tokens):
        if brackets and token.trained != inside:
            line.append(("[" if token.trained else "]", "mark+bold"))
            inside = token.trained
        if kept[number] is None:
            ink = "muted"
        elif token.special:
            ink = "mark+bold+light" if token.trained else "mark+bold"
        else:
            ink = _SHADES[token.trained][number % 2]
        parts = many_lines(token.text.replace("\n", "↵\n")).split("\n")
        for part in parts[:-1]:
            line.append((part, ink))
            lines.append(line)
            line = []
        if parts[-1]:
            line.append((parts[-1], ink))
    if brackets and inside:
        line.append(("]", "mark+bold"))
    return [*lines, line]
