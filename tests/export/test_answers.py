"""A GGUF file's answers beside the trained model's. llama.cpp itself is asked where it is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backprop.core.errors import BackpropError, GGUFError, InputError
from backprop.core.jobs import Check, Sampling
from backprop.data.tokenizer import ChatTokenizer
from backprop.export import llama
from backprop.export.answers import NOT_INSTALLED, compare_answers, held_out_prompts
from backprop.export.gguf.file import write_gguf
from backprop.export.weights import StoredWeights
from backprop.runs.directory import RunDirectory
from bare_gguf import write_gguf as write_bare_gguf
from safetensors.numpy import load_file, save_file
from tiny_language_model import CHATML, write_model

installed = pytest.mark.skipif(not llama.is_installed(), reason="llama-cpp-python is not installed")
PROMPTS = [[1, 40, 50, 60, 2], [1, 70, 80], [1, 90, 91, 92, 93, 94, 95, 2, 1]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def changed(model: Path, folder: Path, by: float) -> Path:
    """The model with one layer ``by`` other values: what an adapter would make of it."""
    made = write_model(folder)
    weights = load_file(made / "model.safetensors")
    noise = np.random.default_rng(0).normal(0, by, weights["model.layers.1.mlp.down_proj.weight"].shape)
    weights["model.layers.1.mlp.down_proj.weight"] += noise.astype(np.float32)
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    return made


def load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def written(folder: Path, target: Path, precision: str) -> Path:
    write_gguf(folder, StoredWeights([folder / "model.safetensors"]), target, precision, template=CHATML, provenance={})
    return target


class _Tuned:
    """Two models as one with an adapter that can be turned off."""

    def __init__(self, tuned: Any, base: Any) -> None:
        self._models, self._base = (tuned, base), False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models[self._base], name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._models[self._base](*args, **named)

    def disable_adapter(self) -> _Tuned:
        return self

    def __enter__(self) -> None:
        self._base = True

    def __exit__(self, *_: object) -> None:
        self._base = False


class _File:
    """Stands for llama.cpp: another model, asked the same way."""

    folder = Path()

    def __init__(self, path: Path, length: int, ends: list[int]) -> None:
        self._model, self._ends = load(self.folder), ends

    def ask(self, prompt: list[int], given: list[int], most: int) -> tuple[np.ndarray, list[int]]:
        import torch

        with torch.no_grad():
            logits = self._model(torch.tensor([[*prompt, *given]])).logits[0, len(prompt) - 1 : -1].numpy()
            ids = self._model.generate(
                torch.tensor([prompt]), max_new_tokens=most, do_sample=False, eos_token_id=self._ends, pad_token_id=0
            )[0, len(prompt) :].tolist()
        return logits, [id for id in ids if id not in self._ends]

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folders of a base and a tuned model; llama.cpp is replaced."""
    monkeypatch.setattr(llama, "Llama", _File)
    monkeypatch.setattr(llama, "is_installed", lambda: True)
    return model, changed(model, tmp_path / "tuned", 2.0)


@pytest.mark.parametrize(
    ("by", "precision", "expected"),
    [(0.0, "q8_0", (True, 1.0)), (2.0, "q8_0", (False, 0.0)), (2.0, "q2_k", (True, 0.0))],
)
def test_what_is_counted(
    file: tuple[Path, Path], tmp_path: Path, by: float, precision: str, expected: tuple[bool, float]
) -> None:
    """The tuned model is the base with a changed layer; a file that answers as the base has lost the fine-tune."""
    passed, kept = expected
    model, tuned = file
    _File.folder = model if by else tuned
    check = compare_answers(
        Check(passed=True),
        tmp_path / "a.gguf",
        precision,
        load=lambda: _Tuned(load(tuned), load(model)),
        chat=ChatTokenizer.load(model),
        prompts=[[], *PROMPTS, [5] * 600],
    )
    assert check.kl is not None
    assert check.top1 is not None
    assert check.passed is check.compared[0].passed is passed
    assert check.tuning_kept == kept
    assert (check.kl < 1e-6 and check.top1 == 1.0) if not by else check.kl > 0.2
    assert "positions of 3 prompts in llama.cpp: divergence " in check.compared[0].detail
    assert f"of 3 that tuned and base model answer differently {3 * int(kept)} are" in check.compared[0].detail


def test_without_llama_cpp_the_check_says_what_is_missing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "is_installed", lambda: False)
    found = Check(passed=True)
    check = compare_answers(found, tmp_path, "f16", load=pytest.fail, chat=ChatTokenizer.load(model), prompts=PROMPTS)
    assert check == Check(passed=True, skipped=NOT_INSTALLED)
    assert "backprop-tui[llama]" in check.skipped


def test_prompts_are_what_precedes_the_answers_of_held_out_rows(trained: RunDirectory, base: Path) -> None:
    chat = ChatTokenizer.load(base)
    found = [chat.tokenizer.decode(ids, skip_special_tokens=False) for ids in held_out_prompts(trained, base)]
    assert found
    for text in found:
        assert text.startswith("<|im_start|>user\nWhat is number ")
        assert text.endswith("<|im_start|>assistant\n")


