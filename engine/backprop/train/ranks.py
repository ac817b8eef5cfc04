"""Several processes, one run: the micro-batches of each step are dealt out to ranks, and the weights to be updated too.

Rank 0 is the engine: it alone emits, evaluates, saves and listens. It starts the others (``train.follower``), which
load the same model and rows, are told by it before each step how rows become micro-batches, and wait for it however
long it evaluates or pauses. Loss and gradient of a step are divided by what the whole step weighs, so they are those of
one process but for rounding. ``train.sharding`` has how gradients are added up and who updates what.

Rank 0 draws its random numbers as a run of one process does. The others' (dropout) are a function of seed, step and
rank: no state of theirs has to be saved, so a resumed run is exact with the number of processes that it was begun with.

Small facts travel through gloo, on this machine's loopback only; gradients through NCCL on cards, else through gloo.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import torch
from msgspec import Struct
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from backprop.core.errors import EXIT_RUNTIME, TrainingError
from backprop.core.log import variables
from backprop.core.settings import RunConfig
from backprop.data.split import Split
from backprop.runs.engine_process import STOPPING
from backprop.train.checkpoint import seed_random, trained_parameters
from backprop.train.packing import MicroBatch
from backprop.worker.setup import end_process

FOLLOWER = "backprop.train.follower"
GRACE = 3.0
"""Seconds after a rank's death until the run is ended wherever it is: in a kernel that waits for it, for instance."""
NOTICE = 5.0
"""Seconds that a broken connection may be older than the death that explains it."""
EVEN = 1.25
"""The fullest rank has at most this share of the mean, or each has two micro-batches already: more would be slower."""
HAND_OVER = -1
"""In place of a step's number: rank 0 asks for the state that the others keep."""
LOOPBACK = "127.0.0.1"
_FOREVER = timedelta(days=365)

Result = TypeVar("Result")


class Assignment(Struct):
    """What a rank other than 0 is told at its start, in one line of JSON."""

    directory: str
    rank: int
    size: int
    port: int
    config: RunConfig
    """As rank 0 resolved it, with nothing left open."""
    prepared: RunConfig
    """The one that the rows were prepared with: they are in the cache under it."""
    checkpoint: str | None
    extended: bool
    now: float | None
    split: Split | None


class Ranks:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: the number of this one.
        size: how many there are.
    """

    def __init__(self, rank: int, size: int, port: int) -> None:
        self.rank = rank
        self.size = size
        self._port = port
        self._joined = False

    def join(self, device: torch.device, model: torch.nn.Module) -> None:
        """Meet the others, and take over rank 0's trained weights."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        self.together(
            lambda: distributed.init_process_group(
                backend, store=self._meeting(), rank=self.rank, world_size=self.size, timeout=_FOREVER
            )
        )
        # Where the others were killed, NCCL would wait for them; it ends with this process.
        self._joined = device.type == "cpu"
        with torch.no_grad():
            for weight in trained_parameters(model).values():
                self.together(lambda weight=weight: distributed.broadcast(weight, 0))  # type: ignore[misc]

    def _meeting(self) -> TCPStore:
        """Where the ranks find each other."""
        return TCPStore(LOOPBACK, self._port, self.size, timeout=_FOREVER)

    def announce(self, facts: Sequence[int]) -> list[int]:
        """What rank 0 says, which the others wait for; their own ``facts`` only tell how many numbers that is."""
        told = torch.tensor(facts, dtype=torch.int64)
        self.together(lambda: distributed.broadcast(told, 0))
        known: list[int] = told.tolist()
        return known

    def begin_step(self, seed: int, facts: Sequence[int], hand_over: Callable[[], object]) -> list[int]:
        """Wait for rank 0 to begin a step; its ``facts``, the first of them the step's number.

        Args:
            hand_over: gives rank 0 what this rank keeps, whenever it asks for that in between.
        """
        while (known := self.announce(facts))[0] == HAND_OVER:
            hand_over()
        if self.rank:
            seed_random(int(np.random.SeedSequence([seed, known[0], self.rank]).generate_state(1)[0]))
        return known

    def deal(self, batches: list[MicroBatch], smaller: Callable[[list[MicroBatch]], list[MicroBatch] | None]) -> None:
        """Make ``batches`` small enough to be shared evenly, in place; the same on every rank.

        Args:
            smaller: the same rows in about twice as many; ``None`` where each has one row.
        """
        while len(batches) < 2 * self.size:
            loads = [sum(batch.tokens for batch in self.share(batches, rank)) for rank in range(self.size)]
            if max(loads) * self.size <= EVEN * sum(loads) or (found := smaller(batches)) is None:
                break
            batches[:] = found

    def share(self, batches: Sequence[MicroBatch], rank: int | None = None) -> list[MicroBatch]:
        """This rank's of ``batches``: the largest first, each to the rank with fewest tokens so far."""
        shares: list[list[int]] = [[] for _ in range(self.size)]
        for place in sorted(range(len(batches)), key=lambda place: (-batches[place].tokens, place)):
            min(shares, key=lambda share: sum(batches[each].tokens for each in share)).append(place)
        return [batches[place] for place in sorted(shares[self.rank if rank is None else rank])]

    def together(self, work: Callable[[], Result]) -> Result:
        """Do ``work`` with the other ranks, or end by the name of the one that is gone."""
        try:
            return work()
        except RuntimeError as error:
            raise self.lost() or error from error

    def lost(self) -> TrainingError | None:
        """Called where another process cannot be reached: the error that says why. One that lost rank 0 just ends."""
        end_process(EXIT_RUNTIME)

    def close(self) -> None:
        """Leave the others."""
        if self._joined:
            distributed.destroy_process_group()
            self._joined = False


