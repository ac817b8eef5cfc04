"""Models fetched from a stand-in of the hub; refusals in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from backprop.core.errors import ModelLoadError
from backprop.core.events import ModelLoading
from backprop.fetch import hub as hub_module
from backprop.fetch.models import fetch_model
from huggingface_hub import constants
from safetensors.numpy import save
from small_hub import Hub

NAME = "somebody/a-model"
WEIGHTS = save({"w": np.ones(9, np.float32)})
FILES = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": WEIGHTS, "a.bin": b"x" * 900}
CODE = {"modeling_own.py": b"class Own: ..."}
"""What a model may bring, and is run only where it is trusted."""


@pytest.fixture
def cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache; the hub has the model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "LOOK_SECONDS", 0.01)
    hub.models[NAME] = dict(FILES)
    return tmp_path


def ignore(event: ModelLoading) -> None:
    pass


def test_a_model_is_fetched_once_and_only_what_is_wanted_of_it(hub: Hub, cache: Path) -> None:
    hub.models[NAME] |= CODE
    folder = fetch_model(NAME, ignore)
    assert {path.name for path in folder.iterdir()} == {*CODE, "config.json", "model.safetensors", "tokenizer.json"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    asked = len(hub.asked)
    assert fetch_model(NAME, lambda event: pytest.fail("nothing is fetched")) == folder
    assert len(hub.asked) == asked


def test_the_bytes_that_arrived_are_reported_against_those_that_are_wanted(hub: Hub, cache: Path) -> None:
    hub.holds.clear()
    seen: list[tuple[int, int]] = []

    def emit(event: ModelLoading) -> None:
        seen.append((event.done, event.total))
        if event.done == 4:  # the two small files; the weights are held back
            hub.holds.set()

    fetch_model(NAME, emit)
    assert seen[0] == (0, 0)
    assert (4, 4 + len(WEIGHTS)) in seen
    assert {total for done, total in seen[1:]} == {4 + len(WEIGHTS)}


@pytest.mark.parametrize(
    ("refusal", "words", "hint"),
    [
        ((403, "GatedRepo"), "agree to terms", "HF_TOKEN"),
        ((404, "RepoNotFound"), "no model of that name", "check the name"),
        ((500, ""), "500", "try again"),
    ],
)
def test_a_refusal_says_which_it_is(hub: Hub, cache: Path, refusal: tuple[int, str], words: str, hint: str) -> None:
    hub.refusals[NAME] = refusal
    with pytest.raises(ModelLoadError, match=words) as caught:
        fetch_model(NAME, ignore)
    assert hint in caught.value.hint
    assert caught.value.code == "DEP_MODEL_DOWNLOAD_FAILED"


def test_weights_in_pickle_files_are_not_taken(hub: Hub, cache: Path) -> None:
    del hub.models[NAME]["model.safetensors"]
    with pytest.raises(ModelLoadError, match=r"no \.safetensors weights"):
        fetch_model(NAME, ignore)


def test_without_a_network_the_hub_cannot_be_reached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelLoadError, match="cannot be reached") as caught:
        fetch_model(NAME, ignore)
    assert caught.value.retryable


def test_offline_asks_nobody(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="HF_HUB_OFFLINE forbids") as caught:
        fetch_model(NAME, ignore)
    assert "--model smollm2-135m" in caught.value.hint
    assert hub.asked == []
