"""What is known of a file as a whole, as lines."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from backprop.data.example import describe_mapping

from backprop_tui.keys import press
from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.lengths import percentiles
from backprop_tui.screens.dataset.perplexity import percentiles as score_percentiles
from backprop_tui.screens.dataset.tokens import Chosen
from backprop_tui.text import Row, percent, safe, short_number
from backprop_tui.widgets.cells import fact

if TYPE_CHECKING:
    from backprop.data.quality import PerplexityReport
    from backprop.data.truncate import CountedLengths
    from backprop.data.validate import Validation

_fact = partial(fact, width=14)


def statistics_lines(
    opened: OpenFile,
    found: Validation | None,
    counted: CountedLengths | None,
    chosen: Chosen,
    scored: PerplexityReport | None,
) -> list[Row]:
    """Rows, format, mapping, findings, lengths, perplexity: what was counted, and the key that counts the rest."""
    source, file = opened.source, opened.file
    mapping = found.mapping if found is not None else file.mapping
    lines: list[Row] = [
        [(safe(opened.path), "strong+bold")],
        [],
        _fact("size", f"{source.size:,} bytes"),
        _fact("rows", f"{source.known:,}" + ("" if source.complete else " found so far")),
        _fact("format", file.format or "none that is known"),
        _fact("fields", f"read as {describe_mapping(mapping)}" if mapping else "the format's own names"),
    ]
    if source.has_bom:
        lines.append(_fact("BOM", "the file begins with a byte order mark; it is skipped"))
    lines += [_fact("note", safe(note)) for note in ([] if found else source.notes)]
    return [*lines, [], *_check_lines(found), [], *_length_lines(counted, chosen), [], *_score_lines(scored)]


def _check_lines(found: Validation | None) -> list[Row]:
    if found is None:
        return [[(f"What is wrong with it: {press('data.check')} checks every row.", "muted")]]
    part = "" if found.complete else " (stopped before the end)"
    lines: list[Row] = [
        [(f"Checked {found.rows:,} rows{part}", "strong+bold")],
        _fact("usable", percent(found.valid, found.rows), "good"),
        _fact("unusable", percent(found.invalid, found.rows), "bad" if found.invalid else "text"),
        _fact("duplicates", percent(found.problem_counts.get("duplicate_row", 0), found.rows)),
    ]
    if len(found.formats) > 1:
        lines.append(_fact("formats", ", ".join(f"{name} {count:,}" for name, count in found.formats.items())))
    lines += [_fact("note", safe(note)) for note in found.notes]
    lines += [_fact(f"{count:>12,}", code) for code, count in found.problem_counts.items()]
    return lines


def _length_lines(counted: CountedLengths | None, chosen: Chosen) -> list[Row]:
    if counted is None:
        return [[(f"How long the rows are and what is trained: {press('data.lengths')} counts tokens.", "muted")]]
    part = "" if counted.whole else " so far"
    lines: list[Row] = [
        [(f"Counted {counted.rows:,} rows{part}", "strong+bold")],
        _fact("length", f"{percentiles(counted.lengths)} {counted.unit}"),
    ]
    if counted.unit == "tokens":
        tokens, trained = counted.lengths.tokens_at(chosen.limit)
        lines += [
            _fact("model", safe(chosen.model)),
            _fact("limit", f"{chosen.limit:,} tokens a row"),
            _fact("tokens", f"{tokens:,} ({short_number(tokens)})"),
            _fact("trained", percent(trained, tokens), "trained+light"),
        ]
    return lines


def _score_lines(scored: PerplexityReport | None) -> list[Row]:
    if scored is None or scored.per_row is None:
        return [[(f"What the model finds hard: {press('data.hardest')} scores every row.", "muted")]]
    return [
        [(f"Scored {scored.scored:,} rows", "strong+bold")],
        _fact("perplexity", f"{scored.perplexity:,.2f} over {scored.tokens:,} trained tokens"),
        _fact("per row", score_percentiles(scored)),
        _fact("far off", percent(len(scored.outliers), scored.scored)),
    ]
