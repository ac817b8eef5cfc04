"""Which architectures can be written as GGUF, and the numbers that llama.cpp wants to know of each.

They are those that its own converter writes (``conversion/`` in the source of llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguf import MODEL_ARCH, GGUFWriter
from msgspec import Struct
from msgspec.structs import replace

from backprop.core.architecture import Architecture, read_architecture
from backprop.core.errors import GGUFError, ModelLoadError
from backprop.core.models import settings_of
from backprop.export.gguf.positions import Positions, Settings, read_positions, write_positions

SUPPORTED = "Llama, Mistral, Qwen 2, 2.5, 3 and 3.5 (dense), Phi-3, Phi-4-mini, SmolLM 2 and 3, Gemma 2 and 3"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Model(Struct, frozen=True):
    """A model that can be written; ``text`` are the settings of its language model."""

    family: Family
    numbers: Architecture
    text: Settings
    positions: Positions


Numbers = Callable[[GGUFWriter, Model], None]


class Family(Struct, frozen=True):
    """What distinguishes one architecture from the plain one."""

    arch: MODEL_ARCH
    numbers: Numbers | None = None
    """Writes the numbers that only this family has."""
    permuted: bool = False
    """Queries' and keys' rows stand in pairs, as the original Llama has them."""
    shifted: bool = False
    """Norms are stored as what they differ from 1."""
    activation: str = "silu"
    tied_head: bool = False
    """The head is the embedding, whatever the file holds."""
    window: int = 0
    """Every so many layers one sees the whole text, the others a window."""
    whole_scale: int = 0
    """With this number of layers attention is scaled by hidden size / heads instead of by the size of a head."""
    defaults: tuple[tuple[str, Any], ...] = ()
    """Settings that transformers takes where ``config.json`` is silent."""


def _llama(writer: GGUFWriter, model: Model) -> None:
    writer.add_vocab_size(model.numbers.vocabulary)
    writer.add_rope_dimension_count(model.numbers.head_dim)


def _gemma(writer: GGUFWriter, model: Model) -> None:
    if cap := model.text.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(float(cap))
    if cap := model.text.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(cap))
    writer.add_sliding_window(int(model.text["sliding_window"]))


def _phi(writer: GGUFWriter, model: Model) -> None:
    writer.add_rope_scaling_orig_ctx_len(model.positions.trained)
    writer.add_rope_dimension_count(model.positions.turning)
    # llama.cpp knows Phi-4 by the zero.
    writer.add_sliding_window(int(model.text.get("sliding_window") or 0))


def _qwen_hybrid(writer: GGUFWriter, model: Model) -> None:
    state = model.numbers.recurrent
    assert state is not None
    writer.add_ssm_conv_kernel(state.kernel)
    writer.add_ssm_state_size(state.key_dim)
    writer.add_ssm_group_count(state.key_heads)
    writer.add_ssm_time_step_rank(state.value_heads)
    writer.add_ssm_inner_size(state.values)
    kinds = model.text.get("layer_types")
    if kinds:
        writer.add_array(f"{writer.arch}.attention.recurrent_layers", [kind != "full_attention" for kind in kinds])
    writer.add_full_attention_interval(int(model.text.get("full_attention_interval") or 4))
    writer.add_rope_dimension_count(model.positions.turning)
    sections = [int(size) for size in model.positions.scaling.get("mrope_section") or (11, 11, 10)]
    writer.add_rope_dimension_sections([*sections, 0][:4])


_LLAMA = Family(MODEL_ARCH.LLAMA, _llama, permuted=True)
_QWEN_HYBRID = Family(MODEL_ARCH.QWEN35, _qwen_hybrid, shifted=True, defaults=(("partial_rotary_factor", 0.25),))
_GEMMA_3 = Family(
    MODEL_ARCH.GEMMA3,
    _gemma,
    shifted=True,
    activation="gelu_pytorch_tanh",
    tied_head=True,
    window=6,
    whole_scale=62,
    # Gemma3TextConfig in transformers 5.23; the published files of the larger ones leave these out.
    defaults=(
        *(("num_attention_heads", 8), ("num_key_value_heads", 4), ("head_dim", 256), ("vocab_size", 262208)),
        *(("rms_norm_eps", 1e-6), ("max_position_embeddings", 131072), ("sliding_window", 4096)),
        *(("rope_theta", 1e6), ("rope_local_base_freq", 1e4), ("query_pre_attn_scalar", 256)),
    ),
)

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "SmolLM3ForCausalLM": Family(MODEL_ARCH.SMOLLM3, _llama, permuted=True, defaults=(("rope_theta", 2e6),)),
    "Qwen2ForCausalLM": Family(MODEL_ARCH.QWEN2),
    "Qwen3ForCausalLM": Family(MODEL_ARCH.QWEN3),
    "Qwen3_5ForCausalLM": _QWEN_HYBRID,
    "Qwen3_5ForConditionalGeneration": _QWEN_HYBRID,
    "Phi3ForCausalLM": Family(MODEL_ARCH.PHI3, _phi),
    "Gemma2ForCausalLM": Family(
        MODEL_ARCH.GEMMA2,
        _gemma,
        shifted=True,
        activation="gelu_pytorch_tanh",
        tied_head=True,
        window=2,
        whole_scale=46,
        defaults=(("sliding_window", 4096), ("query_pre_attn_scalar", 256)),
    ),
    "Gemma3ForCausalLM": _GEMMA_3,
    "Gemma3ForConditionalGeneration": _GEMMA_3,
}
"""By the architecture that ``config.json`` names."""


@contextmanager
def _settings_that_count() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelLoadError(
            f"config.json: a setting is missing or is no number ({type(error).__name__}: {error})",
            hint="fetch or copy the model again",
        ) from error


@_settings_that_count()
def read_model(folder: Path, names: Collection[str] = ()) -> Model:
    """What the model in ``folder`` is in llama.cpp's terms.

    Args:
        names: its tensors'. One of them being a head decides that the embedding is none, whatever the settings say.

    Raises:
        GGUFError: its architecture, or something in its settings, is not what llama.cpp computes; it is named.
        ModelLoadError: ``config.json`` is missing or incomplete.
    """
    config = settings_of(folder)
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else "an architecture that is not named"
    family = FAMILIES.get(architecture)
    if family is None:
        raise GGUFError(
            f"{folder / 'config.json'}: {architecture} cannot be written as GGUF",
            hint=f"export it with --format merged; GGUF is for {SUPPORTED}",
            details={"architecture": architecture},
        )
    inner = config.get("text_config")
    text = {**dict(family.defaults), **config, **(inner if isinstance(inner, dict) else {})}
    numbers = read_architecture({**text, "text_config": None}, folder.name)
    own_head = not family.tied_head and any(plain_name(name) == HEAD for name in names)
    model = Model(family, replace(numbers, tied=not own_head), text, read_positions(text, numbers.head_dim))
    for wrong in _what_differs(model):
        raise GGUFError(
            f"{folder / 'config.json'}: llama.cpp cannot compute this {architecture}: {wrong}",
            hint="export it with --format merged",
            details={"architecture": architecture},
        )
    return model


@_settings_that_count()
def write_numbers(writer: GGUFWriter, model: Model) -> None:
    """Write the settings by which llama.cpp builds the network."""
    numbers, text = model.numbers, model.text
    writer.add_block_count(numbers.layers)
    writer.add_context_length(int(text["max_position_embeddings"]))
    writer.add_embedding_length(numbers.hidden)
    writer.add_feed_forward_length(numbers.mlp)
    writer.add_head_count(numbers.heads)
    writer.add_head_count_kv(numbers.kv_heads)
    writer.add_key_length(numbers.head_dim)
    writer.add_value_length(numbers.head_dim)
    writer.add_layer_norm_rms_eps(float(text["rms_norm_eps"]))
    write_positions(writer, model.positions)
    if model.family.numbers is not None:
        model.family.numbers(writer, model)


def plain_name(source: str) -> str:
    """A tensor's name as a model of text alone has it."""
    if source.endswith("." + HEAD):
        return HEAD
    return re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", source)


