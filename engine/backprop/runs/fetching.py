"""Have an engine process fetch a dataset from the Hugging Face Hub; the faces never speak to the hub themselves."""

from __future__ import annotations

from collections.abc import Callable

from backprop.core.jobs import Fetched, FetchRequest, Progress
from backprop.runs import engine_client
from backprop.runs.engine_jobs import engine_job

ENGINE = "backprop.fetch.datasets"


def fetch_dataset(
    name: str,
    progress: Callable[[int, int], object] | None = None,
    started: Callable[[engine_client.Job], object] | None = None,
) -> Fetched:
    """The dataset ``owner/name`` as a file on this machine.

    Args:
        progress: called with bytes fetched and their total (0 while it is not known).
        started: called with the job, for whoever may want to stop it.

    Raises:
        DatasetError: as the engine's: unknown, private, gated, offline, several configurations …
        EngineCrashedError: it was stopped, or went without a word.
    """
    found: Fetched | None = None
    with engine_job(ENGINE, FetchRequest(name=name)) as job:
        if started is not None:
            started(job)
        for message in job.messages():
            if isinstance(message, Progress) and progress is not None:
                progress(message.done, message.total)
            elif isinstance(message, Fetched):
                found = message
    assert found is not None  # a job that ends without its last message has raised
    return found
