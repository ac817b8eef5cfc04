"""What a configuration's rows and model are known for: counted, or looked up, in the background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from backprop.core.datasets import find_fetched, is_hub_name
from backprop.core.errors import BackpropError, ModelLoadError
from backprop.core.methods import METHODS, Rows
from backprop.core.models import find_tokenizer
from backprop.core.settings import RunConfig
from backprop.data.formats import chosen_alone, file_format, other_method
from backprop.data.reader import open_source
from backprop.data.truncate import CountedLengths, count_lengths
from backprop.runs.measured import Peaks, measured_peaks
from backprop.runs.pace import Pace, pace

from backprop_tui.hints import hint_here
from backprop_tui.screens.tasks import Task, Tasks

Named = tuple[str, tuple[tuple[str, str], ...], str, Rows, bool, bool, int]
"""Data, mapping, model, what is learned from, whether answers alone are trained, and reasoning traces as they are, and
seed: what a count depends on."""


class Counting:
    """What is known of the rows so far. Another data, mapping or model is counted anew.

    Args:
        then: called when more is known.
    """

    def __init__(self, tasks: Tasks, then: Callable[[], object]) -> None:
        self._tasks, self._then = tasks, then
        self._named: Named | None = None
        self.counted: CountedLengths | None = None
        self.words = ""
        """The data in words, or why it is not counted."""
        self.pace: Pace | None = None
        """How fast the model was trained before."""
        self.peaks: Peaks = ()
        """What its runs took of a card."""

    def look_at(self, config: RunConfig | None) -> None:
        """Count the rows of a located configuration; of none, forget what is known."""
        named = None
        if config is not None:
            mapping = tuple(config.mapping.items())
            rows = METHODS[config.method].rows
            answers_alone, traces = config.train_on_responses, config.reasoning_trace
            named = (config.data, mapping, config.model, rows, answers_alone, traces, config.seed)
        if named == self._named:
            return
        self.stop()
        if named is None or self._named is None or named[2] != self._named[2]:
            self.pace, self.peaks = None, ()
        self._named, self.counted, self.words = named, None, ""
        if named is None:
            return
        if self.pace is None:
            self._tasks.begin("pace", "", lambda _: (pace(named[2]), measured_peaks(named[2])), self._take_past)
        path = config.data if config is not None else ""
        if not Path(path).is_absolute() and is_hub_name(path):
            fetched = find_fetched(path)
            if fetched is None:
                self.words = "is fetched from the Hugging Face Hub when the run starts"
                return
            path = fetched.path
        self._tasks.begin("count", "counting rows", lambda task: self._count(path, named, task), self._take)

    def stop(self) -> None:
        """Count no further; what is known stays."""
        self._tasks.forget("count")

    def _count(self, path: str, named: Named, task: Task[object]) -> object:
        from backprop.data.tokenizer import ChatTokenizer

        _, mapping, model, rows, answers_alone, traces, seed = named
        with open_source(path, cancelled=task.stopped) as source:
            file = file_format(source, dict(mapping))
        advice = hint_here(other_method(file.format, rows) or chosen_alone(file.format, rows))
        known = [file.format or "of no known format", advice]
        known += [file.trace_finding().message] if file.traces and not traces else []
        words = "; ".join(filter(None, known))
        try:
            tokenizer = ChatTokenizer.load(find_tokenizer(model))
        except ModelLoadError as error:
            return f"{words}; tokens are not counted: {error.message}"
        task.deliver(words)
        return count_lengths(
            path,
            file,
            tokenizer,
            rows=rows,
            everything=not answers_alone,
            traces=traces,
            seed=seed,
            progress=task.progress,
            cancelled=task.stopped,
            so_far=task.so_far,
        )

    def _take(self, found: object) -> None:
        if isinstance(found, CountedLengths):
            self.counted = found
        else:
            self.words = str(found)
        self._then()

    def _take_past(self, found: tuple[Pace | None, Peaks]) -> None:
        self.pace, self.peaks = found
        self._then()

    def failed(self, error: BackpropError) -> None:
        self.words = f"{error.message}; {hint_here(error.hint)}" if error.hint else error.message
        self._then()
