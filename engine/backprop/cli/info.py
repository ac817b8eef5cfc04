"""``backprop info``: what this machine is and has; the error codes."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from backprop.cli import output
from backprop.cli.options import json_and_verbose
from backprop.core.definition import PREFIX, Setting, all_settings
from backprop.core.errors import ERROR_CODES, REMEDIES
from backprop.core.presets import TRAINING_PRESETS
from backprop.core.settings_sources import PASSWORD
from backprop.runs.describe import bytes_text

PRESET_VARIABLE = {f"{PREFIX}PRESET": f"a training preset: {', '.join(TRAINING_PRESETS)}"}
OTHER_VARIABLES = {
    "HF_HUB_OFFLINE": "1: nothing is fetched, not even what was named",
    "HF_TOKEN": "for models and datasets of the Hugging Face Hub that need a login",
    "HF_HOME": "where models of the hub are kept",
    "OLLAMA_HOST": "where Ollama listens; 127.0.0.1:11434 where it is not set",
    "XDG_CACHE_HOME": "and XDG_DATA_HOME, XDG_CONFIG_HOME: where caches, the list of runs and settings are kept",
    "CUDA_VISIBLE_DEVICES": "the GPUs that may be used",
    "OMP_NUM_THREADS": "threads on the CPU; as many as there are cores where it is not set",
    "OMP_WAIT_POLICY": "how they wait for each other; they spin a moment where neither it nor GOMP_SPINCOUNT is set",
    "NO_COLOR": "no colours; nor where TERM is dumb",
    "SSH_CONNECTION": "set by ssh: the application draws half as often",
    "TMUX": "set by tmux: what it needs for copying is said",
    PASSWORD: "USER:PASSWORD of `backprop ui`, where --auth does not name it",
    "WANDB_API_KEY": "and WANDB_MODE, WANDB_PROJECT …: curves of runs go to Weights & Biases",
    "TENSORBOARD_LOGGING_DIR": "curves of runs go to event files in there",
    "MLFLOW_TRACKING_URI": "and MLFLOW_EXPERIMENT_NAME …: curves of runs go to MLflow",
    "TRACKIO_PROJECT": "or TRACKIO_DIR, TRACKIO_SPACE_ID …: curves of runs go to Trackio",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "and its like: the phases of runs go there as spans, with [observability]",
}


@click.command
@click.option("--error-codes", is_flag=True, help="every error code and what it means")
@click.option("--finding-codes", is_flag=True, help="every code of a finding about rows and what it means")
@click.option("--env", is_flag=True, help="every environment variable that is read and what it means")
@json_and_verbose
def info(error_codes: bool, finding_codes: bool, env: bool, as_json: bool, verbose: bool) -> None:
    """Show Python, torch, CUDA, the GPUs and the optional features of this machine."""
    if error_codes:
        output.answer(ERROR_CODES, as_json, _show_errors)
    elif finding_codes:
        from backprop.data.example import PROBLEM_CODES

        output.answer(PROBLEM_CODES, as_json, _show_each)
    elif env:
        output.answer(variables(), as_json, _show_each)
    else:
        from backprop.hardware import devices

        output.answer(msgspec.to_builtins(devices.info()), as_json, _show)


def variables() -> dict[str, str]:
    """Every environment variable that is read, and what it means."""
    ours = {each.variable: _meaning(each) for each in all_settings().values() if not each.per_run}
    return {**ours, **PRESET_VARIABLE, **OTHER_VARIABLES}


def _meaning(setting: Setting) -> str:
    parts = [setting.metavar, setting.range, setting.unit if setting.numbers else ""]
    default = setting.shown_default
    default = default if setting.rule or not default else f"default {default}"
    return f"{setting.help} ({'; '.join(filter(None, [*parts, default]))})"


def _show_each(found: dict[str, str]) -> None:
    for name, meaning in found.items():
        output.line(name, "head")
        output.line(f"  {meaning}")


def _show_errors(codes: dict[str, str]) -> None:
    _show_each({code: f"{meaning}\n  what to do: {REMEDIES[code]}" for code, meaning in codes.items()})


def _show(facts: dict[str, Any]) -> None:
    output.line(f"python    {facts['python']} on {facts['platform']}")
    built = f", built for CUDA {facts['cuda']}" if facts["cuda"] else ", a CPU build"
    driver = f", driver {facts['driver']}" if facts["driver"] else ""
    output.line(f"torch     {facts['torch'] + built if facts['torch'] else 'not installed'}{driver}")
    for gpu in facts["gpus"]:
        free = "" if gpu["vram_free"] is None else f", {bytes_text(gpu['vram_free'])} free"
        total = "" if gpu["vram_total"] is None else f", {bytes_text(gpu['vram_total'])}"
        heat = "" if gpu["temperature"] is None else f", {gpu['temperature']:.0f} °C"
        output.line(f"gpu       {gpu['name']}{total}{free}{heat}")
    problem = facts["gpu_problem"]
    if problem is not None:
        output.line(f"gpu       {problem['message']}" + (f" ({problem['hint']})" if problem.get("hint") else ""))
    versions = [f"{name} {version or 'missing'}" for name, version in facts["libraries"].items() if name != "torch"]
    output.line(f"libraries {', '.join(versions)}")
    for name, extra in facts["extras"].items():
        if extra["available"]:
            how = "installed" if extra["installed"] else extra["install"]
            output.line(f"[{name}]".ljust(16) + f"{extra['enables']}: {how}")
