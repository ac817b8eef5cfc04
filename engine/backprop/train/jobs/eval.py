"""What a model scores on rows, one by one: ``python -P -m backprop.train.jobs.eval DIRECTORY``.

The model is loaded once, answers with its adapter and, where that is asked too, without. The rows are tokenised, masked
and cut as training does it, so that a loss is the one on the run's curve. What the model is to answer is a row's last
answer, from exactly the tokens that stand before it in training.
"""

from __future__ import annotations

from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backprop.core.errors import InputError
from backprop.core.events import DatasetPrepared, Event, ModelLoading, Warning  # noqa: A004
from backprop.core.jobs import EvalRequest, EvaluatedRow, Evaluation, Evaluations, JobProgress, RowScore
from backprop.core.locate import held_out_file
from backprop.core.settings import RunConfig
from backprop.data.split import Split
from backprop.runs.directory import RunDirectory, is_run
from backprop.train.jobs.chat import ModelSpeaker, open_speaker
from backprop.worker.job import Send, run_job

# Heavy libraries are imported where they are used: the job first sees to its log.
if TYPE_CHECKING:
    from backprop.data.token_cache import Prepared
    from backprop.data.tokenizer import ChatTokenizer
    from backprop.train.dataset import Subset
    from backprop.train.model import Loaded
    from backprop.train.packing import Row

AT_ONCE = 8
"""Prompts that are answered together."""


def evaluate(request: EvalRequest, send: Send) -> Evaluations:
    """Score the rows that the request names.

    Raises:
        ModelLoadError, CheckpointError, InputError: as ``chat.open_speaker``.
        DatasetError: the rows cannot be read; InputError: there are none.
        GPUMemoryError: not even one row fits.
    """
    speaker = open_speaker(request.model, send)
    if request.base and not speaker.has_base:
        raise InputError("this is a whole model: it has no adapter to leave out", hint="name the base with --vs")
    rows = rows_of(request, Path(speaker.model.config._name_or_path), send)
    if request.generate and (speaker.on_texts or rows.rows.summary.format == "text"):
        hint = "leave --metrics out: loss and perplexity are measured"
        raise InputError("the rows are plain texts, which have no prompt and no answer", hint=hint)
    source = Path(request.model.source)
    name = RunDirectory(source).run_id if is_run(source) else str(source)
    found = []
    for tuned in (True, False)[: 1 + request.base]:
        step = request.model.step if tuned else 0
        with nullcontext() if tuned else speaker.model.disable_adapter():
            scored = _scored(speaker, rows, request, send, "" if tuned else " by the base model")
        found.append(Evaluation(source=name, step=step, fingerprint=rows.fingerprint, rows=scored))
    return Evaluations(sides=found)


def rows_of(request: EvalRequest, tokenizer: Path, send: Send) -> Subset:
    """The held-out rows of a run, or the trained ones, or all of a dataset, for the tokenizer in this folder."""
    import msgspec

    from backprop.runs.checkpoints import CheckpointStore
    from backprop.runs.compare import HELD_OUT, read_rows
    from backprop.runs.state import read_run
    from backprop.train.dataset import prepare
    from backprop.train.persistence.resume import split_of

    config, split, now = RunConfig(data=request.data, held_out="none", skip_bad=True), None, None
    data = request.data
    if request.run:
        run = RunDirectory(Path(request.run))
        record = run.find_record()
        settings = {**msgspec.to_builtins(record.config), **read_run(run.path).config}
        config = msgspec.convert({**settings, "method": "sft"}, RunConfig)  # of a pair, the chosen answer
        if (method := settings["method"]) != "sft":
            message = f"the loss is that of the answers (chosen, or good ones), not what {method} made less of"
            send(Warning(code="OTHER_LOSS", message=message, hint="`backprop show-run` has that, of the held-out rows"))
        kept = CheckpointStore(run.checkpoints, record.run_id).checkpoints()
        split, now = (
            split_of(kept[-1].path if kept else None),
            datetime.fromtimestamp((record.replays or record).created),
        )
        if record.multi is not None and request.trained:
            hint = "score one of its runs with --trained, or rows that you name with --data"
            raise InputError(f"{record.run_id} is a session: each of its runs trained rows of its own", hint=hint)
        if record.multi is not None and not data:  # those of all its runs
            data = str(run.path / "data" / "held-out.jsonl")
        if data:
            others = {"data": data, "held_out": "none", "samples": None, "skip_bad": True}
            config = msgspec.structs.replace(config, **others)

    def tell(event: Event) -> None:
        if isinstance(event, Warning | ModelLoading):
            send(event)
        elif isinstance(event, DatasetPrepared) and event.unusable:
            message = f"{event.unusable} of {event.rows} rows of {event.path} cannot be used and are not scored"
            send(Warning(code="ROWS_LEFT_OUT", message=message, hint="`backprop validate` lists them"))

    prepared, trained, held_out = prepare(config, tokenizer, tell, lambda: False, split=split, now=now)
    if request.run and not data and held_out_file(config.held_out) is not None:
        part, found = ("", prepared) if request.trained else (HELD_OUT, held_out.rows)
        if method == "sft":
            _tell_changed(read_rows(run, part), found, send, "its rows are scored as they are now")
    elif request.run and not data:
        by_then = _as_then(run, prepared, config, split or Split(seed=config.seed), None if method != "sft" else send)
        trained, held_out = by_then or (trained, held_out)
    rows = trained if data or request.trained else held_out
    if not len(rows):
        hint = "name rows with --data, or take those that were trained with --trained"
        raise InputError("the run has no held-out rows", hint=hint)
    return rows


