"""The suite: every optimizer as torch.optim has it, on networks of kinds that no meta-training saw.

Each optimizer gets the same grid, four rates a half-decade apart with a cosine to zero, chosen by the final
training loss of another initialisation; and runs at its default, a constant rate. Keys of the records are
``suite/TASK/STEPS/OPTIMIZER``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from amortopt import UNFOptimizer
from benchmarks.harness.command import Advance, Part
from benchmarks.harness.numbers import summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import plus_minus, table
from benchmarks.optimizers.parts import MUON, Entry
from benchmarks.optimizers.suite_tasks import TASKS, Pair, Task

STEPS, QUICK_STEPS = 500, 50
SEEDS = 3
GRIDS = {
    "sgd": (0.03, 0.1, 0.3, 1.0),
    "adam": (0.001, 0.003, 0.01, 0.03),
    "adamw": (0.001, 0.003, 0.01, 0.03),
    "nadam": (0.001, 0.003, 0.01, 0.03),
}
RULE_GRID = (0.006, 0.02, 0.06, 0.2)
"""Of Muon and every rule."""
MAKE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": torch.optim.Adam,
    "adamw": partial(torch.optim.AdamW, weight_decay=0.01),
    "nadam": torch.optim.NAdam,
}
DEFAULTS = {"sgd": 0.1, "adam": 0.001, "adamw": 0.001, "nadam": 0.002}
RULE_DEFAULT = 0.02


def suite_parts(entries: Sequence[Entry], *, quick: bool, only: Sequence[str] = ()) -> list[Part]:
    """A part per task and optimizer."""
    steps, seeds = (QUICK_STEPS, 1) if quick else (STEPS, SEEDS)
    rules = {entry.name: entry for entry in entries if entry.role != "rival"}
    parts = []
    for name, task in TASKS.items():
        if only and name not in only:
            continue
        for optimizer in (*GRIDS, *rules):
            entry = rules.get(optimizer)
            identity = {
                "task": task.about,
                "batch": task.batch,
                "steps": steps,
                "seeds": seeds,
                "rates": GRIDS.get(optimizer, RULE_GRID),
                "rule": None if entry is None else {"sha256": entry.sha256, "config": entry.rule.config},
            }
            work = partial(_measured, task, optimizer, entry, steps, seeds)
            parts.append(Part(f"suite/{name}/{steps}/{optimizer}", identity, work, float(steps)))
    return parts


def _measured(
    task: Task, optimizer: str, entry: Entry | None, steps: int, seeds: int, advance: Advance = lambda _: None
) -> Record:
    def run(rate: float, falling: bool, seed: int) -> Record:
        return train(task, optimizer, entry, rate, steps, seed, falling=falling)

    grid = GRIDS.get(optimizer, RULE_GRID)
    tried = {rate: run(rate, True, 1000)["train"] for rate in grid}
    best = min(grid, key=lambda rate: math.inf if tried[rate] is None else tried[rate])
    tuned = [run(best, True, seed) for seed in range(seeds)]
    usual = [run(DEFAULTS.get(optimizer, RULE_DEFAULT), False, seed) for seed in range(seeds)]
    columns = ("train", "held_out", "worst", "seconds")
    return {
        "rate": best,
        "tried": [tried[rate] for rate in grid],
        "tuned": {key: [one[key] for one in tuned] for key in columns},
        "default": {key: [one[key] for one in usual] for key in columns},
    }


def train(
    task: Task, optimizer: str, entry: Entry | None, rate: float, steps: int, seed: int, *, falling: bool
) -> Record:
    """Train one network.

    Returns:
        Final training and held-out loss, the largest loss of a minibatch over the first one's (None where not
        finite), and seconds of all steps.
    """
    torch.manual_seed(seed)
    net, ((x, y), held_out) = task.build(), task.data()
    if entry is None:
        opt = MAKE[optimizer](net.parameters(), lr=rate)
    else:
        opt = UNFOptimizer(net, x[:2], rule=entry.rule, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps) if falling else None
    order = torch.Generator().manual_seed(seed)
    losses, started = [], time.perf_counter()
    for _ in range(steps):
        batch = torch.randint(len(x), (task.batch,), generator=order)
        opt.zero_grad()
        loss = task.loss(net(x[batch]), y[batch])
        loss.backward()
        opt.step()
        if schedule is not None:
            schedule.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
    seconds = time.perf_counter() - started
    found = {"train": evaluate(net, task, (x, y)), "held_out": evaluate(net, task, held_out)}
    found["worst"] = max(losses) / max(losses[0], 1e-12)
    return {k: v if math.isfinite(v) else None for k, v in found.items()} | {"seconds": round(seconds, 2)}


@torch.no_grad()
def evaluate(net: nn.Module, task: Task, data: Pair, most: int = 2000) -> float:
    """Loss on at most so many examples, in evaluation mode."""
    net.eval()
    x, y = (part[:most] for part in data)
    losses = [task.loss(net(a), b) * len(a) for a, b in zip(x.split(500), y.split(500), strict=True)]
    net.train()
    return float(sum(losses) / len(x))


def suite_tables(records: Records, titles: dict[str, str]) -> list[tuple[str, str]]:
    """Titles and tables of the suite's records, training loss and held-out loss; none if there are none."""
    cells: dict[tuple[str, str], Any] = {}
    steps = 0
    for key, record in records.items():
        kind, *rest = key.split("/")
        if kind == "suite":
            cells[rest[0], "/".join(rest[2:])] = record["result"]
            steps = int(rest[1])
    tasks = [name for name in TASKS if any(task == name for task, _ in cells)]
    optimizers = list(dict.fromkeys(optimizer for _, optimizer in cells))
    order = [*MAKE, MUON]
    optimizers.sort(key=lambda name: order.index(name) if name in order else len(order))
    tables = []
    for what, title in (("train", "Training loss"), ("held_out", "Held-out loss")):
        rows = []
        for how, label in (("tuned", "best of four rates, cosine"), ("default", "default rate, constant")):
            for optimizer in optimizers:
                row = []
                for task in tasks:
                    found = cells.get((task, optimizer))
                    row.append(
                        ""
                        if found is None
                        else plus_minus(summary([found[how][what]]), 3, missing="diverges")
                    )
                rows.append([f"{titles.get(optimizer) or f'UNF (`{optimizer}`)'}, {label}", *row])
        if tasks:
            tables.append(
                (f"{title} after {steps} steps on networks of other kinds", table(["", *tasks], rows))
            )
    return tables
