"""What an engine does before its run is started: the run is the same to the last bit, or it takes nothing of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backprop.core.events import Evaluated, Event, Step
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.train import ahead, evaluate
from backprop.train import model as models
from backprop.train.persistence.resume import Beginning
from backprop.train.run import Run
from msgspec import to_builtins
from msgspec.structs import replace

Do = Callable[[RunConfig], list[Event]]


def go_on() -> bool:
    return False


@pytest.fixture(autouse=True)
def nothing_ready() -> Iterator[None]:
    ahead._ready.clear()
    yield
    ahead._ready.clear()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models that are loaded, in order."""
    loads, load = [], models.load

    def counted(config: RunConfig, path: Path, *others: Any) -> models.Loaded:
        loads.append(path)
        return load(config, path, *others)

    monkeypatch.setattr(models, "load", counted)
    return loads


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each pass over held-out ones, in order."""
    passes, batch_loss = [], evaluate.batch_loss

    def counted(loaded: models.Loaded, method: Any, batch: Any) -> Any:
        passes.append(batch.rows)
        return batch_loss(loaded, method, batch)

    monkeypatch.setattr(evaluate, "batch_loss", counted)
    return passes


@pytest.fixture
def evaluated(tiny_config: RunConfig) -> RunConfig:
    """A run with eight held-out rows in four passes; evaluated before it, and after its last step."""
    return replace(tiny_config, held_out="0.2", packing=False, eval_steps=4)


@pytest.fixture
def do(played: Any) -> Do:
    """A whole run in this process."""

    def run(config: RunConfig) -> list[Event]:
        events: list[Event] = []
        Run(Beginning(models.resolved(config)), RunDirectory.create(config), events.append, played()).run()
        return events

    return run


def stop_after(calls: int) -> Callable[[], bool]:
    """A look that finds something else asked for once it was called so often."""
    left = [calls]

    def look() -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise InterruptedError
        return False

    return look


MEASURED = {
    "time",
    "tokens_per_second",
    "step_seconds",
    "seconds",
    "eta_seconds",
    "duration_seconds",
    "seconds_blocked",
}
MEASURED |= {"memory", "output_path", "path", "cached"}


def told(events: list[Event]) -> list[dict[str, Any]]:
    """The events without what is measured, the run's own place, and whether its rows were tokenised before."""
    plain = [to_builtins(event) for event in events]
    return [{name: each[name] for name in each.keys() - MEASURED} for each in plain]


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_run_is_the_same_to_the_last_bit(tiny_config: RunConfig, do: Do, loads: list[Path], mode: str) -> None:
    config = replace(tiny_config, mode=mode, held_out="0.2", lora_dropout=0.1 if mode == "lora" else None)
    cold = do(config)
    ahead.get_ready(config, go_on)
    assert len(loads) == 2
    warm = do(config)
    assert len(loads) == 2, "it was loaded again"
    assert [event.loss for event in warm if isinstance(event, Step)]
    assert told(warm) == told(cold)