def _what_differs(model: Model) -> list[str]:
    """What of the settings llama.cpp would compute differently, without a word."""
    text, numbers, family = model.text, model.numbers, model.family
    found = []
    activation = text.get("hidden_activation") or text.get("hidden_act") or family.activation
    if activation not in (family.activation, {"silu": "swish"}.get(family.activation)):
        found.append(f"its activation is {activation}")
    kind = model.positions.kind
    known = ("default", "longrope") if family.arch == MODEL_ARCH.PHI3 else ("default", "linear", "yarn", "llama3")
    if kind not in known:
        found.append(f"its positions are scaled by {kind}")
    scale = float(text.get("query_pre_attn_scalar") or numbers.head_dim)
    if family.whole_scale and scale != (
        numbers.hidden // numbers.heads if numbers.layers == family.whole_scale else numbers.head_dim
    ):
        found.append(f"query_pre_attn_scalar is {scale:g}")
    kinds = text.get("layer_types")
    if family.window and kinds:
        expected = [(number % family.window == 0) for number in range(1, numbers.layers + 1)]
        if [kind == "full_attention" for kind in kinds] != expected:
            found.append(f"not every {family.window}th layer alone sees the whole text")
    places = text.get("no_rope_layers")
    fourth = [number % 4 != 0 for number in range(1, numbers.layers + 1)]
    if family.arch == MODEL_ARCH.SMOLLM3 and places and [bool(place) for place in places] != fourth:
        found.append("not every fourth layer alone is without positions")
    return found
