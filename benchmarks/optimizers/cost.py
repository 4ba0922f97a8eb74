"""What a step of ``UNFOptimizer`` costs, beside one of Muon and of ``torch.optim.Adam(foreach=True)``.

All optimizers move copies of one network with the same gradients and take turns, for a fixed time per
network; times are the shortest of all rounds. The machine should do nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import nn

from amortopt import UNFOptimizer
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.training.muon import Muon
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import table
from benchmarks.harness.timing import in_turns

SECONDS, QUICK_SECONDS = 25.0, 2.0
"""Time of each network."""
LEAST = 5
"""Rounds of each network, however long they take."""


@dataclass(frozen=True)
class Case:
    """A network that is moved.

    Attributes:
        title: Row of the table.
        widths: Of an MLP, inputs and outputs among them.
        goal: Largest multiple of Muon's step that is aimed at; None where no goal was set.
    """

    title: str
    widths: tuple[int, ...]
    goal: float | None = None

    def build(self) -> nn.Sequential:
        """A network with gradients."""
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for a, b in pairwise(self.widths):
            layers += [nn.Linear(a, b), nn.Tanh()]
        net = nn.Sequential(*layers[:-1])
        for p in net.parameters():
            p.grad = 0.01 * torch.randn_like(p)
        return net


CASES = (
    Case("MLP 40-32-32-10", (40, 32, 32, 10)),
    Case("25 layers, 100 k weights in total", (63,) * 26),
    Case("25 layers of 100 k weights", (316,) * 26, 1.3),
    Case("MLP 784-700-600-64-10", (784, 700, 600, 64, 10), 1.3),
)


def cost_parts(rule: UNFRule, *, quick: bool) -> list[Part]:
    """A part per network, with a cost of nothing in network-steps."""
    cases, seconds = (CASES[:2], QUICK_SECONDS) if quick else (CASES, SECONDS)

    def identity(case: Case) -> Record:
        threads = torch.get_num_threads()
        return {"rule": rule.config, "widths": case.widths, "threads": threads, "seconds": seconds}

    return [
        Part(f"cost/{case.title}", identity(case), partial(_measured, case, rule, seconds), 0.0)
        for case in cases
    ]


def _measured(case: Case, rule: UNFRule, seconds: float, advance: object = None) -> dict[str, Any]:
    net = case.build()
    twins = [copy.deepcopy(net) for _ in range(2)]
    for twin in twins:
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            q.grad = p.grad
    matrices = [p for p in twins[1].parameters() if p.ndim == 2][:-1]
    others = [p for p in twins[1].parameters() if all(p is not m for m in matrices)]
    groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False, "lr": 0.004}]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adam": torch.optim.Adam(twins[0].parameters(), foreach=True),
        "muon": Muon(groups),
        "unf": UNFOptimizer(net, torch.zeros(2, case.widths[0]), rule=rule),
    }
    steps = {name: optimizer.step for name, optimizer in optimizers.items()}
    in_turns(steps, 2)  # the first ones allocate
    times = in_turns(steps, LEAST, seconds=seconds)
    best = {name: min(many) for name, many in times.items()}
    return {
        **asdict(case),
        "weights": sum(p.numel() for p in net.parameters()),
        "rounds": len(times["unf"]),
        "seconds": best,
        "median_seconds": {name: median(many) for name, many in times.items()},
        "ratio": best["unf"] / best["muon"],
        "over_adam": best["unf"] / best["adam"],
    }


def cost_table(records: Records) -> str:
    """Markdown of the records of costs; empty if there are none."""
    titles: Sequence[str] = [case.title for case in CASES if f"cost/{case.title}" in records]
    rows = []
    for row in (records[f"cost/{title}"]["result"] for title in titles):
        times = [f"{1e3 * row['seconds'][name]:.2f}" for name in ("adam", "muon", "unf")]
        ratios = [f"{row[key]:.1f}x" for key in ("over_adam", "ratio")]
        goal = "" if row["goal"] is None else f"{row['goal']:g}x"
        rows.append([row["title"], f"{row['weights']:,}", *times, *ratios, goal])
    head = [
        "network",
        "weights",
        "Adam, ms",
        "Muon, ms",
        "UNFOptimizer, ms",
        "over Adam",
        "over Muon",
        "goal",
    ]
    return table(head, rows) if rows else ""
