"""Uploading to a stand-in of the hub: what arrives, what the card says, what is refused before anything is sent."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from backprop.cli.main import main
from backprop.core.errors import ExportError, InputError
from backprop.core.jobs import Pushed, PushRequest
from backprop.export.card import About, card, licence_word
from backprop.export.push import pack, push, require_nothing_private, require_repository
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from backprop.trainer import Trainer
from bare_gguf import write_gguf
from huggingface_hub import HfApi
from small_hub import COMMIT, Hub
from tiny_language_model import write_model, write_rows

TOKEN = "hf_" + "a" * 34
REPO = "me/captain"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The directory of a run of two steps on a model in a folder."""
    folder = tmp_path_factory.mktemp("pushed")
    model = write_model(folder / "tiny")
    trainer = Trainer(str(model), output_dir=str(folder / "out"), lora_r=4, backend="cpu", learning_rate=1e-2)
    done = trainer.train(write_rows(folder / "rows.jsonl", 8), steps=2)
    return RunDirectory(Path(done.output_path).parent)


@pytest.fixture(autouse=True)
def person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("getpass.getuser", lambda: "annabel")


@pytest.fixture
def loopback(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub's client of this process asks the stand-in too."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("backprop.export.push.HfApi", partial(HfApi, endpoint=hub.url))
    return hub


def pushed(path: Path, **asked: Any) -> Pushed:
    return push(PushRequest(path=str(path), repo=REPO, **asked), lambda message: None)


def test_the_command_uploads_a_run_in_private_with_its_card(
    hub: Hub, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    code = main(["push", str(run.path), "--repo", REPO, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, out
    done = json.loads(out)
    there = hub.models[REPO]
    assert hub.private[REPO]
    assert (done["private"], done["existed"], done["commit"]) == (True, False, COMMIT)
    assert done["url"] == f"{hub.url}/{REPO}"
    weights = "adapter_model.safetensors"
    assert there[weights] == (run.adapter / weights).read_bytes()
    assert set(there) == {each.name for each in run.adapter.iterdir()} | {"README.md"}
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in out + err
    local = str(read_run(run.path).config["model"]).encode()
    assert (run.adapter / "adapter_config.json").read_bytes().find(local) > 0
    assert not [name for name, content in there.items() if local in content]
    assert json.loads(there["adapter_config.json"])["base_model_name_or_path"] is None
    assert any("base model's local path is left out" in note for note in done["notes"])

    text = there["README.md"].decode()
    assert text == done["card"]
    assert text.startswith('---\nlibrary_name: "peft"\n')
    state = read_run(run.path)
    identity = json.loads((run.adapter / "backprop.json").read_bytes())
    assert state.dataset is not None
    trained = f"| trained rows | {state.dataset.kept - state.dataset.held_out} |"
    for fact in (identity["data"], run.run_id, "| rows | 8 |", trained, "| lora_r | 4 |", "| learning_rate | 0.01 |"):
        assert fact in text
    assert f"{state.curves.loss[-1]:.4f}" in text
    assert state.environment["torch"] in text
    assert state.environment["host"] not in text
    assert "base_model" not in text
    assert "A LoRA adapter for a model." in text
    base, *others = state.evaluations
    assert base.base
    assert f"| loss on held-out rows, before training | {base.loss:.4f} |" in text
    assert f"| loss on held-out rows, at the end | {others[-1].loss:.4f} (step 2) |" in text


def test_a_run_that_was_stopped_before_its_first_evaluation_has_no_loss_at_the_end(run: RunDirectory) -> None:
    state = read_run(run.path)
    state.evaluations = state.evaluations[:1]
    about = About(repo=REPO, relation="finetune", library="transformers", base="", licence="", data_hash="", run=state)
    assert "A model, fine-tuned: base" in card(about)
    assert "before training" in card(about)
    assert not any(words in card(about) for words in ("at the end", "rows, best"))


def test_a_gguf_file_and_a_merged_folder_say_what_they_are(loopback: Hub, tmp_path: Path, tiny_model: Path) -> None:
    file = write_gguf(tmp_path / "captain-q4_k_m.gguf")
    assert 'library_name: "gguf"\n' in pushed(file).card
    assert loopback.models[REPO][file.name] == file.read_bytes()
    lora = pack(write_gguf(tmp_path / "lora.gguf", kind="adapter"), REPO)
    assert ('library_name: "gguf"\n' in lora.card, "A LoRA adapter for" in lora.card) == (True, True)
    folder = pack(tiny_model, REPO)
    assert "base and adapter merged" in folder.card
    assert "model.safetensors" in folder.files


def test_a_base_model_of_the_hub_is_named_with_its_licence(run: RunDirectory, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (adapter / "notes.md").write_text("mine")
    settings = {"base_model_name_or_path": "/somewhere/snapshots/abc", "r": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "backprop.json").write_text(
        json.dumps({"model": "qwen2.5-7b", "model_path": "/home/me/x", "data": "d1"})
    )

    parcel = pack(adapter, REPO)

    require_nothing_private(parcel, REPO)
    head = parcel.card.split("---")[1]
    assert 'base_model: "Qwen/Qwen2.5-7B-Instruct"\nbase_model_relation: "adapter"\nlicense: "apache-2.0"' in head
    assert json.loads(parcel.files["adapter_config.json"]) == {
        "base_model_name_or_path": "Qwen/Qwen2.5-7B-Instruct",
        "r": 4,
    }  # type: ignore[arg-type]
    assert json.loads(parcel.files["backprop.json"]) == {"model": "Qwen/Qwen2.5-7B-Instruct", "data": "d1"}  # type: ignore[arg-type]
    assert parcel.notes[0] == "not uploaded: notes.md"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("config.json", {"_name_or_path": "/home/ann/models/x"}, "a local path in it: '/home/ann/models/x'"),
        ("adapter_config.json", {"x": "ann@example.org"}, "a mail address in it: 'ann@example.org'"),
        ("backprop.json", {"data": "of annabel"}, "the user's name in it: 'annabel'"),
        ("tokenizer_config.json", {"name_or_path": "~/models"}, "a local path"),
        ("config.json", {"path": "C:\\Users\\ann"}, "a local path"),
    ],
)
def test_what_is_private_is_found_before_the_hub_is_asked(
    loopback: Hub, tmp_path: Path, name: str, content: Any, what: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match="nothing was uploaded") as error:
        pushed(folder)
    assert f"{name} has " in error.value.message
    assert what in error.value.message
    assert loopback.asked == []


def test_what_models_carry_of_themselves_is_not_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "captain")
    folder = tmp_path / "model"
    folder.mkdir()
    template = "Q:\nuse and/or, a / b / c, </s> <|x|>/y https://example.org/a/b 1/2/3"
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "</s>"}))
    require_nothing_private(pack(folder, REPO), REPO)


