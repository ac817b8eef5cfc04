"""Events as lines for people: one wording for the application's log, plain output and the history."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import assert_never, cast

from backprop.core import events as ev
from backprop.core.log import LOGGER
from backprop.runs.forgetting import Averages

PHASES = {
    "loading_model": "loading the model",
    "preparing_data": "preparing the data",
    "reference": "asking the untouched model about the rows",
    "sampling": "answering the sample prompts",
    "training": "training",
    "evaluating": "evaluating",
    "saving": "saving",
    "cooling": "cooling down",
    "finishing": "finishing",
}


def moment(seconds: float) -> str:
    """Seconds since the epoch as a local date and time of day; 0 is not known."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "unknown"


_LINES = 5
"""Lines that are named of one kind of finding."""
_FOR_EVER = 10**11
"""Seconds that nothing takes: a damaged file says so."""


def number(value: float | None, digits: int = 4) -> str:
    """A loss or norm for people; a value that was not finite says so."""
    if value is None:
        return "not finite"
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.{digits}e}"


def bytes_text(count: float) -> str:
    """``1_500_000`` as ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB" if abs(count) < 1e6 else f"{count:.1e} TB"


def duration(seconds: float) -> str:
    """``3725`` as ``1 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole >= _FOR_EVER:
        return "unknown"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def metrics_text(metrics: Mapping[str, float], *names: str) -> str:
    """`` margin 0.031 accuracy 0.75``: those of ``names``, or all, in words; empty where there are none."""
    known = {name: metrics[name] for name in names or _METRICS if name in metrics}
    return "".join(f" {_METRICS[name]} {number(value, 3)}" for name, value in known.items())


_METRICS = {
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "nll": "nll",
    "kl": "kl",
}


def share(part: int, whole: int) -> str:
    """``share(1, 8)`` as ``12.5 %``; of nothing it is ``none``."""
    return f"{100 * part / whole:.1f} %" if whole else "none"


def describe(event: ev.AnyEvent) -> str:
    """One line about ``event``; empty for events that are no news (readings, heartbeats)."""
    if isinstance(event, ev.RunEvent):
        return _describe_run(event)
    if isinstance(event, ev.InputEvent):
        return _describe_input(event)
    if isinstance(event, ev.TrainingEvent):
        return _describe_training(event)
    if isinstance(event, ev.SessionEvent):
        return _describe_session(event)
    match event:
        case ev.Pacing():
            if event.rest == 0:
                return f"pacing ended: {event.reason}"
            return f"pacing, {event.rest:.1f} s rest after each step: {event.reason}"
        case ev.Gpu() | ev.Unknown():
            return ""
        case _:
            assert_never(event)


def _describe_run(event: ev.RunEvent) -> str:
    match event:
        case ev.RunStarted():
            again = f" resumed_from=step {event.resumed_from}" if event.resumed_from is not None else ""
            return f"run_started run_id={event.run_id}{again} output={event.output_dir}"
        case ev.PhaseChanged():
            return PHASES[event.phase] + (f": {event.detail}" if event.detail else "")
        case ev.SettingsChosen():
            said = {name: value if isinstance(value, str) else f"{value:g}" for name, value in event.values.items()}
            chosen = [f"{name} {value} ({event.reasons.get(name, '')})" for name, value in said.items()]
            return f"chosen: {'; '.join(chosen)}"
        case ev.Warning():
            return event.message + (f" ({event.hint})" if event.hint else "")
        case ev.ReplayCompared():
            if not event.steps:
                return f"no step to compare with run {event.replayed}"
            if event.parted_at is None:
                return f"the curve is that of run {event.replayed}: {event.steps} of {event.steps} losses are equal"
            both = f"{number(event.loss, 6)} instead of {number(event.replayed_loss, 6)}"
            return f"the curve parted from that of run {event.replayed} at step {event.parted_at}: loss {both}"
        case ev.RunFinished():
            loss = "" if event.final_loss is None else f" final loss {number(event.final_loss)}"
            used = "" if event.energy is None else f", {event.energy:.1f} Wh"
            helped = f"; {short_verdict(event.verdict)}" if event.verdict else ""
            took = duration(event.duration_seconds)
            return (
                f"run {event.status} after {event.steps} step{'s' * (event.steps != 1)} in {took}{loss}{used}{helped}"
            )
        case ev.RunFailed():
            return f"run failed: [{event.code}] {event.message}"
        case ev.Heartbeat():
            return ""
        case _:
            assert_never(event)


