"""How fast a UNF layer is, against its published form compiled by JAX and against the slow sum of all terms.

All sides have the same weights, inputs and output gradients, and run forward and backward with respect to
weights and inputs on one thread of one core; JAX and this layer take turns. Times are processor seconds of
the whole process, the shortest of several passes: other work on the machine disturbs them less than time by
the clock, which the JSON file has as well. Without JAX its times are kept from the results file, with their
date, or left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortopt.metanets.unf.basis import Spec, count_layer_terms, unf_basis
from amortopt.metanets.unf.layer import FixedUNFLayer
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Records, Store, circumstances
from benchmarks.harness.tables import document, made_by, table
from benchmarks.harness.timing import Seconds, timed

BENCHMARK = "unf_layer"
Sizes = dict[int, int]

MLP: tuple[list[Spec], Sizes] = ([(1, 0), (1,), (2, 1), (2,), (3, 2), (3,)], {0: 40, 1: 32, 2: 32, 3: 10})
CNN: tuple[list[Spec], Sizes] = (
    [(1, 0, 10, 11), (1,), (2, 1, 12, 13), (2,), (3, 2, 14, 15), (3,), (4, 3), (4,)],
    {0: 1, 1: 16, 2: 16, 3: 16, 4: 10} | {axis: 3 for axis in range(10, 16)},
)
RNN: tuple[list[Spec], Sizes] = ([(0, 1), (2, 1), (2, 2), (2,), (2,), (0, 2), (0,)], {0: 128, 1: 32, 2: 64})
# Token embedding; norm, queries, keys, values, their output matrix, norm, MLP; last norm; untied head.
NORM: list[Spec] = [(0,), (0,)]
TRANSFORMER: tuple[list[Spec], Sizes] = (
    [
        *[(1, 0), *NORM, (3, 0), (3,), (3, 0), (3,), (4, 0), (4,), (0, 4), (0,)],
        *[*NORM, (5, 0), (5,), (0, 5), (0,), *NORM, (2, 0), (2,)],
    ],
    {0: 32, 1: 128, 2: 128, 3: 32, 4: 32, 5: 128},
)
SPACES = {
    "MLP 40-32-32-10": MLP,
    "CNN 1-16-16-16-10, 3x3": CNN,
    "RNN 128/32/64": RNN,
    "transformer block, d 32": TRANSFORMER,
}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        spaces: Which of ``SPACES``.
        networks: Batch sizes B.
        channels: Channels, in and out.
        rounds: How often the sides take turns.
        passes: Passes per turn.
        slow_passes: Passes of the slow sum, in one turn.
    """

    spaces: tuple[str, ...] = tuple(SPACES)
    networks: tuple[int, ...] = (1, 16)
    channels: tuple[int, ...] = (16, 32)
    rounds: int = 5
    passes: int = 10
    slow_passes: int = 2


QUICK = Plan(networks=(1,), channels=(16,), rounds=2, passes=3)
SIDES = ("amortopt", "jax", "slow")


class Case:
    """Weights, inputs and output gradients of one layer, and the two ways to run it in torch."""

    def __init__(self, space: tuple[list[Spec], Sizes], networks: int, channels: int) -> None:
        self.specs, sizes = space
        self.shapes = [tuple(sizes[group] for group in spec) for spec in self.specs]
        torch.manual_seed(0)
        started = time.perf_counter()
        self.layer = FixedUNFLayer(self.specs, channels, channels)
        self.build_s = time.perf_counter() - started
        torch.nn.init.normal_(self.layer.bias)
        self.xs = [torch.randn(networks, *shape, channels, requires_grad=True) for shape in self.shapes]
        self.cotangents = [torch.randn_like(x) for x in self.xs]

    def run(self, forward: Callable[[list[Tensor]], Sequence[Tensor]]) -> tuple[Sequence[Tensor], ...]:
        """Outputs, and gradients of weights, bias and inputs."""
        ys = forward(self.xs)
        return ys, torch.autograd.grad(ys, [*self.layer.parameters(), *self.xs], self.cotangents)

    def slow(self, xs: list[Tensor]) -> list[Tensor]:
        """The sum of all terms, one by one."""
        ys = []
        for i, spec in enumerate(self.specs):
            weights = iter(self.layer.term_weights(i))
            y = self.layer.bias[i]
            for x, into in zip(xs, self.specs, strict=True):
                for term in unf_basis(spec, into, self.shapes[i], x, channels=1):
                    y = y + term @ next(weights).t()
            ys.append(y)
        return ys

    def arrays(self) -> dict[str, Any]:
        """What the JAX side reads."""
        arrays: dict[str, Any] = {"about": json.dumps({"specs": self.specs, "shapes": self.shapes})}
        for i, (x, cotangent) in enumerate(zip(self.xs, self.cotangents, strict=True)):
            arrays[f"theta{i}"] = torch.stack([w.detach().t() for w in self.layer.term_weights(i)]).numpy()
            arrays[f"bias{i}"] = self.layer.bias[i].detach().numpy()
            arrays[f"x{i}"], arrays[f"cotangent{i}"] = x.detach().numpy(), cotangent.numpy()
        return arrays


