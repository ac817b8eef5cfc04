"""Registers a GGUF file with Ollama so that it answers as it was trained, and proves it. Run as a module it is a job.

Success is what Ollama shows afterwards, not what it said on the way.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

from backprop.core.errors import InputError, OllamaRegistrationError
from backprop.core.jobs import JobProgress, OllamaModel, OllamaModels, OllamaRequest, Registered
from backprop.export.ollama.api import OLDEST, OllamaServer, version_numbers
from backprop.export.ollama.served import Served, go_template, read_served, run_of, system_turn
from backprop.runs.state import RunState
from backprop.worker.job import Send, paced, run_job

LONGEST_NAME = 128
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})?")
_JINJA = (0, 30, 0)
"""The version from which Ollama renders the template that the file has."""
_NO_TEMPLATE = ("", "{{ .Prompt }}")
"""What Ollama shows where it has no template of its own for a model."""
_ANSWER_TOKENS = 96


def register(request: OllamaRequest, send: Send) -> Registered:
    """Register a file under a name, look at what Ollama has of it, and ask it once.

    Raises:
        InputError: the name is not allowed or taken, or the file is no GGUF file with a whole model.
        OllamaRegistrationError: Ollama is not there, too old, refuses, breaks off, or has something else than
            it was sent.
    """
    name, path = require_name(request.name), Path(request.path)
    served = read_served(path)
    if served.kind != "model":
        hint = "`backprop export RUN --format gguf` writes a whole model"
        raise InputError(f"{path} holds an {served.kind} alone, no model that answers", hint=hint)
    server = OllamaServer()
    version = server.version()
    if version_numbers(version) < OLDEST:
        raise OllamaRegistrationError(
            f"Ollama {version} is too old to take a file", hint=f"update it to {'.'.join(map(str, OLDEST))} or newer"
        )
    before = {_full(str(model.get("name", ""))) for model in server.models()}
    if _full(name) in before and not request.replace:
        again = f"backprop ollama register {shlex.quote(str(path))} --name {shlex.quote(name)} --replace"
        hint = f"choose another name; `{again}` replaces it"
        raise InputError(f"Ollama has a model {name} already", hint=hint, details={"taken": name})
    run = run_of(path, request.run)
    body, notes = _wanted(served, version, run)
    digest = _send_file(server, path, send)
    body |= {"model": name, "files": {"model.gguf": f"sha256:{digest}"}}
    server.create(body, lambda status: send(JobProgress(doing=f"Ollama: {status}")))
    shown = server.show(name)
    if wrong := differences(body, shown):
        server.remove(name)
        gone = " (the one that it replaced is gone)" if _full(name) in before else ""
        raise OllamaRegistrationError(
            f"Ollama would not answer as trained, so {name} was removed again{gone}: {'; '.join(wrong)}",
            hint="update Ollama; a file of `backprop export` keeps its template from being replaced",
        )
    done = Registered(
        name=name,
        url=server.url,
        version=version,
        digest=digest,
        parameters=body["parameters"],
        system=body["system"],
        notes=notes + (["the model of that name was replaced"] if _full(name) in before else []),
    )
    send(JobProgress(doing=f"asking {name}"))
    _ask(server, request, run, done, as_chat=bool(served.template))
    return done


def require_name(name: str) -> str:
    """``name``, which Ollama allows.

    Raises:
        InputError: it does not.
    """
    if len(name) > LONGEST_NAME or not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for a model in Ollama",
            hint="letters, digits, '_', '-' and '.', at most 80, not '-' or '.' first; `:tag` may follow",
            details={"field": "name"},
        )
    return name


def differences(wanted: dict[str, Any], shown: dict[str, Any]) -> list[str]:
    """What of a request Ollama does not show of the model that came of it, in words."""
    wrong = []
    template = str(shown.get("template") or "")
    if template.strip() not in ((wanted["template"].strip(),) if "template" in wanted else _NO_TEMPLATE):
        wrong.append(f"it took another chat template, {template[:60]!r}")
    if str(shown.get("system") or "") != wanted["system"]:
        wrong.append("the system text is another one")
    if "license" in wanted and wanted["license"] not in str(shown.get("license") or ""):
        wrong.append("the licence is missing")
    has = _parameters(str(shown.get("parameters") or ""))
    for name, value in wanted["parameters"].items():
        values = value if isinstance(value, list) else [value]
        if missing := [each for each in values if not any(_equal(each, other) for other in has.get(name, []))]:
            wrong.append(f"parameter {name} is not {', '.join(map(repr, missing))}")
    return wrong


def _wanted(served: Served, version: str, run: RunState | None) -> tuple[dict[str, Any], list[str]]:
    """The request for a model, all but its name and file; and what has to be said of it."""
    system, why = system_turn(run) if run else ("", "")
    notes = [why] if why else []
    length = (run.config if run else {}).get("max_seq_length")
    body: dict[str, Any] = {"system": system, "parameters": served.parameters(length if isinstance(length, int) else 0)}
    if served.licence:
        body["license"] = served.licence
    else:
        notes.append("the file names no licence, so none was sent")
    if not served.stop:
        notes.append("the file names no token that ends an answer: answers may not stop")
    if version_numbers(version) >= _JINJA:
        return body | {"requires": ".".join(map(str, _JINJA))}, notes
    if served.template:
        if not (template := go_template(served.template)):
            raise OllamaRegistrationError(
                f"Ollama {version} cannot render this model's chat template, and no other form of it is known",
                hint="update Ollama to 0.30 or newer, which can",
            )
        body["template"] = template
        notes.append(
            f"Ollama {version} cannot render the trained chat template: turns are written in its own language, and a "
            "system text that the template adds by itself is missing; from 0.30 on it renders the template itself"
        )
    return body, notes


def _send_file(server: OllamaServer, path: Path, send: Send) -> str:
    """Send a file if Ollama has not got it; its SHA-256."""
    progress = paced(send)
    total, done, digest = path.stat().st_size, 0, hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            done += len(piece)
            progress(f"reading {path.name}", done, total)
    if not server.has_blob(digest.hexdigest()):
        server.send_blob(path, digest.hexdigest(), lambda done, total: progress(f"sending {path.name}", done, total))
    return digest.hexdigest()


def _ask(
    server: OllamaServer, request: OllamaRequest, run: RunState | None, done: Registered, *, as_chat: bool
) -> None:
    """Ask the model what the run was asked at its end, and note whether it says the same."""
    done.prompt, done.expected = request.prompt, request.expected
    named = re.search(r"-step-(\d+)", Path(request.path).stem)
    step = request.step if request.step is not None or named is None else int(named[1])
    step = run.step if run and step is None else step
    samples = [each for each in run.samples if each.tuned and each.step == step] if run else []
    known = next((each for each in samples if done.prompt in ("", each.prompt)), None)
    if known is not None:
        # The run asked without a system turn: its answer can be compared only where Ollama adds none.
        done.prompt, done.expected = known.prompt, done.expected or ("" if done.system else known.text)
    if not done.prompt:
        return
    try:
        done.answer = server.answer(done.name, done.prompt, _ANSWER_TOKENS, as_chat=as_chat).strip()
    except OllamaRegistrationError as error:
        raise OllamaRegistrationError(
            f"{done.name} is registered, but does not answer: {error.message}", hint=error.hint
        ) from error
    if expected := done.expected.strip():
        whole = min(len(done.answer), len(expected))
        done.same = whole > 0 and done.answer[:whole] == expected[:whole]


def _full(name: str) -> str:
    """A model's name as Ollama compares it: with its tag, in small letters."""
    return (name if ":" in name else f"{name}:latest").lower()


