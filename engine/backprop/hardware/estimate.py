"""How much memory of a card a run takes, from the model's configuration alone: nothing is loaded to know it.

What the step loop (``train.trainer``) keeps alive is counted tensor by tensor, at the fullest of its moments: the
backward pass of the loss, or that of the last layer. ``benchmarks/memory.py`` holds it against the real step.
Two bytes are a number in bf16, four one in float32.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from backprop.core import rules
from backprop.core.architecture import Architecture, Linear, blocks
from backprop.core.errors import ModelLoadError
from backprop.core.methods import METHODS
from backprop.core.models import find_architecture
from backprop.core.presets import ALL_LINEAR
from backprop.core.rules import RANK
from backprop.core.settings import RunConfig

Mode = Literal["lora", "qlora", "full"]

_GIB = 2**30
CONTEXT = 600 * 2**20
"""What CUDA itself takes of a card, its libraries' workspaces included."""
SLACK = 1.03
"""The allocator rounds up and leaves gaps between tensors that come and go."""
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4: half a byte, a byte for 64 of them, and a float32 for 256 of those (double quantisation,
https://arxiv.org/abs/2305.14314)."""
NF4_TABLES = 1092
"""Bytes of the tables of one layer: 16 and 256 float32, and an offset."""
RECURRENT = 105
"""Bytes that a layer of the gated delta rule keeps for each number of its values, heads being 128 wide: measured with
transformers' own implementation, which runs where no kernels are installed."""
PIECE_BYTES = 256 * 2**20
"""Float32 logits that the loss has at once; three times as much is alive in the backward pass."""
CUDA_TOKEN_BUDGET = 8192
"""Tokens of a packed micro-batch on a card."""
CPU_TOKEN_BUDGET = 512
"""The same on a CPU, where the dense mask is paid for in full: short rows gain little beyond."""
STATE_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256}
"""Bytes of an optimizer's state for a weight: two moments, in float32 or with 8 bits and a scale for 256 of them."""
ROUNDED_AT_ONCE = 2**22
"""bf16 weights that are widened at once while they are updated."""
ADAPTER = ("lora_r", "lora_dropout", "target_modules")
"""Settings of a run that trains an adapter."""
ROOMY = 40 * 2**30
"""With so much free memory activations are kept instead of computed again."""


class Shape(Struct, frozen=True, kw_only=True):
    """What of a run's settings decides about its memory. Rows are as long as they may be."""

    mode: Mode = "lora"
    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of mode ``full``."""
    optim: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    batch_size: int = 1
    sequences: int = 1
    """Of a row: two where pairs are learned from."""
    max_seq_length: int = 2048
    packing: bool = True
    gradient_checkpointing: bool = True
    lora_r: int = RANK
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ALL_LINEAR
    use_dora: bool = False
    init_lora_weights: str = "default"
    processes: int = 1
    """Each on a card of its own, with all weights and its share of the optimizer's state."""

    @property
    def rank(self) -> int:
        """Of the adapters in memory."""
        return rules.held_size({**to_builtins(self), "lora_alpha": 1.0})[0]

    @classmethod
    def of(cls, config: RunConfig, *, memory: int | None = None, mode: Mode | None = None) -> Shape:
        """That of a configuration, with what is open in it filled as the engine would; an open batch size is 1.

        Args:
            memory: bytes of the card; ``None`` where there is none to look at.
            mode: instead of the configuration's.
        """
        again = config.gradient_checkpointing
        adapter = rules.adapter(config)
        return cls(
            mode=mode or ("lora" if config.mode == "auto" else config.mode),
            weights_dtype=weights_dtype(config, memory or 0) if (mode or config.mode) == "full" else "float32",
            optim=config.optim,
            batch_size=1 if config.batch_size == "auto" else config.batch_size,
            sequences=METHODS[config.method].width,
            max_seq_length=rules.usual_length(traces=config.reasoning_trace)
            if config.max_seq_length == "auto"
            else config.max_seq_length,
            packing=config.packing,
            gradient_checkpointing=(memory is None or memory < ROOMY) if again is None else again,
            lora_r=adapter["lora_r"],
            lora_dropout=adapter["lora_dropout"],
            target_modules=tuple(adapter["target_modules"]),
            use_dora=config.use_dora,
            init_lora_weights=config.init_lora_weights,
            processes=config.processes,
        )

    def settings(self, config: RunConfig) -> dict[str, Any]:
        """The same as plain settings of a run, to be found again; a length that is left to the data is none of them."""
        found = {**to_builtins(self), "target_modules": list(self.target_modules), "method": config.method}
        del found["sequences"]
        if config.max_seq_length == "auto":
            del found["max_seq_length"]
        for name in ADAPTER if self.mode == "full" else ("weights_dtype",):
            del found[name]
        return found


