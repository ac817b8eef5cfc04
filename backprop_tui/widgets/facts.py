"""What is trained: the model as loaded, the dataset as counted, and the first row with its trained tokens marked."""

from __future__ import annotations

from backprop.core.events import DatasetPrepared, ModelLoaded, TokenSpan
from backprop.runs.describe import findings_by_kind, share

from backprop_tui.text import Row, count, many_lines, parameters_text, safe, short_path, wrap
from backprop_tui.widgets.cells import StateCells, bar, cut, fact, heading, labelled, paragraph
from backprop_tui.widgets.text_view import StateView

_LABEL = 13


def facts(label: str, value: str, width: int, ink: str = "text") -> list[Row]:
    """A labelled text on as many rows as it needs."""
    return labelled(f"{label:<{_LABEL}}", value, width, ink)


def model_rows(model: ModelLoaded, width: int) -> list[Row]:
    part = share(model.trainable_parameters, model.parameters)
    nf4 = f", {model.share_4bit:.0%} of its bytes in 4 bits," if model.share_4bit else ""
    rows = [
        fact("weights", f"{parameters_text(model.parameters)} in {model.dtype}{nf4} on {model.device}"),
        fact("trained", f"{parameters_text(model.trainable_parameters)} ({part}), {model.mode}"),
        *facts("layers", ", ".join(model.targets), width),
    ]
    for note in model.notes:
        rows += facts("note", note, width, "muted")
    return [cut(row, width) for row in rows]


def data_rows(data: DatasetPrepared, width: int) -> list[Row]:
    held_out = f", {count(data.held_out)} held out" if data.held_out else ""
    counts = [*fact("rows", count(data.kept), "strong"), (f" of {count(data.rows)} kept{held_out}", "text")]
    less: Row = [(f"{'of these':<{_LABEL}}", "muted")]
    for number, word in ((data.cut, "cut"), (data.dropped, "dropped"), (data.duplicated, "duplicated")):
        less += [(count(number), "warn" if number else "text"), (f" {word}  ", "muted")]
    less += [(count(data.answer_lost), "bad" if data.answer_lost else "text"), (" answers lost", "muted")]
    part = data.trained_tokens / data.tokens if data.tokens else 0.0
    trained = [*fact("trained", f"{part:.1%}", "strong"), (f" of {count(data.tokens)} tokens  ", "text")]
    trained += bar(part, max(4, min(20, width - 46)), "trained")
    lengths = f"median {data.p50}, p99 {data.p99}, longest {data.longest}, limit {data.max_length}"
    rows = [fact("format", data.format), counts, less, trained, *facts("tokens", lengths, width)]
    for note in data.notes:
        rows += facts("note", note, width, "muted")
    return [cut(row, width) for row in rows]


def row_rows(spans: list[TokenSpan], width: int) -> list[Row]:
    """The first row as the model sees it; what is trained is coloured and in brackets."""
    lines: list[Row] = [[]]
    for span in spans:
        first, *more = many_lines(f"[{span.text}]" if span.trained else span.text).split("\n")
        ink = "trained" if span.trained else "muted"
        lines[-1] += [(first, ink)] if first else []
        lines += [[(text, ink)] if text else [] for text in more]
    return [part for line in (lines if lines[-1] else lines[:-1]) for part in wrap(line, width)]


class DataPane(StateView):
    """Model, dataset, first row and the first findings, in full."""

    def content(self, width: int) -> list[Row]:
        rows: list[Row] = []
        data, model = (self.state.dataset, self.state.model) if self.state else (None, None)
        if data is not None:
            rows += [heading("dataset", width, safe(short_path(data.path))), *data_rows(data, width), []]
            note = "[in brackets: what is trained]"
            rows += [heading("first row", width, note), *row_rows(data.first_row, width), []]
            if data.first_rejected:
                rows += [heading("its rejected side", width), *row_rows(data.first_rejected, width), []]
            if data.problems:
                total = sum(data.problem_counts.values())
                rows.append(heading("findings", width, f"{count(total)} in all"))
                for first, words in findings_by_kind(data.problems, data.problem_counts, data.unit):
                    rows += paragraph(
                        safe(words), width, {"error": "bad", "warning": "warn"}.get(first.severity, "text")
                    )
                rows.append([])
        if model is not None:
            rows += [heading("model", width, safe(short_path(model.model))), *model_rows(model, width)]
        return rows or [[("the dataset is not counted yet", "muted")]]


class FactsPanel(StateCells):
    """Dataset and model, short, beside the plot where there is room."""

    def rows(self, width: int, height: int) -> list[Row]:
        rows: list[Row] = []
        data, model = (self.state.dataset, self.state.model) if self.state else (None, None)
        if data is not None:
            rows += [heading("dataset", width), *narrow_data_rows(data, width), []]
        if model is not None:
            rows += [heading("model", width), *model_rows(model, width)]
        return rows


def narrow_data_rows(data: DatasetPrepared, width: int) -> list[Row]:
    """The counts, one a row."""
    part = data.trained_tokens / data.tokens if data.tokens else 0.0
    rows = [fact("rows", f"{count(data.kept)} of {count(data.rows)} kept")]
    rows += [fact("held out", count(data.held_out))] if data.held_out else []
    for number, word in ((data.cut, "cut"), (data.answer_lost, "answer lost"), (data.dropped, "dropped")):
        rows.append(fact(word, count(number), "warn" if number else "text"))
    rows.append(fact("tokens", f"{count(data.tokens)}, longest {data.longest}"))
    rows.append([*fact("trained", f"{part:.1%} ", "strong"), *bar(part, width - _LABEL - 7, "trained")])
    return [cut(row, width) for row in rows]
