"""``backprop generate``: ask a run's model, and the model it came from."""

from __future__ import annotations

import sys
from typing import Any

import click

from backprop.cli import output, views
from backprop.cli.options import json_and_verbose
from backprop.cli.runs import find_checkpoint, find_run
from backprop.core.events import ModelLoading, Sample, Warning  # noqa: A004
from backprop.core.jobs import Delta, GenerateRequest
from backprop.core.locate import locate_model
from backprop.runs.describe import describe
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_jobs import EngineJob, start_job
from backprop.runs.state import read_run, require_result

JOB = "backprop.train.generate"


@click.command
@click.argument("run")
@click.option("--prompt", "-p", "prompts", multiple=True, required=True, metavar="TEXT", help="what to ask; repeatable")
@click.option("--step", type=click.IntRange(0), metavar="N", help="the checkpoint to ask; open: the run's result")
@click.option("--model", "-m", metavar="M", help="where the base model is now, if it was moved")
@click.option("--base", is_flag=True, help="ask the model without the adapter too")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=256, metavar="N", show_default=True, help="longest answer"
)
@json_and_verbose
def generate(run: str, as_json: bool, verbose: bool, **asked: Any) -> None:
    """Ask the model of a run: RUN is its id, the beginning of its id, or its directory."""
    directory = RunDirectory(find_run(run))
    asked["model"] = asked["model"] and locate_model(asked["model"])
    request = GenerateRequest(run=str(directory.path), **asked)
    if request.step is None:
        require_answers(directory)
    else:
        find_checkpoint(directory, request.step)
    job = start_job(JOB, directory, request)
    try:
        samples = _listen(job, request, as_json)
    finally:
        job.end()
    if as_json:
        answers = [{"prompt": s.prompt, "text": s.text, "tuned": s.tuned} for s in samples]
        output.document({"run_id": directory.run_id, "answers": answers})
    elif request.base:
        for text in views.before_and_after(samples, output.width()):
            output.line(text)


def require_answers(directory: RunDirectory) -> None:
    """A run without a result is noticed before an engine starts, and one whose model nothing names any more."""
    state = read_run(directory.path)
    adapter = require_result(state)
    if not isinstance(state.config.get("model"), str):
        directory.find_record()  # says what is missing
    directory.require_files(adapter)


def _listen(job: EngineJob, request: GenerateRequest, as_json: bool) -> list[Sample]:
    """Take in the answers; for people the text appears as it comes, unless it is compared afterwards."""
    stream = not as_json and not request.base
    samples: list[Sample] = []
    begun = -1
    for message in job.messages():
        match message:
            case ModelLoading():
                output.narrate(describe(message))
            case Warning():
                output.narrate(describe(message), "warning")
            case Delta() if stream:
                if message.index != begun:
                    begun = message.index
                    if len(request.prompts) > 1:
                        output.line(f"> {request.prompts[begun]}", "head")
                sys.stdout.write(output.clean(message.text))
                sys.stdout.flush()
            case Sample():
                samples.append(message)
                if stream:
                    output.line()
    return samples