def test_a_public_repository_is_filled_only_when_asked(loopback: Hub, tiny_model: Path) -> None:
    loopback.models[REPO], loopback.private[REPO] = {}, False
    with pytest.raises(InputError, match="exists and is public"):
        pushed(tiny_model)
    assert loopback.models[REPO] == {}
    done = pushed(tiny_model, public=True)
    assert (done.existed, done.private) == (True, False)
    loopback.private[REPO] = True
    assert "existed and stays private" in pushed(tiny_model, public=True).notes[-1]


def test_no_token_and_a_refusal_are_said(loopback: Hub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loopback.refusals["push"] = (403, "Forbidden")
    with pytest.raises(ExportError, match="could not be uploaded") as error:
        pushed(tiny_model)
    assert "HF_TOKEN may write" in error.value.hint
    monkeypatch.setattr("backprop.export.push.get_token", lambda: None)
    with pytest.raises(InputError, match="there is no token"):
        pushed(tiny_model)


@pytest.mark.parametrize("name", ["a/b", "a/" + "b" * 96, "Me_1/x.y-z"])
def test_names_that_the_hub_allows(name: str) -> None:
    assert require_repository(name) == name


@pytest.mark.parametrize(
    "name", ["", "ab", "a/b/c", "../b", "a\\b", "-a/b", "a/" + "b" * 97, "a/-b", "a/b.", "a/b--c", "é/b", "a/b.git"]
)
def test_names_that_it_does_not(name: str) -> None:
    with pytest.raises(InputError, match="is no name of a repository"):
        require_repository(name)


@pytest.mark.parametrize(
    ("licence", "word"), [("Apache-2.0", "apache-2.0"), ("Llama Community", "llama3.2"), ("Qwen-Research", "other")]
)
def test_licences_in_the_words_of_the_hub(licence: str, word: str) -> None:
    assert licence_word(licence) == word