def test_the_rows_are_tokenised_ahead_too(tiny_config: RunConfig, do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead.get_ready(tiny_config, go_on)
    monkeypatch.setattr("backprop.data.preprocess._write_rows", None)
    assert len([event for event in do(tiny_config) if isinstance(event, Step)]) == 4


@pytest.mark.parametrize("change", [{"lora_r": 8}, {"seed": 7}, {"lora_dropout": 0.2}, {"samples": 20}])
def test_other_settings_load_anew(tiny_config: RunConfig, do: Do, loads: list[Path], change: dict[str, Any]) -> None:
    config = replace(tiny_config, **change)
    cold = do(config)
    ahead.get_ready(tiny_config, go_on)
    loads.clear()
    warm = do(config)
    assert len(loads) == 1
    assert [event.loss for event in warm if isinstance(event, Step)] == [
        event.loss for event in cold if isinstance(event, Step)
    ]
    assert not ahead._ready, "a model that nobody will take is kept in memory"


def test_a_run_of_another_name_and_place_takes_it(
    tiny_config: RunConfig, do: Do, loads: list[Path], tmp_path: Path
) -> None:
    ahead.get_ready(tiny_config, go_on)
    do(replace(tiny_config, run_name="other", output_dir=str(tmp_path / "elsewhere")))
    assert len(loads) == 1


def test_a_model_that_was_written_anew_is_loaded_anew(tiny_config: RunConfig, do: Do, loads: list[Path]) -> None:
    ahead.get_ready(tiny_config, go_on)
    weights = Path(tiny_config.model) / "model.safetensors"
    before = weights.stat()
    weights.write_bytes(weights.read_bytes())
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    do(tiny_config)
    assert len(loads) == 2


def test_the_same_is_not_loaded_twice_and_another_replaces_it(tiny_config: RunConfig, loads: list[Path]) -> None:
    for config in (tiny_config, replace(tiny_config, run_name="other"), replace(tiny_config, lora_r=8)):
        ahead.get_ready(config, go_on)
    assert len(loads) == 2
    assert len(ahead._ready) == 1


def test_nothing_is_loaded_where_it_does_not_fit_twice(
    tiny_config: RunConfig, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (Path(tiny_config.model) / "model.safetensors").stat().st_size
    monkeypatch.setattr(ahead, "_free_memory", lambda: 4 * size - 1)
    ahead.get_ready(tiny_config, go_on)
    assert not loads
    monkeypatch.setattr(ahead, "_free_memory", lambda: 4 * size)
    ahead.get_ready(tiny_config, go_on)
    assert len(loads) == 1


def test_nothing_is_done_ahead_on_a_card(
    tiny_config: RunConfig, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(models, "resolved", None)  # which would ask the card for its free memory
    ahead.get_ready(replace(tiny_config, backend="auto"), go_on)
    assert not loads


def test_nothing_is_fetched_ahead(tiny_config: RunConfig, loads: list[Path], hub: Any) -> None:
    ahead.get_ready(replace(tiny_config, model="owner/name"), go_on)
    ahead.get_ready(replace(tiny_config, data="owner/rows"), go_on)
    assert not loads
    assert not hub.asked


def test_it_stops_where_something_else_is_asked(tiny_config: RunConfig, loads: list[Path]) -> None:
    def look() -> bool:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        ahead.get_ready(tiny_config, look)
    assert not loads


@pytest.mark.parametrize("method", ["sft", "orpo"])
def test_the_base_answers_the_held_out_rows_ahead(
    evaluated: RunConfig, do: Do, passes: list[int], tmp_path: Path, method: str
) -> None:
    config = replace(evaluated, method=method)
    if method != "sft":
        rows = [{"prompt": f"{i}?", "chosen": f"yes, {i}", "rejected": f"no, not {i} at all"} for i in range(40)]
        config = replace(config, data=str(tmp_path / "pairs.jsonl"))
        Path(config.data).write_text("".join(json.dumps(row) + "\n" for row in rows))
    cold = do(config)
    assert len(passes) > 4, "there is nothing to do in several passes"
    half = len(passes) // 2  # once the untouched model, once the result
    passes.clear()
    ahead.get_ready(config, go_on)
    assert len(passes) == half
    passes.clear()
    warm = do(config)
    assert len(passes) == half, "the untouched model was asked again"
    assert told(warm) == told(cold)


def test_a_start_in_the_middle_goes_on_from_there(evaluated: RunConfig, do: Do, passes: list[int]) -> None:
    cold = do(evaluated)
    looks = len(passes) // 2
    passes.clear()
    ahead.get_ready(evaluated, go_on)  # tokenised, so that there is one look before loading and one for each pass
    ahead._ready.clear()
    passes.clear()
    with pytest.raises(InterruptedError):
        ahead.get_ready(evaluated, stop_after(1 + 1))
    assert len(passes) == 1
    with pytest.raises(InterruptedError):
        ahead.get_ready(replace(evaluated, run_name="other"), stop_after(1))
    assert len(passes) == 2
    warm = do(evaluated)
    assert len(passes) == 2 * looks
    assert told(warm) == told(cold)


def test_rows_that_were_edited_since_are_answered_anew(
    evaluated: RunConfig, do: Do, passes: list[int], tmp_path: Path
) -> None:
    held_out = tmp_path / "held-out.jsonl"
    lines = Path(evaluated.data).read_text().splitlines(keepends=True)
    held_out.write_text("".join(lines[:8]))
    config = replace(evaluated, held_out=str(held_out))
    ahead.get_ready(config, go_on)
    ahead_of = len(passes)
    passes.clear()
    held_out.write_text("".join([*lines[:7], lines[7].replace("heron", "crane").replace("7:", "8:")]))
    warm = do(config)
    assert len(passes) == 2 * ahead_of
    ahead._ready.clear()
    assert told(warm) == told(do(config))


def test_answering_ahead_has_an_end(evaluated: RunConfig, do: Do, passes: list[int], monkeypatch: Any) -> None:
    cold = do(evaluated)
    passes.clear()
    monkeypatch.setattr(ahead, "_SCORING", -1.0)
    ahead.get_ready(evaluated, go_on)
    assert not passes
    assert told(do(evaluated)) == told(cold)


def test_what_was_answered_ahead_counts_with_its_time(evaluated: RunConfig, do: Do) -> None:
    ahead.get_ready(evaluated, go_on)
    (ready,) = ahead._ready
    took = sum(seconds for _, seconds in ready.loaded.base_scores.values())
    base = next(event for event in do(evaluated) if isinstance(event, Evaluated) and event.base)
    assert base.seconds > took > 0


def test_where_it_is_left_out_nothing_is_answered(evaluated: RunConfig, passes: list[int]) -> None:
    ahead.get_ready(replace(evaluated, eval_base=False), go_on)
    assert not passes


def test_nothing_is_done_ahead_with_mlx(
    tiny_config: RunConfig, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "resolved", lambda config: replace(config, backend="mlx"))  # as on Apple Silicon
    monkeypatch.setattr(ahead, "prepare_run", None)
    ahead.get_ready(replace(tiny_config, backend="auto"), go_on)
    assert not loads
