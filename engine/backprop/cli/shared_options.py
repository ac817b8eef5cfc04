"""Options that every command has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def json_and_verbose(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--json`` and ``--verbose``, passed on as ``as_json`` and ``verbose``."""
    for option in (
        click.option("--verbose", "-v", is_flag=True, help="show the traceback of an error"),
        click.option("--json", "as_json", is_flag=True, help="for programs: JSON on standard output, nothing else"),
    ):
        function = option(function)
    return function
