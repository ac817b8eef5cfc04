"""A stand-in for an engine: holds the run's lock, appends steps at a chosen rate, obeys commands.

``python player.py RUN_DIRECTORY EVENTS_PER_SECOND FIRST LAST TOTAL``. It touches no model; the files are the real ones.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from backprop.core import events as ev
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from recorded import Recorder, make_steps, reading


class Player:
    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.recorder = Recorder.__new__(Recorder)
        self.recorder.directory = directory
        self.recorder.config = RunConfig(data="")
        directory.ensure_control()
        self.control = os.open(directory.control, os.O_RDWR | os.O_NONBLOCK)

    def command(self) -> ev.AnyCommand | None:
        try:
            line = os.read(self.control, 4096)
        except BlockingIOError:
            return None
        return ev.decode_command(line.split(b"\n")[0])

    def say(self, *events: ev.Event) -> None:
        for event in events:
            self.recorder.time = time.time()
            self.recorder.write(event, seconds=0.0)

    def play(self, rate: float, first: int, last: int, total: int) -> None:
        with self.directory.hold_lock():
            began = time.monotonic()
            for number, step in enumerate(make_steps(first, last, total), 1):
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
                self.say(step)
                if number % max(1, int(rate)) == 0:
                    self.say(reading(60 + number % 30))
                if self.obey(self.command(), step.step):
                    return
            self.say(finished(last))

    def obey(self, command: ev.AnyCommand | None, step: int) -> bool:
        """Do what was asked; whether the run is over."""
        match command:
            case ev.Pause():
                self.say(ev.Paused(step=step))
                while not isinstance(self.command(), ev.Resume):
                    time.sleep(0.02)
                self.say(ev.Resumed(step=step))
            case ev.Stop():
                self.say(finished(step, "stopped"))
                return True
            case ev.CheckpointNow():
                path = f"checkpoints/step-{step:08d}"
                self.say(ev.CheckpointSaved(step=step, path=path, seconds_blocked=0.02, bytes=58_000_000))
            case ev.SampleNow():
                self.say(ev.Sample(step=step, prompt="How do I boil an egg?", text="Arr!", tuned=True))
            case ev.Abort():
                self.say(ev.RunFailed(code="RUNTIME_TRAINING_ABORTED", message="aborted", hint="", retryable=True))
                return True
        return False


def finished(steps: int, status: ev.EndStatus = "done") -> ev.RunFinished:
    return ev.RunFinished(
        status=status, steps=steps, final_loss=1.0, output_path="", duration_seconds=1.0, samples_seen=steps
    )


def main() -> None:
    path, rate, first, last, total = sys.argv[1:]
    player = Player(RunDirectory(Path(path)))
    player.recorder.seq = max((e.seq for e in _written(player.directory)), default=0)
    player.play(float(rate), int(first), int(last), int(total))


def _written(directory: RunDirectory) -> list[ev.AnyEvent]:
    from backprop.runs.journal import read

    return read(directory.journal).events


if __name__ == "__main__":
    main()
