"""What the untouched model makes of the rows: asked once, kept, and nobody else's answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backprop.core.errors import GPUMemoryError
from backprop.core.settings import RunConfig
from backprop.train import model as models
from backprop.train import reference
from backprop.train.dataset import Subset
from backprop.train.packing import Batching
from backprop.train.reference import ReferencedRows, Scorer, fingerprint, name_of
from compared_rows import ComparedRows, trained_model
from msgspec.structs import replace
from pinned_machine import within


@pytest.fixture
def config(tiny_config: RunConfig) -> RunConfig:
    return models.resolved(replace(tiny_config, batch_size=4))


@pytest.fixture
def loaded(config: RunConfig) -> models.Loaded:
    return trained_model(config)


def subset(folder: Path, *, pairs: bool = True, count: int = 12) -> Subset:
    return Subset(ComparedRows(folder, pairs=pairs, count=count), range(count))  # type: ignore[arg-type]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sequences of each pass from here on."""
    passes: list[int] = []
    plain = reference.sequence_logps

    def logps(model: Any, batch: Any, *, plain_head: bool) -> torch.Tensor:
        passes.append(batch.rows)
        return plain(model, batch, plain_head=plain_head)

    monkeypatch.setattr(reference, "sequence_logps", logps)
    return passes


@pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "judged rows"])
def test_the_values_are_those_of_the_model_without_what_was_trained(
    pairs: bool, loaded: models.Loaded, config: RunConfig, tmp_path: Path
) -> None:
    untouched = models.load_base(loaded.path, loaded.device, loaded.dtype).eval()
    rows = Scorer(loaded, config, "key").attach(subset(tmp_path, pairs=pairs), range(12), 12)
    assert rows is not None

    for i in range(12):
        found = []
        for ids, mask in rows.scored(i):
            tokens = torch.from_numpy(ids).long()
            with torch.no_grad():
                logits = untouched(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
            found.append(float(logits[torch.arange(len(tokens) - 1), tokens[1:]][torch.from_numpy(mask[1:])].sum()))
        assert rows.row(i).reference.tolist() == pytest.approx(found, rel=within(1e-5, bf16=2e-2))
    assert any(each.requires_grad for each in loaded.model.parameters())


def test_a_judged_row_is_held_against_another_rows_answer_to_its_own_prompt(tmp_path: Path) -> None:
    judged = subset(tmp_path, pairs=False)
    rows = ReferencedRows(judged, np.zeros((12, 2)))
    for i in range(12):
        (own, own_mask), (far, far_mask) = judged.row(i).row, judged.row((i + 6) % 12).row
        other = rows.row(i).other
        assert other is not None
        ids, mask = other
        assert ids[mask].tolist() == far[far_mask].tolist()
        assert own[~own_mask].tolist()[-len(ids[~mask]) :] == ids[~mask].tolist()
        assert len(ids) <= judged.lengths.max()


def test_it_is_asked_once_for_each_piece_and_only_for_those_that_are_taken(
    loaded: models.Loaded, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "PIECE", 2)
    passes, order = counted(monkeypatch), [7, 2, 5, 0, 1, 3, 4, 6, 8, 9, 10, 11]

    def asked(model: str, count: int, settings: RunConfig = config) -> tuple[int, ReferencedRows]:
        passes.clear()
        rows = Scorer(loaded, settings, model).attach(subset(tmp_path), order, count)
        assert rows is not None
        return sum(passes), rows

    first, rows = asked("a model", 3)
    again, same = asked("a model", 3)
    assert (first, again) == (8, 0)
    assert fingerprint(rows, order, 3) == fingerprint(same, order, 3)
    assert asked("a model", 6)[0] == 4
    assert asked("another model", 3)[0] == 8
    # Other rows would share their passes, which reaches the last bits.
    assert asked("a model", 3, replace(config, packing=False))[0] == 8


def test_an_interruption_loses_no_finished_piece_and_changes_no_value(
    loaded: models.Loaded, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "PIECE", 4)
    (tmp_path / "whole").mkdir()
    whole = Scorer(loaded, config, "key").attach(subset(tmp_path / "whole"), range(12), 12)
    passes = counted(monkeypatch)

    assert Scorer(loaded, config, "key", look=lambda: len(passes) > 1).attach(subset(tmp_path), range(12), 12) is None
    assert 0 < sum(passes) < 24
    rest = Scorer(loaded, config, "key").attach(subset(tmp_path), range(12), 12)

    assert whole is not None
    assert rest is not None
    assert fingerprint(rest, range(12), 12) == fingerprint(whole, range(12), 12)


def test_out_of_memory_makes_passes_smaller_and_says_so(
    loaded: models.Loaded, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, room = reference.sequence_logps, [60]

    def logps(model: Any, batch: Any, *, plain_head: bool) -> torch.Tensor:
        if batch.input_ids.numel() > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(model, batch, plain_head=plain_head)

    monkeypatch.setattr(reference, "sequence_logps", logps)
    told: list[Batching] = []
    scorer = Scorer(loaded, config, "key", on_halved=lambda batching, error: told.append(batching))
    rows = scorer.attach(subset(tmp_path), range(12), 12)
    assert rows is not None
    assert told
    assert not np.isnan(rows.values).any()

    room[0] = 0
    with pytest.raises(GPUMemoryError):
        Scorer(loaded, config, "another").attach(subset(tmp_path), range(12), 12)


def test_model_precision_and_mode_have_values_of_their_own(loaded: models.Loaded, config: RunConfig) -> None:
    weights = {"model.safetensors": "a", "tokenizer.json": "t"}
    keys = {
        name_of(loaded, config, weights),
        name_of(loaded, config, {**weights, "model.safetensors": "b"}),
        name_of(models.Loaded(**{**vars(loaded), "dtype": torch.float16}), config, weights),
    }
    assert len(keys) == 3
    assert name_of(loaded, config, {**weights, "tokenizer.json": "other"}) in keys


def test_a_damaged_file_is_asked_for_again(loaded: models.Loaded, config: RunConfig, tmp_path: Path) -> None:
    rows = Scorer(loaded, config, "key").attach(subset(tmp_path), range(12), 12)
    (file,) = tmp_path.glob("reference-*")
    file.write_bytes(file.read_bytes()[:-3])
    again = Scorer(loaded, config, "key").attach(subset(tmp_path), range(12), 12)
    assert rows is not None
    assert again is not None
    assert fingerprint(again, range(12), 12) == fingerprint(rows, range(12), 12)
