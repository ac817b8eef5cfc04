"""The run as it is known before its start: Configure and the dry run give the numbers that the run has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backprop.core.jobs import RunPlan
from backprop.core.settings import RunConfig
from backprop.data.formats import file_format
from backprop.data.plan import plan
from backprop.data.reader import open_source
from backprop.data.tokenizer import ChatTokenizer
from backprop.data.truncate import CountedLengths, count_lengths
from backprop.train import preflight
from msgspec.structs import replace


def rows_of_every_kind(path: Path) -> Path:
    """Answers short and long, long texts, rows that say the same, broken ones, and answers that are labelled bad."""
    rows: list[Any] = [{"instruction": f"Say {i}", "output": f"{i} " * (1 + i % 30)} for i in range(150)]
    rows += [{"text": f"{i} went on " * (5 * i % 80 + 1)} for i in range(60)]
    rows += [{"instruction": f"Say {i % 7}", "output": "the same"} for i in range(40)]
    rows += [{"prompt": f"Judge {i}", "completion": "so", "label": i % 2 == 0} for i in range(30)]
    rows[20:20] = [{"instruction": "no answer"}, {"instruction": "empty", "output": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def counted(config: RunConfig) -> CountedLengths:
    with open_source(config.data) as source:
        file = file_format(source, config.mapping)
    return count_lengths(
        config.data,
        file,
        ChatTokenizer.load(config.model),
        everything=not config.train_on_responses,
        seed=config.seed,
        progress=lambda done, total: None,
        cancelled=lambda: False,
        so_far=lambda counts: None,
    )


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"held_out": "none", "max_seq_length": 40},
        {"held_out": "0.3", "seed": 7, "max_seq_length": 64},
        {"samples": 100},
        {"samples": 200, "max_seq_length": 50, "held_out": "0.9"},
        {"samples": 5_000},
        {"max_seq_length": 4096, "train_on_responses": False},
    ],
)
def test_the_screen_and_the_dry_run_count_what_the_run_counts(
    chosen: dict[str, Any], tiny_config: RunConfig, tmp_path: Path
) -> None:
    data = str(rows_of_every_kind(tmp_path / "rows.jsonl"))
    config = replace(tiny_config, data=data, batch_size=2, skip_bad=True, packing=False, **chosen)
    sent: list[Any] = []
    preflight.plan(config, sent.append)
    run = next(each for each in sent if isinstance(each, RunPlan))
    known = plan(config, counted(config), Path(config.model), lambda _: 2, 2048)
    assert known is not None
    assert (known.rows, known.held_out) == (run.rows, run.held_out)
    assert (known.schedule.steps, known.schedule.rows_per_step) == (run.steps, run.rows_per_step)
    assert known.unusable + known.limit.answer_lost == run.data.unusable
    assert known.limit == run.data.limits[0]
    seen = known.schedule.steps * known.schedule.rows_per_step / (run.rows + run.held_out)
    if "samples" not in chosen:
        assert known.tokens == round(seen * run.data.tokens)
        assert known.trained_tokens == round(seen * run.data.trained_tokens)
