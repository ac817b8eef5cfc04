"""The run as it is known before its start: Configure and the dry run give the numbers that the run has."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backprop.core import rules
from backprop.core.errors import DatasetError
from backprop.core.events import LEFT_OUT, SettingsChosen
from backprop.core.events import Warning as Said
from backprop.core.jobs import RunPlan
from backprop.core.methods import METHODS
from backprop.core.settings import RunConfig
from backprop.data.formats import file_format
from backprop.data.plan import plan, warnings
from backprop.data.reader import open_source
from backprop.data.tokenizer import ChatTokenizer
from backprop.data.truncate import CountedLengths, count_lengths
from backprop.hardware.fit import first_batch_size
from backprop.train.jobs import preflight
from msgspec.structs import replace
from runs_in_process import of, train

_OF_THE_MACHINE = dict.fromkeys(("mode", "backend", "gradient_checkpointing"))


def rows_of_every_kind(path: Path) -> Path:
    """Answers short and long, long texts, rows that say the same, broken ones, and answers that are labelled bad."""
    rows: list[Any] = [{"instruction": f"Say {i}", "output": f"{i} " * (1 + i % 30)} for i in range(150)]
    rows += [{"text": f"{i} went on " * (5 * i % 80 + 1)} for i in range(60)]
    rows += [{"instruction": f"Say {i % 7}", "output": "the same"} for i in range(40)]
    rows += [{"prompt": f"Judge {i}", "completion": "so", "label": i % 2 == 0} for i in range(30)]
    rows += [{"prompt": f"Choose {i} " * i, "chosen": "so " * (1 + i % 9), "rejected": "no " * 9} for i in range(40)]
    rows += [{"prompt": f"Think {i}", "completion": f"<think>{'so ' * 7 * (i % 4)}</think>so"} for i in range(20)]
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
        rows=METHODS[config.method].rows,
        everything=not config.train_on_responses,
        traces=config.reasoning_trace,
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
        {"max_seq_length": "auto"},
        {"max_seq_length": "auto", "samples": 120},
        {"max_seq_length": 4096, "train_on_responses": False},
        {"max_seq_length": "auto", "batch_size": "auto"},
        {"samples": 20, "max_seq_length": "auto", "batch_size": "auto", "gradient_accumulation": 4},
        {"max_seq_length": 64, "batch_size": "auto", "gradient_accumulation": 4},
        {"steps": 2, "held_out": "0.5", "eval_steps": "auto"},
        {"method": "dpo", "max_seq_length": 128},
        {"method": "simpo", "max_seq_length": "auto", "batch_size": "auto"},
        {"method": "kto", "held_out": "0.3", "train_on_responses": False},
        {"reasoning_trace": True, "max_seq_length": "auto", "batch_size": "auto"},
        {"reasoning_trace": True, "samples": 320, "max_seq_length": 64},
    ],
)
def test_the_screen_and_the_dry_run_count_what_the_run_counts(
    chosen: dict[str, Any], tiny_config: RunConfig, tmp_path: Path
) -> None:
    data = str(rows_of_every_kind(tmp_path / "rows.jsonl"))
    config = replace(tiny_config, data=data, **{"batch_size": 2, "skip_bad": True, "packing": False, **chosen})
    sent: list[Any] = []
    preflight.plan(config, sent.append)
    run = next(each for each in sent if isinstance(each, RunPlan))
    most = rules.usual_length(traces=config.reasoning_trace)
    known = plan(config, counted(config), Path(config.model), partial(first_batch_size, free=0), most)
    assert known is not None
    assert (known.rows, known.held_out) == (run.rows, run.held_out)
    assert (known.schedule.steps, known.schedule.rows_per_step) == (run.steps, run.rows_per_step)
    assert {**msgspec.to_builtins(known.chosen), **_OF_THE_MACHINE} == {**run.config, **_OF_THE_MACHINE}
    assert run.config["gradient_accumulation"] == (config.gradient_accumulation or 16 // run.config["batch_size"])
    if "steps" in chosen:
        assert any("held-out rows: all of them are more than the run's 2 steps train" in note for note in run.notes)
    assert known.unusable + known.limit.answer_lost == run.data.unusable
    assert known.left_out == sum(run.data.problem_counts.get(code, 0) for code in LEFT_OUT)
    assert known.limit == run.data.limits[0]
    seen = known.schedule.steps * known.schedule.rows_per_step / (run.rows + run.held_out)
    if "samples" not in chosen:
        assert known.tokens == round(seen * run.data.tokens)
        assert known.trained_tokens == round(seen * run.data.trained_tokens)


def test_a_run_evaluates_when_the_dry_run_says_so(tiny_config: RunConfig, tmp_path: Path) -> None:
    data, others = tmp_path / "rows.jsonl", tmp_path / "others.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"{i}?", "output": "so"}) + "\n" for i in range(40)))
    others.write_text("".join(json.dumps({"instruction": f"{i} " * 100, "output": "so"}) + "\n" for i in range(10)))
    config = replace(tiny_config, data=str(data), held_out=str(others), steps=12, eval_steps="auto", max_seq_length=512)
    sent: list[Any] = []
    preflight.plan(config, sent.append)
    (planned,) = [each for each in sent if isinstance(each, RunPlan)]
    happened, _ = train(config, [])
    (chosen,) = of(happened, SettingsChosen)
    (said,) = [each.message for each in of(happened, Said) if each.code == "HELD_OUT_IN_PART"]
    assert chosen.values == {name: planned.config[name] for name in chosen.values}
    assert "eval_steps" in chosen.values
    assert said in planned.notes


@pytest.mark.parametrize(
    ("method", "row", "why", "hint"),
    [
        (
            "dpo",
            {"prompt": "Who?", "completion": "I."},
            "line 3: no rejected side: the method learns from pairs",
            "sft",
        ),
        ("orpo", {"prompt": "Who?", "completion": "I.", "label": False}, "line 3: no rejected side", "kto"),
        ("kto", {"prompt": "Who?", "chosen": "I.", "rejected": "You."}, "line 3: no label: the method learns", "dpo"),
    ],
)
@pytest.mark.parametrize("fitting", [0, 2])
def test_a_method_refuses_rows_it_cannot_learn_from_before_the_model_is_loaded(
    *, method: str, row: dict[str, Any], why: str, hint: str, fitting: int, tiny_config: RunConfig, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    good = {"chosen": "a", "rejected": "b"} if method != "kto" else {"completion": "a", "label": True}
    rows = [{"prompt": f"{i}?", **good} for i in range(fitting)] + [row] * 3
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(DatasetError) as refused:
        preflight.plan(replace(tiny_config, data=str(path), method=method), lambda message: None)
    assert refused.value.exit_code == 1
    assert refused.value.code == ("DATASET_ROWS_UNUSABLE" if fitting else "DATASET_NOTHING_TO_TRAIN")
    assert why.replace("line 3", f"line {fitting + 1}") in refused.value.message
    assert f"--method {hint}" in refused.value.hint


def test_feedback_of_one_kind_is_said_before_the_run_on_the_screen_and_in_it(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{i}?", "completion": "so", "label": True} for i in range(40)]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    config = replace(tiny_config, data=str(path), method="kto")
    sent: list[Any] = []
    preflight.plan(config, sent.append)
    known = plan(config, counted(config), Path(config.model), partial(first_batch_size, free=0), 2048)
    said = {note for note in sent[-1].notes if "every label is true" in note}
    assert len(said) == 1
    assert said <= {*warnings(config, known)}
