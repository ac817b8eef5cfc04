"""What the shell offers after a flag or a command: presets, run ids, files. Asked only when a person presses Tab."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

Completer = Callable[["click.Context", "click.Parameter", str], "list[CompletionItem]"]


def presets(words: Iterable[str]) -> Completer:
    """Completes one of ``words``."""
    return _completer(lambda: words, files=False)


def files_and(words: Callable[[], Iterable[str]]) -> Completer:
    """Completes a file, or one of the words."""
    return _completer(words, files=True)


def run_ids() -> Completer:
    """Completes the id of a run."""
    return _completer(_runs, files=False)


def _runs() -> list[str]:
    from backprop.runs.index import RunIndex

    with RunIndex() as index:
        return [run.run_id for run in index.summaries()]


def _completer(words: Callable[[], Iterable[str]], *, files: bool) -> Completer:
    def complete(context: Any, parameter: Any, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        found = [CompletionItem(word) for word in words() if word.startswith(incomplete)]
        return found or ([CompletionItem(incomplete, type="file")] if files else [])

    return complete
