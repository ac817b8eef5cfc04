"""Uploads a model to the Hugging Face Hub with a card; looks first that nothing private is in it. Run as a module it is
a job.
"""

from __future__ import annotations

import getpass
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from msgspec import Struct

from backprop.core.errors import ExportError, InputError, ModelLoadError
from backprop.core.files import read_json
from backprop.core.jobs import JobProgress, Pushed, PushRequest
from backprop.core.models import repository_of
from backprop.core.presets import EMBEDDED_MODEL, licence_of
from backprop.core.redaction import redact
from backprop.export.card import About, card
from backprop.export.ollama.served import read_served
from backprop.runs.describe import bytes_text
from backprop.runs.directory import RunDirectory, is_run
from backprop.runs.result_files import IDENTITY
from backprop.runs.state import RunState, read_run, require_result
from backprop.worker.job import Send, run_job

CARD = "README.md"
_ADAPTER_CONFIG = "adapter_config.json"
_ENDINGS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".gguf")
_CHECKED = (CARD, _ADAPTER_CONFIG, IDENTITY, "config.json", "generation_config.json", "tokenizer_config.json")
"""Files that this program or a library writes about a model; others are the base model's own, or numbers."""
_EMBEDDED_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_PATH = re.compile(r"(?<![\w.:/<>|}~-])(?:/[\w.+-]+){2,}|(?<!\w)~/\w|\b[A-Za-z]:\\+Users\b|\bfile://")
_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}", re.IGNORECASE)
_ANYBODY = ("root", "user", "ubuntu", "admin", "nobody")
"""Names of users that say nothing about a person."""


class Parcel(Struct, kw_only=True):
    """What is uploaded: by its name in the repository a file, or the bytes that stand for it."""

    files: dict[str, Path | bytes]
    card: str
    notes: list[str]

    @property
    def bytes(self) -> int:
        """All files together."""
        return sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in self.files.values())


def push(request: PushRequest, send: Send) -> Pushed:
    """Upload what is asked for, in one commit.

    Raises:
        InputError: the name is not allowed, there is nothing to upload, something private is in it, there is no token,
            or the repository is public and that was not asked for.
        ExportError: the hub is not there, or does not take it.
    """
    repo = require_repository(request.repo)
    parcel = pack(Path(request.path), repo)
    require_nothing_private(parcel, repo)
    if get_token() is None:
        raise InputError("there is no token for the Hugging Face Hub", hint="set HF_TOKEN, or run `hf auth login`")
    api = HfApi()
    try:
        try:
            private = bool(api.model_info(repo).private)
            existed = True
        except RepositoryNotFoundError:
            private, existed = not request.public, False
        if existed and not private and not request.public:
            raise InputError(f"{repo} exists and is public", hint="say --public, or name another repository")
        if existed and private and request.public:
            parcel.notes.append(f"{repo} existed and stays private: its page has the switch")
        send(JobProgress(doing=f"uploading {len(parcel.files)} files, {bytes_text(parcel.bytes)}, to {repo}"))
        if not existed:
            api.create_repo(repo, private=private)
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(name, file) for name, file in parcel.files.items()],
            commit_message="Upload by backprop-tui",
        )
    except OfflineModeIsEnabled as error:
        raise _failed(repo, "HF_HUB_OFFLINE forbids to ask the hub", "unset it") from error
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        hint = "look whether HF_TOKEN may write there" if status in (401, 403) else "look at the network; try again"
        raise _failed(repo, redact((str(error).strip().splitlines() or [type(error).__name__])[0]), hint) from error
    return Pushed(
        url=f"{api.endpoint}/{repo}",
        commit=str(commit.oid),
        files=sorted(parcel.files),
        bytes=parcel.bytes,
        private=private,
        existed=existed,
        card=parcel.card,
        notes=parcel.notes,
    )


def require_repository(name: str) -> str:
    """``name``, which the hub allows.

    Raises:
        InputError: it does not.
    """
    with suppress(HFValidationError):
        validate_repo_id(name)
        if _REPOSITORY.fullmatch(name):
            return name
    raise InputError(
        f"{name!r} is no name of a repository",
        hint="owner/name; letters, digits, '-', '_' and '.', at most 96 each, neither '-' nor '.' at an end",
        details={"field": "repo"},
    )


