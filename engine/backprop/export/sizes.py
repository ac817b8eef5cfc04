"""How large the GGUF files of a model would be, in each precision: ``python -P -m backprop.export.sizes FOLDER``."""

from __future__ import annotations

from backprop.core.errors import ModelLoadError
from backprop.core.jobs import Sizes, SizesRequest
from backprop.core.models import find_model, weight_files
from backprop.data.tokenizer import ChatTokenizer
from backprop.export.gguf.file import file_bytes
from backprop.export.weights import StoredWeights
from backprop.worker.job import Send, run_job


def sizes(request: SizesRequest, send: Send) -> Sizes:
    """Read what the files would hold from the model's, without its weights.

    Raises:
        ModelLoadError: the model is not on this machine, or damaged.
        GGUFError: it is none for llama.cpp.
    """
    folder = find_model(request.model)
    if folder is None:
        raise ModelLoadError(
            f"the model {request.model} is not on this machine", hint="a run that trains it fetches it"
        )
    chat = ChatTokenizer.load(folder)
    return Sizes(gguf=file_bytes(folder, StoredWeights(weight_files(folder)), chat.template.source))


if __name__ == "__main__":
    run_job(SizesRequest, sizes)
