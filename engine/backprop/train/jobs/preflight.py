"""``train --dry-run``: what a run would train, counted by the very functions that a run uses. No weight is loaded."""

from __future__ import annotations

import msgspec

from backprop.core import events, rules
from backprop.core.definition import chosen_by_rule
from backprop.core.events import Event
from backprop.core.jobs import JobProgress, RunPlan
from backprop.core.models import find_tokenizer
from backprop.core.settings import RunConfig
from backprop.worker.job import Send, run_job


def plan(config: RunConfig, send: Send) -> None:
    """Prepare the rows and send the plan; rows that would train nothing end it as they would end the run."""
    from backprop.train.dataset import prepare_run
    from backprop.train.model import resolved

    reasons: dict[str, str] = {}
    notes: list[str] = []

    def emit(event: Event) -> None:
        match event:
            case events.SettingsChosen():
                reasons.update(event.reasons)
            case events.Warning():
                notes.append(event.message)
            case _:
                send(JobProgress(doing="counting the rows"))

    path = find_tokenizer(config.model)
    final, rows, trained, held_out, evaluated, schedule = prepare_run(
        resolved(config), path, emit, lambda: False, asked=config
    )
    idle = rules.without_effect(final, schedule.steps, len(trained), len(held_out), len(evaluated))
    send(
        RunPlan(
            config=msgspec.to_builtins(final),
            origins=chosen_by_rule(config, final) | {name: f"rule: {why}" for name, why in reasons.items()},
            data=rows.summary,
            rows=len(trained),
            held_out=len(held_out),
            steps=schedule.steps,
            steps_per_epoch=schedule.steps_per_epoch,
            rows_per_step=schedule.rows_per_step,
            warmup_steps=schedule.warmup_steps,
            tokens=round(schedule.steps * schedule.rows_per_step * float(trained.lengths.mean())),
            notes=[*rows.summary.notes, *notes, *(each.message for each in idle)],
        )
    )


if __name__ == "__main__":
    run_job(RunConfig, plan)
