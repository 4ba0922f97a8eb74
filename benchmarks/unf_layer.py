"""How fast a UNF layer is, against its published form compiled by JAX and against the slow sum of all terms.

    python benchmarks/unf_layer.py --jax-python PATH    # 15 minutes -> benchmarks/results/unf_layer.json, .md
    python benchmarks/unf_layer.py --quick              # 20 seconds, no JAX -> runs/unf_layer_quick

PATH is the Python of an environment with jax (``python -m venv E; E/bin/pip install "jax[cpu]"``); without it
JAX's times are kept from the file that is there, with their date, or left out. All sides have the same
weights, inputs and output gradients, and run forward and backward with respect to weights and inputs on one
thread of one core; JAX and this layer take turns. Times are processor seconds of the whole process, the
shortest of several passes: other work on the machine disturbs them less than wall clock, which the JSON file
has as well. The files are written after every case.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from amortopt._version import __version__
from amortopt.meta.one_pass.results import commit, hardware
from amortopt.metanets.unf.basis import Spec, count_layer_terms, unf_basis
from amortopt.metanets.unf.layer import UNFLayer
from amortopt.system.files import write_whole
from amortopt.system.memory import keep_freed_memory

ROOT = Path(__file__).parents[1]
FORMAT = 1
Sizes = dict[int, int]
Seconds = list[tuple[float, float]]
"""(wall clock, processor) of every pass."""

MLP: tuple[list[Spec], Sizes] = ([(1, 0), (1,), (2, 1), (2,), (3, 2), (3,)], {0: 40, 1: 32, 2: 32, 3: 10})
CNN: tuple[list[Spec], Sizes] = (
    [(1, 0, 10, 11), (1,), (2, 1, 12, 13), (2,), (3, 2, 14, 15), (3,), (4, 3), (4,)],
    {0: 1, 1: 16, 2: 16, 3: 16, 4: 10} | {axis: 3 for axis in range(10, 16)},
)
RNN: tuple[list[Spec], Sizes] = ([(0, 1), (2, 1), (2, 2), (2,), (2,), (0, 2), (0,)], {0: 128, 1: 32, 2: 64})
# Token embedding; norm, queries, keys, values, what reads them, norm, MLP; last norm; head with tokens of its
# own.
TRANSFORMER: tuple[list[Spec], Sizes] = (
    [
        (1, 0),
        (0,),
        (0,),
        *([(3, 0), (3,)] * 2),
        (4, 0),
        (4,),
        (0, 4),
        (0,),
        (0,),
        (0,),
        (5, 0),
        (5,),
        (0, 5),
        (0,),
        (0,),
        (0,),
        (2, 0),
        (2,),
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
        self.layer = UNFLayer(self.specs, channels, channels)
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
        found: dict[str, Any] = {"about": json.dumps({"specs": self.specs, "shapes": self.shapes})}
        for i, (x, cotangent) in enumerate(zip(self.xs, self.cotangents, strict=True)):
            found[f"theta{i}"] = torch.stack([w.detach().t() for w in self.layer.term_weights(i)]).numpy()
            found[f"bias{i}"] = self.layer.bias[i].detach().numpy()
            found[f"x{i}"], found[f"cotangent{i}"] = x.detach().numpy(), cotangent.numpy()
        return found


def timed(pass_: Callable[[], object], passes: int) -> Seconds:
    """Seconds of several passes."""
    found = []
    for _ in range(passes):
        wall, cpu = time.perf_counter(), time.process_time()
        pass_()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return found


class JaxSide:
    """The published form in a process of its own, on the same core."""

    def __init__(self, python: Path, case: Case, folder: Path) -> None:
        source, self.target = folder / "case.npz", folder / "result.npz"
        np.savez(source, **case.arrays())
        command = [
            str(python),
            str(Path(__file__).with_name("unf_layer_jax.py")),
            str(source),
            str(self.target),
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"UNF_CORE": str(core())},
        )

    def __enter__(self) -> JaxSide:
        self.about = self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the JAX side ended with status {self.process.wait()}; see its message above")
        return json.loads(line)

    def passes(self, count: int) -> Seconds:
        """Run passes there."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return [tuple(pair) for pair in self._answer()]

    def error(self, case: Case) -> dict[str, float]:
        """Largest difference of outputs and input gradients, relative to the largest of the tensor."""
        ys, grads = case.run(case.layer)
        with np.load(self.target) as theirs:
            return {
                name: max(
                    float(
                        np.abs(value.detach().numpy() - theirs[f"{name}{i}"]).max()
                        / np.abs(theirs[f"{name}{i}"]).max()
                    )
                    for i, value in enumerate(many)
                )
                for name, many in (("y", ys), ("d_x", grads[2:]))
            }


def now() -> str:
    """Date and time of a measurement."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def core() -> int:
    """The core that both sides run on."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def measure(plan: Plan, jax_python: Path | None, folder: Path) -> dict[str, Any]:
    """All measurements of a plan, as the JSON file has them; it is written after every case."""
    started = time.time()
    path = folder / "unf_layer.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    earlier = {(row["space"], row["networks"], row["channels"]): row for row in rows}
    results: dict[str, Any] = {
        "format": FORMAT,
        "made_by": {
            "commit": commit(),
            "amortopt": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "hardware": hardware(torch.device("cpu")),
            "allocator": "freed memory is kept" if keep_freed_memory() else "default",
            "load_average": os.getloadavg()[0],
            "date": now(),
        },
        "plan": asdict(plan),
        "rows": [],
    }
    for name in plan.spaces:
        for networks in plan.networks:
            for channels in plan.channels:
                case = Case(SPACES[name], networks, channels)
                row = {
                    "space": name,
                    "networks": networks,
                    "channels": channels,
                    "terms": count_layer_terms(case.specs),
                    "products": case.layer.num_products,
                    "build_s": case.build_s,
                    **_compare(case, plan, jax_python, earlier.get((name, networks, channels))),
                }
                results["rows"].append(row)
                results["made_by"]["load_average_at_the_end"] = os.getloadavg()[0]
                results["made_by"]["seconds"] = round(time.time() - started, 1)
                write(results, folder)
                print(f"{time.strftime('%H:%M:%S')} {_row(row)}", flush=True)
    return results


