"""Answers of a model: through its own chat template or as plain text, piece by piece, greedy or sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from backprop.core.errors import CheckpointError, InputError
from backprop.core.events import DatasetPrepared
from backprop.core.jobs import Sampling
from backprop.runs.directory import RunDirectory
from backprop.worker.job import Send

# Heavy libraries are imported where they are used: the job first sees to its log.
if TYPE_CHECKING:
    import torch

    from backprop.data.tokenizer import ChatTokenizer


class _Pieces:
    """A streamer of transformers' ``generate``: turns token ids into text as they come, never half a character."""

    def __init__(self, chat: ChatTokenizer, on_text: Callable[[str], None]) -> None:
        self._chat = chat
        self._on_text = on_text
        self._prompt_seen = False
        self._ids: list[int] = []
        self._given = 0

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += value.flatten().tolist()
        self._give(answer_text(self._chat, self._ids).rstrip("\ufffd"))

    def end(self) -> None:
        self._give(answer_text(self._chat, self._ids))

    def _give(self, text: str) -> None:
        if len(text) > self._given:
            self._on_text(text[self._given :])
            self._given = len(text)


def answer_text(chat: ChatTokenizer, ids: Iterable[int]) -> str:
    """The text of generated ids, without the tokens that end an answer."""
    return chat.tokenizer.decode([i for i in ids if i not in chat.end_ids], skip_special_tokens=True)


class Answer(NamedTuple):
    """What a model generated."""

    text: str
    tokens: int
    ended: Literal["end", "length", "stopped"]
    """As in ``core.jobs.Reply``."""


def reply(
    model: Any,
    chat: ChatTokenizer,
    prompt: str | list[dict[str, Any]],
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
    *,
    stop_when: Callable[[], bool] | None = None,
    as_text: bool = False,
) -> Answer:
    """The answer to ``prompt`` (a user's message, or a whole conversation of ``role`` and ``content``).

    Args:
        on_text: gets the answer piece by piece as it comes.
        as_text: the model goes on with ``prompt`` as it stands, as one that was trained on plain texts.
        stop_when: asked after each token; the answer ends there once it says yes. What it raises is raised here.

    The model's train/eval mode is what it was, afterwards; and where nothing is sampled, the state of random numbers.

    Raises:
        InputError: the prompt fills the model's context.
        RowError: the chat template refuses the conversation.
        ModelLoadError: the tokenizer is not the model's.
    """
    import torch

    from backprop.train.model import evaluating, require_known_tokens

    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = "".join(str(message["content"]) for message in messages)
    asked = text if as_text else chat.template.render(messages, prompt=True)
    encoded = chat.encode([asked], special=as_text)[0]
    require_known_tokens(model, encoded.ids, chat)
    ids = torch.tensor([encoded.ids], device=next(model.parameters()).device)
    room = sampling.max_tokens
    if (context := context_of(model)) is not None:
        room = min(room, context - ids.shape[1])
        if room < 1:
            raise InputError(
                f"the conversation is {ids.shape[1]} tokens long, and the model looks back on {context}",
                hint="begin a new conversation, or shorten the system prompt",
            )

    def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((ids.shape[0],), stop_when is not None and stop_when(), dtype=torch.bool, device=ids.device)

    chosen: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        torch.manual_seed(sampling.seed)
        chosen = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    with evaluating(model), torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room,
            use_cache=True,
            eos_token_id=sorted(chat.end_ids) or None,
            pad_token_id=min(chat.end_ids, default=0),
            streamer=_Pieces(chat, on_text) if on_text else None,
            stopping_criteria=[stop] if stop_when else None,
            **chosen,
        )
    made = output[0, ids.shape[1] :].tolist()
    ended: Literal["end", "length", "stopped"] = "length" if len(made) >= room else "stopped"
    if made and made[-1] in chat.end_ids:
        ended = "end"
    return Answer(answer_text(chat, made).strip(), len(made), ended)


