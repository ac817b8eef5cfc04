"""Ask a run's model: ``python -P -m backprop.train.generate_job RUN_DIRECTORY``, the request as JSON on standard input.

An engine process: pieces of the answers and then each whole answer go to the private stream, what libraries print goes
to the run's log. The journal is not touched.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from backprop.core.errors import CheckpointError
from backprop.core.jobs import Delta, GenerateRequest
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from backprop.worker.job import Send, run_job


def answer(request: GenerateRequest, say: Send) -> None:
    """Load the run's model and answer every prompt.

    Raises:
        ModelLoadError: the base model cannot be loaded.
        CheckpointError: the adapter cannot be read.
    """
    from backprop.core.events import ModelLoading, Sample
    from backprop.train import generate

    path = Path(request.run)
    state = read_run(path)
    say(ModelLoading(model=str(state.config["model"]), stage="load"))
    model, chat = load(path, state.config, say)
    for index, prompt in enumerate(request.prompts):
        for tuned in (False, True) if request.base else (True,):

            def on_text(text: str, index: int = index, tuned: bool = tuned) -> None:
                say(Delta(index=index, tuned=tuned, text=text))

            with contextlib.nullcontext() if tuned else model.disable_adapter():
                text = generate.generate(model, chat, prompt, request.max_tokens, on_text)
            say(Sample(step=state.step, prompt=prompt, text=text, tuned=tuned))


def load(path: Path, config: dict[str, Any], say: Send) -> tuple[Any, Any]:
    """The run's base model with its adapter, and its tokenizer with the chat template.

    Raises:
        ModelLoadError, CheckpointError
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    from backprop.data.tokenizer import ChatTokenizer
    from backprop.train import model as models

    models.use_all_cores()
    trusted = bool(config.get("trust_remote_code"))
    base_path = models.find(str(config["model"]), say)  # type: ignore[arg-type]
    chat = ChatTokenizer.load(base_path)
    # As it was trained where that can be had, else wherever it runs: asking needs no GPU.
    device = models.choose_device("cpu" if config.get("backend") == "cpu" else "auto")
    base = models.load_base(base_path, device, models.choose_dtype(device), trusted)
    adapter = RunDirectory(path).adapter
    try:
        return PeftModel.from_pretrained(base, adapter), chat
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the adapter in {adapter} cannot be read: {error}", hint="train again, or restore the file from a backup"
        ) from error


if __name__ == "__main__":
    run_job(GenerateRequest, answer)
