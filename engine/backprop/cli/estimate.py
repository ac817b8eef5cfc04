"""``backprop estimate-vram``: the memory that a run would need, before anything is fetched or loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
import msgspec

from backprop.cli import options, output
from backprop.cli.options import FiniteRange, json_and_verbose
from backprop.core.architecture import Architecture
from backprop.core.definition import settings
from backprop.core.models import find_architecture, repository_of
from backprop.core.presets import DEFAULT_MODEL, MODEL_PRESETS
from backprop.core.resolve import resolve
from backprop.core.settings import RunConfig
from backprop.hardware import devices, estimate, fit
from backprop.hardware.estimate import CUDA_TOKEN_BUDGET, Mode, Shape
from backprop.runs.measured import measured_peaks, of_shape

BATCHES = (1, 2, 4, 8, 16)
SETTINGS = (
    *("model", "processes", "weights_dtype", "optim", "batch_size", "max_seq_length", "packing"),
    "gradient_checkpointing",
    *("lora_preset", "lora_r", "lora_dropout", "target_modules", "use_dora", "init_lora_weights"),
)


@dataclass(frozen=True)
class Memory:
    """What a run may use: bytes, and where the number comes from."""

    bytes: int | None
    source: str


@click.command(cls=options.SettingCommand)
@options.setting_options(*SETTINGS)
@options.configuration_options
@click.option("--mode", type=click.Choice(["lora", "qlora", "full"]), help="which weights are trained, and how")
@click.option("--vram", type=FiniteRange(0, min_open=True), metavar="GB", help="memory of the card, as 16")
@json_and_verbose
def estimate_vram(
    file: str | None, mode: Mode | None, vram: float | None, as_json: bool, verbose: bool, **given: Any
) -> None:
    """Show the memory that training a model needs, for each batch size, and what would make it fit.

    Nothing is fetched or loaded. Rows are taken to be as long as they may be, with every token trained.

    Example: backprop estimate-vram --model qwen2.5-7b --vram 16
    """
    found = resolve({"data": "rows", **given}, file=file)
    config = found.config()
    model = DEFAULT_MODEL if found.origins["model"].kind == "default" else config.model
    memory = Memory(int(vram * 2**30), f"a card of {vram:g} GB") if vram else card_memory()
    with options.named_model():
        repository_of(model)
    with options.named_model(f"name its folder, or a preset of its size: {', '.join(MODEL_PRESETS)}"):
        answer = find_answer(model, config, memory, mode)
    output.answer(answer, as_json, _show)


def card_memory() -> Memory:
    """What is free on this machine's first card."""
    for card in devices.info().gpus:
        if card.vram_free is not None:
            return Memory(card.vram_free, f"free on {card.name}")
    return Memory(None, "no card that can be looked at; --vram 16 takes one of 16 GB")


def find_answer(model: str, config: RunConfig, memory: Memory, mode: Mode | None = None) -> dict[str, Any]:
    """The answer of ``estimate-vram`` (SPEC section 13).

    ``parts`` are those of the batch size that was asked for, else of the largest that fits.

    Raises:
        ModelLoadError: the model is not known on this machine, or cannot be counted.
        TrainingError: every weight of a model that is too large would be trained.
    """
    known = find_architecture(model)
    asked_for = msgspec.structs.replace(config, model=model, mode=mode or config.mode)
    config, reasons = fit.fitted(asked_for, memory.bytes or 0)
    shape = Shape.of(config, memory=memory.bytes)
    if shape.mode == "full":
        fit.require_trainable_in_full(known, model)
    asked = None if config.batch_size == "auto" else shape.batch_size
    rows, shapes, peaks = [], {}, measured_peaks(model)
    for size in sorted({*BATCHES, *([asked] if asked else [])}):
        shapes[size] = msgspec.structs.replace(shape, batch_size=size)
        needed = estimate.estimate(known, shapes[size]).total
        row: dict[str, Any] = {"batch_size": size, "bytes": needed}
        row["fits"] = None if memory.bytes is None else needed <= memory.bytes
        row["measured"] = of_shape(peaks, shapes[size].settings(config))
        rows.append(row)
    fitting = [row["batch_size"] for row in rows if row["fits"]]
    chosen = shapes[asked or max(fitting, default=1)]
    short = memory.bytes is not None and estimate.estimate(known, chosen).total > memory.bytes
    return {
        "model": model,
        "parameters": estimate.parameters(known),
        "trained_parameters": estimate.trained_parameters(known, chosen),
        "shape": chosen,
        "rows": rows,
        "parts": estimate.estimate(known, chosen),
        "memory": {"bytes": memory.bytes, "source": memory.source},
        "changes": fit.changes(known, chosen, memory.bytes or 0) if short else [],
        "notes": [*(f"{name} {getattr(config, name)}: {why}" for name, why in reasons.items()), *_notes(known, shape)],
    }


