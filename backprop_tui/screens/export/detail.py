"""What would be written, what was, with its proof, or why nothing was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from backprop.cli.export import show_export
from backprop.core.errors import BackpropError
from backprop.core.exports import FORMATS, PRECISIONS
from backprop.core.jobs import Exported
from backprop.runs.describe import bytes_text

from backprop_tui.hints import keys_here
from backprop_tui.keys import press
from backprop_tui.screens.export.formats import Choice, Source
from backprop_tui.text import Row, from_home, safe
from backprop_tui.widgets.cells import heading, labelled, paragraph
from backprop_tui.widgets.text_view import TextView

_INK = {"head": "strong+bold", "error": "bad", "warning": "warn", "quiet": "muted"}


class ExportDetail(TextView):
    """The rows that ``make`` gives for a width."""

    def __init__(self, make: Callable[[int], list[Row]], *, id: str) -> None:
        super().__init__(id=id)
        self._make = make

    def content(self, width: int) -> list[Row]:
        return self._make(width)


def outlook(source: Source, choice: Choice, output: str, command: str, width: int) -> list[Row]:
    """What would be written."""
    size = source.size(choice)
    rows = [heading(f"{choice.format} {choice.precision}", width)]
    rows += labelled("what     ", FORMATS[choice.format].meaning, width)
    rows += labelled("quality  ", PRECISIONS[choice.precision].remark, width)
    if size is None:
        rows += labelled("size     ", f"not known: the config.json of {source.model} is not on this machine", width)
    else:
        exact = choice.format == "gguf" and choice.precision in source.gguf
        more = ", more as its rows fill no blocks of 256" if size[1] else ""
        words = f"{'' if exact else 'about '}{bytes_text(size[0])}{more}; {bytes_text(source.free)} free"
        rows += labelled("size     ", words, width, "bad" if size[0] > source.free else "text")
    rows += labelled("where    ", safe(from_home(output or str(Path(source.path) / "exports"))), width)
    return [*rows, *labelled("command  ", safe(from_home(command)), width, "muted")]


def failure(error: BackpropError, width: int) -> list[Row]:
    """Why nothing was written, and what to do."""
    hint = keys_here(error.hint).replace("with --output", f"({press('export.where-to')})")
    rows = [heading("nothing was written", width), *paragraph(f"✗ [{error.code}]", width, "bad+bold")]
    rows += [*paragraph(f"{error.message}.", width, "bad"), *paragraph(hint, width, "strong")]
    copies = f"{press('export.copy-command')} copies the command, which takes these options"
    return rows + (paragraph(copies, width) if "--" in hint else [])


def proof(done: Exported, handed: Sequence[tuple[str, str]], width: int) -> list[Row]:
    """What became of the steps after an export, and what was written, opened again and compared."""
    found: list[tuple[str, str]] = []
    show_export(done, lambda text, kind: found.append((text, kind)), follows=not handed)
    rows: list[Row] = []
    for title, said in (("handed on", handed), ("written, opened again and compared", found)):
        rows += [heading(title, width)] if said else []
        for text, kind in said:
            rows += paragraph(from_home(text), width, _INK.get(kind, "trained" if text.startswith("same") else "text"))
    return rows
