"""The shape of a language model, as its ``config.json`` says it: enough to count its weights without loading one."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from backprop.core.errors import ModelLoadError


class Family(Struct, frozen=True):
    """What the architectures of one family (``model_type``) have that a Llama has not."""

    tied: bool = False
    """Whether the head is the embedding where the configuration does not say."""
    qkv_bias: bool = False
    qk_norm: bool = False
    """Queries and keys are normalised."""
    gated_attention: bool = False
    """Queries come with a gate of the same size."""
    fused: bool = False
    """Queries, keys and values are one linear layer, gate and up projection another one."""
    four_norms: bool = False
    """A layer has four norms instead of two, and attention looks through a second mask in every other one."""
    capped: bool = False
    """Scores and logits are capped: all of them exist at once."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "smollm3": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "qwen3_5": Family(qk_norm=True, gated_attention=True),
    "phi3": Family(fused=True),
    "gemma2": Family(tied=True, four_norms=True, capped=True),
    "gemma3": Family(tied=True, four_norms=True, qk_norm=True),
}


class Recurrent(Struct, frozen=True):
    """Layers that carry a state along the sequence instead of attention (gated delta rule), in a hybrid model."""

    layers: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.value_heads * self.value_dim


class Architecture(Struct, frozen=True):
    """Numbers of a decoder: ``hidden`` is the width of its residual stream, ``mlp`` that of its feed-forward layers.

    ``layers`` counts all of them, those of ``recurrent`` too. ``others`` are parameters beside the language model: a
    tower for images.
    """

    family: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    recurrent: Recurrent | None = None
    others: int = 0

    @property
    def traits(self) -> Family:
        """What its family has; an unknown family is taken for a Llama."""
        return _family(self.family)

    @property
    def is_known(self) -> bool:
        """Whether the family is one of ``FAMILIES``."""
        return self.family in FAMILIES


PRESETS = {
    "qwen-3.5-4b": Architecture(
        "qwen3_5", 32, 2560, 9216, 16, 4, 256, 248320, True, Recurrent(24, 16, 32, 128, 128, 4)
    ),
    "phi-4-mini-3.8b": Architecture("phi3", 32, 3072, 8192, 24, 8, 128, 200064, True),
    "smollm3-3b": Architecture("smollm3", 36, 2048, 11008, 16, 4, 128, 128256, True),
    "qwen2.5-7b": Architecture("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, False),
    "qwen2.5-3b": Architecture("qwen2", 36, 2048, 11008, 16, 2, 128, 151936, True),
    "llama-3.2-3b": Architecture("llama", 28, 3072, 8192, 24, 8, 128, 128256, True),
    "llama-3.2-1b": Architecture("llama", 16, 2048, 8192, 32, 8, 64, 128256, True),
    "mistral-7b": Architecture("mistral", 32, 4096, 14336, 32, 8, 128, 32768, False),
    "smollm2-135m": Architecture("llama", 30, 576, 1536, 9, 3, 64, 49152, True),
}
"""Those of the model presets: known before anything was fetched."""


class Linear(Struct, frozen=True):
    """A linear layer: its kind, its width before and after it, and what it reads.

    ``stream`` is the normalised residual stream, which all that read it share; ``attended`` what attention made.
    """

    kind: str
    inputs: int
    outputs: int
    reads: Literal["stream", "attended", "inner"] = "stream"
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


def blocks(model: Architecture) -> list[tuple[int, list[Linear], list[Linear]]]:
    """How many blocks there are of each kind, with the linear layers of their attention and of their feed-forward part.

    A block without a layer that reads ``attended`` is a recurrent one.
    """
    hidden, mlp, family = model.hidden, model.mlp, model.traits
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    output = Linear("o_proj", queries, hidden, "attended")
    down = Linear("down_proj", mlp, hidden, "inner")
    if family.fused:
        attention = [Linear("qkv_proj", hidden, queries + 2 * keys), output]
        forward = [Linear("gate_up_proj", hidden, 2 * mlp), down]
    else:
        widths = {"q_proj": 2 * queries if family.gated_attention else queries, "k_proj": keys, "v_proj": keys}
        attention = [*(Linear(kind, hidden, width, bias=family.qkv_bias) for kind, width in widths.items()), output]
        forward = [Linear("gate_proj", hidden, mlp), Linear("up_proj", hidden, mlp), down]
    state = model.recurrent
    if state is None:
        return [(model.layers, attention, forward)]
    widths = {"qkv": 2 * state.keys + state.values, "z": state.values, "b": state.value_heads, "a": state.value_heads}
    recurrent = [Linear(f"in_proj_{kind}", hidden, width) for kind, width in widths.items()]
    recurrent.append(Linear("out_proj", state.values, hidden, "inner"))
    return [(model.layers - state.layers, attention, forward), (state.layers, recurrent, forward)]


def read_architecture(config: dict[str, Any], name: str) -> Architecture:
    """The architecture that the contents of a ``config.json`` describe.

    Args:
        name: the model's, for errors.

    Raises:
        ModelLoadError: a number is missing, or the model is a mixture of experts: those are not counted yet.
    """
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    if any("experts" in key and value for key, value in text.items()):
        raise ModelLoadError(
            f"{name} is a mixture of experts: what memory it needs cannot be estimated yet",
            hint="the first steps of a run with --batch-size 1 show it",
            details={"model": name},
        )
    try:
        family = str(text.get("model_type") or config["model_type"]).removesuffix("_text")
        heads, hidden, layers = (int(text[key]) for key in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
        found = Architecture(
            family,
            layers,
            hidden,
            mlp=int(text["intermediate_size"]),
            heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or hidden // heads),
            vocabulary=int(text["vocab_size"]),
            tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", _family(family).tied))),
            recurrent=_recurrent(text, layers),
            others=_image_tower(config.get("vision_config") or {}) if family == "gemma3" else 0,
        )
        if min(layers, hidden, found.mlp, heads, found.kv_heads, found.head_dim, found.vocabulary) < 1:
            raise ValueError("a size below 1")
        return found
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ModelLoadError(
            f"the config.json of {name} does not say how large the model is: {type(error).__name__}: {error}",
            hint="fetch or copy the model again",
            details={"model": name},
        ) from error


def _family(name: str) -> Family:
    return FAMILIES.get(name, FAMILIES["llama"])


def _recurrent(text: dict[str, Any], layers: int) -> Recurrent | None:
    if "linear_num_value_heads" not in text:
        return None
    every = int(text.get("full_attention_interval") or 4)
    kinds = text.get("layer_types") or ["full_attention" if i % every == 0 else "" for i in range(1, layers + 1)]
    sizes = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
    return Recurrent(sum(kind != "full_attention" for kind in kinds), *(int(text[f"linear_{size}"]) for size in sizes))


def _image_tower(vision: dict[str, Any]) -> int:
    """Parameters of the tower for images (SigLIP) that is loaded with the model: of its layers, all that counts."""
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers")
    hidden, inner, layers = (int(vision.get(size, 0)) for size in sizes)
    return layers * (4 * hidden * hidden + 2 * hidden * inner)


def for_older_readers(config: dict[str, Any]) -> dict[str, Any]:
    """A model's settings with ``rope_parameters``, as transformers 5 writes it, also as earlier versions read it."""
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values()):
        config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        if rope.get("rope_type", "default") != "default":
            scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
            config.setdefault("rope_scaling", scaling)
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    return config
