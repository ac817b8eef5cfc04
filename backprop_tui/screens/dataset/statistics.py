"""What is known of a file as a whole, as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backprop.data.mapping import describe_mapping

from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.rows import in_bytes
from backprop_tui.widgets.styled import Line, one_line

if TYPE_CHECKING:
    from backprop.data.scores import PerplexityReport
    from backprop.data.validate import Validation

    from backprop_tui.screens.dataset.lengths import CountedLengths


def statistics_lines(
    opened: OpenFile,
    found: Validation | None,
    counted: CountedLengths | None,
    model: str,
    hardness: PerplexityReport | None,
) -> list[Line]:
    """Rows, format, mapping, findings, lengths, perplexity: what was counted, and the key that counts the rest."""
    source, file = opened.source, opened.file
    mapping = found.mapping if found is not None else file.mapping
    lines = [
        ((one_line(opened.path), "heading"),),
        (),
        _pair("size", f"{source.bytes:,} bytes"),
        _pair("rows", f"{source.known:,}" + ("" if source.complete else " found so far")),
        _pair("format", file.format or "none that is known"),
        _pair("fields", f"read as {describe_mapping(mapping)}" if mapping else "the format's own names"),
    ]
    if source.has_bom:
        lines.append(_pair("BOM", "the file begins with a byte order mark; it is skipped"))
    return [*lines, (), *_check_lines(found), (), *_length_lines(counted, model), (), *_hardness_lines(hardness)]


def _pair(name: str, value: str, style: str = "") -> Line:
    return ((f"{name:<14}", "dim"), (value, style))


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / max(whole, 1):.2g} %)"


def _check_lines(found: Validation | None) -> list[Line]:
    if found is None:
        return [(("What is wrong with it: c checks every row.", "dim"),)]
    part = "" if found.complete else " (stopped before the end)"
    lines: list[Line] = [
        ((f"Checked {found.rows:,} rows{part}", "heading"),),
        _pair("usable", _share(found.valid, found.rows), "good"),
        _pair("unusable", _share(found.invalid, found.rows), "error" if found.invalid else ""),
        _pair("duplicates", _share(found.problem_counts.get("duplicate_row", 0), found.rows)),
    ]
    if len(found.formats) > 1:
        lines.append(_pair("formats", ", ".join(f"{name} {count:,}" for name, count in found.formats.items())))
    lines += [_pair("note", one_line(note)) for note in found.notes]
    lines += [_pair(f"{count:>12,}", code) for code, count in found.problem_counts.items()]
    return lines


def _length_lines(counted: CountedLengths | None, model: str) -> list[Line]:
    if counted is None:
        return [(("How long the rows are and what is trained: l counts tokens.", "dim"),)]
    p50, p90, p99 = (f"{counted.lengths.percentile(share):,}" for share in (0.5, 0.9, 0.99))
    part = "" if counted.whole else " so far"
    lines: list[Line] = [
        ((f"Counted {counted.rows:,} rows{part}", "heading"),),
        _pair("length", f"p50 {p50} · p90 {p90} · p99 {p99} · longest {counted.lengths.longest:,} {counted.unit}"),
    ]
    if counted.unit == "tokens":
        lines += [
            _pair("model", one_line(model)),
            _pair("tokens", f"{counted.tokens:,} ({in_bytes(counted.tokens)})"),
            _pair("trained", _share(counted.trained, counted.tokens), "trained"),
        ]
    return lines


def _hardness_lines(hardness: PerplexityReport | None) -> list[Line]:
    if hardness is None or hardness.per_row is None:
        return [(("What the model finds hard: h scores every row.", "dim"),)]
    p10, p50, p90 = (f"{value:,.2f}" for value in (hardness.per_row.p10, hardness.per_row.p50, hardness.per_row.p90))
    return [
        ((f"Scored {hardness.scored:,} rows", "heading"),),
        _pair("perplexity", f"{hardness.perplexity:,.2f} over {hardness.tokens:,} trained tokens"),
        _pair("per row", f"p10 {p10} · p50 {p50} · p90 {p90}"),
        _pair("far off", _share(len(hardness.outliers), hardness.scored)),
    ]
