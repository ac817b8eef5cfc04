"""Ollama's HTTP API (https://docs.ollama.com/api) as far as it is needed to register a model and ask it."""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from backprop.core.errors import OllamaRegistrationError

PORT = 11434
OLDEST = (0, 5, 5)
"""The first version whose ``create`` takes files by their digest."""
Progress = Callable[[int, int], object]
"""Told the bytes sent and their total."""

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 900.0
"""Loading a large model from a slow disk takes minutes, and nothing is said meanwhile."""
_CHUNK = 1 << 20
_CAUSES = (
    ("no space left", "its disk is full", "free space where Ollama keeps its models (OLLAMA_MODELS)"),
    ("digest", "what arrived is not the file that was sent (digest mismatch)", "try again; look at disk and memory"),
    ("invalid model name", "it does not allow the name", "choose another one with --name"),
    ("memory", "the model does not fit into its memory", "take a smaller quantization, or end other programs"),
)
"""A word of Ollama's own messages, what it means, what to do."""


def server_url(asked: str | None = None) -> str:
    """Where Ollama is: ``OLLAMA_HOST`` read as Ollama reads it; an address to listen on becomes one to ask."""
    text = (os.environ.get("OLLAMA_HOST", "") if asked is None else asked).strip().strip("'\"")
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    default = {"http": 80, "https": 443}.get(scheme, PORT) if separator else PORT
    place, slash, prefix = rest.partition("/")
    if place.startswith("[") or place.count(":") > 1:
        host, _, port = place.strip("[").partition("]") if place.startswith("[") else (place, "", "")
        port = port.lstrip(":")
    else:
        host, _, port = place.partition(":")
    number = int(port) if port.isascii() and port.isdecimal() and int(port) <= 65535 else default
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{number}{slash}{prefix}".rstrip("/")


