"""The suite: every optimizer as torch.optim has it, on networks of kinds that no meta-training saw.

Each optimizer gets the same budget of tuning: four rates a half-decade apart, with a cosine to zero, chosen
by the final training loss of another initialisation. It runs at its default rate as well, constant; rules,
AdamW and Muon also with the cosine. Schedule-Free has no schedule: its rates are
constant. Keys of the records are ``suite/TASK/STEPS/OPTIMIZER``, and with ``/falling`` behind for AdamW's and
Muon's default rate with the cosine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from amortopt import UNFOptimizer
from benchmarks.harness.command import Advance, Part
from benchmarks.harness.numbers import Values, summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import plus_minus, table
from benchmarks.optimizers.parts import MUON, Entry
from benchmarks.optimizers.suite_tasks import TASKS, Pair, Task

QUICK_STEPS = 50
SEEDS = 3
GRIDS = {
    "adamw": (0.001, 0.003, 0.01, 0.03),
    "sgd": (0.03, 0.1, 0.3, 1.0),
    "soap": (0.001, 0.003, 0.01, 0.03),
    "schedulefree": (0.001, 0.003, 0.01, 0.03),
    "prodigy": (0.3, 1.0, 3.0, 10.0),
    "nadam": (0.001, 0.003, 0.01, 0.03),
    "adam": (0.001, 0.003, 0.01, 0.03),
}
RULE_GRID = (0.006, 0.02, 0.06, 0.2)
"""Of Muon and every rule."""
MAKE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": torch.optim.Adam,
    "adamw": partial(torch.optim.AdamW, weight_decay=0.01),
    "nadam": torch.optim.NAdam,
}
PACKAGE = "pytorch_optimizer"
FROM_PACKAGE = {"soap": "SOAP", "schedulefree": "ScheduleFreeAdamW", "prodigy": "Prodigy"}
"""Rivals of the package pytorch-optimizer (the extra ``rivals``); they are left out where it is missing."""
DEFAULTS = {
    **{"sgd": 0.1, "adam": 0.001, "adamw": 0.001, "nadam": 0.002},
    **{"soap": 0.003, "schedulefree": 0.0025, "prodigy": 1.0},
}
FALLING = ("adamw", MUON)
"""Rivals that run at their default rate with the cosine, too."""
NAMES = {"soap": "SOAP", "schedulefree": "Schedule-Free AdamW", "prodigy": "Prodigy"}
HOW = {
    "tuned": "best of four rates, cosine",
    "default": "default rate, constant",
    "default_falling": "default rate, cosine",
}
"""Key of a record -> how the optimizer ran."""


def make(name: str, net: nn.Module, rate: float) -> torch.optim.Optimizer:
    """A hand-made optimizer."""
    build = MAKE[name] if name in MAKE else getattr(import_module(PACKAGE), FROM_PACKAGE[name])
    return build(net.parameters(), lr=rate)


def suite_parts(entries: Sequence[Entry], *, quick: bool, only: Sequence[str] = ()) -> list[Part]:
    """A part per task and optimizer."""
    seeds = 1 if quick else SEEDS
    installed = find_spec(PACKAGE) is not None
    hand_made = [name for name in GRIDS if installed or name not in FROM_PACKAGE]
    rules = {entry.name: entry for entry in entries if entry.role != "rival"}
    tasks = {name: task for name, task in TASKS.items() if not only or name in only}
    parts = []
    for optimizer in (*rules, *hand_made):
        entry = rules.get(optimizer)
        for name, task in tasks.items():
            steps = QUICK_STEPS if quick else task.steps
            identity = {
                "task": task.about,
                "batch": task.batch,
                "steps": steps,
                "seeds": seeds,
                "rates": GRIDS.get(optimizer, RULE_GRID),
                "rule": None if entry is None else entry.identity,
            }
            key, common = f"suite/{name}/{steps}/{optimizer}", (task, optimizer, entry, steps, seeds)
            parts.append(Part(key, identity, partial(_measured, *common), float(steps)))
            if optimizer in FALLING:
                parts.append(Part(f"{key}/falling", identity, partial(_falling, *common), float(steps)))
    return parts


def _measured(
    task: Task, optimizer: str, entry: Entry | None, steps: int, seeds: int, advance: Advance = lambda _: None
) -> Record:
    def run(rate: float, falling: bool, seed: int) -> Record:
        return train(task, optimizer, entry, rate, steps, seed, falling=falling)

    grid = GRIDS.get(optimizer, RULE_GRID)
    tried = {rate: run(rate, True, 1000)["train"] for rate in grid}
    best = min(grid, key=lambda rate: math.inf if tried[rate] is None else tried[rate])
    usual = _default_rate(optimizer, entry)
    found = {
        "tuned": [run(best, True, seed) for seed in range(seeds)],
        "default": [run(usual, False, seed) for seed in range(seeds)],
    }
    if entry is not None and entry.role == "main":
        found["default_falling"] = [run(usual, True, seed) for seed in range(seeds)]
    return {"rate": best, "tried": [tried[rate] for rate in grid], **_by_column(found)}


def _falling(
    task: Task, optimizer: str, entry: Entry | None, steps: int, seeds: int, advance: Advance = lambda _: None
) -> Record:
    """At the default rate, with the cosine."""
    rate = _default_rate(optimizer, entry)
    runs = [train(task, optimizer, entry, rate, steps, seed, falling=True) for seed in range(seeds)]
    return _by_column({"default_falling": runs})


def _default_rate(optimizer: str, entry: Entry | None) -> float:
    return DEFAULTS[optimizer] if entry is None else entry.rate


def _by_column(found: dict[str, list[Record]]) -> Record:
    """Way to run -> results of its runs; to the same with a list per column."""
    columns = ("train", "held_out", "worst", "seconds")
    return {how: {key: [one[key] for one in runs] for key in columns} for how, runs in found.items()}


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
    if entry is not None:
        opt: torch.optim.Optimizer = UNFOptimizer(net, x[:2], rule=entry.rule, lr=rate)
    else:
        opt = make(optimizer, net, rate)
    free: Any = opt if optimizer == "schedulefree" else None  # weights of training and of evaluation differ
    if free is not None:
        free.train()
    falling = falling and free is None
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
    if free is not None:
        free.eval()
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
    steps: dict[str, int] = {}
    for key, record in records.items():
        kind, *rest = key.split("/")
        if kind == "suite":
            optimizer = "/".join(rest[2:]).removesuffix("/falling")
            cells.setdefault((rest[0], optimizer), {}).update(record["result"])
            steps[rest[0]] = int(rest[1])
    tasks = [name for name in TASKS if name in steps]
    optimizers = list(dict.fromkeys(optimizer for _, optimizer in cells))
    order = [*MAKE, *FROM_PACKAGE, MUON]
    optimizers.sort(key=lambda name: order.index(name) if name in order else len(order))
    if not tasks:
        return []
    tables = []
    for what, title in (("train", "Training loss"), ("held_out", "Held-out loss")):
        rows = []
        for how, label in HOW.items():
            for optimizer in optimizers:
                found = [cells.get((task, optimizer), {}).get(how) for task in tasks]
                if any(found):
                    name = titles.get(optimizer) or NAMES.get(optimizer) or f"UNF (`{optimizer}`)"
                    rows.append(
                        [f"{name}, {label}", *("" if one is None else _cell(one[what]) for one in found)]
                    )
        tables.append(
            (f"{title} on networks of other kinds", table(["", *(f"{t}, {steps[t]}" for t in tasks)], rows))
        )
    rules = [name for name in optimizers if name not in order]
    if counts := [row for name in rules for row in _counts(cells, tasks, name)]:
        tables.append(
            (
                "Tasks of the suite on which the rule is ahead, by mean training loss",
                table(["", *_measured_rivals(cells)], counts),
            )
        )
    return tables


_RIVALS = {
    "default AdamW": ("adamw", "default"),
    "default AdamW, cosine": ("adamw", "default_falling"),
    "tuned AdamW": ("adamw", "tuned"),
    "default Muon": (MUON, "default"),
    "default Muon, cosine": (MUON, "default_falling"),
    "tuned Muon": (MUON, "tuned"),
    "tuned SOAP": ("soap", "tuned"),
    "tuned Schedule-Free": ("schedulefree", "tuned"),
    "tuned Prodigy": ("prodigy", "tuned"),
}


def _measured_rivals(cells: dict[tuple[str, str], Any]) -> dict[str, tuple[str, str]]:
    """Those of ``_RIVALS`` that there are results for."""
    ways = {(optimizer, how) for (_, optimizer), found in cells.items() for how in found}
    return {title: rival for title, rival in _RIVALS.items() if rival in ways}


def _counts(cells: dict[tuple[str, str], Any], tasks: Sequence[str], rule: str) -> list[list[str]]:
    """A row per way that a rule ran: on how many tasks it is ahead of each rival, and where it is not."""
    rows = []
    for how, label in HOW.items():
        row = []
        for rival, way in _measured_rivals(cells).values():
            both = [
                (task, cells[task, rule].get(how), cells[task, rival].get(way))
                for task in tasks
                if (task, rule) in cells and way in cells.get((task, rival), {})
            ]
            lost = [
                task
                for task, ours, theirs in both
                if ours is None or _mean(ours["train"]) >= _mean(theirs["train"])
            ]
            row.append(
                f"{len(both) - len(lost)} of {len(both)}" + (f" (not {', '.join(lost)})" if lost else "")
            )
        rows.append([f"`{rule}`, {label}", *row])
    return rows


def _mean(losses: Values) -> float:
    mean = summary([losses])["mean"]
    return math.inf if mean is None else mean


def _cell(losses: Values) -> str:
    """Mean and interval, with the digits that small losses need."""
    mean = _mean(losses)
    return plus_minus(summary([losses]), 3 if mean >= 0.1 else 4 if mean >= 0.01 else 5, missing="diverges")
