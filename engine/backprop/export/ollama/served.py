"""What a server has to be told of a GGUF file so that it answers as trained: template, stop strings, parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFReader
from msgspec import Struct

from backprop.core.datasets import find_fetched, hub_name
from backprop.core.errors import BackpropError, InputError
from backprop.data.example import Example
from backprop.data.examples import Reader
from backprop.data.reader import open_source
from backprop.runs.directory import is_run
from backprop.runs.state import RunState, read_run

CONTEXT = 4096
"""Tokens of context that a server reserves at least, as far as the model goes: more takes memory from its layers."""
TEMPERATURE = 0.8
"""Where the model's makers say nothing: llama.cpp's and Ollama's own default, so that no version's is another."""
_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
"""Ollama's parameters by what GGUF calls them, below ``general.sampling``."""
_ENDS = ("eos", "eot", "eom")

# Of Ollama before 0.30, which renders prompts in Go's template language: a sign in the trained template → the same
# turns in Go. System text stands where the trained template has it.
_GO_TEMPLATES: tuple[tuple[str, str], ...] = (
    (
        "<|im_start|>",
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
    ),
    (
        "<|start_header_id|>",
        "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "<start_of_turn>",
        "<start_of_turn>user\n{{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}<end_of_turn>\n"
        "<start_of_turn>model\n{{ .Response }}<end_of_turn>\n",
    ),
    ("[INST]", "[INST] {{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }} [/INST] {{ .Response }}</s>"),
    ("<|end|>", "{{- range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}<|assistant|>\n"),
)


class Served(Struct, kw_only=True):
    """What a GGUF file says of itself."""

    kind: str
    """``model``, or ``adapter`` where it is no whole one."""
    template: str
    """Its chat template; empty where it continues texts."""
    stop: list[str]
    sampling: dict[str, float]
    context: int
    """Tokens that the model can see; 0 where the file does not say."""
    licence: str

    def parameters(self, trained_length: int) -> dict[str, Any]:
        """Ollama's parameters: all that have a default which changes between versions or machines."""
        wanted = max(CONTEXT, trained_length)
        return {
            "temperature": TEMPERATURE,
            **self.sampling,
            "repeat_penalty": 1.0,
            "num_ctx": min(wanted, self.context) if self.context else wanted,
            **({"stop": self.stop} if self.stop else {}),
        }


def read_served(path: Path) -> Served:
    """Read it from the file.

    Raises:
        InputError: there is no such file, or it is no GGUF file that can be read.
    """
    hint = "`backprop export RUN --format gguf` writes one"
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}: Ollama takes a GGUF file", hint=hint, details={"path": str(path)})
    try:
        fields = GGUFReader(path).fields
        values = {n: f.contents() for n, f in fields.items() if n != "tokenizer.ggml.tokens" and len(f.data) < 64}
        kind, arch = values.get("general.type", "model"), values["general.architecture"]
        tokens = fields.get("tokenizer.ggml.tokens")
        ends = [values.get(f"tokenizer.ggml.{end}_token_id") for end in _ENDS]
        stop = [str(tokens.contents(int(end))) for end in ends if end is not None and tokens is not None]
    except (ValueError, KeyError, IndexError, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is no GGUF file that can be read: {error}", hint=hint, details={"path": str(path)}
        ) from error
    sampling = {ours: values.get(f"general.sampling.{theirs}") for ours, theirs in _SAMPLING.items()}
    return Served(
        kind=str(kind),
        template=str(values.get("tokenizer.chat_template") or ""),
        stop=list(dict.fromkeys(stop)),
        sampling={name: round(value, 6) for name, value in sampling.items() if value is not None},
        context=int(values.get(f"{arch}.context_length") or 0),
        licence=str(values.get("general.license") or ""),
    )


def go_template(template: str) -> str:
    """The turns of ``template`` for an Ollama that cannot render it itself; empty where no form of it is known."""
    return next((go for sign, go in _GO_TEMPLATES if sign in template), "")


def run_of(path: Path, named: str) -> RunState | None:
    """The run that a file is from: the one that is named, or the one in whose ``exports`` it lies."""
    folder = Path(named) if named else path.absolute().parent.parent
    return read_run(folder) if is_run(folder) and (named or path.absolute().parent.name == "exports") else None


def system_turn(run: RunState) -> tuple[str, str]:
    """The system turn that all rows of a run's data share, empty where they share none; and why it is not known."""
    found: set[str] = set()
    name = str(run.config.get("data") or "")
    fetched = find_fetched(name) if hub_name(name) else None  # nothing is fetched for it
    try:
        with open_source(fetched.path if fetched else name) as source:
            for read in Reader(source, run.config.get("mapping") or None):
                if isinstance(read.became, Example) and read.became.label is not False:  # those are left out
                    turns = read.became.supervised()
                    found.add(turns[0].content if turns and turns[0].role == "system" else "")
                if len(found) > 1:
                    break
    except (BackpropError, OSError) as error:
        return "", f"the run's data cannot be read any more, so no system text is sent: {error}"
    return (found.pop() if len(found) == 1 else ""), ""