def greedy(model: Any, chat: ChatTokenizer, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """The greedy answers to all ``prompts`` (token ids) at once, of at most ``most`` tokens, each with what ends it.

    Token by token a processor is no faster with a single one.
    """
    import torch

    from backprop.train.model import evaluating

    padding, longest = min(chat.end_ids, default=0), max(map(len, prompts))
    ids = torch.tensor([[padding] * (longest - len(each)) + [*each] for each in prompts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=most,
            do_sample=False,
            use_cache=True,
            eos_token_id=sorted(chat.end_ids) or None,
            pad_token_id=padding,
        )
    made: list[list[int]] = output[:, longest:].tolist()
    ends = [next((place + 1 for place, id in enumerate(each) if id in chat.end_ids), most) for each in made]
    return [each[:end] for each, end in zip(made, ends, strict=True)]


def context_of(model: Any) -> int | None:
    """How many tokens the model can look back on; ``None`` where its configuration does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def on_texts(rows: DatasetPrepared | None) -> bool:
    """Whether a run is trained on plain texts, so that its model is to continue one."""
    return rows is not None and rows.format == "text"


def load(path: Path, config: dict[str, Any], send: Send, step: int | None = None) -> tuple[Any, ChatTokenizer]:
    """The run's trained model, its result or that of the checkpoint of ``step``, and its tokenizer.

    Raises:
        ModelLoadError, CheckpointError
    """
    import msgspec

    from backprop.core.settings import RunConfig
    from backprop.data.tokenizer import ChatTokenizer
    from backprop.fetch.models import fetch_model
    from backprop.runs.checkpoints import CheckpointStore
    from backprop.train import model as models
    from backprop.train.checkpoint import load_weights
    from backprop.train.persistence.resume import result_notes

    run = RunDirectory(path)
    whole = step is None and config.get("mode") == "full"
    base_path = run.model if whole else fetch_model(str(config["model"]), send)
    for note in result_notes(run, base_path, step):
        send(note)
    # As it was trained where that can be had, else wherever it runs: asking needs no GPU.
    backend = "cpu" if config.get("backend") == "cpu" else "auto"
    if step is not None:
        checkpoint = CheckpointStore(run.checkpoints, run.read_record().run_id).of_step(step)
        if checkpoint is None:
            raise CheckpointError(f"{path} has no good checkpoint of step {step}")
        models.use_all_cores()
        settings = msgspec.convert({**config, "backend": backend}, RunConfig)
        loaded = models.load(models.resolved(settings), base_path, lambda event: None)
        load_weights(checkpoint.path, loaded.model)
        return loaded.model, loaded.chat
    nf4 = config.get("mode") == "qlora"
    adapter = None if whole else run.adapter
    model = load_model(base_path, adapter, backend, bool(config.get("trust_remote_code")), nf4=nf4)
    return model, ChatTokenizer.load(base_path)


def load_model(
    base: Path,
    adapter: Path | None = None,
    backend: str = "auto",
    trust_remote_code: bool = False,
    *,
    nf4: bool = False,
) -> Any:
    """The model in the folder ``base``, in 4 bits with ``nf4``, with the adapter in another one on it.

    Raises:
        MissingDependencyError: 4 bits need a library.
        ModelLoadError: the base model cannot be loaded.
        CheckpointError: the adapter cannot be read, or is for another model.
    """
    from safetensors import SafetensorError

    from backprop.train import four_bit
    from backprop.train import model as models

    with four_bit.hidden():
        from peft import PeftModel

    models.use_all_cores()
    device = models.choose_device(backend)
    if nf4:
        four_bit.require_usable(device)
    model = models.load_base(base, device, models.choose_dtype(device), trust_remote_code, nf4=nf4)
    if adapter is None:
        return model
    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the adapter in {adapter} cannot be read: {error}",
            hint="restore the file from a backup, or take a checkpoint of the run with --step",
        ) from error
