"""The model card of the Hugging Face Hub, made from what a run wrote down."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import Struct

from backprop.core.settings import RunConfig, settings_with_effect
from backprop.runs.describe import number
from backprop.runs.state import RunState

_LICENCES = {"Llama Community": "llama3.2"}
"""The hub's words for licences, where they are not the licence's own in small letters."""
_KNOWN_LICENCES = ("apache-2.0", "mit", "llama3.2", "llama3.1", "llama3", "gemma", "cc-by-4.0", "cc-by-nc-4.0")
_WHAT = {
    "adapter": "A LoRA adapter for {base}.",
    "finetune": "{base}, fine-tuned: base and adapter merged into one model.",
    "full": "{base}, fine-tuned: every weight was trained.",
    "quantized": "{base}, fine-tuned, as a GGUF file for Ollama, llama.cpp and LM Studio.",
}
_PRIVATE = ("host", "platform")


class About(Struct, kw_only=True):
    """What is known of a model that is uploaded; empty where it is not."""

    repo: str
    relation: str
    """What it is to its base model: ``adapter``, ``finetune`` or ``quantized``, as the hub calls it."""
    library: str
    """What reads it, in the hub's word."""
    base: str
    """The base model's name on the hub."""
    licence: str
    """The base model's."""
    data_hash: str
    run: RunState | None


def licence_word(licence: str) -> str:
    """The hub's word for a licence; ``other`` for one that it has no word for."""
    word = _LICENCES.get(licence, licence.lower())
    return word if word in _KNOWN_LICENCES else "other"


def card(about: About) -> str:
    """The text of ``README.md``: a head of YAML, then the run in words and numbers."""
    head: dict[str, Any] = {"library_name": about.library, "pipeline_tag": "text-generation"}
    if about.base:
        head |= {"base_model": about.base, "base_model_relation": about.relation}
    if about.licence:
        word = licence_word(about.licence)
        head |= {"license": word} if word != "other" else {"license": word, "license_name": about.licence.lower()}
    full = about.run is not None and about.run.config.get("mode") == "full"
    method = [about.run.config.get("method", "sft")] if about.run else []
    head["tags"] = ["backprop-tui", "full" if full else "lora", *method]
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in head.items()), "---", ""]
    what = _WHAT["full" if full and about.relation == "finetune" else about.relation].format(
        base=about.base or "a model"
    )
    what = what[0].upper() + what[1:] if not about.base else what
    lines += [f"# {about.repo.rpartition('/')[2]}", "", what, ""]
    for title, facts in _sections(about):
        if facts:
            lines += [f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {name} | {_cell(value)} |" for name, value in facts.items()] + [""]
    return "\n".join(lines)


def _sections(about: About) -> list[tuple[str, dict[str, Any]]]:
    run = about.run
    data: dict[str, Any] = {"fingerprint of the tokenised rows": about.data_hash} if about.data_hash else {}
    if run is None:
        return [("Training data", data)]
    if (rows := run.dataset) is not None:
        data |= {"format": rows.format, "rows": rows.rows, "trained rows": rows.kept - rows.held_out}
        data |= {"held out": rows.held_out, "cut to the longest length": rows.cut}
        data |= {"tokens": rows.tokens, "of these in the loss": rows.trained_tokens}
    results: dict[str, Any] = {"steps": run.step, "run": run.run_id}
    if run.curves.loss:
        results["loss of the last step"] = number(run.curves.loss[-1])
    for each in run.evaluations:
        if each.base:
            results["loss on held-out rows, before training"] = number(each.loss)
    if evaluations := [each for each in run.evaluations if not each.base]:
        last = evaluations[-1]
        results["loss on held-out rows, at the end"] = f"{number(last.loss)} (step {last.step})"
        best = next((each for each in reversed(evaluations) if each.best), last)
        results["loss on held-out rows, best"] = f"{number(best.loss)} (step {best.step})"
    versions = {name: value for name, value in run.environment.items() if name not in _PRIVATE and value}
    return [
        ("Training data", data),
        ("Results", results),
        ("Settings that are not the defaults", _changed_settings(run.config)),
        ("Versions", versions),
    ]


def _changed_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings with an effect on the weights whose value is not the default."""
    defaults = settings_with_effect(msgspec.convert({"data": "."}, RunConfig))
    return {name: config[name] for name, value in defaults.items() if name in config and config[name] != value}


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.replace("|", "\\|").split())
