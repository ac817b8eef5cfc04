"""How a GGUF file answers beside the model it was made from, where llama.cpp is installed to run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from backprop.core.errors import BackpropError, GGUFError
from backprop.core.extras import install_command
from backprop.core.jobs import Check, Comparison
from backprop.export import llama

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backprop.data.tokenizer import ChatTokenizer
    from backprop.runs.directory import RunDirectory

    Logits = NDArray[np.float32]

PROMPTS = 8
LONGEST = 512
"""Tokens of a prompt; longer ones are not asked."""
ANSWER = 24
"""Tokens of an answer that are compared."""
_DIVERGENCE = {"f32": 0.02, "f16": 0.02, "bf16": 0.02, "q8_0": 0.2}
"""Mean divergence, in nats, up to which a precision passes; the narrower ones are only measured."""
NOT_INSTALLED = f"answers are not compared: llama-cpp-python is not installed ({install_command('llama')})"


def compare_answers(
    found: Check,
    path: Path,
    precision: str,
    *,
    load: Callable[[], Any],
    chat: ChatTokenizer,
    prompts: Sequence[Sequence[int]],
    progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> Check:
    """``found`` with the next-token distributions and greedy answers of the file beside the trained model's.

    Args:
        precision: the file's, a word of ``core.exports.PRECISIONS``.
        load: loads the trained model; one with an adapter is asked without it too.
        prompts: token ids, as training rendered them; the first ``PROMPTS`` that are short enough are asked.
        progress: told what is done, how many prompts of how many; may raise to stop.
    """
    if not llama.is_installed():
        return msgspec.structs.replace(found, skipped=NOT_INSTALLED)
    asked = list(islice((list(each) for each in prompts if 0 < len(each) <= LONGEST), PROMPTS))
    if not asked:
        return msgspec.structs.replace(found, skipped="answers are not compared: there is no prompt to ask")
    trained = _ask_model(load(), chat, asked, progress)
    kls, same, kept, apart = [], [], 0, 0
    try:
        with llama.Llama(path, max(map(len, asked)) + ANSWER + 8, sorted(chat.end_ids)) as file:
            for number, (prompt, (given, logits, tuned, base)) in enumerate(zip(asked, trained, strict=True)):
                progress("asking what was written", number, len(asked))
                written, answer = file.ask(prompt, given, ANSWER)
                kl, top = _difference(logits, written)
                kls += kl
                same += top
                if base is not None and base != tuned:
                    apart += 1
                    kept += _nearer(answer, tuned, base)
    except GGUFError as error:
        wrong = Comparison(name="answers", passed=False, detail=error.message)
        return msgspec.structs.replace(found, passed=False, compared=[*found.compared, wrong])
    mean, top1, share = sum(kls) / len(kls), sum(same) / len(same), kept / apart if apart else None
    passed = mean <= _DIVERGENCE.get(precision, float("inf"))
    detail = (
        f"{len(kls)} positions of {len(asked)} prompts in llama.cpp: divergence {mean:.2g} nats, "
        f"same most likely token at {top1:.1%}"
    )
    if apart:
        detail += f"; of {apart} that tuned and base model answer differently {kept} are answered as tuned"
    compared = [*found.compared, Comparison(name="answers", passed=passed, detail=detail)]
    return msgspec.structs.replace(
        found, passed=found.passed and passed, compared=compared, kl=mean, top1=top1, tuning_kept=share
    )


def held_out_prompts(run: RunDirectory, model_path: Path) -> list[list[int]]:
    """What precedes the first answer of each held-out row of a run, as it was tokenised; none where that fails.

    A row that is trained as a whole gives its first tokens.
    """
    rows = held_out_rows(run, model_path)
    return [ids[: (trained.index(True) if True in trained else 0) or ANSWER // 2] for ids, trained in rows]


def held_out_rows(run: RunDirectory, model_path: Path) -> list[tuple[list[int], list[bool]]]:
    """The first held-out rows of a run as it tokenised them, and which tokens are trained; none where that fails."""
    from backprop.runs.checkpoints import CheckpointStore
    from backprop.train.dataset import prepare
    from backprop.train.persistence.resume import split_of

    try:
        record = run.find_record()
        made = CheckpointStore(run.checkpoints, record.run_id).checkpoints()
        split = split_of(made[-1].path if made else None)
        _, _, rows = prepare(record.config, model_path, lambda event: None, lambda: False, split=split)
    except BackpropError:
        return []
    found = (rows.sequences(index)[0] for index in range(min(len(rows), 4 * PROMPTS)))
    return [([int(id) for id in ids], [bool(each) for each in trained]) for ids, trained in found]


Asked = tuple[list[int], "Logits", list[int], list[int] | None]
"""A prompt's continuation that is given to both, the trained model's logits for it, its answer, and the base's."""


def _ask_model(
    model: Any, chat: ChatTokenizer, prompts: list[list[int]], progress: Callable[[str, int, int], None]
) -> list[Asked]:
    import torch

    from backprop.train.generate import greedy
    from backprop.train.model import evaluating

    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        progress("asking the trained model", 0, 2)
        tuned, base = greedy(model, chat, prompts, ANSWER), None
        if hasattr(model, "disable_adapter"):
            progress("asking the base model", 1, 2)
            with model.disable_adapter():
                base = greedy(model, chat, prompts, ANSWER)
        found: list[Asked] = []
        for number, (prompt, given) in enumerate(zip(prompts, tuned, strict=True)):
            whole = torch.tensor([[*prompt, *given]], device=device)
            logits = model(whole).logits[0, len(prompt) - 1 : -1].float().cpu().numpy()
            other = _without_end(base[number], chat) if base else None
            found.append((given, logits, _without_end(given, chat), other))
    return found


def _without_end(ids: list[int], chat: ChatTokenizer) -> list[int]:
    return ids[:-1] if ids and ids[-1] in chat.end_ids else ids


def _difference(trained: Logits, written: Logits) -> tuple[list[float], list[bool]]:
    """At each position the divergence from the trained model in nats, and whether the most likely token is the same."""
    import numpy as np

    width = min(trained.shape[1], written.shape[1])

    def logs(logits: Logits) -> NDArray[np.float64]:
        wide = logits[:, :width].astype(np.float64)
        wide -= wide.max(1, keepdims=True)
        made: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(1, keepdims=True))
        return made

    ours, theirs = logs(trained), logs(written)
    kl = (np.exp(ours) * (ours - theirs)).sum(1)
    return [float(each) for each in kl], [bool(each) for each in ours.argmax(1) == theirs.argmax(1)]


def _nearer(answer: list[int], tuned: list[int], base: list[int]) -> bool:
    """Whether an answer is more like the tuned model's than like the base model's."""
    near, far = (SequenceMatcher(None, answer, other, autojunk=False).ratio() for other in (tuned, base))
    return near > far
