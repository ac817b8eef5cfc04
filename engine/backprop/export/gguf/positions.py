"""How positions enter a model (rotary embeddings, https://arxiv.org/abs/2104.09864) and how a GGUF says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf import GGUFWriter, RopeScalingType
from msgspec import Struct
from numpy.typing import NDArray

Settings = Mapping[str, Any]


class Positions(Struct, frozen=True):
    """Rotary embeddings of a model and how they are stretched beyond the length that it was trained with."""

    kind: str
    """``default``, ``linear``, ``yarn``, ``llama3``, ``longrope``, or something that llama.cpp does not know."""
    theta: float
    local_theta: float | None
    """Of layers with a sliding window, where it is another one."""
    size: int
    """How many numbers a head has."""
    turning: int
    """How many of them turn with the position."""
    context: int
    trained: int
    """The length before stretching."""
    scaling: Settings
    """What else the settings say: factors by name."""


def read_positions(text: Settings, size: int) -> Positions:
    """Read ``rope_parameters``, as transformers writes it since version 5, or ``rope_theta`` and ``rope_scaling``.

    Args:
        text: settings of the language model.
        size: how many numbers a head has.
    """
    given = text.get("rope_parameters")
    given = given if isinstance(given, dict) else {}
    whole, sliding = given.get("full_attention", given), given.get("sliding_attention", {})
    rope = {**text, **(text.get("rope_scaling") or {}), **whole}
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    context = int(text["max_position_embeddings"])
    return Positions(
        "longrope" if kind == "su" else kind,
        float(rope.get("rope_theta") or 10000.0),
        sliding.get("rope_theta", text.get("rope_local_base_freq")),
        size,
        int(size * float(rope.get("partial_rotary_factor") or 1.0)),
        context,
        # Where both say it transformers takes the outer one.
        int(text.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or context),
        rope,
    )


def write_positions(writer: GGUFWriter, positions: Positions) -> None:
    """Write base and scaling; scaling by factors for each frequency is in tensors (``position_tensors``)."""
    scaling = positions.scaling
    writer.add_rope_freq_base(positions.theta)
    if positions.local_theta is not None:
        writer.add_rope_freq_base_swa(float(positions.local_theta))
    if positions.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    elif positions.kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        writer.add_rope_scaling_orig_ctx_len(positions.trained)
        for key, write in (
            ("extrapolation_factor", writer.add_rope_scaling_yarn_ext_factor),
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if scaling.get(key) is not None:
                write(float(scaling[key]))
    elif positions.kind == "longrope":
        stretch = positions.context / positions.trained
        grown = math.sqrt(1 + math.log(stretch) / math.log(positions.trained)) if stretch > 1 else 1.0
        writer.add_rope_scaling_attn_factors(float(scaling.get("attention_factor") or grown))


def position_tensors(positions: Positions) -> dict[str, NDArray[np.float32]]:
    """By how much each frequency is divided, where that is not the same for all."""
    if positions.kind == "llama3":
        return {"rope_freqs.weight": _llama3_factors(positions)}
    if positions.kind == "longrope":
        kinds = ("long", "short")
        return {f"rope_factors_{kind}.weight": np.array(positions.scaling[f"{kind}_factor"], "f4") for kind in kinds}
    return {}


def _llama3_factors(positions: Positions) -> NDArray[np.float32]:
    """As ``_compute_llama3_parameters`` in transformers."""
    factor, low, high = (
        np.float32(positions.scaling.get(key, default))
        for key, default in (("factor", 8), ("low_freq_factor", 1), ("high_freq_factor", 4))
    )
    one, trained = np.float32(1), np.float32(positions.trained)
    exponents = np.arange(0, positions.size, 2, dtype=np.float32) / np.float32(positions.size)
    # torch rounds a power once and divides by multiplying with the reciprocal: its bytes are wanted.
    powers = (positions.theta ** exponents.astype(np.float64)).astype(np.float32)
    wavelengths = one / (one / powers) * np.float32(2 * math.pi)
    smooth = (one / wavelengths * trained - low) / (high - low)
    between = one / ((one - smooth) / factor + smooth)
    stretched = np.where(wavelengths > trained / low, factor, between)
    return np.where(wavelengths < trained / high, one, stretched).astype(np.float32)
