"""SLAO beside sequential LoRA where runs contradict each other: what merging keeps, and what it costs.

``python benchmarks/slao.py [--seeds 5]``: a transformer of 60k weights learns 32 functions of strings, each named by
two prompt tokens, one for its table and one for its order; five runs then redefine 5 of the 16 table entries of one
function each. The merge is the product's own (``backprop.train.multi_run.slao``). Ends with 1 where a gate fails; rows
without a gate are printed to be known.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from dataclasses import dataclass

import torch
from backprop.train.multi_run.slao import Adapter, State, merge
from torch import nn
from torch.nn import functional

LETTERS, LENGTH, TABLES, ORDERS, CHANGED = 16, 4, 8, 4, 5
WIDTH, LAYERS, HEADS, RANK, ALPHA = 48, 2, 4, 8, 16
PRETRAINING, STEPS, BATCH, RATE, RUNS = 700, 100, 32, 1e-3, 5
REPLAYED, TESTED = 32, 256


class Adapted(nn.Module):
    """A linear layer with a LoRA beside it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.a = nn.Parameter(torch.empty(RANK, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (ALPHA / RANK) * (x @ self.a.T @ self.b.T)


class Block(nn.Module):
    """Attention and a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = Adapted(WIDTH, 3 * WIDTH), Adapted(WIDTH, WIDTH)
        self.up, self.down = Adapted(WIDTH, 4 * WIDTH), Adapted(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, _ = x.shape
        parts = self.qkv(self.norms[0](x)).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    """Two tokens that name the function, the string, then the answer, letter by letter."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(LETTERS + TABLES + ORDERS, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(2 + 2 * LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, LETTERS)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.places[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def layers(self) -> dict[str, Adapted]:
        return {name: layer for name, layer in self.named_modules() if isinstance(layer, Adapted)}

    def adapter(self) -> Adapter:
        found = self.layers().items()
        return Adapter({n: x.a.detach().clone() for n, x in found}, {n: x.b.detach().clone() for n, x in found})

    @torch.no_grad()
    def put(self, adapter: Adapter) -> None:
        for name, layer in self.layers().items():
            layer.a.copy_(adapter.a[name])
            layer.b.copy_(adapter.b[name])


@dataclass
class Function:
    """y[j] = table[x[order[j]]], named by two tokens."""

    name: tuple[int, int]
    table: torch.Tensor
    order: torch.Tensor

    def rows(self, count: int, random: torch.Generator) -> torch.Tensor:
        x = torch.randint(LETTERS, (count, LENGTH), generator=random)
        named = torch.tensor([LETTERS + self.name[0], LETTERS + TABLES + self.name[1]]).expand(count, 2)
        return torch.cat([named, x, self.table[x[:, self.order]]], dim=1)

    def changed(self, random: torch.Generator) -> Function:
        table = self.table.clone()
        for entry in torch.randperm(LETTERS, generator=random)[:CHANGED].tolist():
            others = [letter for letter in range(LETTERS) if letter != int(self.table[entry])]
            table[entry] = others[int(torch.randint(len(others), (), generator=random))]
        return Function(self.name, table, self.order)


def loss_of(model: Model, rows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the answers' letters."""
    logits = model(rows[:, :-1])[:, 1 + LENGTH :]
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 2 + LENGTH :].flatten())


@torch.no_grad()
def score(model: Model, function: Function, seed: int) -> tuple[float, float]:
    """Share of letters that are right, and the loss, on strings of its own."""
    rows = function.rows(TESTED, torch.Generator().manual_seed(10_000 + seed))
    hits = model(rows[:, :-1])[:, 1 + LENGTH :].argmax(-1) == rows[:, 2 + LENGTH :]
    return float(hits.float().mean()), float(loss_of(model, rows))


def pretrained(seed: int, random: torch.Generator) -> tuple[Model, list[Function]]:
    torch.manual_seed(seed)
    model = Model()
    tables = [torch.randperm(LETTERS, generator=random) for _ in range(TABLES)]
    orders = [torch.randperm(LENGTH, generator=random) for _ in range(ORDERS)]
    functions = [Function((i, j), table, order) for i, table in enumerate(tables) for j, order in enumerate(orders)]
    base = [weight for name, weight in model.named_parameters() if not name.endswith((".a", ".b"))]
    for layer in model.layers().values():
        nn.init.kaiming_uniform_(layer.a, a=math.sqrt(5))
    optimizer = torch.optim.AdamW(base, lr=3e-3)
    curve = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, PRETRAINING)
    for _ in range(PRETRAINING):
        loss_of(model, torch.cat([each.rows(4, random) for each in functions])).backward()
        optimizer.step()
        curve.step()
        optimizer.zero_grad()
    for weight in base:
        weight.requires_grad_(False)
    return model, functions


