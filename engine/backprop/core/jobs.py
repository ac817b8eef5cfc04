"""Short work of an engine process beside training: what is asked on its standard input, what it says on its stream.

A job gets one request as a line of JSON on standard input and answers with messages, one JSON object a line. It has no
journal: when nobody reads any more it ends.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from backprop.core.events import DatasetPrepared, ModelLoading, Problem, RunFailed, Warning  # noqa: A004


class Delta(Struct, kw_only=True, tag_field="type", tag="delta"):
    """A piece of a reply to turn ``index``, as it comes; the whole follows as ``reply``."""

    index: int
    tuned: bool
    text: str


class ChatRequest(Struct, kw_only=True):
    """Load a model and stay: ``ChatTurn`` and ``StopReply`` follow, one a line, until standard input ends."""

    source: str
    """A run's directory, or a folder with an adapter or a whole model."""
    step: int | None = None
    """The run's checkpoint to talk to; the result where none is named."""
    model: str | None = None
    """Where the base model is now, if it is no longer where the run or the adapter names it."""


class Sampling(Struct, kw_only=True, frozen=True):
    """How the next token is chosen."""

    max_tokens: int = 512
    temperature: float = 0.0
    """0: always the most likely token."""
    top_p: float = 1.0
    """Only the most likely tokens that have this share together."""
    seed: int = 0
    """The same for both models: what differs between their answers is not chance."""


class ChatTurn(Struct, kw_only=True, tag_field="type", tag="turn"):
    """Ask for the next reply; each model has its own conversation. Answered by ``reply``s and one ``turn_ended``."""

    turn: int
    """Its number, larger than any before."""
    tuned: list[dict[str, str]] = []
    """The conversation so far as ``role`` and ``content``, the user's message last; empty: not asked."""
    base: list[dict[str, str]] = []
    """The same for the model without the adapter."""
    sampling: Sampling = Sampling()


class StopReply(Struct, kw_only=True, tag_field="type", tag="stop"):
    """End the replies of ``turn`` where they are."""

    turn: int


ChatLine: TypeAlias = ChatTurn | StopReply


class ChatReady(Struct, kw_only=True, tag_field="type", tag="chat_ready"):
    """The model is loaded."""

    model: str
    device: str
    has_base: bool
    """Whether it can be asked without the adapter too."""
    on_texts: bool
    """Whether it was trained on plain texts, so that it goes on with what it is told."""
    context: int | None = None
    """Tokens that it can look back on, where its configuration says."""


class Reply(Struct, kw_only=True, tag_field="type", tag="reply"):
    """A whole reply to turn ``index``."""

    index: int
    tuned: bool
    text: str
    tokens: int
    ended: Literal["end", "length", "stopped"]
    """Whether the model ended it, ``max_tokens`` or the context did, or the person."""


class TurnEnded(Struct, kw_only=True, tag_field="type", tag="turn_ended"):
    """Nothing more comes for turn ``index``; the model waits for the next."""

    index: int
    failed: RunFailed | None = None


class RowScore(Struct, frozen=True):
    """One row: ``loss`` is the mean over its ``tokens`` trained tokens, in nats."""

    line: int
    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """e to the loss; 8e307 where that would be more."""
        return math.exp(min(self.loss, 709.0))


class JobProgress(Struct, kw_only=True, tag_field="type", tag="progress"):
    """How far a job is: ``done`` of ``total`` in whatever ``doing`` counts; ``total`` 0 when not known."""

    doing: str
    done: int = 0
    total: int = 0


class RowScores(Struct, kw_only=True, tag_field="type", tag="row_scores"):
    """Scores of some rows, in no order; each row comes once."""

    rows: list[RowScore]


class Scored(Struct, kw_only=True, tag_field="type", tag="scored"):
    """The end of a scoring: every row is counted, with a score or without."""

    rows: int
    scored: int
    cut: int
    """Scored rows whose beginning was left out to fit ``max_length``."""
    max_length: int
    answer_lost: int = 0
    """Rows without a score, because their answer does not fit ``max_length``."""
    dropped: int = 0
    """Rows without a score, because they cannot be used, nothing of them is trained, or their loss is not finite."""
    problems: list[Problem] = []
    """The first of both, with their lines."""
    cached: bool = False


class FetchRequest(Struct, kw_only=True):
    """Get a dataset from the Hugging Face Hub."""

    name: str
    """``owner/name``."""


class Fetched(Struct, kw_only=True, tag_field="type", tag="fetched"):
    """A dataset is on this machine, as one file."""

    name: str
    path: str
    revision: str
    """The commit that it was fetched at."""
    split: str
    files: int
    """How many files of the repository it was put together from."""
    bytes: int


class RunPlan(Struct, kw_only=True, tag_field="type", tag="run_plan"):
    """What a run of a configuration would be."""

    config: dict[str, Any]
    """As the engine would resolve it on this machine."""
    origins: dict[str, str] = {}
    """Where the values come from that the engine chose, in words."""
    data: DatasetPrepared
    rows: int
    """Rows that are trained."""
    held_out: int
    steps: int
    steps_per_epoch: int
    rows_per_step: int
    warmup_steps: int
    tokens: int
    """Those of the whole run, trained or not."""
    notes: list[str] = []


