"""How fast data is opened, checked and made ready: on a big file, and beside the usual tools in the same run.

    python benchmarks/data.py                     # 2 GB of JSON Lines: open, index, validate (a minute or two)
    python benchmarks/data.py --gigabytes 0.2     # the same, smaller
    python benchmarks/data.py --planted           # 21 kinds of defect, 1 % each, in 100,000 rows
    python benchmarks/data.py --tokens            # rendering, masking and tokenising beside TRL (needs a model)

Memory is the peak of a fresh process. Validation, ``json``, ``orjson`` and ``msgspec`` read the same lines in turn, in
several rounds; figures are medians in megabytes per second of processor time, with the ratio to the fastest parser.
TRL is measured on what it does by default (no mask), which is less than what it is compared with: here the tokenizer is
loaded, every row is masked, counted and written to disk as well. The rows are words of Python's manual, as often as it
has them. Its time is that of all cores together, which the tokenizer uses: how many there are is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import orjson
from backprop.core.paths import model_cache
from backprop.data.reader import open_source
from backprop.data.validate import validate

SAMPLE = 200_000_000
"""Bytes of the file that the parsers read in turn."""
ROUNDS = 3
TOKEN_ROWS = 5_000


class Message(msgspec.Struct):
    role: str
    content: str


class Chat(msgspec.Struct):
    messages: list[Message]


def chat(rng: random.Random, words: list[str]) -> bytes:
    """A row of about a kilobyte, as chat data has them: line breaks and quotes inside."""
    asked = " ".join(rng.choices(words, k=rng.randint(10, 60)))
    answer = " ".join(rng.choices(words, k=rng.randint(40, 180)))
    turns = [
        {"role": "user", "content": f"{asked}?\n"},
        {"role": "assistant", "content": f'"{answer}",\n{asked[:40]}.'},
    ]
    return orjson.dumps({"messages": turns})


def write_rows(path: Path, size: int) -> int:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3000)]
    rows = [chat(rng, words) for _ in range(20_000)]
    written = count = 0
    with path.open("wb") as file:
        while written < size:
            # A number of its own makes each row unlike the others.
            block = b"\n".join(row[:-4] + b" %d" % (count + i) + row[-4:] for i, row in enumerate(rows)) + b"\n"
            written += file.write(block)
            count += len(rows)
    return count


def peak_megabytes() -> float:
    """The process's own peak. ``ru_maxrss`` would begin with the parent's, which Linux hands down."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def open_in_child(path: str) -> dict[str, float]:
    """Runs in a process of its own: open, first rows, index in the background, last row."""
    before = peak_megabytes()
    start = time.perf_counter()
    source = open_source(path)
    first = [source.row(i) for i in range(50)]
    opened = time.perf_counter() - start
    start = time.perf_counter()
    source.start()
    source.build()
    indexed = time.perf_counter() - start
    rows = len(source)
    start = time.perf_counter()
    last = source.row(rows - 1)
    jumped = time.perf_counter() - start
    start = time.perf_counter()
    places = random.Random(2).sample(range(rows), min(rows, 2000))
    for place in places:
        source.row(place)
    at_random = (time.perf_counter() - start) / len(places)
    assert last.line == rows
    assert len(first) == 50
    return {
        "first_rows_ms": opened * 1e3,
        "index_s": indexed,
        "last_row_ms": jumped * 1e3,
        "random_row_us": at_random * 1e6,
        "rows": rows,
        "imports_mb": before,
        "peak_mb": peak_megabytes(),
    }


def validate_in_child(path: str) -> dict[str, float]:
    start, cpu = time.perf_counter(), time.process_time()
    found = validate(path)
    size = Path(path).stat().st_size / 1e6
    return {
        "rows": found.rows,
        "invalid": found.invalid,
        "wall_s": time.perf_counter() - start,
        "mb_per_cpu_s": size / (time.process_time() - cpu),
        "peak_mb": peak_megabytes(),
    }


def in_child(task: str, path: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", task, str(path)], capture_output=True, text=True, check=True
    )
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def beside_parsers(path: Path) -> None:
    size = path.stat().st_size / 1e6
    typed = msgspec.json.Decoder(Chat)

    def each_line(parse: Callable[[bytes], Any]) -> Callable[[], None]:
        def run() -> None:
            with path.open("rb") as file:
                for line in file:
                    parse(line)

        return run

    arms: dict[str, Callable[[], Any]] = {
        "json.loads": each_line(json.loads),
        "orjson.loads": each_line(orjson.loads),
        "msgspec, typed": each_line(typed.decode),
        "backprop validate": lambda: validate(path),
    }
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(ROUNDS):
        for name in list(arms) if turn % 2 == 0 else reversed(arms):
            start = time.process_time()
            arms[name]()
            speeds[name].append(size / (time.process_time() - start))
    best = max(statistics.median(speeds[name]) for name in arms if name != "backprop validate")
    print(f"\nMB per second of processor time, {size:.0f} MB, median of {ROUNDS} (min–max)")
    for name, values in speeds.items():
        middle = statistics.median(values)
        spread = f"({min(values):.0f}–{max(values):.0f})"
        print(f"  {name:<20}{middle:8.0f}  {spread:<12}{middle / best:5.2f} of the fastest parser")


