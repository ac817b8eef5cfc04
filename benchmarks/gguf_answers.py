"""A run's GGUF files beside its model in transformers: ``python benchmarks/gguf_answers.py RUN_DIRECTORY``.

Exports the run in each precision, then asks llama.cpp and transformers (both exact in float32 where the file is) for
the greedy answers to the first prompts of the bundled data. Needs ``llama-cpp-python``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib import resources
from pathlib import Path

import torch
from backprop.core.jobs import ExportRequest, Sampling
from backprop.export.llama import Llama
from backprop.runs.engine_jobs import export_model
from backprop.runs.state import read_run
from backprop.train.generate import load, reply

PRECISIONS = ("f32", "f16", "bf16", "q8_0", "q6_k", "q4_k_m", "q2_k")
MOST = 60
"""Tokens of an answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=20)
    options = parser.parse_args()
    lines = (resources.files("backprop.demo") / "demo.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["messages"][0]["content"] for line in lines[: options.prompts]]
    model, chat = load(options.run, read_run(options.run).config, lambda message: None)
    torch.set_num_threads(2)
    model.float()
    asked = [chat.encode([chat.template.render([{"role": "user", "content": p}], prompt=True)])[0].ids for p in prompts]
    expected = [reply(model, chat, prompt, Sampling(max_tokens=MOST)).text for prompt in prompts]
    print(f"{'precision':10} {'MB':>8} {'same answers':>14}   KL, top-1, changed answers kept")
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / f"{precision}.gguf"
            request = ExportRequest(source=str(options.run), format="gguf", precision=precision, output=str(target))
            done = export_model(request, lambda message: None)
            with Llama(target, 1024, sorted(chat.end_ids)) as llama:
                answers = [chat.tokenizer.decode(llama.ask(ids, [], MOST)[1]).strip() for ids in asked]
        same = sum(a == b for a, b in zip(answers, expected, strict=True))
        check = done.check
        print(f"{precision:10} {done.bytes / 1e6:8.1f} {same:>8} of {len(prompts):2}   ", end="")
        print(check.kl, check.top1, check.tuning_kept, check.skipped)


if __name__ == "__main__":
    main()