class ExportRequest(Struct, kw_only=True):
    """Write a trained model in another format."""

    source: str
    """A run's directory, or a folder with a model or an adapter."""
    step: int | None = None
    """The run's checkpoint to export; the result where none is named."""
    model: str | None = None
    """Where the base model is now, if it is no longer where the adapter names it."""
    format: str
    """A word of ``core.exports.FORMATS``."""
    precision: str = ""
    """A word of ``core.exports.PRECISIONS``; the format's own choice where it is empty."""
    output: str = ""
    """The file or folder to write; inside the run's directory, or beside the folder, where it is empty."""
    answers: bool = True
    """Whether the result's answers are compared too, where llama.cpp is installed."""


class Comparison(Struct, kw_only=True):
    """One thing that was compared between the trained model and what was written."""

    name: str
    passed: bool
    detail: str
    """What was compared and what came of it, in words with their numbers."""


class Check(Struct, kw_only=True):
    """The proof of an export. Numbers are ``None`` where they could not be measured; ``skipped`` says why."""

    passed: bool = True
    compared: list[Comparison] = []
    kl: float | None = None
    """Mean Kullback-Leibler divergence of the next token's distribution from the trained model's, in nats."""
    top1: float | None = None
    """Share of positions whose most likely token is the trained model's."""
    tuning_kept: float | None = None
    """Of the prompts that tuned and base model answer differently, the share still answered as tuned, not as base."""
    skipped: str = ""

    def add(self, name: str, passed: bool, detail: str) -> Check:
        """The same with one comparison more; one that failed fails the whole."""
        self.compared.append(Comparison(name=name, passed=passed, detail=detail))
        self.passed = self.passed and passed
        return self


class Exported(Struct, kw_only=True, tag_field="type", tag="exported"):
    """What was written, opened again and compared."""

    path: str
    format: str
    quantization: str
    """The precision of what was written (``core.exports.PRECISIONS``)."""
    bytes: int
    check: Check
    notes: list[str] = []
    """What has to be said: tensors kept in a wider type, a template that was set apart, an adapter that changed."""


class SizesRequest(Struct, kw_only=True):
    """Say how large the GGUF files of a model would be."""

    model: str
    """The base model's name or folder."""


class Sizes(Struct, kw_only=True, tag_field="type", tag="sizes"):
    """The answer."""

    gguf: dict[str, int]
    """Bytes by precision, but for a few hundred that say where the file comes from."""


class OllamaRequest(Struct, kw_only=True):
    """Do something with the models of an Ollama server, that of ``OLLAMA_HOST``."""

    action: Literal["register", "list", "remove"] = "register"
    name: str = ""
    """The model's name there, with or without ``:tag``."""
    path: str = ""
    """The GGUF file to register."""
    run: str = ""
    """Directory of the run that the file is from: its system turn, length and answers; found where the file lies in
    the run's ``exports``."""
    step: int | None = None
    """The run's checkpoint that it is from; open: the one that its name has (``-step-N``), else the result."""
    replace: bool = False
    """Whether a model of that name may be replaced."""
    prompt: str = ""
    """Asked of the registered model; open: the run's first sample prompt."""
    expected: str = ""
    """The trained model's greedy answer to ``prompt``."""


class OllamaModel(Struct, frozen=True):
    """A model that an Ollama server has."""

    name: str
    bytes: int
    modified: str
    """When, as Ollama writes it (ISO 8601)."""


class OllamaModels(Struct, kw_only=True, tag_field="type", tag="ollama_models"):
    """What an Ollama server has, or what is gone from it."""

    url: str
    models: list[OllamaModel]


class Registered(Struct, kw_only=True, tag_field="type", tag="registered"):
    """An Ollama server has the model, and shows what it was sent."""

    name: str
    url: str
    version: str
    """Ollama's."""
    digest: str
    """SHA-256 of the file."""
    parameters: dict[str, Any]
    system: str
    prompt: str = ""
    answer: str = ""
    """What it said to ``prompt``, greedily."""
    expected: str = ""
    same: bool | None = None
    """Whether that is the trained model's answer, as far as both go; ``None`` where that is not known."""
    notes: list[str] = []


class PushRequest(Struct, kw_only=True):
    """Upload a trained model to the Hugging Face Hub."""

    path: str
    """A run's directory, a folder with an adapter or a model, or a GGUF file."""
    repo: str
    """``owner/name``."""
    public: bool = False


class Pushed(Struct, kw_only=True, tag_field="type", tag="pushed"):
    """The hub has it."""

    url: str
    commit: str
    files: list[str]
    bytes: int
    private: bool
    existed: bool
    """Whether the repository was there before."""
    card: str
    notes: list[str] = []


Message: TypeAlias = (
    Delta
    | ChatReady
    | Reply
    | TurnEnded
    | ModelLoading
    | Warning
    | RunFailed
    | JobProgress
    | RowScores
    | Scored
    | Fetched
    | RunPlan
    | Exported
    | Sizes
    | OllamaModels
    | Registered
    | Pushed
)

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode_message(message: Message) -> bytes:
    """One JSON line, newline included."""
    return msgspec.json.encode(message) + b"\n"


def decode_message(line: bytes) -> Message:
    """The message in ``line``.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _decoder.decode(line)
