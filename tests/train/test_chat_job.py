"""The chat job as a process: it loads once, answers turn after turn, stops a reply, and goes with its asker."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from backprop.core.errors import CheckpointError, InputError
from backprop.core.jobs import ChatRequest, Sampling
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.conversation import CHAT, Conversation, Turn, sampling_of, sampling_text
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_jobs import EngineJob, engine_job
from backprop.runs.state import read_run
from backprop.train.generate import load, reply
from backprop.train.persistence.resume import adapter_notes
from backprop.trainer import Trainer
from patience import PATIENCE
from tiny_language_model import write_model, write_rows

LONG = Sampling(max_tokens=400)
SHORT = Sampling(max_tokens=8)


pytestmark = pytest.mark.usefixtures("shared_start")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The directory of a run on the tiny model that changed its answers."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "DATA", "CONFIG"):
            patch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
        trainer = Trainer(
            str(write_model(folder / "tiny")),
            lora_r=4,
            learning_rate=0.05,
            backend="cpu",
            output_dir=str(folder / "out"),
        )
        run = trainer.train(write_rows(folder / "rows.jsonl", 8), steps=4)
    return RunDirectory(Path(run.output_path).parent)


@pytest.fixture(scope="module")
def talk(trained: RunDirectory) -> Iterator[Talk]:
    """One process for all turns of this file."""
    with engine_job(CHAT, ChatRequest(source=str(trained.path)), stays=True) as job:
        talk = attach(job, SHORT)
        wait(talk)
        yield talk


@pytest.fixture(autouse=True)
def anew(talk: Talk) -> None:
    talk.begin_anew()
    talk.system, talk.sampling = "", SHORT


class Talk(Conversation):
    """A conversation whose messages are read in the test's own thread."""

    messages_of_job: Iterator[object]


def attach(job: EngineJob, sampling: Sampling) -> Talk:
    talk = Talk(sampling=sampling)
    talk.messages_of_job = talk.attach(job)
    return talk


def wait(talk: Talk) -> None:
    """Until the model is loaded, or has answered."""
    for _ in talk.messages_of_job:
        if talk.ready is not None and talk.waits_for is None:
            return


def ask(talk: Talk, prompt: str, *, base: bool = True) -> Turn:
    turn = talk.ask(prompt, base=base)
    wait(talk)
    return turn


def test_both_models_answer_as_generate_does(talk: Talk, trained: RunDirectory) -> None:
    model, chat = load(trained.path, read_run(trained.path).config, lambda message: None)
    expected = {True: reply(model, chat, "One?", SHORT).text}
    with model.disable_adapter():
        expected[False] = reply(model, chat, "One?", SHORT).text
    turn = ask(talk, "One?")
    assert {tuned: reply.text for tuned, reply in turn.replies.items()} == expected
    assert turn.identical == (expected[True] == expected[False])
    assert expected[True] != expected[False], "the run was to change something"
    assert talk.identical() == (0, 1)
    assert {reply.ended for reply in turn.replies.values()} <= {"end", "length"}


def test_each_model_goes_on_with_its_own_answers(talk: Talk) -> None:
    talk.system = "Be short."
    first = ask(talk, "One?")
    alone = ask(talk, "Two?", base=False)
    ask(talk, "Three?")
    for tuned in (True, False):
        said = [message["content"] for message in talk.messages(tuned)]
        assert said[:6] == [
            *("Be short.", "One?", first.replies[tuned].text),
            *("Two?", alone.replies[True].text, "Three?"),
        ]
    assert talk.identical()[1] == 2, "a turn that only one answered is not compared"


def test_the_same_seed_gives_the_same_answer_and_another_another(talk: Talk) -> None:
    talk.sampling = Sampling(max_tokens=30, temperature=1.5, top_p=0.95, seed=7)
    answers = []
    for _ in range(2):
        answers.append(ask(talk, "One?").replies[True].text)
        talk.begin_anew()
    assert answers[0] == answers[1]
    ask(talk, "One?")
    again = talk.again(base=True)
    wait(talk)
    assert again is not None
    assert (len(talk.turns), again.sampling.seed) == (1, 8)
    assert again.replies[True].text != answers[0]


def test_a_reply_is_stopped_and_the_model_stays(talk: Talk) -> None:
    talk.sampling = LONG
    turn = talk.ask("One?", base=True)
    for _ in talk.messages_of_job:
        if turn.text:
            break
    talk.stop()
    wait(talk)
    (reply,) = turn.replies.values()
    assert (reply.ended, reply.tokens < 400, turn.identical) == ("stopped", True, None)
    talk.sampling = SHORT
    assert ask(talk, "Two?").replies[True].tokens > 0


