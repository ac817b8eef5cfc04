"""What went wrong with a run, and what to do now."""

from __future__ import annotations

from backprop_tui.text import Row, from_home
from backprop_tui.watch import Watch
from backprop_tui.widgets.cells import heading, paragraph
from backprop_tui.widgets.text_view import TextView


def problem_of(watch: Watch) -> tuple[str, str, str, list[str]] | None:
    """Title, message, hint and further lines about a run that failed, crashed or is damaged; ``None`` if sound."""
    state = watch.state
    resume = [f"its {state.step} steps are kept: tab shows the curve and the events"] if state.step else []
    if watch.error is not None:
        return f"cannot be read [{watch.error.code}]", from_home(watch.error.message), watch.error.hint, []
    if watch.crash is not None:
        return f"the engine is gone [{watch.crash.code}]", watch.crash.message, from_home(watch.crash.hint), resume
    if state.failed is not None:
        return f"failed [{state.failed.code}]", state.failed.message, state.failed.hint, resume
    if state.damage and not state.alive:
        return "damaged [RUN_DAMAGED]", from_home("\n".join(state.damage)), "what could be read is shown", []
    return None


class ProblemPane(TextView):
    problem: tuple[str, str, str, list[str]] | None = None

    def show(self, problem: tuple[str, str, str, list[str]] | None) -> None:
        self.problem = problem
        self.redraw_for(problem)

    def content(self, width: int) -> list[Row]:
        if self.problem is None:
            return []
        title, message, hint, more = self.problem
        rows: list[Row] = [[(f"✗ {title}", "bad+bold")], [], *paragraph(message, width)]
        if hint:
            rows += [[], heading("what to do", width), *paragraph(hint, width, "strong")]
        for line in more:
            rows += [[], *paragraph(line, width, "muted")]
        return rows