class Parts(Struct, frozen=True):
    """Bytes by what they are for, at the fullest moment of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    context: int = CONTEXT

    @property
    def total(self) -> int:
        """Bytes of the card."""
        return sum(getattr(self, name) for name in self.__struct_fields__)


def parameters(model: Architecture) -> int:
    """Weights of the model, without adapters."""
    return sum(each.parameters for each in _linears(model)) + _others(model)


def trained_parameters(model: Architecture, shape: Shape) -> int:
    """Weights that a run trains."""
    if shape.mode == "full":
        return parameters(model)
    return sum(count * _adapters(_targeted(attention, mlp, shape), shape) for count, attention, mlp in blocks(model))


def estimate(model: Architecture, shape: Shape) -> Parts:
    """The memory of a card that a run takes whose rows fill the micro-batches and train every token.

    Of several processes each takes so much, of a card of its own.

    An evaluation takes less: its micro-batches are as large, and nothing is kept for a backward pass.
    """
    trained = trained_parameters(model, shape)
    gradients = 4 * trained
    if shape.mode == "full":
        weights = gradients = trained * (2 if _is_narrow(shape) else 4)
    else:
        linear = sum(each.parameters for each in _linears(model))
        frozen = NF4 * linear + NF4_TABLES * len(_linears(model)) if shape.mode == "qlora" else 2 * linear
        weights = round(frozen) + 2 * _others(model) + 4 * trained
    activations, logits = max(_moments(model, shape), key=sum)
    # A weight is updated by one process, so that the embedding may be more than a share (``train.sharding``).
    largest = model.vocabulary * model.hidden if shape.mode == "full" else 0
    state = state_on_card(shape.optim, min(trained, max(trained / shape.processes, largest)))
    return Parts(weights, gradients, state, round(SLACK * activations), round(SLACK * logits))


def state_on_card(optim: str, weights: float) -> int:
    """Bytes of the optimizer's state for so many weights that a card must hold: the main memory takes a paged one."""
    return 0 if optim.startswith("paged") else round(STATE_BYTES[optim] * weights)


def weights_dtype(config: RunConfig, memory: int) -> Literal["float32", "bfloat16"]:
    """What full fine-tuning keeps its weights in: float32 unless it does not fit, or the person has chosen.

    Args:
        memory: bytes of a card that computes in bf16; 0 where there is none.
    """
    if config.weights_dtype is not None or not memory:
        return config.weights_dtype or "float32"
    wide = replace(Shape.of(replace(config, weights_dtype="float32"), memory=memory, mode="full"), batch_size=1)
    with suppress(ModelLoadError):
        if estimate(find_architecture(config.model), wide).total > memory:
            return "bfloat16"
    return "float32"


def _is_narrow(shape: Shape) -> bool:
    return shape.mode == "full" and shape.weights_dtype == "bfloat16"


def _linears(model: Architecture) -> list[Linear]:
    """All linear layers below the head."""
    return [each for count, attention, mlp in blocks(model) for each in (attention + mlp) * count]


def _others(model: Architecture) -> int:
    family, state = model.traits, model.recurrent
    attending = model.layers - (state.layers if state else 0)
    norms = (4 if family.four_norms else 2) * model.layers * model.hidden + model.hidden
    norms += 2 * model.head_dim * attending if family.qk_norm else 0
    if state is not None:
        convolution = (2 * state.keys + state.values) * state.kernel
        norms += state.layers * (convolution + 2 * state.value_heads + state.value_dim)
    return model.vocabulary * model.hidden * (1 if model.tied else 2) + norms + model.others


def _adapters(targeted: list[Linear], shape: Shape) -> int:
    lengths = sum(each.outputs for each in targeted) if shape.use_dora else 0
    return sum(shape.rank * (each.inputs + each.outputs) for each in targeted) + lengths


def _targeted(attention: list[Linear], mlp: list[Linear], shape: Shape) -> list[Linear]:
    """The linear layers of a block that get an adapter, chosen as ``train.modes.lora`` chooses them."""
    if shape.target_modules == ALL_LINEAR:
        return attention + mlp
    named = [each for each in attention + mlp if each.kind in shape.target_modules]
    return named or [each for each in attention if any(other.reads == "attended" for other in attention)]


def _tokens(model: Architecture, shape: Shape) -> tuple[int, int]:
    """Tokens of a micro-batch, padding included, and how many of them a token's mask speaks of.

    Rows are packed, unless layers that carry a state along the sequence would mix them.
    """
    padded = shape.batch_size * shape.sequences * shape.max_seq_length
    if not shape.packing or model.recurrent is not None:
        return padded, shape.max_seq_length
    packed = max(shape.sequences * shape.max_seq_length, min(padded, CUDA_TOKEN_BUDGET))
    return packed, packed


