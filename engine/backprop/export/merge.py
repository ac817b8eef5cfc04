"""A base model's weights with an adapter added to each tensor as it is read.

LoRA (https://arxiv.org/abs/2106.09685), rank-stabilised LoRA (https://arxiv.org/abs/2312.03732) and DoRA
(https://arxiv.org/abs/2402.09353), as PEFT writes them: ``adapter_config.json`` and ``adapter_model.safetensors``.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backprop.core.errors import MergeError, some
from backprop.core.models import settings_of
from backprop.export.weights import ALL, StoredWeights, Weights

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD = "lm_head.weight"
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.default)?"
    r"(?P<bias>\.bias)?(?:\.weight)?"
)
_WHOLE = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)(?:\.modules_to_save\.default|\.base_layer)?\.(weight|bias)"
)
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Ways to begin an adapter that leave the base model's weights as they are."""
_OTHER_SUMS = (
    *("use_qalora", "use_bdlora", "alora_invocation_tokens", "trainable_token_indices", "ensure_weight_tying"),
    *("layer_replication", "arrow_config", "kasa_config", "monteclora_config"),
)
"""What makes an adapter more than what is added here."""


class Adapter:
    """The adapter in a folder.

    Raises:
        MergeError: it is no LoRA adapter, or of a kind that is more than what can be added to weights here.
        ModelLoadError: a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = settings_of(folder, ADAPTER_CONFIG)
        self.weights = StoredWeights([folder / ADAPTER_WEIGHTS])
        kind = str(self.config.get("peft_type", "unknown"))
        if kind != "LORA":
            raise MergeError(f"{folder} is an adapter of the kind {kind}", hint="LoRA adapters can be exported")
        start = self.config.get("init_lora_weights")
        other = [name for name in _OTHER_SUMS if self.config.get(name)]
        if start not in _PLAIN_STARTS:
            other.append(f"init_lora_weights={start!r}, which changes the base model's weights")
        if other:
            raise MergeError(
                f"{folder} uses {', '.join(other)}: it cannot be added to the base model's weights",
                hint="merge it with the program that trained it, and export the merged folder",
            )
        self.parts: dict[str, dict[str, str]] = {}
        """Names of the tensors of each module that has an adapter, by part."""
        self.replaced: dict[str, str] = {}
        """Tensors of the model that were trained whole, with their name in the file."""
        for name in self.weights.names():
            if found := _KEY.fullmatch(name):
                part = found["part"] + (found["bias"] or "")
                self.parts.setdefault(found["module"], {})[part] = name
            elif found := _WHOLE.fullmatch(name):
                self.replaced[f"{found['module']}.{found[2]}"] = name
            else:
                raise MergeError(f"{folder / ADAPTER_WEIGHTS} holds {name}, which is no part of a LoRA adapter")

    def scale(self, module: str) -> float:
        """What B·A is multiplied by in ``module``."""
        rank = self._of_module("rank_pattern", module, self.config.get("r", 8))
        alpha = self._of_module("alpha_pattern", module, self.config.get("lora_alpha", 8))
        return float(alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank)

    def _of_module(self, pattern: str, module: str, usual: float) -> float:
        for key, value in (self.config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return float(value)
        return usual

    def read(self, module: str, part: str, rows: slice = ALL) -> NDArray[np.float32]:
        """One part of the adapter of ``module``, as ``lora_A``."""
        return self.weights.read(self.parts[module][part], rows)

    @property
    def is_trained(self) -> bool:
        """Whether anything in it differs from how an adapter begins: one of the two factors is zero then."""
        if self.replaced:
            return True
        return any(
            all(self.read(module, part).any() for part in parts if part.endswith(("_A", "_B")))
            for module, parts in self.parts.items()
        )


class MergedWeights:
    """The weights of ``base`` with ``adapter`` added, in float32, one tensor at a time.

    Where base and adapter share a tied embedding and only one side of it changes, the head becomes a tensor of its own
    (``is_untied``): tied, the change would reach both sides, which is not what was trained.

    Raises:
        MergeError: something in the adapter has no place in the base model; it is named.
    """

    def __init__(self, base: Weights, adapter: Adapter, base_config: dict[str, Any]) -> None:
        self._base = base
        self._adapter = adapter
        names = base.names()
        self._found = {_known_as(name): name for name in names}
        text = base_config.get("text_config") or base_config
        self._embedding = next((n for n in names if n.endswith(("embed_tokens.weight", "wte.weight"))), "")
        tied = bool(text.get("tie_word_embeddings", base_config.get("tie_word_embeddings", True)))
        self._head = HEAD if tied and HEAD not in names and self._embedding else ""
        if self._head:
            self._found[HEAD] = HEAD
        self._modules: dict[str, str] = {}
        self._replaced: dict[str, str] = {}
        lost = []
        for module in adapter.parts:
            name = self._place(f"{module}.weight")
            lost += [] if name and self._fits(module, name) else [f"{module} ({', '.join(adapter.parts[module])})"]
            self._modules[name] = module
        for place, key in adapter.replaced.items():
            name = self._place(place)
            shape = adapter.weights.shape(key)
            if name and shape != self._base.shape(self._source(name)):
                raise MergeError(
                    f"{key} in {adapter.folder} has the shape {shape}, another one than in the base model",
                    hint="merge it with the program that trained it, and export the merged folder",
                )
            lost += [] if name else [place]
            self._replaced[name] = key
        if lost:
            raise MergeError(
                f"the adapter in {adapter.folder} has parts without a place in the base model: {some(lost, 3)}",
                hint="name the model that it was trained on with --model",
                details={"unknown": lost},
            )
        touched = {*self._modules, *self._replaced}
        self.is_untied = bool(self._head) and bool(touched & {self._head, self._embedding})
        self._whole: tuple[str, NDArray[np.float32]] | None = None
        """The last tensor whose rows cannot be changed one without the others."""

    def _place(self, name: str) -> str:
        """The base's tensor that is ``name`` in memory, by its name in the file; empty where there is none."""
        return self._found.get(name) or self._found.get(name.partition(".")[2], "")

    def _fits(self, module: str, name: str) -> bool:
        """Whether the factors of ``module`` make a change of the tensor's shape, and every part is known."""
        parts, shape, kind = self._adapter.parts[module], self._base.shape(self._source(name)), self._kind(module)
        known = {f"{kind}A", f"{kind}B", "lora_magnitude_vector", "lora_B.bias"}
        if not {f"{kind}A", f"{kind}B"} <= set(parts) <= known or len(shape) != 2:
            return False
        if "lora_B.bias" in parts and self._bias(name) not in self._found.values():
            return False
        a, b = (self._adapter.weights.shape(parts[f"{kind}{side}"]) for side in "AB")
        return len(a) == len(b) == 2 and a[0] == b[1] and shape in ((b[0], a[1]), (a[1], b[0]))

    @staticmethod
    def _bias(name: str) -> str:
        return f"{name.removesuffix('weight')}bias"

    def _source(self, name: str) -> str:
        """The base's tensor that ``name`` begins with."""
        return self._embedding if name == self._head else name

    def names(self) -> list[str]:
        return self._base.names() + ([self._head] if self.is_untied else [])

    def shape(self, name: str) -> tuple[int, ...]:
        if key := self._replaced.get(name):
            return self._adapter.weights.shape(key)
        return self._base.shape(self._source(name))

    def dtype(self, name: str) -> str:
        return self._base.dtype(self._source(name))

    def stored(self, name: str, rows: slice = ALL) -> NDArray[Any] | None:
        changed = name in self._replaced or name in self._modules or self._bias_change(name)
        return None if changed else self._base.stored(self._source(name), rows)

    def read(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        if key := self._replaced.get(name):
            return self._adapter.weights.read(key, rows)
        module = self._modules.get(name, "")
        across = bool(module) and self._is_across(module, self.shape(name))
        if across and "lora_magnitude_vector" in self._adapter.parts[module] and rows != ALL:
            whole = self._whole  # pieces are read side by side
            if whole is None or whole[0] != name:
                whole = self._whole = name, self.read(name)
            return whole[1][rows]
        weight = self._base.read(self._source(name), rows)
        if module:
            self._change(weight, module, rows, across)
        elif changed := self._bias_change(name):
            weight += np.float32(self._adapter.scale(changed)) * self._adapter.read(changed, "lora_B.bias", rows)
        return weight

    def _bias_change(self, name: str) -> str:
        """The module whose adapter changes the bias ``name``; empty where there is none."""
        module = self._modules.get(f"{name.removesuffix('bias')}weight", "") if name.endswith(".bias") else ""
        return module if module and "lora_B.bias" in self._adapter.parts[module] else ""

    def _change(self, weight: NDArray[np.float32], module: str, rows: slice, across: bool) -> None:
        """Add to ``weight``, the given rows as they are stored, what ``module`` learned."""
        read, kind, scale = self._adapter.read, self._kind(module), np.float32(self._adapter.scale(module))
        if across:
            weight += scale * (read(module, f"{kind}A")[:, rows].T @ read(module, f"{kind}B").T)
        else:
            weight += scale * (read(module, f"{kind}B", rows) @ read(module, f"{kind}A"))
        if "lora_magnitude_vector" in self._adapter.parts[module]:  # DoRA: directions from the sum, lengths from here
            lengths = read(module, "lora_magnitude_vector").reshape(-1)
            sums = weight.T if across else weight
            sums *= ((lengths if across else lengths[rows]) / np.linalg.norm(sums, axis=1))[:, None]

    def _kind(self, module: str) -> str:
        return "lora_embedding_" if "lora_embedding_A" in self._adapter.parts[module] else "lora_"

    def _is_across(self, module: str, shape: tuple[int, ...]) -> bool:
        """Whether the tensor is stored as (in, out): embeddings, and layers of GPT-2. The shape tells if it can."""
        (_, inner), (outer, _) = (
            self._adapter.weights.shape(self._adapter.parts[module][f"{self._kind(module)}{s}"]) for s in "AB"
        )
        if inner != outer:
            return shape == (inner, outer)
        return self._kind(module) == "lora_embedding_" or bool(self._adapter.config.get("fan_in_fan_out"))


def places(stored: list[str], known: list[str]) -> dict[str, str]:
    """The tensors of a file that are ``known`` by these names in memory; empty where there is none."""
    found = {_known_as(name): name for name in stored}
    return {name: found.get(name) or found.get(name.partition(".")[2], "") for name in known}


def _known_as(name: str) -> str:
    """What a tensor of a file is called in memory where a language model is loaded out of one that also sees."""
    return re.sub(r"(^|\.)language_model\.(model\.)?", r"\1", name) if "language_model." in name else name