def write(results: dict[str, Any], folder: Path) -> None:
    """Both files of some results."""
    write_whole(folder / "unf_layer.json", (json.dumps(results, indent=2) + "\n").encode())
    write_whole(folder / "unf_layer.md", table(results).encode())


def _compare(
    case: Case, plan: Plan, jax_python: Path | None, earlier: dict[str, Any] | None
) -> dict[str, Any]:
    """Times of all sides; JAX's from an earlier row if it is not run now."""
    times: dict[str, Seconds] = {"amortopt": []}

    def ours() -> object:
        return case.run(case.layer)

    def slow() -> object:
        return case.run(case.slow)

    def rounds(jax: JaxSide | None) -> None:
        passes = plan.passes * max(1, 5 // len(case.xs[0]))  # one network takes a millisecond
        timed(ours, 3)
        for _ in range(plan.rounds):
            times["amortopt"] += timed(ours, passes)
            if jax is not None:
                times.setdefault("jax", []).extend(jax.passes(passes))

    about: dict[str, Any] = {}
    times["slow"] = timed(slow, plan.slow_passes)
    if jax_python is None:
        rounds(None)
    else:
        with tempfile.TemporaryDirectory() as folder, JaxSide(jax_python, case, Path(folder)) as jax:
            about = {**jax.about, "error": jax.error(case), "jax_date": now()}
            rounds(jax)
    best = {
        side: {"wall_s": min(w for w, _ in many), "cpu_s": min(c for _, c in many)}
        for side, many in times.items()
    }
    if jax_python is None and earlier is not None and "jax" in earlier:
        about = {key: earlier[key] for key in ("compile_s", "version", "error", "jax_date")} | {
            "in_turn": False
        }
        best["jax"] = earlier["jax"]
    ratios = {side: best[side]["cpu_s"] / best["amortopt"]["cpu_s"] for side in best if side != "amortopt"}
    return {**about, **best, "ratios": ratios}


def _row(row: dict[str, Any]) -> str:
    cells = [
        row["space"],
        str(row["networks"]),
        str(row["channels"]),
        str(row["terms"]),
        str(row["products"]),
    ]
    cells += [f"{1e3 * row[side]['cpu_s']:.2f}" if side in row else "" for side in SIDES]
    cells += [f"{row['ratios'][side]:.2f}x" if side in row else "" for side in SIDES[1:]]
    cells += [f"{1e3 * row['build_s']:.0f} ms"]
    cells += [
        f"{row['compile_s']:.0f} s" if "compile_s" in row else "",
        f"{row['error']['y']:.0e}" if row.get("error") else "",
    ]
    return "| " + " | ".join(cells) + " |"


def table(results: dict[str, Any]) -> str:
    """Markdown of a results file."""
    by = results["made_by"]
    compared = [row["ratios"]["jax"] for row in results["rows"] if "jax" in row]
    kept = sorted(row["jax_date"] for row in results["rows"] if not row.get("in_turn", True))
    ahead = (
        f" Ahead of compiled JAX in {sum(ratio > 1 for ratio in compared)} of {len(compared)} cases."
        if compared
        else ""
    )
    return (
        "\n".join(
            [
                "# UNF layer, forward and backward",
                "",
                f"{by['hardware']}; torch {by['torch']}; commit {by['commit']}; load average "
                f"{by['load_average']:.1f} at the "
                f"start. One thread; shortest processor time of {results['plan']['rounds']} x "
                f"{results['plan']['passes']} "
                f"passes; gradients of weights and inputs.{ahead}",
                "",
                "The slow sum is the same layer as a loop over all terms, in eager torch."
                + (
                    f" JAX's times of {len(kept)} cases are kept from {kept[0][:10]}, not in turn."
                    if kept
                    else ""
                ),
                "",
                "| weight space | B | channels | terms | products | ms | JAX, ms | slow sum, ms | JAX / ours "
                "| slow / ours | built in | JAX compiled in | difference |",
                "|---|" + 12 * "---:|",
                *map(_row, results["rows"]),
            ]
        )
        + "\n"
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one batch size, one width, few passes")
    parser.add_argument("--jax-python", type=Path, default=None, help="Python of an environment with jax")
    parser.add_argument("--out", type=Path, default=None, help="folder for unf_layer.json and unf_layer.md")
    options = parser.parse_args(argv)
    folder = options.out or ROOT / ("runs/unf_layer_quick" if options.quick else "benchmarks/results")
    torch.set_num_threads(1)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        if allowed is not None:
            os.sched_setaffinity(0, {core()})
        results = measure(QUICK if options.quick else Plan(), options.jax_python, folder)
    finally:
        if allowed is not None:
            os.sched_setaffinity(0, allowed)
    print(table(results))


if __name__ == "__main__":
    main()