def _as_then(
    run: RunDirectory, rows: Prepared, config: RunConfig, split: Split, send: Send | None
) -> tuple[Subset, Subset] | None:
    """Of ``rows``, those that the run trained and those that it held out, by what they say.

    Which are held out depends on how many there are: where the file was edited since, or where its bad answers are left
    out, rows would be among them that were trained. ``None`` where it is not known.

    Args:
        send: told which rows are not those of then.
    """
    import numpy as np

    from backprop.data import split as split_rows
    from backprop.runs.compare import read_rows
    from backprop.train.dataset import Subset

    before = read_rows(run)
    if before is None or split.by_tokens:
        return None
    contents = np.fromiter(before.values(), dtype=np.int64)
    chosen = split_rows.held_out(split_rows.places(map(np.int64.tobytes, contents), split.seed), config.held_out)
    if send is not None:
        hint = "only rows of then that are still there are scored; --data scores all rows of a file"
        _tell_changed(before, rows, send, hint)
    was_trained, was_held_out = (np.isin(rows.contents, contents[some]) for some in (~chosen, chosen))
    return Subset(rows, np.flatnonzero(was_trained)), Subset(rows, np.flatnonzero(was_held_out))


def _tell_changed(before: dict[int, int] | None, rows: Prepared, send: Send, hint: str) -> None:
    """Say which of a run's ``rows`` are not those of then; ``before``: line → hash of what it said, if known."""
    from backprop.runs.compare import describe_changes, row_changes

    now = dict(zip(rows.lines.tolist(), rows.contents.tolist(), strict=True))
    if before is not None and (changed := row_changes(before, now)):
        message = f"{rows.summary.path} is not as it was trained: {describe_changes(changed, rows.summary.unit)}"
        send(Warning(code="DATA_CHANGED", message=message, hint=hint))


def _scored(speaker: ModelSpeaker, rows: Subset, request: EvalRequest, send: Send, by: str) -> list[EvaluatedRow]:
    """The rows with their losses and texts, and answers where these are asked for."""
    import torch

    from backprop.runs.metrics import measure
    from backprop.train.jobs import perplexity

    def progress(doing: str) -> Any:
        return lambda done, total: send(JobProgress(doing=doing + by, done=done, total=total))

    weight = speaker.model.get_input_embeddings().weight
    found: dict[int, RowScore] = {}
    with torch.no_grad():
        for some in perplexity.scores(speaker.model, rows, weight.device, weight.dtype, progress("scoring")):
            found |= {score.line: score for score in some}
    scored: dict[int, EvaluatedRow] = {}
    prompts: list[Any] = []
    for index, (line, content) in enumerate(rows.names()):
        before, answer, text = parts(rows.row(index), speaker.chat, on_texts=rows.rows.summary.format == "text")
        score = found.get(line)
        if line not in scored:
            tokens = score.tokens if score else int(rows.row(index)[1][1:].sum())
            scored[line] = EvaluatedRow(
                line=line, content=content, loss=score.loss if score else None, tokens=tokens, expected=answer
            )
            scored[line].prompt = speaker.chat.tokenizer.decode(before, skip_special_tokens=True).strip()
            prompts.append(before)
        else:
            scored[line].expected += answer
        scored[line].bytes += len(text.encode())
    if request.generate:
        answers = answers_to(speaker, prompts, request.max_tokens, progress("answering"))
        for row, said in zip(scored.values(), answers, strict=True):
            row.answer, row.metrics = said, measure(said, row.expected, request.regex)
    return list(scored.values())


def parts(row: Row, chat: ChatTokenizer, *, on_texts: bool) -> tuple[list[int], str, str]:
    """The tokens before a row's last answer, that answer, and the text of all that is supervised. A text is one."""
    import numpy as np

    ids, trained = row
    at = np.flatnonzero(trained)
    gaps = np.flatnonzero(np.diff(at) > 1)
    start = 0 if on_texts else int(at[gaps[-1] + 1] if len(gaps) else at[0])

    def text(some: Any) -> str:
        return str(chat.tokenizer.decode(some.tolist(), skip_special_tokens=True)).strip()

    return ids[:start].tolist(), text(ids[start : at[-1] + 1]), text(ids[at])


def answers_to(speaker: ModelSpeaker | Loaded, prompts: list[list[int]], most: int, progress: Any) -> list[str]:
    """Greedy answers, some prompts at a time, the longest first; fewer at a time where memory runs out."""
    from backprop.train.generate import answer_text, context_of, greedy
    from backprop.train.out_of_memory import make_room

    model, chat = speaker.model, speaker.chat
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers, at, size = [""] * len(prompts), 0, AT_ONCE
    while at < len(order):
        chosen = order[at : at + size]
        width = len(prompts[chosen[0]])
        room = min(most, (context_of(model) or width + most) - width)
        try:
            made = greedy(model, chat, [prompts[number] for number in chosen], max(1, room))
        except RuntimeError as error:
            make_room(error, len(chosen), f"one prompt of {width} tokens", "evaluate shorter rows with --data")
            size = len(chosen) // 2
            continue
        for number, ids in zip(chosen, made, strict=True):
            answers[number] = answer_text(chat, ids).strip()
        at += len(chosen)
        progress(at, len(order))
    return answers


if __name__ == "__main__":
    run_job(EvalRequest, evaluate)
