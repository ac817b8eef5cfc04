"""``backprop info``: what this machine is and has; the error codes."""

from __future__ import annotations

from typing import Any

import click

from backprop.cli import output
from backprop.cli.options import json_and_verbose
from backprop.core.errors import ERROR_CODES
from backprop.runs.describe import bytes_text


@click.command
@click.option("--error-codes", is_flag=True, help="every error code and what it means")
@click.option("--finding-codes", is_flag=True, help="every code of a finding about rows and what it means")
@json_and_verbose
def info(error_codes: bool, finding_codes: bool, as_json: bool, verbose: bool) -> int:
    """Show Python, torch, CUDA, the GPUs and the optional features of this machine."""
    if error_codes:
        return _show_codes(ERROR_CODES, as_json)
    if finding_codes:
        from backprop.data.example import PROBLEM_CODES

        return _show_codes(PROBLEM_CODES, as_json)
    from backprop.hardware.devices import info_dict

    facts = info_dict()
    if as_json:
        output.document(facts)
    else:
        _show(facts)
    return 0


def _show_codes(codes: dict[str, str], as_json: bool) -> int:
    if as_json:
        output.document(codes)
    else:
        output.table(["code", "meaning"], [[code, meaning] for code, meaning in codes.items()])
    return 0


def _show(facts: dict[str, Any]) -> None:
    output.line(f"python    {facts['python']} on {facts['platform']}")
    output.line(f"torch     {facts['torch'] or 'not installed'}, {_cuda(facts)}")
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


def _cuda(facts: dict[str, Any]) -> str:
    built = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "a CPU build"
    return built + (f", driver {facts['driver']}" if facts["driver"] else "")