def _parameters(text: str) -> dict[str, list[Any]]:
    """What ``/api/show`` has of parameters: one a line, a name and a value as Go writes it."""
    found: dict[str, list[Any]] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        try:
            found.setdefault(name, []).append(json.loads(value))
        except ValueError:
            found.setdefault(name, []).append(value.strip().strip('"`'))
    return found


def _equal(wanted: Any, shown: Any) -> bool:
    if isinstance(wanted, int | float) and isinstance(shown, int | float):
        return abs(wanted - shown) <= 1e-6 * max(1.0, abs(wanted))
    return bool(wanted == shown)


def answer(request: OllamaRequest, send: Send) -> Registered | OllamaModels:
    """Register a model, list what there is, or remove one: what is gone then."""
    if request.action == "register":
        return register(request, send)
    server = OllamaServer()
    server.version()
    models = [
        OllamaModel(str(each.get("name", "")), int(each.get("size") or 0), str(each.get("modified_at", "")))
        for each in server.models()
    ]
    if request.action == "remove":
        models = [each for each in models if _full(each.name) == _full(request.name)]
        if not models:
            raise InputError(f"Ollama has no model {request.name!r}", hint="`backprop ollama list` shows them")
        server.remove(models[0].name)
    return OllamaModels(url=server.url, models=models)


if __name__ == "__main__":
    run_job(OllamaRequest, answer)
