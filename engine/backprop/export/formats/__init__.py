"""Formats that a trained model is written in: one module each, found by its word of ``core.exports.FORMATS``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from backprop.core.jobs import Check
from backprop.export.sharded import Progress
from backprop.export.source import Source


class Format(Protocol):
    """What one format knows; finding the model, space, names and replacing nothing are the same for all."""

    FOLDER: bool
    """Whether it is a folder, else one file."""

    @staticmethod
    def file_name(source: Source, precision: str) -> str:
        """What the result is called where no other name is given."""
        ...

    @staticmethod
    def predicted_bytes(source: Source, precision: str) -> int:
        """The most that lies on the disk while it is written, what is needed on the way included."""
        ...

    @staticmethod
    def write(source: Source, target: Path, precision: str, progress: Progress) -> list[str]:
        """Write into ``target``, which is there and empty; what has to be said afterwards.

        Raises:
            ExportError: the model cannot be written so.
            OSError: the disk is full, or cannot be written.
        """
        ...

    @staticmethod
    def check(source: Source, target: Path, precision: str, answers: bool, progress: Progress) -> Check:
        """Open what was written and compare it with the trained model; its ``answers`` too where that is asked."""
        ...


def format_named(name: str) -> Format:
    """The module of the format ``name``."""
    found: Any = import_module(f"{__name__}.{name.replace('-', '_')}")
    module: Format = found
    return module
