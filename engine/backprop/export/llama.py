"""A GGUF file asked by llama.cpp, in a process of its own: llama.cpp cannot be stopped, and what it does when a file is
broken is to end the process.

``python -P -m backprop.export.llama`` reads one JSON object a line and answers with one: first the file, then prompts.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from backprop.core.errors import GGUFError
from backprop.core.log import variables

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SECONDS = 120.0
"""Longest time for the file to be loaded, or for one prompt."""


class Load(Struct, kw_only=True):
    """Load the file at ``path``; conversations have at most ``length`` tokens and end with one of ``ends``."""

    path: str
    length: int
    ends: list[int]


class Ask(Struct, kw_only=True):
    """A prompt: the logits with which each of ``given`` follows it go to the file ``logits``, then it is answered."""

    prompt: list[int]
    given: list[int]
    logits: str
    most: int


class Answer(Struct, kw_only=True):
    """The greedy answer, without what ends it."""

    ids: list[int]


def is_installed() -> bool:
    """Whether llama.cpp is there to be asked."""
    return importlib.util.find_spec("llama_cpp") is not None


class Llama:
    """A loaded file. Close it.

    Args:
        path: the file.
        length: tokens of the longest prompt and its answer together.
        ends: the tokens that end an answer.
        seconds: longest time for each question; the process is killed after that.

    Raises:
        GGUFError: llama.cpp does not load the file, or takes too long.
    """

    def __init__(self, path: Path, length: int, ends: Sequence[int], seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._path = path
        self._late = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "backprop.export.llama"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=variables(),
        )
        try:
            self._say(Load(path=str(path), length=length, ends=list(ends)))
        except BaseException:  # nobody has it yet who could close it
            self.close()
            raise

    def ask(self, prompt: Sequence[int], given: Sequence[int], most: int) -> tuple[NDArray[np.float32], list[int]]:
        """The logits of each position of ``given`` behind the prompt, and the greedy answer of at most ``most`` tokens.

        Raises:
            GGUFError: llama.cpp ended, or takes too long.
        """
        import numpy as np

        with tempfile.TemporaryDirectory() as folder:
            logits = Path(folder) / "logits.npy"
            reply = self._say(Ask(prompt=list(prompt), given=list(given), logits=str(logits), most=most))
            return np.load(logits), msgspec.json.decode(reply, type=Answer).ids

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end_late(self) -> None:
        self._late = True
        self._process.kill()

    def _say(self, request: Struct) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Timer(self._seconds, self._end_late)
        late.daemon = True
        late.start()
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        finally:
            late.cancel()
        if reply:
            return reply
        if self._late:
            raise GGUFError(f"llama.cpp needs more than {self._seconds:g} s for {self._path.name}")
        self._log.seek(0)
        words = self._log.read().decode("utf-8", "replace").strip().splitlines()
        raise GGUFError(f"llama.cpp does not take {self._path.name}: {'; '.join(words[-3:])}")


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer until the requests end."""
    import llama_cpp
    import numpy as np

    load = msgspec.json.decode(requests.readline(), type=Load)
    threads = max((os.cpu_count() or 2) - 1, 1)
    sizes: dict[str, Any] = {"n_ctx": load.length, "n_threads": threads, "n_threads_batch": threads}
    model = llama_cpp.Llama(load.path, n_gpu_layers=0, verbose=False, n_batch=load.length, **sizes)

    def logits_at(place: int) -> NDArray[np.float32]:
        pointer = llama_cpp.llama_get_logits_ith(model.ctx, place)
        return np.ctypeslib.as_array(pointer, (model.n_vocab(),)).copy()

    def last_logits(tokens: list[int], count: int) -> NDArray[np.float32]:
        """Of the last ``count`` positions: all tokens at once, and no room for the others' logits."""
        batch, first = llama_cpp.llama_batch_init(len(tokens), 0, 1), len(tokens) - count
        try:
            batch.n_tokens = len(tokens)
            for place, token in enumerate(tokens):
                batch.token[place], batch.pos[place], batch.logits[place] = token, place, place >= first
                batch.seq_id[place][0], batch.n_seq_id[place] = 0, 1
            if llama_cpp.llama_decode(model.ctx, batch) != 0:
                raise RuntimeError("llama_decode failed")
            return np.stack([logits_at(place) for place in range(first, len(tokens))])
        finally:
            llama_cpp.llama_batch_free(batch)

    def next_best(prompt: list[int], ids: list[int]) -> int:
        if model.n_tokens != len(prompt) + len(ids) - 1:
            model.reset()
            model.eval([*prompt, *ids[:-1]])
        model.eval(ids[-1:])
        return int(logits_at(-1).argmax())

    try:
        _reply(replies, Answer(ids=[]))
        while line := requests.readline():
            ask = msgspec.json.decode(line, type=Ask)
            model.reset()
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), True)
            rows = last_logits([*ask.prompt, *ask.given[:-1]], max(len(ask.given), 1))
            np.save(ask.logits, rows[: len(ask.given)])
            ids: list[int] = []
            best = int(rows[0].argmax())
            while len(ids) < ask.most and best not in load.ends:
                ids.append(best)
                known = len(ids) < len(rows) and ids == ask.given[: len(ids)]
                best = int(rows[len(ids)].argmax()) if known else next_best(ask.prompt, ids)
            _reply(replies, Answer(ids=ids))
    finally:
        model.close()


def _reply(replies: IO[bytes], answer: Answer) -> None:
    replies.write(msgspec.json.encode(answer) + b"\n")
    replies.flush()


if __name__ == "__main__":
    # What libraries print must not come between the answers.
    private = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, private)
