"""What a session of several runs forgets: the loss on every run's held-out rows after each run.

AA is the mean loss of the tasks learned so far; BWT how much the loss of those before the last one has risen since each
was learned (Lopez-Paz and Ranzato 2017, arXiv:1706.08840, there for accuracy). Of losses a positive BWT is forgetting,
of the share of exact answers a negative one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import fsum

from msgspec import Struct, field

from backprop.core.events import HeldOutScored


class Averages(Struct, frozen=True):
    """AA and BWT after one run; ``None`` where a cell is missing or not finite, and BWT with one task learned."""

    average: float | None = None
    backward: float | None = None
    exact: float | None = None
    exact_backward: float | None = None


class Forgetting(Struct):
    """The table: rows are the base model (0) and each run after which was scored, columns the runs' held-out sets."""

    cells: list[HeldOutScored] = field(default_factory=list)
    """By row, then by column."""
    learned: list[int] = field(default_factory=list)
    """Runs that were merged, in order: their sets count."""

    def add(self, cell: HeldOutScored) -> None:
        """Take in a cell, in place of an earlier one there."""
        others = [each for each in self.cells if (each.after, each.held_out) != (cell.after, cell.held_out)]
        self.cells = sorted([*others, cell], key=lambda each: (each.after, each.held_out))

    def rewind(self, index: int) -> None:
        """Forget the rows after run ``index``."""
        self.cells = [each for each in self.cells if each.after <= index]
        self.learned = [each for each in self.learned if each <= index]

    def cell(self, after: int, held_out: int) -> HeldOutScored | None:
        """One cell; ``None`` where it was not scored."""
        return next((each for each in self.cells if (each.after, each.held_out) == (after, held_out)), None)

    @property
    def rows(self) -> list[int]:
        """Runs after which was scored, the base model (0) first."""
        return sorted({each.after for each in self.cells})

    @property
    def columns(self) -> list[int]:
        """Runs whose held-out rows were scored."""
        return sorted({each.held_out for each in self.cells})

    def averages(self, after: int | None = None) -> Averages:
        """AA and BWT after a run, the last one by default."""
        last = max(self.rows, default=0) if after is None else after
        tasks = [each for each in self.learned if each <= last]
        average, backward = self._averages(last, tasks, lambda cell: cell.loss)
        exact, exact_backward = self._averages(last, tasks, lambda cell: cell.exact)
        return Averages(average, backward, exact, exact_backward)

    def _averages(
        self, last: int, tasks: list[int], value: Callable[[HeldOutScored], float | None]
    ) -> tuple[float | None, float | None]:
        def at(after: int, task: int) -> float | None:
            cell = self.cell(after, task)
            return None if cell is None else value(cell)

        now = [(task, at(last, task)) for task in tasks]
        known = [score for _, score in now if score is not None]
        average = fsum(known) / len(known) if known and len(known) == len(tasks) else None
        moved = []
        for task, score in now:
            before = at(task, task)
            if task < max(tasks) and score is not None and before is not None:
                moved.append(score - before)
        return average, fsum(moved) / len(moved) if moved and len(moved) == len(tasks) - 1 else None