def test_a_run_whose_rows_are_gone_has_no_such_prompts(trained: RunDirectory, base: Path) -> None:
    Path(str(trained.read_record().config.data)).rename(trained.path / "moved.jsonl")
    try:
        assert held_out_prompts(trained, base) == []
    finally:
        (trained.path / "moved.jsonl").rename(str(trained.read_record().config.data))


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of this Python that never answers."""
    program = tmp_path / "silent"
    program.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return program


def test_one_that_takes_too_long_is_ended_and_named(silent: Path, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"llama\.cpp needs more than 0\.2 s for a\.gguf"):
        llama.Llama(tmp_path / "a.gguf", 64, [2], seconds=0.2)


def test_one_that_ends_is_named_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ends"
    program.write_text("#!/bin/sh\nread line\necho what went wrong >&2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(GGUFError, match=r"llama\.cpp does not take a\.gguf: what went wrong"):
        llama.Llama(tmp_path / "a.gguf", 64, [2])


@installed
@pytest.mark.parametrize(("precision", "most"), [("f32", 1e-4), ("f16", 1e-4), ("q8_0", 0.01)])
def test_llama_cpp_answers_as_the_model_does(model: Path, tmp_path: Path, precision: str, most: float) -> None:
    path = written(model, tmp_path / "a.gguf", precision)
    check = compare_answers(
        Check(passed=True),
        path,
        precision,
        load=lambda: load(model),
        chat=ChatTokenizer.load(model),
        prompts=PROMPTS,
    )
    assert check.passed, check.compared
    assert check.kl is not None
    assert check.kl < most
    assert check.tuning_kept is None


@installed
def test_llama_cpp_refuses_a_broken_file_and_the_check_says_so(model: Path, tmp_path: Path) -> None:
    path = written(model, tmp_path / "a.gguf", "f16")
    path.write_bytes(path.read_bytes()[:-5000])
    check = compare_answers(
        Check(passed=True), path, "f16", load=lambda: load(model), chat=ChatTokenizer.load(model), prompts=PROMPTS
    )
    assert not check.passed
    assert check.compared[-1].name == "answers"
    assert "llama.cpp does not take a.gguf" in check.compared[-1].detail


@installed
def test_the_answer_is_the_greedy_one_whatever_is_given(model: Path, tmp_path: Path) -> None:
    with llama.Llama(written(model, tmp_path / "a.gguf", "f32"), 64, [2]) as file:
        _, answer = file.ask(PROMPTS[1], [], 12)
        assert len(answer) > 4
        for given in ([3, 4], answer, [*answer[:3], 7, 9], answer[:2]):
            logits, ids = file.ask(PROMPTS[1], given, 12)
            assert ids == answer
            assert logits.shape[0] == len(given)
        logits, _ = file.ask(PROMPTS[1], answer, 12)
        assert logits.argmax(1).tolist() == answer


@installed
def test_no_process_is_left(model: Path, tmp_path: Path) -> None:
    with llama.Llama(written(model, tmp_path / "a.gguf", "f16"), 64, [2]) as file:
        process = file._process.pid
        logits, ids = file.ask([1, 40, 50], [3, 4], 5)
    assert logits.shape[0] == 2
    assert len(ids) <= 5
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@installed
def test_a_file_answers_in_a_conversation_as_its_model_does(model: Path, tmp_path: Path) -> None:
    from backprop.export.chat import FileSpeaker
    from backprop.train.generate import reply

    speaker, chat = FileSpeaker(written(model, tmp_path / "model.gguf", "f32")), ChatTokenizer.load(model)
    messages = [{"role": "user", "content": "What do you do?"}]
    pieces: list[str] = []
    greedy = Sampling(max_tokens=12)
    answered = speaker.reply(True, messages, greedy, pieces.append, lambda: False)
    assert answered == reply(load(model), chat, messages, greedy)
    assert "".join(pieces).strip() == answered.text
    assert speaker.reply(True, messages, greedy, pieces.append, lambda: True).ended == "stopped"


def test_without_llama_cpp_a_file_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backprop.export.chat import FileSpeaker

    monkeypatch.setattr(llama, "is_installed", lambda: False)
    with pytest.raises(BackpropError) as refused:
        FileSpeaker(tmp_path / "model.gguf")
    assert (refused.value.code, "pip install" in refused.value.hint) == ("DEP_MISSING", True)


@pytest.mark.parametrize(("kind", "words"), [("adapter", "adapter alone"), ("damaged", "no GGUF file")])
def test_a_file_that_is_no_whole_model_is_refused_before_llama_cpp_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str
) -> None:
    from backprop.export.chat import FileSpeaker

    monkeypatch.setattr(llama, "is_installed", lambda: True)
    path = write_bare_gguf(tmp_path / "model.gguf", kind=kind)
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=words):
        FileSpeaker(path)