def _describe_input(event: ev.InputEvent) -> str:
    match event:
        case ev.ModelLoading():
            verb = {"download": "fetching", "convert": "converting", "load": "loading"}[event.stage]
            amount = f" {bytes_text(event.done)}" if event.done else ""
            return f"{verb} {event.model}{amount}" + (f" of {bytes_text(event.total)}" if event.total else "")
        case ev.ModelLoaded():
            kind = event.dtype + (f", {event.share_4bit:.0%} of the bytes in 4 bits," if event.share_4bit else "")
            return (
                f"model {event.model}: {event.parameters / 1e6:.0f}M parameters in {kind} on {event.device}, "
                f"{event.trainable_parameters / 1e6:.2f}M trained ({event.mode}: {', '.join(event.targets)})"
            )
        case ev.DatasetPrepared():
            return describe_dataset(event)
        case _:
            assert_never(event)


def _describe_training(event: ev.TrainingEvent) -> str:
    match event:
        case ev.Step():
            return (
                f"step {event.step}/{event.total_steps} loss {number(event.loss)} lr {event.learning_rate:.2e} "
                f"norm {number(event.grad_norm, 2)} {event.tokens_per_second:.0f} tokens/s{metrics_text(event.metrics)}"
            )
        case ev.Evaluated():
            best = ", the best so far" if event.best else " (the untouched model)" if event.base else ""
            told = f"held-out loss {number(event.loss)}{metrics_text(event.metrics)} over {event.rows} rows{best}"
            return f"step {event.step}: {told}"
        case ev.Sample():
            who = "tuned" if event.tuned else "base"
            return f"[{who}] {event.prompt} -> {' '.join(event.text.split())}"
        case ev.CheckpointSaved():
            why = f" ({event.reason})" if event.reason else ""
            blocked = f"blocked {event.seconds_blocked:.2f} s"
            return f"checkpoint of step {event.step}{why}: {bytes_text(event.bytes)}, {blocked}"
        case ev.CheckpointFailed():
            return f"checkpoint of step {event.step} failed: {event.message}; training goes on"
        case ev.CheckpointPruned():
            return f"checkpoint of step {event.step} removed by the keep policy"
        case ev.BatchHalved():
            return (
                f"out of memory in {event.where}: batch {event.batch_size}, accumulation {event.gradient_accumulation} "
                "from here, the same effective batch"
            )
        case ev.StepSkipped():
            return f"step {event.step} skipped: {event.reason} ({event.in_a_row} in a row)"
        case ev.Paused():
            return f"paused after step {event.step}: {event.reason}"
        case ev.Resumed():
            return f"resumed after step {event.step}: {event.reason}"
        case _:
            assert_never(event)


def _describe_session(event: ev.SessionEvent) -> str:
    match event:
        case ev.RunBegun():
            old = f", {event.replayed} of them of earlier runs" if event.replayed else ""
            rows = f"{event.rows} rows of {event.data}{old}, {event.held_out} held out"
            return f"run {event.index} of {event.of} ({event.run}): {rows}"
        case ev.MergeDone():
            return describe_merge(event)
        case ev.HeldOutScored():
            who = f"after run {event.after}" if event.after else "base model"
            exact = "" if event.exact is None else f", {event.exact:.0%} of {event.answers} answers exact"
            return f"{who}: held-out loss of run {event.held_out} {number(event.loss)} over {event.rows} rows{exact}"
        case ev.Rewound():
            return f"rewound to the state after run {event.index}" if event.index else "rewound to the beginning"
        case _:
            assert_never(event)


def describe_merge(event: ev.MergeDone) -> str:
    """What became of a run of a session."""
    if not event.merged:
        return f"run {event.index} ({event.run}) {'failed' if event.failed else 'was kept out'}: {event.reason}"
    how = "" if event.step_size is None else f" by {event.step_size:.3f}"
    how += "" if event.moved is None else f", B moved {event.moved:.0%}"
    how += "" if event.similarity is None else f", cosine to before {event.similarity:.2f}"
    if event.loss is not None and event.tuned_loss is not None:
        how += f"; held-out loss {number(event.loss)} merged, {number(event.tuned_loss)} as fine-tuned"
    return f"run {event.index} ({event.run}) merged{how}"