def big_file(folder: Path, gigabytes: float) -> None:
    path = folder / "big.jsonl"
    rows = write_rows(path, int(gigabytes * 1e9))
    print(f"{path.stat().st_size / 1e9:.2f} GB, {rows:,} rows")
    opened = in_child("open", path)
    print(
        f"  first 50 rows {opened['first_rows_ms']:.1f} ms, whole index {opened['index_s']:.2f} s, then the last row "
        f"{opened['last_row_ms']:.3f} ms, any row {opened['random_row_us']:.0f} us; "
        f"peak memory {opened['peak_mb']:.0f} MB ({opened['imports_mb']:.0f} MB of it imports)"
    )
    checked = in_child("validate", path)
    print(
        f"  validate: {checked['rows']:,} rows, {checked['invalid']:,} invalid, {checked['wall_s']:.1f} s, "
        f"{checked['mb_per_cpu_s']:.0f} MB per second of processor time, peak memory {checked['peak_mb']:.0f} MB"
    )
    sample = folder / "sample.jsonl"
    write_rows(sample, min(SAMPLE, path.stat().st_size))
    beside_parsers(sample)


def planted_defects(folder: Path) -> None:
    """The same generator as the tests, on five times as many rows."""
    place = Path(__file__).parents[1] / "tests" / "data" / "test_validate_rows.py"
    spec = importlib.util.spec_from_file_location("planted_rows", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data, truth = module.planted(100_000, 0.01, 11)
    path = folder / "planted.jsonl"
    path.write_bytes(data)
    start = time.process_time()
    found = module.found(validate(path))
    seconds = time.process_time() - start
    print(f"{len(module.DEFECTS) + 1} kinds of defect, 1 % each, in 100,000 rows: {len(truth):,} planted")
    missed, invented = len(truth - found), len(found - truth)
    print(f"  {len(truth & found):,} found, {missed} missed, {invented} invented, {seconds:.1f} CPU-s")


def _paragraphs(rng: random.Random, words: list[str]) -> str:
    """Words with line breaks among them."""
    lines = (" ".join(rng.choices(words, k=rng.randint(10, 40))) for _ in range(rng.randint(2, 4)))
    return rng.choice(("\n", "\n\n")).join(lines)


def beside_trl(folder: Path, model_dir: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from pydoc_data.topics import topics

    import torch
    from backprop.data.preprocess import prepare
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(2)
    path = folder / "chats.jsonl"
    rng = random.Random(3)
    # Words of a real text, as often as it has them: Python's own manual.
    words = " ".join(topics.values()).split()
    with path.open("wb") as file:
        for i in range(TOKEN_ROWS):
            said = [_paragraphs(rng, words) for _ in range(4)]
            roles = ["user", "assistant"] * 2
            turns = [{"role": role, "content": f"{text} {i}"} for role, text in zip(roles, said, strict=True)]
            file.write(orjson.dumps({"messages": turns}) + b"\n")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    spent: dict[str, list[tuple[float, float]]] = {"backprop": [], "TRL": []}

    class Timed(SFTTrainer):
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            start, cpu = time.perf_counter(), time.process_time()
            done = super()._prepare_dataset(*args, **kwargs)
            spent["TRL"].append((time.perf_counter() - start, time.process_time() - cpu))
            self.tokens = sum(len(row) for row in done["input_ids"])
            return done

    tokens = {}
    for turn in range(ROUNDS):
        rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        settings = SFTConfig(
            output_dir=str(folder / "trl"),
            max_length=None,
            report_to="none",
            bf16=False,
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Timed(model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        tokens["TRL"] = trainer.tokens
        start, cpu = time.perf_counter(), time.process_time()
        made = prepare(path, model_dir, max_length=1_000_000, cache_dir=folder / f"cache-{turn}")
        spent["backprop"].append((time.perf_counter() - start, time.process_time() - cpu))
        tokens["backprop"] = made.summary.tokens
    cores = len(os.sched_getaffinity(0))
    print(f"\nrows made ready for training, {TOKEN_ROWS:,} rows, {cores} cores, median of {ROUNDS}")
    middle = {name: tuple(map(statistics.median, zip(*times, strict=True))) for name, times in spent.items()}
    for name, (wall, cpu) in middle.items():
        print(
            f"  {name:<10}{TOKEN_ROWS / wall:8.0f} rows/s, {TOKEN_ROWS / cpu:8.0f} per CPU-s, {tokens[name]:,} tokens"
        )
    (ours, ours_cpu), (theirs, theirs_cpu) = middle["backprop"], middle["TRL"]
    print(f"  ratio {theirs / ours:.2f} in time, {theirs_cpu / ours_cpu:.2f} in processor time")
    print(f"  peak memory of the process, TRL and torch with it: {peak_megabytes():.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--tokens", action="store_true")
    parser.add_argument("--model", type=Path, default=None, help="directory with the tokenizer")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        task, path = options.child
        print(json.dumps(open_in_child(path) if task == "open" else validate_in_child(path)))
        return
    print(f"Python {platform.python_version()}, msgspec {msgspec.__version__}, orjson {orjson.__version__}")
    with tempfile.TemporaryDirectory() as name:
        if options.planted:
            planted_defects(Path(name))
        elif options.tokens:
            beside_trl(Path(name), options.model or model_cache("smollm2-135m"))
        else:
            big_file(Path(name), options.gigabytes)


if __name__ == "__main__":
    main()