class Leader(Ranks):
    """Rank 0, which starts the others and ends with them: they die with it, and the run with any of them.

    Args:
        give_up: ends the run at once with an error, from any thread.
    """

    def __init__(self, size: int, give_up: Callable[[BaseException], object]) -> None:
        # A socket of our own: the store would listen on every address that this machine has.
        listener = socket.create_server((LOOPBACK, 0))
        super().__init__(0, size, listener.getsockname()[1])
        self._store = TCPStore(
            LOOPBACK, self._port, size, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self._give_up = give_up
        self._death: TrainingError | None = None
        self._died = threading.Event()
        self._noticed = threading.Event()
        # Signals are rank 0's alone: it finishes the step, and needs the others for that.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            self.processes = [
                subprocess.Popen(
                    [sys.executable, "-P", "-m", FOLLOWER],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=variables(),
                )
                for _ in range(1, size)
            ]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for rank, process in enumerate(self.processes, 1):
            threading.Thread(target=self._watch, args=(rank, process), name=f"rank {rank}", daemon=True).start()

    def _meeting(self) -> TCPStore:
        return self._store

    def assign(self, **facts: Any) -> None:
        """Tell the others what to work on: fields of ``Assignment``. They load it from here on."""
        for rank, process in enumerate(self.processes, 1):
            assert process.stdin is not None
            told = Assignment(rank=rank, size=self.size, port=self._port, **facts)
            try:
                process.stdin.write(msgspec.json.encode(told) + b"\n")
                process.stdin.flush()
            except BrokenPipeError as error:
                raise self.lost() or error from error

    def lost(self) -> TrainingError | None:
        self._died.wait(NOTICE)
        self._noticed.set()
        return self._death

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """In a thread: what the process prints goes to the log; its death ends the run."""
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            last = line.decode(errors="replace").rstrip() or last
            print(f"[rank {rank}] {last}", file=sys.stderr)
        code = process.wait()
        if code == 0 or self._noticed.is_set():
            return
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        self._death = TrainingError(
            f"rank {rank} of {self.size} is gone ({how})" + (f"; its last line: {last}" if last and code > 0 else ""),
            hint="`backprop resume` goes on from the last checkpoint; lines of the run's engine.log that begin with "
            f"[rank {rank}] have the rest",
            retryable=True,
        )
        self._died.set()
        if not self._noticed.wait(GRACE):
            self._give_up(self._death)

    def close(self) -> None:
        """End the others."""
        self._noticed.set()
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        super().close()

    def __enter__(self) -> Leader:
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        self.close()
        return False