def _moments(model: Architecture, shape: Shape) -> list[tuple[int, int]]:
    """Bytes of activations and of logits at each moment of a step that may be its fullest."""
    tokens, seen = _tokens(model, shape)
    hidden, family, full = model.hidden, model.traits, shape.mode == "full"
    wide = full and not _is_narrow(shape)
    kept = [_kept(model, attention, mlp, shape) for _, attention, mlp in blocks(model)]
    masks = (2 if family.four_norms else 1) * tokens * seen
    if shape.gradient_checkpointing:  # the input of each layer, and what the last one makes anew
        stored = masks + model.layers * (4 if wide else 2) * hidden * tokens
        # Made anew to its end; or the gradients of gate and up, when what the down projection kept is gone.
        adapted = full or any(each.reads == "inner" for each in _targeted(*blocks(model)[0][1:], shape))
        gone = (3 if shape.lora_dropout and not full else 2) if adapted else 0
        at_layer = stored + max(kept) + tokens * max(2 * model.mlp + 8 * hidden, (6 - gone) * model.mlp + 4 * hidden)
        at_layer += 8 * model.heads * tokens * seen if family.capped else 0
        if shape.use_dora:  # PEFT makes the product of the factors with an identity matrix
            at_layer += max(
                6 * each.inputs**2 + 8 * each.parameters for each in _targeted(*blocks(model)[0][1:], shape)
            )
        if shape.mode == "qlora":  # the largest layer in bf16 while it is multiplied with, and its result twice more
            largest = max(_linears(model), key=lambda each: each.parameters)
            at_layer += 2 * largest.parameters + 4 * tokens * max(largest.inputs, largest.outputs)
    else:
        stored = masks + sum(count * bytes_ for (count, *_), bytes_ in zip(blocks(model), kept, strict=True))
        at_layer = stored + 24 * hidden * tokens

    # The head's input and its gradient; logits in float32, their logarithm of softmax, and the gradient of it.
    at_loss = stored + (18 if wide else 8) * hidden * tokens
    scored = (tokens if family.capped else min(tokens, PIECE_BYTES // (4 * model.vocabulary))) * model.vocabulary
    whole = 2 * tokens * model.vocabulary if family.capped else 0
    if not full:
        return [(at_loss, whole + 12 * scored), (at_layer, 0)]
    head = model.vocabulary * hidden
    if not wide:  # gradients of the head, piece by piece, and their sum; weights that are being updated
        pieces = 2 * head if scored < tokens * model.vocabulary else 0
        return [
            (at_loss + 2 * head + pieces, whole + 12 * scored),
            (at_layer + (2 * head if model.tied else 0), 0),
            ((6 if model.tied else 2) * head, 0),
            (24 * min(ROUNDED_AT_ONCE, head), 0),
        ]
    # Autocast's copies in bf16: of all layers until the forward pass ends, of the head until its gradient is added.
    copies = 2 * sum(each.parameters for each in _linears(model)) if shape.gradient_checkpointing else 0
    return [
        (at_loss + copies + 2 * head, whole + 10 * scored),
        (at_loss + 4 * head, whole + 12 * scored),
        (at_loss + 6 * head, 2 * scored),
        (at_layer + (4 * head if model.tied else 0), 0),
        ((12 if model.tied else 4) * head, 0),  # gradients of the embedding and of the head, and their sum
    ]


def _kept(model: Architecture, attention: list[Linear], mlp: list[Linear], shape: Shape) -> int:
    """Bytes that one block keeps for its backward pass."""
    tokens, seen = _tokens(model, shape)
    family, targeted, full = model.traits, _targeted(attention, mlp, shape), shape.mode == "full"
    wide = full and not _is_narrow(shape)
    # What a norm reads is kept in float32, and what it makes where its own weight is trained.
    norm = 8 if wide else 6 if full else 4
    width = norm * (4 if family.four_norms else 2) * model.hidden
    width += 6 * model.mlp  # gate, up, and the activated gate
    if wide:  # autocast gives each layer a copy of its own, except of what is in bf16 already
        width += sum(2 * each.inputs for each in attention + mlp if each.reads != "attended")
        weights = 2 * sum(each.parameters for each in attention + mlp)
    else:
        weights = 0 if full else 2 * _adapters(targeted, shape)
        width += 0 if full else 2 * shape.rank * len(targeted)
        # Both parts of a DoRA layer's result are kept, and it is in float32: measured.
        width += sum(5 * each.outputs for each in targeted) if shape.use_dora and not full else 0
        targeted = attention + mlp if full else targeted
        if shape.lora_dropout and not full:  # each layer drops its own: a bf16 copy and a byte for the mask
            width += sum(3 * each.inputs for each in targeted)
        else:
            inputs = {(each.reads, each in mlp): 2 * each.inputs for each in targeted if each.reads != "attended"}
            width += sum(inputs.values())
    if all(each.reads != "attended" for each in attention):
        assert model.recurrent is not None
        return tokens * (width + RECURRENT * model.recurrent.values) + weights
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    # Queries, keys, values and what attention makes of them; keys and values are repeated for every head.
    width += 2 * (2 * queries + 2 * (keys if model.heads == model.kv_heads else queries)) + 4 * model.heads
    width += norm * (queries + keys) if family.qk_norm else 0
    width += 6 * queries if family.gated_attention else 0
    return tokens * (width + seen * (8 * model.heads if family.capped else 2)) + weights