class JaxSide:
    """The published form in a separate process, on the same core; a context manager."""

    def __init__(self, python: Path, case: Case, folder: Path) -> None:
        source, self.target = folder / "case.npz", folder / "result.npz"
        np.savez(source, **case.arrays())
        program = Path(__file__).with_name("layer_jax.py")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [str(python), str(program), str(source), str(self.target)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment | {"UNF_CORE": str(core())},
        )  # fmt: skip

    def __enter__(self) -> JaxSide:
        self.about = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the JAX side ended with status {self.process.wait()}; see its message above")
        return json.loads(line)

    def passes(self, count: int) -> list[Seconds]:
        """Run passes there."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return [Seconds(*pair) for pair in self._answer()]

    def error(self, case: Case) -> dict[str, float]:
        """Largest difference of outputs and input gradients, relative to the largest of the tensor."""
        ys, grads = case.run(case.layer)
        errors = {}
        with np.load(self.target) as theirs:
            for name, many in (("y", ys), ("d_x", grads[2:])):
                pairs = [(value.detach().numpy(), theirs[f"{name}{i}"]) for i, value in enumerate(many)]
                errors[name] = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
        return errors


def core() -> int:
    """The core that both sides run on."""
    return max(os.sched_getaffinity(0))


def parts(plan: Plan, jax_python: Path | None, store: Store) -> list[Part]:
    """A part per space, batch size and width."""
    identity = {"rounds": plan.rounds, "passes": plan.passes, "slow_passes": plan.slow_passes}

    def part(name: str, networks: int, channels: int) -> Part:
        key = f"{name}/{networks}/{channels}"

        def work(advance: object) -> Record:
            earlier = store.records[key]["result"] if key in store.records else {}
            case = Case(SPACES[name], networks, channels)
            about = {
                "space": name,
                "networks": networks,
                "channels": channels,
                "terms": count_layer_terms(case.specs),
                "products": case.layer.num_products,
                "build_s": case.build_s,
            }
            return about | compare(case, plan, jax_python, earlier)

        return Part(key, identity, work, networks * channels)

    return [part(n, b, c) for n in plan.spaces for b in plan.networks for c in plan.channels]


def compare(case: Case, plan: Plan, jax_python: Path | None, earlier: Record) -> Record:
    """Times of all sides; JAX's from an earlier result if it is not run now."""
    about: Record = {}
    slow = timed(lambda: case.run(case.slow), plan.slow_passes)
    ours, jax = partial(case.run, case.layer), []
    times: dict[str, list[Seconds]] = {"amortopt": [], "slow": slow}
    passes = plan.passes * max(1, 5 // len(case.xs[0]))  # one network takes a millisecond
    timed(ours, 3)
    if jax_python is None:
        times["amortopt"] = timed(ours, plan.rounds * passes)
    else:
        with tempfile.TemporaryDirectory() as folder, JaxSide(jax_python, case, Path(folder)) as side:
            about = {**side.about, "error": side.error(case), "jax_date": circumstances()["date"]}
            for _ in range(plan.rounds):
                times["amortopt"] += timed(ours, passes)
                jax += side.passes(passes)
        times["jax"] = jax
    best = {
        side: {"wall_s": min(s.wall for s in seconds), "cpu_s": min(s.cpu for s in seconds)}
        for side, seconds in times.items()
    }
    if jax_python is None and "jax" in earlier:
        kept = ("compile_s", "version", "error", "jax_date")
        about = {key: earlier[key] for key in kept} | {"in_turn": False}
        best["jax"] = earlier["jax"]
    ratios = {side: best[side]["cpu_s"] / best["amortopt"]["cpu_s"] for side in best if side != "amortopt"}
    return {**about, **best, "ratios": ratios}


def markdown(records: Records) -> str:
    """Everything, for people."""
    order = list(SPACES)
    results = [record["result"] for record in records.values()]
    results.sort(key=lambda row: (order.index(row["space"]), row["networks"], row["channels"]))
    plan = next(iter(records.values()))["identity"]
    ratios = [row["ratios"]["jax"] for row in results if "jax" in row]
    kept = sorted(row["jax_date"] for row in results if not row.get("in_turn", True))
    ahead, dated = "", ""
    if ratios:
        ahead = f" Ahead of compiled JAX in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)} cases."
    if kept:
        dated = f" JAX's times of {len(kept)} cases are kept from {kept[0][:10]}, not in turn."
    rows = []
    for row in results:
        cells = [row["space"], *(str(row[key]) for key in ("networks", "channels", "terms", "products"))]
        cells += [f"{1e3 * row[side]['cpu_s']:.2f}" if side in row else "" for side in SIDES]
        cells += [f"{row['ratios'][side]:.2f}x" if side in row else "" for side in SIDES[1:]]
        cells += [f"{1e3 * row['build_s']:.0f} ms"]
        cells += [f"{row['compile_s']:.0f} s" if "compile_s" in row else ""]
        rows.append([*cells, f"{row['error']['y']:.0e}" if row.get("error") else ""])
    head = ["weight space", "B", "channels", "terms", "products", "ms", "JAX, ms", "slow sum, ms"]
    head += ["JAX / ours", "slow / ours", "built in", "JAX compiled in", "difference"]
    return document(
        [
            "# UNF layer, forward and backward",
            f"{made_by(records)} One thread; shortest processor time of {plan['rounds']} x {plan['passes']} "
            f"passes; gradients of weights and inputs.{ahead}",
            f"The slow sum is the same layer as a loop over all terms, in eager torch.{dated}",
            table(head, rows),
        ]
    )
