"""A run killed with -9 at many moments, inside saves and between them: resumed, it takes the same steps again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from backprop.core.settings import RunConfig
from backprop.train import model as models

# Starting Python costs seconds of imports, so one process imports and forks a child for each part of each case.
SCRIPT = """
import hashlib, json, os, signal, sys, traceback
from pathlib import Path

import msgspec, numpy as np, torch

from backprop.core.settings import RunConfig
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.retention import CheckpointPolicy
from backprop.train import model as models
from backprop.train.checkpoint import trained_parameters
from backprop.core.schedule import Schedule
from backprop.train.trainer import StepLoop
from backprop.train.persistence.checkpointing import Saver
from backprop.train.methods.sft import SFT

config = msgspec.json.decode(sys.argv[1], type=RunConfig)
folder = Path(sys.argv[2])
moments = [int(each) for each in sys.argv[3:]]


class Rows:
    def __init__(self):
        chooser = np.random.default_rng(0)
        self.lengths = lengths = np.array([9 + 3 * (i % 5) for i in range(22)])
        self.rows = [(chooser.integers(3, 320, n, dtype=np.int32), np.arange(n) >= n // 2) for n in lengths]

    def __len__(self):
        return len(self.rows)

    def row(self, index):
        return self.rows[index]


def after_step(step):
    losses[step] = loop.metrics.loss
    # On a slow disk too, every step is saved: operations are counted. Half of the saves are waited for, half are
    # written beside the next step, so that kills fall into both.
    saver.wait()
    saver.after_step(step)
    if step % 2:
        saver.wait()
    return False


def kill_at(directory, fatal):
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if any(isinstance(item, (str, Path)) and str(item).startswith(str(directory)) for item in arguments):
            seen += 1
            if seen == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def train(directory, fatal, result):
    global loop, saver, losses
    torch.set_num_threads(1)
    losses = {}
    loaded = models.load(config, Path(config.model), lambda event: None)
    rows = Rows()
    loop = StepLoop(loaded, SFT(), config, rows, Schedule.of(config, len(rows)))
    store = CheckpointStore(directory, "run-a")
    store.remove_leftovers()
    newest, broken = store.newest_valid()
    assert not broken, broken
    if newest:
        loop.restore(newest.path)
    policy = CheckpointPolicy(keep_best_n=0)
    saver = Saver(store, lambda event: None, lambda: loop.snapshot({}), {}, every_steps=1, policy=policy)
    if fatal:
        kill_at(directory, fatal)
    saver.finish(loop.run(after_step), "end")
    saver.close()
    weights = b"".join(each.detach().numpy().tobytes() for each in trained_parameters(loaded.model).values())
    names = [path.name for path in directory.iterdir()]
    summary = {"resumed": newest.step if newest else 0, "losses": losses, "left": names}
    result.write_text(json.dumps({**summary, "weights": hashlib.sha256(weights).hexdigest()}))


def in_a_child(*arguments):
    child = os.fork()
    if not child:
        code = 1
        try:
            train(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


assert in_a_child(folder / "whole", 0, folder / "whole.json") == 0
for moment in moments:
    killed = in_a_child(folder / str(moment), moment, folder / "unused.json")
    assert killed == -signal.SIGKILL, (moment, killed)
    assert in_a_child(folder / str(moment), 0, folder / f"{moment}.json") == 0
"""

MOMENTS = [30, 47, 70, 95, 110, 131, 155, 170]
"""Counted in operations on the run's checkpoint directory; a save has about forty."""


@pytest.mark.timeout(600)
def test_after_a_kill_at_any_moment_the_resumed_run_is_the_uninterrupted_one(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = models.resolved(msgspec.structs.replace(tiny_config, steps=8, lora_dropout=0.1))
    arguments = [sys.executable, "-c", SCRIPT, msgspec.json.encode(config).decode(), str(tmp_path)]
    done = subprocess.run([*arguments, *map(str, MOMENTS)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert list(whole["losses"]) == [str(step) for step in range(1, 9)]
    resumed = set()
    for moment in MOMENTS:
        after = json.loads((tmp_path / f"{moment}.json").read_text())
        resumed.add(after["resumed"])
        expected = {step: loss for step, loss in whole["losses"].items() if int(step) > after["resumed"]}
        assert after["losses"] == expected, f"killed at operation {moment}, resumed from {after['resumed']}"
        assert after["weights"] == whole["weights"]
        assert after["left"] == ["step-00000008"]
    assert len(resumed) > 2, "the kills fell into the same step"
