"""The preference losses beside TRL's: equal values and equal gradients on the same batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.train import model as models
from backprop.train.trainer import StepLoop
from compared_rows import ComparedRows, method_on, trained_model
from datasets import Dataset
from msgspec.structs import replace
from pinned_machine import within
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

COUNT = 6
PLAIN: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": COUNT,
}
PAIRS = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}
JUDGED = {"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]}


@pytest.fixture
def config(tiny_config: RunConfig) -> RunConfig:
    return models.resolved(
        replace(tiny_config, lora_dropout=0.0, batch_size=COUNT, gradient_accumulation=1, simpo_gamma=0.7)
    )


def trainer_of(name: str, loaded: models.Loaded, config: RunConfig, out: Path) -> Any:
    """TRL's trainer with the same settings; the rows that it is made with are none that are compared."""
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "dpo": (DPOTrainer, DPOConfig, {"beta": config.dpo_beta}),
        "kto": (
            KTOTrainer,
            KTOConfig,
            {"beta": config.kto_beta, "undesirable_weight": 1.5, "train_sampling_strategy": "sequential"},
        ),
        "orpo": (ORPOTrainer, ORPOConfig, {"beta": config.orpo_beta}),
        "simpo": (
            CPOTrainer,
            CPOConfig,
            {
                "beta": config.simpo_beta,
                "loss_type": "simpo",
                "cpo_alpha": 0.0,
                "simpo_gamma": config.simpo_gamma,
            },
        ),
    }
    kind, settings, more = kinds[name]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=loaded.chat.tokenizer, pad_token="<pad>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    rows = Dataset.from_dict(JUDGED if name == "kto" else PAIRS)
    arguments = settings(output_dir=str(out), max_length=512, **PLAIN, **more)
    return kind(model=loaded.model, args=arguments, train_dataset=rows, processing_class=tokenizer)


def labels(sequence: Any) -> torch.Tensor:
    ids, mask = (torch.from_numpy(each) for each in sequence)
    return torch.where(mask, ids.long(), -100)


def split(sequence: Any) -> tuple[list[int], list[int]]:
    ids, mask = sequence
    return ids[~mask].tolist(), ids[mask].tolist()


def their_loss(name: str, trainer: Any, rows: list[Any]) -> torch.Tensor:
    if name in ("orpo", "simpo"):
        # ORPO's likelihood is a mean over the tokens of a batch: with one pair each it is ours.
        sizes = [[row] for row in rows] if name == "orpo" else [rows]
        found = []
        for some in sizes:
            batch = {}
            for side in ("chosen", "rejected"):
                sequences = [getattr(row, side) for row in some]
                ids = [torch.from_numpy(each).long() for each, _ in sequences]
                batch[f"{side}_input_ids"] = pad_sequence(ids, batch_first=True)
                ones = [torch.ones_like(each) for each in ids]
                batch[f"{side}_attention_mask"] = pad_sequence(ones, batch_first=True)
                batch[f"{side}_labels"] = pad_sequence([labels(each) for each in sequences], True, -100)
            found.append(trainer.get_batch_loss_metrics(trainer.model, batch)[0])
        return torch.stack(found).mean()
    trainer.precompute_ref_logps = True
    if name == "dpo":
        examples = [
            {
                "prompt_ids": split(row.chosen)[0],
                "chosen_ids": split(row.chosen)[1],
                "rejected_ids": split(row.rejected)[1],
                "ref_chosen_logps": float(reference[0]),
                "ref_rejected_logps": float(reference[1]),
            }
            for row, reference, _ in rows
        ]
    else:
        examples = [
            {
                "prompt_ids": split(row.row)[0],
                "completion_ids": split(row.row)[1],
                "KL_completion_ids": split(other)[1],
                "label": row.good,
                "ref_logps": float(reference[0]),
                "ref_KL_logps": float(reference[1]),
            }
            for row, reference, other in rows
        ]
    found = trainer.compute_loss(trainer.model, trainer.data_collator(examples))
    assert isinstance(found, torch.Tensor)
    return found


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


@pytest.mark.parametrize("name", ["dpo", "orpo", "simpo", "kto"])
def test_loss_and_gradient_are_those_of_trl(name: str, config: RunConfig, tmp_path: Path) -> None:
    loaded, other = trained_model(config), trained_model(config)
    # TRL's ORPO learns prompts as well: one token, which nothing predicts, is no prompt to learn.
    prompt = 1 if name == "orpo" else None
    method, rows = method_on(name, loaded, config, tmp_path, count=COUNT, prompt=prompt)
    if name == "kto":
        method.weights = (1.0, 1.5)  # type: ignore[attr-defined]
    subset: Any = ComparedRows(tmp_path, pairs=name != "kto", count=COUNT)
    loop = StepLoop(loaded, method, config, subset, Schedule.of(config, COUNT))
    loop.gradient(rows)

    trainer = trainer_of(name, other, config, tmp_path / "trl")
    trainer.model.train()
    loss = their_loss(name, trainer, rows)
    loss.backward()

    tolerance = within(1e-5, bf16=2e-2)
    assert loop.metrics.loss == pytest.approx(float(loss.detach()), rel=tolerance)
    theirs = gradient(trainer.model)
    assert float(theirs.abs().max()) > 1e-3
    assert float((gradient(loaded.model) - theirs).abs().max()) < tolerance * float(theirs.abs().max())
    if name == "kto":
        assert loop.metrics.by_name["kl"] > 0.01
        assert loop.metrics.by_name["kl"] == pytest.approx(
            trainer._metrics["train"]["kl"][0], rel=within(1e-4, bf16=5e-2)
        )
