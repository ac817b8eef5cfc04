"""Frozen weights in 4 bits: NF4 with double quantisation (QLoRA, https://arxiv.org/abs/2305.14314), by bitsandbytes.

All linear layers below the head are in 4 bits; embeddings, norms and the head stay in 16. What transformers does not
take for a linear layer stays too, unsaid: experts that are one tensor for all. So it is looked at in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from backprop.core.errors import InvalidSettingError, MissingDependencyError
from backprop.hardware.devices import installed_extras, installed_version

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

LIBRARY = "bitsandbytes"
PROMISED = 0.9
"""The least share of the weights in matrices, embeddings and head apart, that is in 4 bits where a run is a QLoRA."""
_WIDEST = 0.16
"""More than half of the widest step of NF4, between -1 and -0.696."""


@contextmanager
def hidden() -> Iterator[None]:
    """Inside, bitsandbytes cannot be found: PEFT would import it for every run where it is there, which takes seconds.

    ``require_usable`` takes back what PEFT concludes from that.
    """
    if LIBRARY in sys.modules:
        yield
        return
    sys.modules[LIBRARY] = None  # type: ignore[assignment]
    try:
        yield
        if (peft := sys.modules.get("peft.import_utils")) is not None:
            peft.is_bnb_available()  # it asks once and remembers: later it would find the library after all
    finally:
        del sys.modules[LIBRARY]


def require_installed() -> None:
    """Refuse 4-bit weights where their library is missing.

    Raises:
        MissingDependencyError: with the command that installs it.
    """
    extra = installed_extras().get("qlora")
    if extra is not None and extra.missing:
        raise MissingDependencyError(
            f"QLoRA needs {', '.join(extra.missing)}, which is not installed",
            hint=f"{extra.install}, or --mode lora: the weights in 16 bits",
        )


def require_usable(device: torch.device) -> None:
    """See that the library works on ``device``, by a small matrix there and back.

    Raises:
        MissingDependencyError: it does not, or is not installed.
    """
    require_installed()
    from peft import import_utils
    from transformers.utils.import_utils import is_bitsandbytes_available

    for known in (import_utils.is_bnb_available, import_utils.is_bnb_4bit_available, is_bitsandbytes_available):
        known.cache_clear()
    try:
        sample = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
        lost = float((there_and_back(sample) - sample).abs().max())
        why = "" if lost < _WIDEST else f"a number came back {lost:.2g} away"
    except Exception as error:  # a library for another CUDA raises whatever its loader does
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if why:
        raise MissingDependencyError(
            f"{LIBRARY} {installed_version(LIBRARY)} does not work on {device.type}: {why}",
            hint=f"`python -m {LIBRARY}` says what it misses; --mode lora trains without it",
        )


def quantization(dtype: torch.dtype) -> BitsAndBytesConfig:
    """What transformers is told: NF4, scales quantised again, multiplied in ``dtype``."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def there_and_back(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` [out, in] as it is multiplied with once it is in 4 bits, in its own type."""
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
    back: torch.Tensor = functional.dequantize_4bit(packed, state)
    return back


def dequantised(layer: Any) -> torch.Tensor:
    """The weight [out, in] of a layer in 4 bits as it is multiplied with, in float32."""
    from bitsandbytes import functional

    back: torch.Tensor = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return back.float()


def layers(model: torch.nn.Module) -> dict[str, Any]:
    """The layers in 4 bits, by name; not what PEFT puts around them, whose weight is theirs too."""
    modules = model.named_modules()
    return {name: each for name, each in modules if hasattr(each._parameters.get("weight"), "quant_state")}


def size(weight: torch.nn.Parameter) -> int:
    """How many numbers a weight is; two of one in 4 bits share a byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


def _bytes(weight: torch.nn.Parameter) -> int:
    """Bytes in memory, scales and their tables included."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.nbytes
    parts = (weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return sum(part.nbytes for part in parts)


def share(model: torch.nn.Module) -> float:
    """Share of the frozen weights' bytes that is in 4 bits."""
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    narrow = sum(_bytes(weight) for weight in frozen if hasattr(weight, "quant_state"))
    return narrow / max(1, sum(map(_bytes, frozen)))


def require_in_force(model: torch.nn.Module, path: Path) -> None:
    """See that what should be in 4 bits is: all matrices of the model but embeddings and head.

    Raises:
        InvalidSettingError: much is not; the largest of it is named.
    """
    ends: set[Any] = {model.get_input_embeddings(), model.get_output_embeddings()}  # type: ignore[operator]
    kept = {id(weight) for end in ends if end is not None for weight in end.parameters()}
    matrices = {name: w for name, w in model.named_parameters() if size(w) > max(w.shape) and id(w) not in kept}
    wide = {name: size(w) for name, w in matrices.items() if not hasattr(w, "quant_state")}
    whole = sum(map(size, matrices.values()))
    if whole - sum(wide.values()) < PROMISED * whole:
        largest = max(wide, key=lambda name: wide[name])
        raise InvalidSettingError(
            f"QLoRA would leave {sum(wide.values()) / whole:.0%} of the weights of {path} in 16 bits, for they are in "
            f"no linear layers: {largest} [{', '.join(map(str, model.get_parameter(largest).shape))}] for instance",
            hint="train it with --mode lora, or a model without experts that are one tensor",
            details={"field": "mode"},
        )
    for each in layers(model).values():
        # A processor with bf16 would repack them for answers, and lose their gradients in training afterwards.
        each.support_avx512bf16_for_cpu = False
