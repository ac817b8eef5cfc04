"""What a run would be, before it is started: its rows, steps and tokens, and what a person should know about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from backprop.core import rules
from backprop.core.events import LengthLimit
from backprop.core.locate import held_out_file
from backprop.core.methods import METHODS
from backprop.core.presets import terms_of
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.data.example import one_label
from backprop.data.split import held_out
from backprop.data.tokenizer import context_length
from backprop.data.truncate import CountedLengths, Counts, Lengths

MANY_PASSES = 5
"""Passes over the data above which a model mostly learns it by heart."""
BITS = 2
"""What a weight of an adapter can take in of text, at about a bit for each trained token ("LoRA Without Regret")."""
LARGEST_STEP = 32
"""Rows of a step above which LoRA learns badly ("LoRA Without Regret", Thinking Machines 2025)."""


class Plan(Struct, frozen=True, kw_only=True):
    """One run on counted data, as the run itself counts it."""

    rows: int
    """Samples that are trained: rows, and the pieces of long texts."""
    held_out: int
    """Samples that are held out, where they are taken from the same rows."""
    unusable: int
    """Rows that training refuses, or skips with ``skip_bad``."""
    left_out: int
    """Rows that are left out on purpose: answers labelled bad, reasoning traces of no use."""
    limit: LengthLimit
    schedule: Schedule
    chosen: RunConfig
    """The configuration with what rows, model and machine decide about."""
    reasons: dict[str, str]
    """Why the values are what they are that depend on the rows."""
    tokens: int
    """Of the whole run, trained or not."""
    trained_tokens: int
    one_label: bool | None = None
    """The label of all rows of feedback, where there is only one."""

    @property
    def passes(self) -> float:
        """How often each row is seen."""
        return self.schedule.steps * self.schedule.rows_per_step / max(1, self.rows)


def plan(
    config: RunConfig, counted: CountedLengths, model_dir: Path, batch_size: Callable[[RunConfig], int], most: int
) -> Plan | None:
    """The run that ``config`` makes of rows counted in tokens; ``None`` where nothing of them is trained.

    Args:
        model_dir: where the model's ``config.json`` is.
        batch_size: what ``auto`` becomes, of a configuration that says how long rows may be.
        most: tokens of a row that the machine takes, where the rows' lengths are to decide.
    """
    context = context_length(model_dir)
    by_length: dict[str, str] = {}
    if config.max_seq_length == "auto":
        length, by_length["max_seq_length"] = length_by_rows(config, counted, context, most)
        config = replace(config, max_seq_length=length)
    assert config.max_seq_length != "auto"
    longest = min(config.max_seq_length, context or config.max_seq_length)
    lengths, bad, left_out = _read(counted, config.samples, longest)
    samples = lengths.samples_at(longest)
    total = int(samples.sum())
    if not total:
        return None
    own_file = held_out_file(config.held_out) is not None
    out = held_out(np.repeat(counted.places[: lengths.rows], samples), "none" if own_file else config.held_out)
    rows = total - int(out.sum())
    batch = batch_size(config) if config.batch_size == "auto" else config.batch_size
    accumulation = config.gradient_accumulation or rules.accumulation(batch)
    known = replace(config, batch_size=batch, gradient_accumulation=accumulation)
    if config.mode != "full":
        known = replace(known, **rules.adapter(config))
    schedule = Schedule.of(known, rows)
    chosen, reasons = rules.for_rows(
        known, model_dir, rows=rows, held_out=total - rows, rows_per_step=schedule.rows_per_step, steps=schedule.steps
    )
    tokens, trained = counted.lengths.tokens_at(longest)
    all_samples = int(counted.lengths.samples_at(longest).sum())
    share = schedule.steps * schedule.rows_per_step / all_samples
    if not config.train_on_responses and METHODS[config.method].rows == "conversation":
        trained = tokens - all_samples
    labels = (
        {*counted.labels[: lengths.rows][samples > 0].tolist()} if METHODS[config.method].rows == "feedback" else ()
    )
    return Plan(
        rows=rows,
        held_out=total - rows,
        unusable=len(bad),
        left_out=len(left_out),
        limit=lengths.at(longest),
        schedule=schedule,
        chosen=chosen,
        reasons=by_length | reasons,
        tokens=round(share * tokens),
        trained_tokens=round(share * trained),
        one_label=bool(*labels) if len(labels) == 1 else None,
    )


def length_by_rows(config: RunConfig, counted: CountedLengths, context: int | None, most: int) -> tuple[int, str]:
    """Tokens of the longest row of a run whose ``max_seq_length`` is ``auto``, and why.

    Args:
        context: positions that the model was made for, where it says.
        most: as in ``plan``.
    """
    whole, _, _ = _read(counted, config.samples, context or max(1, counted.lengths.longest))
    p99, answers_fit = whole.percentile(0.99), whole.answers_fit
    length = rules.sequence_length(p99, answers_fit, min(most, context or most), traces=config.reasoning_trace)
    return length, rules.length_reason(p99, answers_fit, length, traces=config.reasoning_trace)


def _read(counted: CountedLengths, samples: int | None, longest: int) -> tuple[Lengths, Counts, Counts]:
    """The rows that a run reads at a limit, and the numbers of those that are bad and left out: no more than it
    wants."""
    lengths, bad, left_out = counted.lengths, counted.bad, counted.left_out
    usable = np.flatnonzero(lengths.samples_at(longest))
    if samples is not None and len(usable) > samples:
        last = int(usable[samples - 1])
        end = counted.numbers[last]
        lengths, bad, left_out = lengths.first(last + 1), bad[bad < end], left_out[left_out < end]
    return lengths, bad, left_out


def warnings(config: RunConfig, planned: Plan | None, trained_parameters: int = 0) -> list[str]:
    """What a person should know before the start, one sentence each.

    Args:
        trained_parameters: weights that the run trains; 0 where it is not known.
    """
    terms = terms_of(config.model)
    found = [terms] if terms else []
    if planned is None:
        return found
    limit, schedule = planned.limit, planned.schedule
    if (planned.unusable or limit.answer_lost) and not config.skip_bad:
        found.insert(
            0, f"{planned.unusable + limit.answer_lost:,} rows cannot be used: training stops there without skip_bad"
        )
    if planned.one_label is not None:
        found.append(one_label(planned.one_label).message)
    if limit.answer_lost:
        found.append(f"{limit.answer_lost:,} rows lose their answer at {limit.max_length:,} tokens")
    if limit.cut:
        found.append(f"{limit.cut:,} rows are cut at their beginning to {limit.max_length:,} tokens")
    if schedule.rows_per_step > LARGEST_STEP and config.mode != "full":
        found.append(f"{schedule.rows_per_step} rows a step: LoRA learns worse from more than {LARGEST_STEP}")
    once = planned.trained_tokens / max(1.0, planned.passes)
    if 0 < BITS * trained_parameters < once:
        found.append(
            f"{once:,.0f} trained tokens hold more than {trained_parameters:,} weights can take in: a higher rank"
        )
    if planned.passes > MANY_PASSES:
        found.append(f"each row is seen {planned.passes:.0f} times: it is learned by heart rather than from")
    found += [each.message for each in rules.without_effect(config, schedule.steps, planned.rows, planned.held_out)]
    if planned.passes < 1 and config.steps is not None:
        found.append(f"only {100 * planned.passes:.0f} % of the rows are seen in {schedule.steps} steps")
    return found
