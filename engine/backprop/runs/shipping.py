"""A model that is handed on, to Ollama or to the Hugging Face Hub, by an engine process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from backprop.core.jobs import JobProgress, OllamaModels, OllamaRequest, Pushed, PushRequest, Registered
from backprop.runs.engine_jobs import EngineJob, engine_job

Report = Callable[[JobProgress], object]
Started = Callable[[EngineJob], object]
T = TypeVar("T")


def ask_ollama(
    request: OllamaRequest, report: Report = lambda message: None, started: Started = lambda job: None
) -> Registered | OllamaModels:
    """Register a model with Ollama, list its models, or remove one (those that are gone).

    Args:
        report: called with how far it is.
        started: called with the job, for whoever may want to stop it.

    Raises:
        InputError: a name that is not allowed, taken or unknown, or no GGUF file.
        OllamaError: Ollama is not there, too old, or did not take the model.
        EngineCrashedError: it was stopped, or went without a word.
    """
    kind: type[Registered | OllamaModels] = Registered if request.action == "register" else OllamaModels
    return _last("backprop.export.ollama", request, kind, report, started)


def push(request: PushRequest, report: Report = lambda message: None, started: Started = lambda job: None) -> Pushed:
    """Upload a model to the Hugging Face Hub, with a card.

    Raises:
        InputError: a name that is not allowed, nothing to upload, or something private in it.
        ExportError: the hub did not take it.
        EngineCrashedError: it was stopped, or went without a word.
    """
    return _last("backprop.export.push", request, Pushed, report, started)


def _last(module: str, request: msgspec.Struct, kind: type[T], report: Report, started: Started) -> T:
    done: T | None = None
    with engine_job(module, request) as job:
        started(job)
        for message in job.messages():
            if isinstance(message, kind):
                done = message
            elif isinstance(message, JobProgress):
                report(message)
    assert done is not None  # a job that ends without its last message has raised
    return done