def test_a_conversation_longer_than_the_context_is_refused_and_the_model_stays(talk: Talk) -> None:
    turn = ask(talk, "long " * 600)
    assert isinstance(turn.failed, InputError)
    assert "looks back on 512" in turn.failed.message
    assert ask(talk, "One?").replies
    assert talk.messages(True)[0]["content"] == "One?", "what failed is not told again"


def test_a_reply_ends_where_the_context_does(talk: Talk) -> None:
    talk.sampling = Sampling(max_tokens=5000, temperature=2.0)
    turn = ask(talk, "word " * 60, base=False)
    reply = turn.replies[True]
    assert reply.ended in ("length", "end")
    assert reply.tokens < 512


def test_a_conversation_is_saved_as_a_row_and_never_over_a_file(talk: Talk, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing was answered"):
        talk.save(str(tmp_path / "row.jsonl"))
    talk.system = "Be short."
    answers = [ask(talk, prompt).replies[True].text for prompt in ("One?", "Two?")]
    path = talk.save(str(tmp_path / "row"))
    (row,) = (json.loads(line) for line in path.read_text().splitlines())
    assert [(each["role"], each["content"]) for each in row["messages"]] == [
        ("system", "Be short."),
        *(("user", "One?"), ("assistant", answers[0])),
        *(("user", "Two?"), ("assistant", answers[1])),
    ]
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        talk.save(str(path))
    assert path.read_bytes() == before


def first_answer(request: ChatRequest) -> tuple[bool, dict[bool, str]]:
    """Whether the model has a base, and what the sides say to the same question."""
    with engine_job(CHAT, request, stays=True) as job:
        talk = attach(job, SHORT)
        wait(talk)
        assert talk.ready is not None
        turn = ask(talk, "One?", base=talk.ready.has_base)
        return talk.ready.has_base, {tuned: reply.text for tuned, reply in turn.replies.items()}


def test_adapter_folders_checkpoints_and_whole_models_talk_too(
    talk: Talk, trained: RunDirectory, tmp_path: Path
) -> None:
    both = {tuned: reply.text for tuned, reply in ask(talk, "One?").replies.items()}
    moved = shutil.copytree(trained.adapter, tmp_path / "adapter")
    assert first_answer(ChatRequest(source=str(moved))) == (True, both)
    step = CheckpointStore(trained.checkpoints, trained.run_id).checkpoints()[-1].step
    assert first_answer(ChatRequest(source=str(trained.path), step=step)) == (True, both)
    base = json.loads((moved / "backprop.json").read_text())["model_path"]
    assert first_answer(ChatRequest(source=base)) == (False, {True: both[False]})


def test_an_adapter_folder_on_another_base_says_so(trained: RunDirectory, tmp_path: Path) -> None:
    moved = shutil.copytree(trained.adapter, tmp_path / "adapter")
    base = shutil.copytree(json.loads((moved / "backprop.json").read_text())["model_path"], tmp_path / "base")
    assert adapter_notes(moved, base) == []
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    (moved / "adapter_config.json").write_text("{}")
    assert [note.code for note in adapter_notes(moved, base)] == ["BASE_CHANGED", "ADAPTER_CHANGED"]


def test_an_adapter_of_nobody_knows_what_is_refused(trained: RunDirectory, tmp_path: Path) -> None:
    moved = shutil.copytree(trained.adapter, tmp_path / "adapter")
    (moved / "backprop.json").unlink()
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match="does not say which model"):
        first_answer(ChatRequest(source=str(moved)))


ASKER = """
import os, sys
from backprop.core.jobs import ChatRequest, Sampling
from backprop.runs.conversation import CHAT, Conversation
from backprop.runs.engine_jobs import engine_job
started = engine_job(CHAT, ChatRequest(source=sys.argv[1]), stays=True)
job = started.__enter__()
talk = Conversation(sampling=Sampling(max_tokens=400))
messages = talk.attach(job)
for _ in messages:
    if talk.ready:
        break
print(job._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_it_ends_when_its_asker_is_killed_though_it_only_waits(trained: RunDirectory) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKER, str(trained.path)], stdout=subprocess.PIPE, text=True, check=False, timeout=120
    )
    assert done.returncode == -9
    try:
        left = os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return
    ended, _, _ = select.select([left], [], [], PATIENCE)
    os.close(left)
    assert ended, "the job goes on without anybody"


@pytest.mark.parametrize(
    ("text", "words"),
    [("temperature=9", "from 0 to 5"), ("top_p=x", "not 'x'"), ("top_k=4", "no 'top_k'"), ("max_tokens=0", "from 1")],
)
def test_a_wrong_sampling_is_refused_with_what_may_be(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        sampling_of(text)


def test_sampling_is_read_as_it_is_written() -> None:
    sampling = Sampling(max_tokens=20, temperature=0.7, top_p=0.9, seed=3)
    assert sampling_of(sampling_text(sampling)) == sampling
    assert sampling_of("") == Sampling()