class OllamaServer:
    """One Ollama server.

    Every method raises ``OllamaRegistrationError``: it is not there, it refuses, or the connection breaks off.
    """

    def __init__(self) -> None:
        self.url = server_url()
        match = re.fullmatch(r"(https?)://(\[[^]\0- ]+\]|[^:/\0- ]+):(\d+)(/[!-~]*)?", self.url)
        if match is None:
            what = f"OLLAMA_HOST does not name a server: {self.url}"
            raise OllamaRegistrationError(what, hint="as in 127.0.0.1:11434")
        self._secure, self._host, self._port = match[1] == "https", match[2].strip("[]"), int(match[3])
        self._prefix = match[4] or ""

    def version(self) -> str:
        """Its version, as it writes it."""
        version = self._json("GET", "/api/version", seconds=_CONNECT_SECONDS).get("version")
        if not isinstance(version, str):
            raise OllamaRegistrationError(f"what answers at {self.url} is not Ollama", hint="look at OLLAMA_HOST")
        return version

    def models(self) -> list[dict[str, Any]]:
        """What it has: ``name``, ``size`` in bytes, ``modified_at`` and more of each."""
        return list(self._json("GET", "/api/tags").get("models") or [])

    def has_blob(self, digest: str) -> bool:
        """Whether it has a file of this SHA-256."""
        with self._asked("HEAD", _blob(digest), good=(200, 404)) as answer:
            return answer.status == 200

    def send_blob(self, path: Path, digest: str, progress: Progress) -> None:
        """Send a file; never is more than a piece of it in memory."""
        total = path.stat().st_size

        def pieces() -> Iterator[bytes]:
            done = 0
            with path.open("rb") as file:
                while piece := file.read(min(_CHUNK, total - done)):
                    yield piece
                    done += len(piece)
                    progress(done, total)

        with self._asked("POST", _blob(digest), pieces(), {"Content-Length": str(total)}, good=(200, 201)):
            pass

    def create(self, wanted: dict[str, Any], told: Callable[[str], object]) -> None:
        """Make a model of what was sent; done only when the last line of the answer says so.

        Args:
            wanted: the request's body.
            told: called with each status.
        """
        last, errors = "", []
        with self._asked("POST", "/api/create", *_body(wanted | {"stream": True})) as answer:
            for line in answer:
                said = _decoded(line) if line.strip() else {}
                if "error" in said:
                    errors.append(str(said["error"]))
                elif "status" in said:
                    last = str(said["status"])
                    told(last)
        if errors:
            raise _refusal(200, json.dumps({"error": "; ".join(dict.fromkeys(errors))}).encode())
        if last != "success":
            raise _broken_off(f"its last word was {last!r}")

    def show(self, name: str) -> dict[str, Any]:
        """What it knows of a model: ``template``, ``system``, ``parameters``, ``license``."""
        return self._json("POST", "/api/show", {"model": name})

    def remove(self, name: str) -> None:
        """Delete a model."""
        self._json("DELETE", "/api/delete", {"model": name})

    def answer(self, name: str, prompt: str, tokens: int, *, as_chat: bool) -> str:
        """The greedy answer of a model, at most ``tokens`` long; what follows the prompt, where it is no chat."""
        body: dict[str, Any] = {
            "model": name,
            "stream": False,
            "options": {"temperature": 0, "top_k": 1, "seed": 0, "num_predict": tokens},
        }
        if as_chat:
            said = self._json("POST", "/api/chat", body | {"messages": [{"role": "user", "content": prompt}]})
            return str((said.get("message") or {}).get("content", ""))
        return str(self._json("POST", "/api/generate", body | {"prompt": prompt, "raw": True}).get("response", ""))

    def _json(self, method: str, path: str, body: Any = None, seconds: float = _ANSWER_SECONDS) -> dict[str, Any]:
        content, headers = _body(body) if body is not None else (None, {})
        with self._asked(method, path, content, headers, seconds) as answer:
            said = answer.read()
            return _decoded(said) if said.strip() else {}

    @contextmanager
    def _asked(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        seconds: float = _ANSWER_SECONDS,
        *,
        good: tuple[int, ...] = (200,),
    ) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=_CONNECT_SECONDS)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise OllamaRegistrationError(
                    f"Ollama does not answer at {self.url}: {error.strerror or error}",
                    hint="start it with `ollama serve`; OLLAMA_HOST says where it is",
                    retryable=True,
                ) from error
            connection.sock.settimeout(seconds)
            try:
                try:
                    connection.request(method, quote(self._prefix) + path, body, headers or {})
                except (BrokenPipeError, ConnectionResetError):
                    pass  # it answers before it has everything: a refusal, which is read below
                response = connection.getresponse()
                if response.status not in good:
                    raise _refusal(response.status, response.read())
                yield response
            except (http.client.HTTPException, OSError) as error:
                raise _broken_off(str(error) or type(error).__name__) from error
        finally:
            connection.close()


def version_numbers(version: str) -> tuple[int, ...]:
    """``0.33.0-rc2`` as (0, 33, 0). A build from source calls itself 0.0.0: it counts as the newest."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    numbers = tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    return numbers if any(numbers) else (9999, 0, 0)


def _blob(digest: str) -> str:
    return f"/api/blobs/sha256:{digest}"


def _body(value: Any) -> tuple[bytes | None, dict[str, str]]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


def _decoded(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise _broken_off(f"this is no JSON: {content[:80]!r}") from error
    return value if isinstance(value, dict) else {}


def _refusal(status: int, content: bytes) -> OllamaRegistrationError:
    """The error for Ollama's own words."""
    try:
        words = str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        words = content.decode("utf-8", "replace").strip()[:200] or f"HTTP {status}"
    for sign, meaning, hint in _CAUSES:
        if sign in words.lower():
            return OllamaRegistrationError(f"Ollama did not take the model: {meaning}: {words}", hint=hint)
    return OllamaRegistrationError(f"Ollama refused: {words}", hint="its own log says more (`journalctl -u ollama`)")


def _broken_off(why: str) -> OllamaRegistrationError:
    return OllamaRegistrationError(
        f"Ollama's answer broke off before its end: {why}",
        hint="look whether Ollama still runs, then try again: what it has is not sent twice",
        retryable=True,
    )