def _notes(model: Architecture, shape: Shape) -> list[str]:
    """What the numbers take for granted."""
    notes = ["counted for cards that compute in bf16 (RTX 30 and later): on older ones numbers take twice as much"]
    if not model.is_known:
        notes.append(f"{model.family} is counted as a Llama of its size: it is not known better")
    if shape.optim == "paged_adamw_8bit":
        state = estimate.STATE_BYTES[shape.optim] * estimate.trained_parameters(model, shape)
        notes.append(f"the optimizer's state, {gib(state)}, is in the main memory as far as the card is full: slower")
    if shape.processes > 1:
        notes.append(
            f"{shape.processes} processes: the numbers are of each, on a card of its own, with all weights and "
            "gradients, and its share of the optimizer's state"
        )
    if shape.packing and model.recurrent is None and BATCHES[-1] * shape.max_seq_length > CUDA_TOKEN_BUDGET:
        notes.append(
            f"a packed pass holds at most {CUDA_TOKEN_BUDGET} tokens: beyond them a larger batch takes no more"
        )
    return notes


def gib(count: float) -> str:
    """Bytes in the unit that cards are sold by, whatever they call it."""
    return f"{count / 2**30:.1f} GiB"


def _show(answer: dict[str, Any]) -> None:
    shape, parts, memory = answer["shape"], answer["parts"], answer["memory"]
    trained = answer["trained_parameters"]
    how = f"{shape.mode}, rank {shape.lora_r}" if shape.mode != "full" else f"full, weights in {shape.weights_dtype}"
    output.line(
        f"{answer['model']}: {answer['parameters'] / 1e9:.2f}B parameters, {trained / 1e6:.0f}M trained ({how})"
    )
    again = "computed again" if shape.gradient_checkpointing else "kept"
    output.line(f"rows of up to {shape.max_seq_length} tokens, activations {again}")
    output.line(f"memory: {'' if memory['bytes'] is None else gib(memory['bytes']) + ', '}{memory['source']}")
    output.line()
    words = {True: "yes", False: "no", None: ""}
    cells = [
        [str(row["batch_size"]), gib(row["bytes"]), words[row["fits"]], str(row["measured"] or "")]
        for row in answer["rows"]
    ]
    output.table(["batch", "needs", "fits", "measured"], cells, right=frozenset({0, 1}))
    output.line()
    output.line(f"of batch {shape.batch_size}:")
    for name, count in msgspec.to_builtins(parts).items():
        output.line(f"  {name:<12}{gib(count):>10}")
    if answer["changes"]:
        output.line()
        output.line("what would save memory:")
    for change in answer["changes"]:
        flag = settings()[change.setting].flags[0] + ("" if change.value is True else f" {change.value}")
        output.line(f"  {flag:<26}{gib(change.saves):>10} less{', and fits' if change.fits else ''}")
    output.line()
    for note in answer["notes"]:
        output.line(note)