def pack(path: Path, repo: str) -> Parcel:
    """What is uploaded of a run, a folder, or a GGUF file, with local paths taken out of it, and its card.

    Raises:
        InputError: there is nothing to upload.
    """
    path = path.absolute()
    run = next((read_run(folder) for folder in (path, path.parent, path.parent.parent) if is_run(folder)), None)
    if run is not None and is_run(path):
        path = require_result(run)
    skipped: list[str] = []
    if path.suffix == ".gguf":
        served = read_served(path)
        found, licence = {path.name: path}, served.licence
        relation, library = "adapter" if served.kind == "adapter" else "quantized", "gguf"
    else:
        is_adapter = (path / _ADAPTER_CONFIG).is_file()
        relation, library = ("adapter", "peft") if is_adapter else ("finetune", "transformers")
        if relation == "finetune" and not (path / "config.json").is_file():
            raise InputError(f"{path} is no run, no folder with an adapter or a model, and no GGUF file")
        inside = [each for each in sorted(path.iterdir()) if each.name != CARD]
        found = {each.name: each for each in inside if each.is_file() and _is_part(each.name)}
        skipped, licence = [each.name for each in inside if each.name not in found], ""
    notes = [f"not uploaded: {', '.join(skipped)}"] if skipped else []
    identity: dict[str, Any] = read_json(found[IDENTITY], dict[str, Any]) if IDENTITY in found else {}
    settings = read_json(found[_ADAPTER_CONFIG], dict[str, Any]) if _ADAPTER_CONFIG in found else {}
    base, known = base_model(run, identity, settings)
    if not base:
        notes.append("the base model is not known on the hub: the card and the adapter name none")
    about = About(
        repo=repo,
        relation=relation,
        library=library,
        base=base,
        licence=licence or known,
        data_hash=str(identity.get("data", "") or (RunDirectory(Path(run.path)).data_hash if run else "")),
        run=run,
    )
    if not about.licence:
        notes.append("the base model's licence is not known: the card names none")
    files: dict[str, Path | bytes] = dict(found)
    if settings and settings.get("base_model_name_or_path") != (base or None):
        notes.append(f"{_ADAPTER_CONFIG}: the base model's local path " + (f"is now {base}" if base else "is left out"))
        files[_ADAPTER_CONFIG] = _as_file(settings | {"base_model_name_or_path": base or None})
    if identity:
        kept = {name: value for name, value in identity.items() if name != "model_path"}
        files[IDENTITY] = _as_file(kept | {"model": base})
    text = card(about)
    return Parcel(files=files | {CARD: text.encode()}, card=text, notes=notes)


def base_model(run: RunState | None, identity: dict[str, Any], settings: dict[str, Any]) -> tuple[str, str]:
    """The base model's name on the hub and its licence; empty where they are not known."""
    named = [run.config.get("model") if run else "", identity.get("model"), settings.get("base_model_name_or_path")]
    for name in (str(each) for each in named if each):
        if name == EMBEDDED_MODEL:
            return _EMBEDDED_REPOSITORY, licence_of(name)
        with suppress(ModelLoadError):
            if repository := repository_of(name):
                return repository, licence_of(name)
    return "", ""


def require_nothing_private(parcel: Parcel, repo: str) -> None:
    """Check that no text of the upload has a local path, a mail address, the user's name or a secret in it.

    Raises:
        InputError: one has; all places are named.
    """
    found = []
    user = "" if (name := _user()) in repo else name  # who takes the name for the repository does not hide it
    for name in _CHECKED:
        content = parcel.files.get(name)
        if content is None:
            continue
        text = (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8", "replace")
        signs = {"a local path": _PATH.search(text), "a mail address": _MAIL.search(text)}
        signs["the home directory"] = re.search(re.escape(str(Path.home())) + r"\b", text)
        if name in (CARD, _ADAPTER_CONFIG, IDENTITY):
            signs["the user's name"] = re.search(rf"\b{re.escape(user)}\b", text) if user else None
        found += [f"{name} has {what} in it: {match[0]!r}" for what, match in signs.items() if match]
        if name == CARD and redact(text) != text:
            found.append(f"{name} has a secret in it")
    if found:
        raise InputError(
            f"nothing was uploaded: {'; '.join(found)}",
            hint="take it out of the file, or give the setting another value",
        )


def _user() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        return ""
    return "" if name in _ANYBODY or len(name) < 3 else name


def _is_part(name: str) -> bool:
    return not name.startswith(".") and (name.endswith(_ENDINGS) or name.upper().startswith(("LICENSE", "NOTICE")))


def _as_file(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _failed(repo: str, why: str, hint: str) -> ExportError:
    return ExportError(f"{repo} could not be uploaded: {why}", hint=hint, retryable=True)


if __name__ == "__main__":
    run_job(PushRequest, push)