def describe_averages(found: Averages) -> str:
    """AA and BWT of a forgetting table."""
    if found.average is None:
        return "AA and BWT are not known: no run is merged, or a loss is missing"
    exact = "" if found.exact is None else f"; exact answers {found.exact:.0%}"
    change = "" if found.exact_backward is None else f" ({100 * found.exact_backward:+.0f} points since)"
    forgot = "" if found.backward is None else f", BWT {signed(found.backward)} (above 0 is forgetting)"
    return f"AA {number(found.average, 3)}{forgot}{exact}{change}"


def short_verdict(verdict: ev.Verdict) -> str:
    """``better −0.42 (n 50)``."""
    return f"{verdict.word} {signed(verdict.difference)} (n {verdict.rows})"


def verdict_words(verdict: ev.Verdict, of: str = "held-out loss") -> str:
    """Whether it helped, by how much, how sure that is, and what so many rows could have shown."""
    words = f"{verdict.word}: {of} {signed(verdict.difference)}"
    if verdict.rows < verdict.LEAST and verdict.word == "cannot tell":
        return f"{words} on {verdict.rows} row{'s' * (verdict.rows > 1)}: too few, {verdict.LEAST} at least are needed"
    if verdict.low is None or verdict.high is None or verdict.smallest is None:
        return f"{words} on {verdict.rows} row{'s' * (verdict.rows > 1)}"
    words += f", with 95 % between {signed(verdict.low)} and {signed(verdict.high)}, on {verdict.rows} rows"
    return words + (f", which show {verdict.smallest:.3f} or more" if verdict.word == "cannot tell" else "")


def signed(value: float) -> str:
    """A difference of losses."""
    return f"{value:+.3f}".replace("-", "\u2212")


def describe_dataset(event: ev.DatasetPrepared) -> str:
    """The pre-flight in one line: what is kept, cut, lost, dropped, and how much of it is trained."""
    parts = [
        f"{event.kept} of {event.rows} rows kept",
        f"{event.cut} cut",
        f"{event.answer_lost} answers lost",
        f"{event.dropped} dropped",
        f"{event.duplicated} duplicated",
    ]
    return (
        f"{event.format}: {', '.join(parts)}; {share(event.trained_tokens, event.tokens)} of {event.tokens} tokens are "
        f"trained; longest {event.longest}, limit {event.max_length}"
    )


def findings_by_kind(
    problems: Iterable[ev.Problem], counts: Mapping[str, int], unit: str = "line"
) -> list[tuple[ev.Problem, str]]:
    """The first finding of each kind with one line about all of them, errors first: how many, in which lines, what."""
    kinds: dict[str, list[ev.Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.code, []).append(problem)
    order = ("error", "warning", "info")
    found = []
    for code, those in sorted(
        kinds.items(), key=lambda kind: (order.index(kind[1][0].severity), -counts.get(kind[0], 0))
    ):
        lines = list(dict.fromkeys(problem.line for problem in those))
        shown, count = ", ".join(map(str, lines[:_LINES])), counts.get(code, len(those))
        more = " …" if count > len(those[:_LINES]) or len(lines) > _LINES else ""
        where = f"{unit}{'s' if len(lines) > 1 else ''} {shown}{more}" if lines[0] else "the file"
        words = ev.with_place(those[0].field, those[0].message)
        found.append((those[0], f"{count:,} {code} ({where}): {words}"))
    return found


def level(event: ev.Event) -> str:
    """``error``, ``warning`` or ``info``: how a log line is coloured."""
    match event:
        case ev.RunFailed():
            return "error"
        case ev.Warning() | ev.CheckpointFailed() | ev.BatchHalved() | ev.StepSkipped() | ev.Pacing():
            return "warning"
        case ev.ReplayCompared() if event.parted_at is not None:
            return "warning"
        case ev.MergeDone() if not event.merged:
            return "error" if event.failed else "warning"
        case ev.Paused() if event.reason != "requested":
            return "warning"
        case _:
            return "info"


_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}


def log_event(event: ev.Event, watched_run: str = "") -> None:
    """Log what an event says; a step only at the level ``debug``.

    Args:
        watched_run: the run, where another process than its engine tells: the engine's line is in the log file already.
    """
    # The line is only made where somebody wants it: every step of a run goes through here.
    logged = logging.DEBUG if isinstance(event, ev.Step) else _LEVELS[level(event)]
    if LOGGER.isEnabledFor(logged) and (text := describe(cast(ev.AnyEvent, event))):
        LOGGER.log(logged, text, extra={"run_id": watched_run})
