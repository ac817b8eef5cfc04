"""``backprop eval``: what a model scores on held-out rows, beside another one where wanted; a gate for scripts."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from backprop.cli import options, output
from backprop.cli.complete import run_ids
from backprop.cli.data_options import ProgressLine, dataset_file
from backprop.cli.export import find_source
from backprop.cli.generate import chat_request
from backprop.cli.options import FiniteRange, json_and_verbose
from backprop.core.errors import EXIT_OK, EXIT_USER, InputError, RunError
from backprop.core.events import Warning  # noqa: A004
from backprop.core.jobs import ChatRequest, EvalRequest, Evaluation, Evaluations, Message
from backprop.core.models import find_tokenizer
from backprop.core.refused import refused
from backprop.runs import evaluations
from backprop.runs.describe import number, signed, verdict_words
from backprop.runs.directory import RunDirectory, is_run
from backprop.runs.engine_jobs import EVAL, ask_engine
from backprop.runs.metrics import METRICS, pattern_of
from backprop.runs.verdict import bits_per_byte, compare, gate, interval, mcnemar, paired

_SHOWN, _TEXT = 10, 300
"""Rows that are listed, and characters of a text that are."""
_OTHER_MODEL = {"BASE_CHANGED": "STATE_IDENTITY_MISMATCH", "ADAPTER_CHANGED": "STATE_CHECKPOINT_INVALID"}
"""Warnings that a gate lets nothing pass with, and what they are then."""


@click.command("eval")
@click.argument("run", metavar="RUN-or-PATH", shell_complete=run_ids())
@click.option(
    "--vs", "other", metavar="B", help="compare with B: `base`, a run, or a folder with an adapter or a model"
)
@click.option("--step", type=click.IntRange(0), metavar="N", help="the checkpoint to score; open: the run's result")
@click.option("--model", "-m", metavar="M", help="where the base model is now, if it was moved")
@click.option("--data", "-d", metavar="D", help="score all rows of this dataset, not the run's held-out ones")
@click.option("--trained", is_flag=True, help="score the rows that the run trained")
@click.option("--metrics", is_flag=True, help="generate answers too: exact match, F1, contains; shows which rows flip")
@click.option("--regex", default="", metavar="PATTERN", help="also the share of answers in which this is found")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=128, show_default=True, metavar="N", help="longest answer"
)
@click.option("--hardest", type=click.IntRange(1), metavar="N", help="list the N rows with the highest loss, with text")
@click.option("--gate", "gated", type=click.Choice(["loss", *METRICS]), help="exit 1 where it is surely worse than B")
@click.option("--allow", type=FiniteRange(0), default=0.0, metavar="X", help="by how much the gate lets it be worse")
@json_and_verbose
def evaluate(
    run: str,
    as_json: bool,
    verbose: bool,
    *,
    other: str | None,
    step: int | None,
    model: str | None,
    data: str | None,
    trained: bool,
    metrics: bool,
    regex: str,
    max_tokens: int,
    hardest: int | None,
    gated: str | None,
    allow: float,
) -> int:
    """Score a model on the rows that its run held out: loss and perplexity, row by row.

    RUN-or-PATH is a run (its id, or the beginning of it) or a folder with an adapter or a whole model.

    Example: backprop eval 3fa2 --vs base --metrics --gate exact_match
    """
    generate = metrics or bool(regex) or gated in METRICS
    options.require_effect(allow=(gated, "--gate"), max_tokens=(generate, "--metrics"))
    if regex:
        pattern_of(regex)
    if trained and data is not None:
        hint = "leave one of the two out"
        raise InputError("--trained scores the rows that the run trained, --data all rows of a dataset", hint=hint)
    if gated == "regex" and not regex:
        raise InputError("--gate regex needs a pattern", hint="give it with --regex")
    if gated and other is None:
        raise InputError("--gate compares with another model", hint="name it with --vs: base, a run or a folder")
    source = find_source(run)
    known = next((each for each in (source, *_run_of(other)) if is_run(each)), None)
    if known is None and data is None:
        raise InputError(f"{source} is no run, so it has no held-out rows", hint="name rows with --data")
    if other == "base" and is_run(source) and (config := RunDirectory(source).find_record().config).mode == "full":
        base = shlex.quote(str(find_tokenizer(config.model)))
        raise InputError("this is a whole model: it has no adapter to leave out", hint=f"name the base: --vs {base}")
    request = EvalRequest(
        model=chat_request(source, step, model),
        base=other == "base",
        run=str(known) if known else "",
        data=str(Path(dataset_file(data)).absolute()) if data else "",
        trained=trained,
        generate=generate,
        regex=regex,
        max_tokens=max_tokens,
    )
    notes: list[Warning] = []
    ours, *sides = _ask(request, notes, gated)
    if other is not None and other != "base":
        sides = _ask(msgspec.structs.replace(request, model=_other_model(other)), notes, gated)
    kept = _keep(source, ours, notes)
    answer: dict[str, Any] = {**summary(ours), "path": str(kept or ""), "warnings": msgspec.to_builtins(notes)}
    passed = True
    if sides:
        answer |= comparison(ours, sides[0])
        if gated:
            answer["gate"] = gate_of(answer, gated, allow)
            passed = answer["gate"]["passed"]
    if hardest:
        order = sorted(ours.rows, key=lambda row: -float("inf") if row.loss is None else -row.loss)
        answer["hardest"] = msgspec.to_builtins(order[:hardest])
    shown = "loss" if trained or data else "held-out loss"
    output.answer({**answer, "per_row": msgspec.to_builtins(ours.rows)}, as_json, lambda found: _show(found, shown))
    return EXIT_OK if passed else EXIT_USER


def _run_of(other: str | None) -> list[Path]:
    return [find_source(other)] if other not in (None, "base") else []


def _other_model(other: str) -> ChatRequest:
    return chat_request(find_source(other), None, None)


def _ask(request: EvalRequest, notes: list[Warning], gated: str | None) -> list[Evaluation]:
    """The scores; what is said beside them is added to ``notes``.

    Raises:
        RunError: there is a gate, and the model is not the one that was trained.
    """

    def report(message: Message) -> None:
        if isinstance(message, Warning):
            notes.append(message)
            if gated and message.code in _OTHER_MODEL:
                hint = "put its files back; without --gate it is scored as it is, with a warning"
                raise RunError(message.message, code=_OTHER_MODEL[message.code], hint=hint)
        progress.report(message)

    with ProgressLine("scoring", in_bytes=False) as progress:
        return ask_engine(EVAL, request, Evaluations, report).sides


def _keep(source: Path, found: Evaluation, notes: list[Warning]) -> Path | None:
    """Keep the scores in the run's directory, under the time; ``None`` of a folder that is no run's, and where they
    cannot be kept, which is said: they took long, and are shown all the same.
    """
    if not is_run(source):
        return None
    what = "result" if found.step is None else f"step-{found.step:08d}"
    file = RunDirectory(source).evaluations / f"eval-{time.strftime('%Y%m%d-%H%M%S')}-{what}.json"
    try:
        evaluations.write(file, found)
    except OSError as error:
        known = refused(error)
        notes.append(Warning(code=known.code, message=f"the scores are not kept: {known.message}", hint=known.hint))
        output.narrate(f"{notes[-1].message}; {known.hint}", "warning")
        return None
    return file


def summary(found: Evaluation) -> dict[str, Any]:
    """The numbers of one model."""
    measured = [row.metrics for row in found.rows if row.answer is not None]
    names = measured[0] if measured else {}
    loss = found.loss
    return {
        "source": found.source,
        "step": found.step,
        "rows": len(found.rows),
        "tokens": sum(row.tokens for row in found.rows),
        "loss": loss,
        "perplexity": None if loss is None else float(np.exp(min(loss, 709.0))),
        "metrics": {name: sum(each[name] for each in measured) / len(measured) for name in names},
    }


def comparison(ours: Evaluation, theirs: Evaluation) -> dict[str, Any]:
    """One model against another on the rows that both scored.

    Raises:
        InputError: they have none in common, or their losses cannot be compared.
    """
    before, after, unit = theirs.rows, ours.rows, "nats per token"
    pairs = paired(before, after)
    if not pairs:
        raise InputError("the two models scored no row in common", hint="name rows for both with --data")
    if ours.fingerprint != theirs.fingerprint:
        unit = "bits per byte"
        before, after = bits_per_byte(pairs)
        if not before:
            why = "their tokenizers differ, and their chat templates or lengths train another text of every row"
            raise InputError(f"the losses of the two models cannot be compared: {why}", hint="look at --metrics alone")
    found: dict[str, Any] = {"b": summary(theirs), "unit": unit, "verdict": compare(before, after)}
    names = [name for name in METRICS if all(name in side.metrics for pair in pairs for side in pair)]
    found["differences"] = {
        name: interval(np.array([b.metrics[name] - a.metrics[name] for a, b in pairs]))._asdict() for name in names
    }
    if names:
        right = "regex" if "regex" in names else "exact_match"
        flips = [(a, b) for a, b in pairs if a.metrics[right] != b.metrics[right]]
        sides: dict[str, list[dict[str, Any]]] = {"gained": [], "lost": []}
        for a, b in flips:
            row = {"line": b.line, "prompt": b.prompt, "expected": b.expected, "before": a.answer, "after": b.answer}
            sides["gained" if b.metrics[right] else "lost"].append(row)
        p = mcnemar(len(sides["gained"]), len(sides["lost"]))
        found["flipped"] = {"by": right, **sides, "p": p}
    return found


def gate_of(answer: dict[str, Any], gated: str, allowed: float) -> dict[str, Any]:
    """Whether the model may pass: it is not surely worse than the other by more than ``allowed``."""
    if gated == "loss":
        found = answer["verdict"]
        by, bound = (found.difference, found.low) if found and answer["loss"] is not None else (None, None)
    else:
        found = answer["differences"].get(gated)
        by, bound = (-found["mean"], -found["high"]) if found else (None, None)
    margin = by - bound if by is not None and bound is not None and np.isfinite(bound) else 0.0
    passed = gate(by, margin, allowed)
    return {"metric": gated, "allowed": allowed, "worse_by": by, "bound": bound, "passed": passed}


def _show(answer: dict[str, Any], loss: str) -> None:
    for side in (answer, answer.get("b")):
        if side is not None:
            what = "the base model" if side["step"] == 0 else f"step {side['step']}" if side["step"] else "the result"
            output.line(f"{side['source']}, {what}: loss {number(side['loss'])} on {side['rows']} rows", "head")
            output.line(f"perplexity {number(side['perplexity'], 2)}, {side['tokens']:,} supervised tokens")
            for name, value in side["metrics"].items():
                output.line(f"{name:<12} {value:.1%}")
    if (verdict := answer.get("verdict")) is not None:
        per = f" ({answer['unit']})"
        output.line(f"against {answer['b']['source']}{per}: {verdict_words(verdict, loss)}", "head")
    for name, each in answer.get("differences", {}).items():
        bounds = (
            f"{signed(each['low'])} to {signed(each['high'])}" if np.isfinite(each["low"]) else "unknown of one row"
        )
        output.line(f"{name:<12} {signed(each['mean'])} (95 %: {bounds})")
    if flipped := answer.get("flipped"):
        gained, lost = flipped["gained"], flipped["lost"]
        output.line(f"by {flipped['by']}: {len(gained)} gained, {len(lost)} lost; McNemar p {flipped['p']:.3f}")
        for kind in ("gained", "lost"):
            for row in flipped[kind][:_SHOWN]:
                output.line(f"{kind} line {row['line']}: {_cut(row['prompt'])}")
                for name in ("expected", "before", "after"):
                    output.line(f"    {name:<9} {_cut(row[name])}", "quiet")
    for row in answer.get("hardest", ()):
        output.line(f"line {row['line']}: loss {number(row['loss'])} over {row['tokens']} tokens", "head")
        output.line(f"    {_cut(row.get('prompt', ''))}", "quiet")
        output.line(f"    {_cut(row.get('expected', ''))}")
    if answer.get("gate"):
        found = answer["gate"]
        allowed = f"{found['metric']}: {found['allowed']:g} allowed"
        words = f"the gate {'lets it pass' if found['passed'] else 'rejects it'} ({allowed})"
        output.line(words, "info" if found["passed"] else "error")
    if answer["path"]:
        output.line(f"each row: {answer['path']}")


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TEXT else f"{text[:_TEXT]} …"
