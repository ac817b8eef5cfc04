"""``backprop generate``: ask a run's model, and the model it came from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from backprop.cli import output, views
from backprop.cli.options import json_and_verbose
from backprop.cli.runs import find_checkpoint, find_run
from backprop.core.errors import EngineCrashedError
from backprop.core.events import ModelLoading, Sample, Warning  # noqa: A004
from backprop.core.jobs import ChatReady, ChatRequest, Delta, Message, Sampling, TurnEnded
from backprop.core.locate import locate_model
from backprop.runs.conversation import CHAT, Conversation, Turn
from backprop.runs.describe import describe
from backprop.runs.directory import RunDirectory, is_run
from backprop.runs.engine_jobs import engine_job
from backprop.runs.state import read_run, require_result


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
def generate(
    run: str,
    as_json: bool,
    verbose: bool,
    *,
    prompts: tuple[str, ...],
    step: int | None,
    model: str | None,
    base: bool,
    max_tokens: int,
) -> None:
    """Ask the model of a run: RUN is its id, the beginning of its id, or its directory."""
    directory = RunDirectory(find_run(run))
    conversation = Conversation(sampling=Sampling(max_tokens=max_tokens))
    samples: list[Sample] = []
    with engine_job(CHAT, chat_request(directory.path, step, model), stays=True) as job:
        messages = conversation.attach(job)
        wait_until_ready(messages)
        for prompt in prompts:
            if len(prompts) > 1 and not as_json and not base:
                output.line(f"> {prompt}", "head")
            conversation.begin_anew()
            turn = conversation.ask(prompt, base=base)
            _listen(messages, turn, stream=not as_json and not base)
            for tuned in sorted(turn.replies):
                samples.append(Sample(step=0, prompt=prompt, text=turn.replies[tuned].text, tuned=tuned))
    if as_json:
        answers = [{"prompt": s.prompt, "text": s.text, "tuned": s.tuned} for s in samples]
        output.document({"run_id": directory.run_id, "answers": answers})
    elif base:
        for text in views.before_and_after(samples, output.width()):
            output.line(text)


def chat_request(source: Path, step: int | None, model: str | None) -> ChatRequest:
    """What an engine is to load. A run without a result is noticed before, and one whose model nothing names."""
    if is_run(source):
        directory = RunDirectory(source)
        if step is not None:
            find_checkpoint(directory, step)
        else:
            state = read_run(source)
            result = require_result(state)
            if not isinstance(state.config.get("model"), str):
                directory.find_record()  # says what is missing
            directory.require_files(result)
    return ChatRequest(source=str(source), step=step, model=locate_model(model) if model else None)


def wait_until_ready(messages: Iterator[Message]) -> ChatReady:
    """Show how the model is loaded; what it is."""
    for message in messages:
        match message:
            case ModelLoading():
                output.narrate(describe(message))
            case Warning():
                output.narrate(describe(message), "warning")
            case ChatReady():
                return message
    raise EngineCrashedError("the engine process ended before the model was loaded", retryable=True)


def _listen(messages: Iterator[Message], turn: Turn, *, stream: bool) -> None:
    """Take in the answers; for people the text appears as it comes, unless it is compared afterwards."""
    for message in messages:
        if isinstance(message, Delta) and stream:
            output.piece(message.text)
        elif isinstance(message, TurnEnded):
            break
    if stream:
        output.line()
    if turn.failed is not None:
        raise turn.failed