def train(model: Model, start: Adapter, tasks: list[Function], seed: int, replay: list[Function] = []) -> Adapter:  # noqa: B006
    """Fine-tune from ``start``; an eighth of a batch is of the strings kept of ``replay``."""
    model.put(start)
    random = torch.Generator().manual_seed(seed)
    kept = [each.rows(REPLAYED, torch.Generator().manual_seed(77)) for each in replay]
    optimizer = torch.optim.AdamW([each for x in model.layers().values() for each in (x.a, x.b)], lr=RATE)
    curve = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for _ in range(STEPS):
        fresh = BATCH - BATCH // 8 * bool(kept)
        rows = torch.cat([each.rows(-(-fresh // len(tasks)), random) for each in tasks])[:fresh]
        if kept:
            old = torch.cat(kept)
            rows = torch.cat([rows, old[torch.randint(len(old), (BATCH - fresh,), generator=random)]])
        loss_of(model, rows).backward()
        optimizer.step()
        curve.step()
        optimizer.zero_grad()
    return model.adapter()


@dataclass
class Result:
    """Of one method: means over all tasks after the last run, backward transfer, the last run's own accuracy."""

    accuracy: float
    loss: float
    bwt: float = math.nan
    last: float = math.nan


def of_sequence(model: Model, tasks: list[Function], after: list[Adapter]) -> Result:
    """What the adapter that is used after each run gives."""
    table = []
    for adapter in after:
        model.put(adapter)
        table.append([score(model, task, number) for number, task in enumerate(tasks)])
    final = table[-1]
    moved = [final[k][0] - table[k][k][0] for k in range(len(table) - 1)]
    accuracy, loss = (statistics.mean(each[what] for each in final) for what in (0, 1))
    return Result(accuracy, loss, statistics.mean(moved) if moved else math.nan, final[-1][0])


def one_seed(seed: int) -> dict[str, Result]:
    random = torch.Generator().manual_seed(seed)
    model, functions = pretrained(seed, random)
    fresh = model.adapter()
    chosen = torch.randperm(len(functions), generator=random)[:RUNS].tolist()
    tasks = [functions[number].changed(random) for number in chosen]
    found = {"base": of_sequence(model, tasks, [fresh])}

    def sequential(replay: bool) -> list[Adapter]:
        at, after = fresh, []
        for k, task in enumerate(tasks):
            at = train(model, at, [task], 100 * seed + k, tasks[:k] if replay else [])
            after.append(at)
        return after

    def slao(tasks: list[Function], replay: bool = False) -> list[State]:
        state: State | None = None
        after = []
        for k, task in enumerate(tasks):
            start = fresh if state is None else state.start()
            tuned = train(model, start, [task], 100 * seed + k, tasks[:k] if replay else [])
            state = merge(state, tuned, str(k))
            after.append(state)
        return after

    found["sequential"] = of_sequence(model, tasks, sequential(False))
    found["slao"] = of_sequence(model, tasks, [each.result for each in slao(tasks)])
    found["sequential + replay"] = of_sequence(model, tasks, sequential(True))
    found["slao + replay"] = of_sequence(model, tasks, [each.result for each in slao(tasks, True)])
    alone = [train(model, fresh, [task], 100 * seed + k) for k, task in enumerate(tasks)]
    found["average of independent updates"] = average(model, tasks, alone, fresh)
    at = fresh
    for k in range(RUNS):
        at = train(model, at, tasks, 100 * seed + 50 + k)
    found["joint"] = of_sequence(model, tasks, [at])
    same = [tasks[0]] * RUNS
    at = fresh
    for k in range(RUNS):
        at = train(model, at, [tasks[0]], 100 * seed + k)
    found["same task: sequential"] = of_sequence(model, same, [at])
    found["same task: slao"] = of_sequence(model, same, [slao(same)[-1].result])
    return found


def average(model: Model, tasks: list[Function], alone: list[Adapter], fresh: Adapter) -> Result:
    """The mean of the updates of adapters that were trained apart, put into the weights and taken out again."""
    model.put(fresh)
    updates = {
        name: sum(ALPHA / RANK * each.b[name] @ each.a[name] for each in alone) / len(alone) for name in model.layers()
    }
    for sign in (1, -1):
        for name, layer in model.layers().items():
            layer.base.weight.data += sign * updates[name]
        if sign == 1:
            scores = [score(model, task, number) for number, task in enumerate(tasks)]
    return Result(statistics.mean(a for a, _ in scores), statistics.mean(b for _, b in scores), last=scores[-1][0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    count = parser.parse_args().seeds
    torch.set_num_threads(1)
    seeds = [one_seed(seed) for seed in range(count)]
    print(f"{count} seeds; accuracy and loss over all {RUNS} tasks after the last run; mean and standard deviation")
    for name in seeds[0]:
        each = [seed[name] for seed in seeds]
        line = [f"{name:32}"]
        for what in ("accuracy", "loss", "bwt", "last"):
            values = torch.tensor([getattr(one, what) for one in each], dtype=torch.float64)
            line.append(f"{what} {float(values.mean()):6.3f} ± {float(values.std(correction=0)):.3f}")
        print("  ".join(line))

    def mean(name: str, what: str) -> float:
        return statistics.mean(getattr(seed[name], what) for seed in seeds)

    gates = {
        "loss of slao at most 0.8 of sequential": mean("slao", "loss") <= 0.8 * mean("sequential", "loss"),
        "accuracy of slao at least 0.03 above sequential with every seed": all(
            seed["slao"].accuracy - seed["sequential"].accuracy >= 0.03 for seed in seeds
        ),
        "backward transfer of slao at least 0.1 better": mean("slao", "bwt") - mean("sequential", "bwt") >= 0.1,
        "joint at least 0.97": mean("joint", "accuracy") >= 0.97,
    }
    for name, passed in gates.items():
        print("passed" if passed else "FAILED", name)
    return 0 if all(gates.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
