"""MLX computes, everything else stays: a model whose adapters are torch's and PEFT's, and whose passes are mlx_lm's.

The trained weights are the parameters of PEFT's layers, on a torch model without weights. Before a pass they are put
into mlx_lm's LoRA layers, and its gradients are given back to torch. So optimizer, schedule, checkpoints, resume and
the result's files are those of every other run. (https://github.com/ml-explore/mlx-lm)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from backprop.core.architecture import for_older_readers
from backprop.core.errors import ModelLoadError, some
from backprop.core.models import settings_of
from backprop.core.settings import RunConfig
from backprop.train.checkpoint import seed_random, trained_parameters
from backprop.train.packing import MicroBatch


def is_installed() -> bool:
    """Whether mlx_lm can be imported."""
    return find_spec("mlx") is not None and find_spec("mlx_lm") is not None


def choose_dtype() -> torch.dtype:
    """bf16 on Apple's GPU, float32 where MLX computes on a CPU."""
    import mlx.core as mx

    return torch.bfloat16 if mx.metal.is_available() else torch.float32


def shell(path: Path) -> Any:
    """The torch model in ``path`` without its weights (on the meta device): its layers and their names."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)


class MlxModel(torch.nn.Module):
    """Answers to what the engine asks of a model; its only parameters are the adapters', by PEFT's names.

    Args:
        adapted: PEFT's model on a ``shell``.
        dtype: of the frozen weights.

    Raises:
        ModelLoadError: mlx_lm does not know the architecture, or calls its layers otherwise.
    """

    _adapted: Any
    base_model_prefix = ""
    """There is no decoder that could be asked alone."""

    def __init__(self, adapted: Any, path: Path, config: RunConfig, dtype: torch.dtype) -> None:
        import mlx.core as mx
        from mlx.utils import tree_flatten, tree_unflatten
        from mlx_lm.tuner.lora import LoRALinear
        from mlx_lm.utils import load_model

        super().__init__()
        self.__dict__["_adapted"] = adapted  # no part of this module: its base has no weights
        self.config, self.peft_config, self._dtype = adapted.config, adapted.peft_config, dtype
        if settings_of(path).keys() & {"quantization", "quantization_config"}:
            raise ModelLoadError(
                f"the weights in {path} are quantised already",
                hint="name the model that it was made from, in 16 or 32 bits",
            )
        # Most of mlx_lm's models take 10000 for the base of the rotations where it stands as transformers 5 writes it.
        rope = {name: value for name, value in for_older_readers(self.config.to_dict()).items() if "rope_" in name}
        try:
            self._lm, _ = load_model(path, model_config=rope)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ModelLoadError(
                f"mlx_lm cannot load the model in {path}: {error}", hint="--backend cpu trains it without MLX"
            ) from error
        self._lm.set_dtype(mx.bfloat16 if dtype == torch.bfloat16 else mx.float32)
        self._lm.freeze()
        self.frozen = sum(weight.size for _, weight in tree_flatten(self._lm.parameters()))
        self._layers = {
            name.removeprefix("base_model.model."): module
            for name, module in adapted.named_modules()
            if hasattr(module, "lora_A") and module.lora_A
        }
        here = dict(self._lm.named_modules())
        if missing := [name for name in self._layers if name not in here]:
            raise ModelLoadError(
                f"mlx_lm calls layers of the model in {path} otherwise: it has no {some(missing)}",
                hint="--backend cpu trains it without MLX",
            )
        seed_random(config.seed)
        start = "gaussian" if config.init_lora_weights == "gaussian" else True
        made = []
        for name, module in self._layers.items():
            for part in (module.lora_A, module.lora_B):
                part.to_empty(device="cpu")
            module.reset_lora_parameters("default", start)
            rank, scale = module.r["default"], module.scaling["default"]
            dropout = config.lora_dropout or 0.0
            made.append((name, LoRALinear.from_base(here[name], r=rank, dropout=dropout, scale=scale)))
        self._lm.update_modules(tree_unflatten(made))
        self._made = dict(made)
        self._scales = {name: layer.scale for name, layer in made}
        self._dropout = bool(config.lora_dropout)
        self.device_name = f"mlx ({mx.default_device().type.name})"

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return iter(trained_parameters(self._adapted).items())

    def train(self, mode: bool = True) -> MlxModel:
        self._lm.train(mode)
        return super().train(mode)

    def save_pretrained(self, target: Path, **options: Any) -> None:
        """The adapters as PEFT's files."""
        self._adapted.save_pretrained(target, **options)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the model answers without its adapters."""
        for layer in self._made.values():
            layer.scale = 0.0
        try:
            yield
        finally:
            for name, layer in self._made.items():
                layer.scale = self._scales[name]

    def gradient_checkpointing_enable(self, *_: Any) -> None:
        """Compute activations again in the backward pass: set for all layers of their kind, once in a process."""
        from mlx_lm.tuner.trainer import grad_checkpoint

        layer = self._lm.layers[0]
        if type(layer).__call__.__name__ != "checkpointed_fn":
            grad_checkpoint(layer)

    def get_input_embeddings(self) -> Any:
        """Something whose ``weight`` has the embedding's shape, and its rows where they are asked for."""
        embedding = next(each for name, each in self._lm.named_modules() if name.endswith(("embed_tokens", "wte")))
        rows = SimpleNamespace(shape=embedding.weight.shape)
        rows.detach = lambda: _Rows(embedding)
        return SimpleNamespace(weight=rows)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        """Logits ([batch, length, vocabulary]). Rows begin at position 0: packed ones would be mixed."""
        self._hand_over()
        return SimpleNamespace(logits=_to_torch(self._lm(_to_mlx(input_ids))).to(self._dtype))

    def losses(self, batch: MicroBatch, reduction: str) -> torch.Tensor:
        """As ``loss.summed_loss`` (``sum``), or that of each token (``none``); a sum can be differentiated."""
        self._hand_over()
        if reduction == "sum" and torch.is_grad_enabled():
            total: torch.Tensor = _Sum.apply(self, batch, *self.parameters())
            return total
        found = _to_torch(self._token_losses(batch))
        return found.sum() if reduction == "sum" else found

    def _token_losses(self, batch: MicroBatch) -> Any:
        import mlx.core as mx
        from mlx import nn

        logits = self._lm(_to_mlx(batch.input_ids))
        chosen = logits.reshape(-1, logits.shape[-1])[_to_mlx(batch.predict_at)]
        return nn.losses.cross_entropy(chosen.astype(mx.float32), _to_mlx(batch.targets), reduction="none")

    def sum_and_gradients(self, batch: MicroBatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The summed loss, and its gradients in the order of the parameters."""
        from mlx import nn
        from mlx.utils import tree_flatten

        if self._dropout:
            self._seed_dropout()
        loss, tree = nn.value_and_grad(self._lm, lambda: self._token_losses(batch).sum())()
        found = dict(tree_flatten(tree))
        gradients = []
        for name in trained_parameters(self._adapted):
            path, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
            gradients.append(_to_torch(found[f"{path}.lora_{part[0].lower()}"].T))
        return _to_torch(loss), gradients

    def _hand_over(self) -> None:
        """Put the adapters as they are now into MLX's layers."""
        for name, module in self._layers.items():
            layer = self._made[name]
            layer.lora_a = _to_mlx(module.lora_A["default"].weight.detach().T)
            layer.lora_b = _to_mlx(module.lora_B["default"].weight.detach().T)

    def _seed_dropout(self) -> None:
        """From torch's generator, whose state is in checkpoints."""
        import mlx.core as mx

        mx.random.seed(int(torch.randint(2**31, ())))

    def generate(
        self,
        input_ids: torch.Tensor,
        *,
        max_new_tokens: int,
        eos_token_id: list[int] | None,
        streamer: Any = None,
        stopping_criteria: list[Callable[..., torch.Tensor]] | None = None,
        do_sample: bool = False,
        temperature: float = 0.0,
        top_p: float = 0.0,
        **_: Any,
    ) -> torch.Tensor:
        """As transformers' ``generate`` for one row, with what ``train.generate`` gives it."""
        from mlx_lm.generate import generate_step
        from mlx_lm.sample_utils import make_sampler

        self._hand_over()
        if do_sample:
            self._seed_dropout()
        sampler = make_sampler(temperature if do_sample else 0.0, top_p)
        ids = input_ids[0].tolist()
        if streamer is not None:
            streamer.put(input_ids)
        steps = generate_step(_to_mlx(input_ids[0]), self._lm, max_tokens=max_new_tokens, sampler=sampler)
        for token, _ in steps:
            ids.append(int(token))
            if streamer is not None:
                streamer.put(torch.tensor([ids[-1]]))
            now = torch.tensor([ids])
            if ids[-1] in (eos_token_id or ()) or any(bool(stop(now, None)) for stop in stopping_criteria or ()):
                break
        if streamer is not None:
            streamer.end()
        return torch.tensor([ids])


class _Sum(torch.autograd.Function):
    """A summed loss whose gradients MLX has computed in the same pass."""

    @staticmethod
    def forward(ctx: Any, model: MlxModel, batch: MicroBatch, *_: Any) -> torch.Tensor:
        loss, ctx.gradients = model.sum_and_gradients(batch)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *(gradient * upstream for gradient in ctx.gradients)


class _Rows:
    """Rows of an embedding of MLX."""

    def __init__(self, embedding: Any) -> None:
        self._embedding = embedding

    def __getitem__(self, ids: list[int]) -> torch.Tensor:
        return _to_torch(self._embedding(_to_mlx(torch.tensor(ids, dtype=torch.int64))))


def _to_mlx(tensor: torch.Tensor) -> Any:
    import mlx.core as mx

    return mx.array(np.ascontiguousarray(tensor.numpy()))


def _to_torch(array: Any) -> torch.Tensor:
    import mlx.core as mx

    return torch.from_numpy(np.array(array.astype(mx.float32)))
