"""What a run can be written as: every format in each of its precisions, with its size."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from backprop.core.architecture import Architecture
from backprop.core.errors import BackpropError
from backprop.core.exports import FORMATS, PRECISIONS
from backprop.core.models import find_architecture, find_model
from backprop.hardware.estimate import parameters
from backprop.runs.describe import bytes_text
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run

from backprop_tui.text import Row
from backprop_tui.widgets.list_view import ListView

_BLOCK = 256
"""Weights in a block of a K-quant: rows of another width are kept in a wider type."""


class Choice(NamedTuple):
    format: str
    precision: str

    @property
    def remark(self) -> str:
        """What to expect of it."""
        adapter = self.format.startswith("lora")
        return FORMATS[self.format].meaning if adapter else PRECISIONS[self.precision].remark


CHOICES = [Choice(name, precision) for name, each in FORMATS.items() for precision in each.precisions]


class Source(NamedTuple):
    """The run that is exported, as far as it is known without its weights."""

    path: str
    model: str
    architecture: Architecture | None
    """``None`` where the base model's configuration is not on this machine."""
    adapter: int
    """Bytes of the adapter's weights; 0 of a run that trained every weight."""
    free: int
    """Bytes of the disk that the run is on."""
    here: bool = False
    """Whether all of the base model is on this machine."""
    gguf: Mapping[str, int] = {}
    """Bytes of a GGUF file by precision, once an engine process has said them."""

    def size(self, choice: Choice) -> tuple[int, bool] | None:
        """How many bytes an export has, and whether it may well be more; ``None`` where it is not known."""
        if choice.format == "gguf" and choice.precision in self.gguf:
            return self.gguf[choice.precision], False
        if choice.format.startswith("lora"):
            return (self.adapter * int(PRECISIONS[choice.precision].bits) // 32, False) if self.adapter else None
        if self.architecture is None:
            return None
        odd = "_k" in choice.precision and self.architecture.hidden % _BLOCK != 0
        return int(parameters(self.architecture) * PRECISIONS[choice.precision].bits / 8), odd


def look_at(path: str) -> Source:
    """Read what is known of a run's model.

    Raises:
        BackpropError: the run is damaged.
    """
    directory = RunDirectory(Path(path))
    state = read_run(directory.path)
    model = str(state.config.get("model", ""))
    architecture, here = None, False
    with suppress(BackpropError):
        architecture = find_architecture(model)
        here = find_model(model) is not None
    weights = sum(file.stat().st_size for file in directory.adapter.glob("*.safetensors"))
    return Source(path, model, architecture, weights, shutil.disk_usage(path).free, here)


class ChoiceList(ListView):
    """Every format in each of its precisions."""

    source: Source | None = None

    def row_at(self, index: int, width: int) -> Row:
        choice = CHOICES[index]
        row: Row = [(f"  {choice.format:<10}", "text"), (f"{choice.precision:<8}", "strong")]
        size = self.source.size(choice) if self.source else None
        text = "" if size is None else ("over " if size[1] else "") + bytes_text(size[0])
        return [*row, (f"{text:>14}  ", "text"), (choice.remark, "muted")]

    def under_cursor(self, row: Row, width: int) -> Row:
        return super().under_cursor([("▸ ", "info+bold"), (row[0][0][2:], "text"), *row[1:]], width)
