"""A written model beside the trained one: both are loaded, and asked the same."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backprop.core.jobs import Check
from backprop.export.sharded import Progress
from backprop.export.source import Source
from backprop.train.generate import load_model

if TYPE_CHECKING:
    import torch

QUESTIONS = ("How do I make a cup of tea?", "Why is the sky blue?", "Write one sentence about the sea.", "12 * 7 =")
"""Asked where a run has no sample prompts of its own, and after these."""
KL_MOST = 0.02
"""Mean divergence, in nats, up to which a merged model passes for the trained one: rounding to 16 bits stays below."""


def compare_models(source: Source, folder: Path, found: Check, progress: Progress) -> Check:
    """``found`` with the next-token distributions of the model in ``folder`` beside those of base and adapter together.

    Every position of the prompts counts. One model is in memory at a time.
    """
    prompts = rendered_prompts(source)
    progress("asking the trained model", 0, 3)
    model = load_trained(source)
    trained = distributions(model, prompts)
    with model.disable_adapter() if source.adapter is not None else nullcontext():
        base = distributions(model, prompts)
    del model
    progress("asking what was written", 1, 3)
    written = distributions(load_model(folder, None, source.backend, source.trust_remote_code), prompts)
    progress("comparing", 2, 3)
    kl, top1, most = difference(trained, written)
    apart, _, _ = difference(trained, base)
    found.kl, found.top1 = kl, top1
    return found.add(
        "logits",
        kl <= KL_MOST,
        f"{sum(len(each) for each in trained)} positions of {len(prompts)} prompts: divergence {kl:.2g} nats "
        f"(base and trained model are {apart:.2g} apart), same most likely token at {top1:.1%}, largest difference "
        f"of a logit {most:.2g}",
    )


def rendered_prompts(source: Source) -> list[list[int]]:
    """The prompts to compare on, as token ids."""
    asked = list(dict.fromkeys([*source.prompts, *QUESTIONS]))
    render = source.chat.template.render
    texts = asked if source.on_texts else [render([{"role": "user", "content": each}], prompt=True) for each in asked]
    return [encoded.ids for encoded in source.chat.encode(texts, special=source.on_texts)]


def load_trained(source: Source) -> Any:
    """The base model with the adapter on it, as it was trained: in 4 bits where it was.

    Raises:
        MissingDependencyError: 4 bits need a library.
        CheckpointError: the adapter cannot be read.
        ModelLoadError: the base model cannot be loaded.
    """
    adapter = source.adapter.folder if source.adapter else None
    return load_model(source.base, adapter, source.backend, source.trust_remote_code, nf4=source.nf4)


def distributions(model: Any, prompts: list[list[int]]) -> list[torch.Tensor]:
    """The logits at every position of each prompt, in float32 on the CPU."""
    import torch

    from backprop.train.model import evaluating

    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        return [model(torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in prompts]


def difference(trained: list[torch.Tensor], other: list[torch.Tensor]) -> tuple[float, float, float]:
    """Mean divergence from the trained model in nats, share of the same most likely token, largest difference."""
    import torch

    a, b = torch.cat(trained), torch.cat(other)
    kl = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="batchmean")
    return float(kl), float((a.argmax(-1) == b.argmax(-1)).float().mean()), float((a - b).abs().max())
