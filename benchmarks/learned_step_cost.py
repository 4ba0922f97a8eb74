"""What a step of ``UNFOptimizer`` costs, as a multiple of a step of ``torch.optim.Adam(foreach=True)``.

Commands:
    python benchmarks/learned_step_cost.py            # 3 minutes -> benchmarks/results/
    python benchmarks/learned_step_cost.py --quick    # seconds -> runs/learned_step_cost_quick
    python benchmarks/learned_step_cost.py --threads 1 --rule unf-small --out FOLDER

Both optimizers move copies of one network with the same gradients and take turns, for a fixed time per
network; times are the shortest of all rounds. The machine should do nothing else.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import nn

from amortopt import UNFOptimizer
from amortopt._version import __version__
from amortopt.meta.one_pass.results import commit, hardware
from amortopt.metanets.update_rule.rule import UpdateRule
from amortopt.system.files import write_whole

ROOT = Path(__file__).parents[1]
FORMAT = 1
SECONDS = 25.0  # of each network
LEAST = 5  # rounds of each network, however long they take


@dataclass(frozen=True)
class Case:
    """A network that is moved.

    Attributes:
        title: Row of the table.
        widths: Of an MLP, inputs and outputs among them.
        goal: Largest ratio aimed at on two cores.
    """

    title: str
    widths: tuple[int, ...]
    goal: float

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
    Case("MLP 40-32-32-10", (40, 32, 32, 10), 8),
    Case("25 layers, 100 k weights in total", (63,) * 26, 15),
    Case("25 layers of 100 k weights", (316,) * 26, 15),
    Case("MLP 784-700-600-64-10", (784, 700, 600, 64, 10), 40),
)


def measure(cases: Sequence[Case], rule: UpdateRule | str, seconds: float = SECONDS) -> dict[str, Any]:
    """All measurements, as the JSON file has them.

    Args:
        cases: Networks.
        rule: The update rule.
        seconds: Time of each network.

    Returns:
        Numbers with what they were made by.
    """
    started = time.time()
    results: dict[str, Any] = {
        "format": FORMAT,
        "made_by": {
            "commit": commit(),
            "amortopt": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "hardware": hardware(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
        "rule": rule if isinstance(rule, str) else rule.config,
        "cases": [_case(case, rule, seconds) for case in cases],
    }
    results["made_by"]["load_average_at_the_end"] = os.getloadavg()[0]
    results["made_by"]["seconds"] = round(time.time() - started, 1)
    return results


def _case(case: Case, rule: UpdateRule | str, seconds: float) -> dict[str, Any]:
    print(f"{time.strftime('%H:%M:%S')} {case.title}", flush=True)
    net = case.build()
    twin = copy.deepcopy(net)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        q.grad = p.grad
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adam": torch.optim.Adam(twin.parameters(), foreach=True),
        "unf": UNFOptimizer(net, torch.zeros(2, case.widths[0]), rule=rule),
    }
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for optimizer in (*optimizers.values(), *optimizers.values()):
        optimizer.step()  # the first ones allocate
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["unf"]) < LEAST:
        for name, optimizer in optimizers.items():
            started = time.perf_counter()
            optimizer.step()
            times[name].append(time.perf_counter() - started)
    best = {name: min(many) for name, many in times.items()}
    return {
        **asdict(case),
        "weights": sum(p.numel() for p in net.parameters()),
        "rounds": len(times["unf"]),
        "seconds": best,
        "median_seconds": {name: statistics.median(many) for name, many in times.items()},
        "ratio": best["unf"] / best["adam"],
    }


def table(results: dict[str, Any]) -> str:
    """Markdown of a results file."""
    by = results["made_by"]
    lines = [
        "# Cost of a step of UNFOptimizer",
        "",
        f"{by['hardware']}; {by['threads']} threads; torch {by['torch']}; commit {by['commit']}; load "
        f"average {by['load_average']:.1f} at the start. Shortest of all rounds, in turns with "
        "Adam(foreach=True).",
        "",
        "| network | weights | Adam, ms | UNFOptimizer, ms | ratio | goal |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in results["cases"]:
        adam, unf = (1e3 * row["seconds"][name] for name in ("adam", "unf"))
        lines.append(
            f"| {row['title']} | {row['weights']:,} | {adam:.2f} | {unf:.2f} | {row['ratio']:.1f}x | "
            f"{row['goal']:g}x |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the two small networks, two seconds each")
    parser.add_argument("--threads", type=int, default=2, help="threads of both optimizers")
    parser.add_argument(
        "--rule", type=str, default="", help="shipped name or folder; by default an untrained rule"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for learned_step_cost.json and .md")
    options = parser.parse_args(argv)
    if options.threads < 1:
        parser.error(f"--threads: got {options.threads}, expected at least 1")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rule = options.rule or UpdateRule()
    results = measure(CASES[:2], rule, 2.0) if options.quick else measure(CASES, rule)
    folder = options.out or ROOT / ("runs/learned_step_cost_quick" if options.quick else "benchmarks/results")
    text = table(results)
    write_whole(folder / "learned_step_cost.json", (json.dumps(results, indent=2) + "\n").encode())
    write_whole(folder / "learned_step_cost.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
