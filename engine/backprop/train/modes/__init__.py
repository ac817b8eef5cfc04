"""Modes: which weights of a model are trained. A mode is one file here and one word of ``RunConfig.mode``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

import torch


class Mode(Protocol):
    """What one mode knows; loading, training and saving are otherwise the same for all of them."""

    targets: list[str]
    """Kinds of layer that are trained, known once the model is loaded."""
    notes: list[str]
    """What has to be said about choices made while loading."""

    def load(self, base: Callable[..., Any]) -> Any:
        """The model to train, made of what ``base`` loads; its arguments are further ones of ``from_pretrained``.

        Raises:
            InvalidSettingError: the configuration does not fit the model.
        """
        ...

    def trainable(self, model: Any) -> dict[str, torch.nn.Parameter]:
        """The weights that are trained, by name, looked up in the loaded model.

        Raises:
            TrainingError: they are not what the configuration asks for.
        """
        ...

    def save(self, model: Any, target: Path) -> None:
        """Write the result into the folder ``target``.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        ...

    def base_answers(self, model: Any) -> AbstractContextManager[Any]:
        """Inside, the model answers as it did before training; where every weight is trained, before the first step."""
        ...


def mode_named(name: str) -> Callable[..., Mode]:
    """``MODE`` of the module called ``name``; called with the resolved configuration and the name of the base model."""
    found: Callable[..., Mode] = resolve_name(f"{__name__}.{name}:MODE")
    return found
