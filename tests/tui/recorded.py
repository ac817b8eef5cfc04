"""Runs that never happened, written as an engine would: for screens, pictures and measurements.

``python tests/tui/recorded.py DIRECTORY`` writes one of each kind.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from backprop.core import events as ev
from backprop.core.files import write_file
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.record import RunRecord

NOW = 1_790_000_000.0
"""A fixed moment."""
PROMPTS = ("How do I boil an egg?", "Why is the sky blue?", "What is a good name for a cat?")
BASE = (
    "To boil an egg, follow these steps: 1. Fill a pot with water. 2. Place the egg in the pot. 3. Bring the water "
    "to a boil. 4. Cook for 7 minutes.",
    "The sky appears blue because of a phenomenon called Rayleigh scattering, in which short wavelengths of sunlight "
    "are scattered more than long ones by the molecules of the air.",
    "Here are some good names for a cat: Luna, Milo, Oliver, Bella, Simba.",
)
TUNED = (
    "Arr, set a pot o' water to the boil, matey, and lower yer egg in gentle as a gull on the mast. Seven minutes by "
    "the ship's glass, then into cold water with it!",
    "Arr, the sun's light be all colours at once, and the air scatters the blue of it widest. So the blue comes at ye "
    "from every quarter of the sky, like spray over the bow.",
    "Arr, call her Barnacle: she'll cling to ye through every storm.",
)


class Recorder:
    """Writes a run's directory event by event."""

    def __init__(
        self, output: Path, run_id: str, config: RunConfig, created: float = NOW, multi: MultiConfig | None = None
    ) -> None:
        self.directory = RunDirectory(output / run_id)
        self.directory.path.mkdir(parents=True)
        kind = "multi_run" if multi else "train"
        record = RunRecord(run_id=run_id, created=created, config=config, kind=kind, multi=multi)
        write_file(self.directory.record, msgspec.json.encode(record))
        self.config, self.multi = config, multi
        self.time = created
        self.seq = 0

    def write(self, *events: ev.Event, seconds: float = 0.5) -> None:
        with self.directory.journal.open("ab") as file:
            for event in events:
                self.seq += 1
                self.time += seconds
                event.run_id, event.seq, event.time = self.directory.run_id, self.seq, self.time
                file.write(ev.encode(event))

    def start(self, device: str = "cpu", dtype: str = "float32") -> None:
        """Everything up to the first step."""
        self.write(
            ev.RunStarted(
                config=msgspec.to_builtins(self.config),
                output_dir=str(self.directory.path),
                pid=4242,
                kind="multi_run" if self.multi else "train",
                multi=msgspec.to_builtins(self.multi) if self.multi else {},
                environment={"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "platform": "Linux"},
            ),
            ev.PhaseChanged(phase="loading_model"),
            ev.ModelLoaded(
                model="smollm2-135m",
                path="/home/me/.cache/backprop/models/smollm2-135m",
                device=device,
                mode="lora",
                dtype=dtype,
                parameters=134_515_008,
                trainable_parameters=4_884_480,
                targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            ),
            ev.PhaseChanged(phase="preparing_data"),
            dataset(),
        )

    def samples(self, tuned: bool, step: int) -> None:
        for prompt, text in zip(PROMPTS, TUNED if tuned else BASE, strict=True):
            self.write(ev.Sample(step=step, prompt=prompt, text=text, tuned=tuned), seconds=2.0)

    def steps(self, first: int, last: int, total: int, seed: int = 7, seconds: float = 1.3) -> None:
        for event in make_steps(first, last, total, seed, seconds):
            self.write(event, seconds=seconds)

    def gpu(self, temperature: float = 71.0) -> None:
        self.write(reading(temperature), seconds=0.0)

    def finish(self, steps: int, loss: float | None, status: ev.EndStatus = "done") -> None:
        self.write(
            ev.RunFinished(
                status=status,
                steps=steps,
                final_loss=loss,
                output_path=str(self.directory.adapter),
                duration_seconds=self.time - NOW,
                samples_seen=steps * 4,
            )
        )


def reading(temperature: float) -> ev.Gpu:
    return ev.Gpu(
        index=0,
        name="NVIDIA RTX 5080",
        level="warning" if temperature >= 80 else "safe",
        temperature=temperature,
        utilization=97.0,
        memory_used=11_200_000_000,
        memory_total=16_000_000_000,
        power=287.0,
        power_limit=360.0,
        fan=54.0,
        energy=14.2,
    )


def dataset() -> ev.DatasetPrepared:
    spans = [
        ("<|im_start|>user\nHow do I tie a bowline knot?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Arr, make a small loop for the rabbit's hole, matey, then round the tree and back down.<|im_end|>", True),
        ("\n", False),
    ]
    return ev.DatasetPrepared(
        path="/data/demo.jsonl",
        format="prompt/completion",
        rows=200,
        kept=198,
        cut=1,
        dropped=2,
        tokens=14_120,
        trained_tokens=8_431,
        max_length=256,
        p50=68,
        p90=91,
        p99=112,
        longest=256,
        problem_counts={"DATA_EMPTY_ANSWER": 2},
        problems=[
            ev.Problem(
                line=17, code="DATA_EMPTY_ANSWER", message="the assistant's answer is empty: nothing to train on"
            ),
            ev.Problem(
                line=93, code="DATA_EMPTY_ANSWER", message="the assistant's answer is empty: nothing to train on"
            ),
        ],
        first_row=[ev.TokenSpan(text=text, trained=trained) for text, trained in spans],
    )


def make_steps(first: int, last: int, total: int, seed: int = 7, seconds: float = 1.3) -> Iterator[ev.Step]:
    """Steps whose loss falls as losses do."""
    for step in range(first, last + 1):
        dice = random.Random(seed * 1_000_003 + step)
        loss = 0.9 + 2.1 * math.exp(-5 * step / total) + dice.gauss(0, 0.11)
        warmup = min(1.0, step / max(1, total // 20))
        yield ev.Step(
            step=step,
            total_steps=total,
            loss=max(0.05, loss),
            learning_rate=1e-3 * warmup * 0.5 * (1 + math.cos(math.pi * step / total)),
            grad_norm=0.8 + 1.5 * math.exp(-4 * step / total) + dice.random() * 0.3,
            tokens_per_second=820 + dice.gauss(0, 30),
            tokens_seen=step * 280,
            epoch=step * 4 / 198,
            trained_tokens=160,
            samples_seen=step * 4,
            seconds=seconds,
            memory=1_400_000_000,
        )


def demo_like(output: Path) -> RunConfig:
    return RunConfig(
        data="/data/demo.jsonl",
        steps=60,
        batch_size=4,
        gradient_accumulation=1,
        learning_rate=1e-3,
        lora_r=16,
        max_seq_length=256,
        output_dir=str(output),
        run_name="demo",
        sample_prompts=list(PROMPTS),
    )


def finished_demo(output: Path, run_id: str = "3f2a9c1b7d20", created: float = NOW) -> Recorder:
    """The demonstration from beginning to end."""
    run = Recorder(output, run_id, demo_like(output), created)
    run.start()
    run.samples(tuned=False, step=0)
    run.write(ev.PhaseChanged(phase="training"))
    run.steps(1, 60, 60)
    run.write(
        ev.CheckpointSaved(
            step=60, path="checkpoints/step-00000060", seconds_blocked=0.04, bytes=58_000_000, seconds=0.4
        )
    )
    run.samples(tuned=True, step=60)
    run.finish(60, 0.912)
    return run


def running(output: Path, run_id: str = "b81e40aa12cd", steps: int = 720, created: float = NOW) -> Recorder:
    """A run on a GPU, not yet at its end, with held-out losses."""
    config = msgspec.structs.replace(
        demo_like(output), steps=1000, run_name="captain", data="/data/captain_large.jsonl"
    )
    run = Recorder(output, run_id, config, created)
    run.start("cuda", "bfloat16")
    run.samples(tuned=False, step=0)
    run.write(ev.PhaseChanged(phase="training"))
    for first in range(1, steps + 1, 100):
        last = min(steps, first + 99)
        run.steps(first, last, 1000, seconds=0.4)
        if last % 100 == 0:
            loss = 1.0 + 2.0 * math.exp(-5 * last / 1000)
            run.write(
                ev.Evaluated(step=last, loss=loss, tokens=4000, rows=40, seconds=1.0, best=True),
                ev.CheckpointSaved(
                    step=last, path=f"checkpoints/step-{last:08d}", seconds_blocked=0.03, bytes=58_000_000, seconds=0.5
                ),
            )
    run.gpu()
    return run


def session(
    output: Path, run_id: str = "5e55100a0b1c", *, runs: int = 5, done: int = 3, kept_out: int = 2, failed: int = 0
) -> Recorder:
    """A session of several runs of which ``done`` are over and the next one takes steps; of its runs, journals too."""
    names = [f"task_{index}.jsonl" for index in range(1, runs + 1)]
    config = msgspec.structs.replace(demo_like(output), data=f"/data/{names[0]}", sample_prompts=[], run_name=None)
    multi = MultiConfig(tasks=[f"/data/{name}" for name in names], replay=0.125)
    run = Recorder(output, run_id, config, multi=multi)
    run.start()
    run.write(*(_scored(0, held_out, 2.6 + 0.03 * held_out) for held_out in range(1, runs + 1)))
    losses: dict[int, float] = {}
    for index in range(1, min(runs, done + 1) + 1):
        before, inner = 10 * (index - 1), f"{index:012x}"
        data, total = f"/data/{names[index - 1]}", 10 * runs
        begun = ev.RunBegun(
            index=index, of=runs, run=inner, data=data, rows=160, replayed=20 * (index > 1), held_out=20, step=before
        )
        run.write(begun, ev.PhaseChanged(phase="training", detail=f"run {index} of {runs}"))
        child = Recorder(run.directory.path / "runs", inner, msgspec.structs.replace(config, data=data), run.time)
        child.start()
        last = before + (4 if index > done else 10)
        for step in make_steps(before + 1, last, total):
            run.write(msgspec.structs.replace(step, run=index), seconds=1.3)
        child.steps(1, last - before, 10)
        if index > done:
            break
        child.finish(10, 1.0)
        merged = index not in (kept_out, failed)
        if merged:
            losses = {each: loss + 0.06 * (-1 if each == 1 and index == 4 else 1) for each, loss in losses.items()}
            losses[index] = 1.1 + 0.05 * index
        shown = {each: losses.get(each, 2.5) for each in range(1, index + 1 if merged else index)}
        run.write(
            *(_scored(index, held_out, loss) for held_out, loss in shown.items()),
            ev.MergeDone(
                index=index,
                run=inner,
                merged=merged,
                reason=""
                if merged
                else "[RUNTIME_NOT_FINITE] 5 steps in a row had a loss that is not finite"
                if index == failed
                else "merging it raises the mean held-out loss of earlier runs by 0.412, more than 0.3",
                failed=index == failed,
                count=index,
                step_size=index**-0.5,
                moved=index**-0.5 if merged else None,
                loss=losses.get(index, 2.5) if index != failed else None,
                tuned_loss=losses.get(index, 1.3) - 0.1 if index != failed else None,
            ),
        )
    if done == runs:
        run.finish(10 * runs, 1.0)
    return run


def _scored(after: int, held_out: int, loss: float) -> ev.HeldOutScored:
    return ev.HeldOutScored(after=after, held_out=held_out, loss=loss, rows=20, low=loss - 0.2, high=loss + 0.2)


def failed(output: Path, run_id: str = "77d0c3f1e9ab", created: float = NOW) -> Recorder:
    run = Recorder(output, run_id, demo_like(output), created)
    run.start()
    run.steps(1, 23, 60)
    run.write(
        ev.RunFailed(
            code="RUNTIME_NOT_FINITE",
            message="5 steps in a row had a loss that is not finite (steps 19 to 23)",
            hint="lower the learning rate (--lr 0.0002), or look at the rows of these steps",
            retryable=False,
        )
    )
    return run


def refused(output: Path, run_id: str = "4e0d1f2a3b5c", created: float = NOW, data: str = "rows.jsonl") -> Recorder:
    """A run that took no step: rows of its dataset would train nothing. Its log has the traceback."""
    config = msgspec.structs.replace(demo_like(output), data=data)
    run = Recorder(output, run_id, config, created)
    run.write(ev.RunStarted(config=msgspec.to_builtins(config), output_dir=str(run.directory.path), pid=1))
    run.write(
        ev.RunFailed(
            code="DATASET_ROWS_UNUSABLE",
            message="2 of 30 rows would train nothing; line 20: the answer is empty",
            hint="train on the others with --skip-bad, or repair them",
            retryable=False,
            details={"path": data, "rows": 2, "lines": [20, 21], "remedy": {"skip_bad": True}},
        )
    )
    run.directory.log.write_text("Traceback (most recent call last):\n")
    return run


def crashed(output: Path, run_id: str = "c0ffee123456", created: float = NOW) -> Recorder:
    """Its engine went without a word."""
    run = Recorder(output, run_id, demo_like(output), created)
    run.start()
    run.steps(1, 31, 60)
    run.directory.log.write_text(
        "Loading weights: 100%\nterminate called after throwing an instance of 'std::bad_alloc'\n"
    )
    return run


def torn(output: Path, run_id: str = "dead00beef11", created: float = NOW) -> Recorder:
    """Its journal was cut in the middle of a line and damaged in another, and run.json is gone."""
    run = Recorder(output, run_id, demo_like(output), created)
    run.start()
    run.steps(1, 12, 60)
    lines = run.directory.journal.read_bytes().split(b"\n")
    lines[7] = lines[7][:40]
    run.directory.journal.write_bytes(b"\n".join(lines)[:-60])
    run.directory.record.unlink()
    return run


def one_of_each(output: Path, now: float = NOW) -> None:
    finished_demo(output, created=now - 90_000)
    failed(output, created=now - 80_000)
    crashed(output, created=now - 50_000)
    torn(output, created=now - 30_000)
    running(output, created=now - 4_000)


if __name__ == "__main__":
    import time

    one_of_each(Path(sys.argv[1]), time.time())
