"""How fast a metanet trains and runs, and how much faster and leaner it is than one in edge-list form.

    python benchmarks/throughput.py            # about 4 minutes -> benchmarks/results/throughput.json and .md
    python benchmarks/throughput.py --quick    # about 1 minute -> runs/throughput_quick
    python benchmarks/throughput.py --threads 2 --out FOLDER

Times are the shortest of several rounds, in which what is compared takes turns; the machine should do nothing
else. All sides and processes run with the same number of threads and the same allocator settings.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import throughput_cases as cases
import torch
from jsonargparse import ArgumentParser
from throughput_cases import SIDES, Case, MetaStep, Pass, best_of

from amortopt._version import __version__
from amortopt.meta.one_pass.results import commit, hardware
from amortopt.system.files import write_whole
from amortopt.system.memory import keep_freed_memory

ROOT = Path(__file__).parents[1]
FORMAT = 1
MLP = {"name": "mlp", "activation": "tanh", "widths": [40, 32, 32, 10]}
CNN_1D = {"name": "cnn", "activation": "tanh", "input_shape": [1, 40]}
CNN_2D = {"name": "cnn", "activation": "tanh", "input_shape": [1, 16, 16]}
LARGE = {"name": "mlp", "activation": "tanh", "widths": [784, 32, 32, 10]}
FAMILIES = {"MLP 40-32-32-10": MLP, "CNN 1-D 1-16-16-16-10": CNN_1D, "CNN 2-D 1-16-16-16-10": CNN_2D}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        networks: Networks per meta-step.
        examples: Examples per meta-step.
        layers: Layers of the metanets that take meta-steps; the first also runs single passes.
        latency: Networks per single pass.
        reference: Cases that the edge list is measured on.
        rounds: Rounds of every measurement.
        compiled: Families on which ``torch.compile`` is measured too; it compiles for half a minute on each.
        share: Largest share of the available memory that a reference may be expected to need.
    """

    networks: int = 8
    examples: int = 1024
    layers: tuple[int, ...] = (1, 4)
    latency: tuple[int, ...] = (1, 8, 64, 512)
    reference: tuple[Case, ...] = (
        Case("32 MLPs 40-32-32-10", MLP, 32, 4),
        Case("32 CNNs 1-16-16-16-10, 3x3", CNN_2D, 32, 4),
        Case("8 MLPs 784-32-32-10", LARGE, 8, 4),
        Case("32 MLPs 784-32-32-10", LARGE, 32, 4),
    )
    rounds: int = 5
    compiled: tuple[str, ...] = (next(iter(FAMILIES)),)
    share: float = 0.8


QUICK = Plan(
    layers=(2,),
    latency=(1, 64),
    reference=(Case("8 MLPs 40-32-32-10", MLP, 8, 4), Case("8 CNNs 1-16-16-16-10, 3x3", CNN_2D, 8, 4)),
    rounds=2,
    compiled=(),
)


def measure(plan: Plan) -> dict[str, Any]:
    """All measurements of a plan, as the JSON file has them.

    Args:
        plan: What to measure.

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
            "allocator": "freed memory is kept" if keep_freed_memory() else "default",
            "load_average": os.getloadavg()[0],
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
        "plan": asdict(plan),
        "metanet": {"width": cases.WIDTH, "channels": cases.CHANNELS},
    }
    # First, while nothing else is held in memory.
    results["reference"] = [_reference(case, plan) for case in plan.reference]
    results["training"] = [
        _training(title, Case(title, family, plan.networks, layers), plan)
        for title, family in FAMILIES.items()
        for layers in plan.layers
    ]
    results["latency"] = [
        _latency(title, Case(title, family, networks, plan.layers[0]), plan)
        for title, family in FAMILIES.items()
        for networks in plan.latency
    ]
    results["variants"] = [_variants(title, family, plan) for title, family in FAMILIES.items()]
    results["made_by"]["load_average_at_the_end"] = os.getloadavg()[0]
    results["made_by"]["seconds"] = round(time.time() - started, 1)
    return results


def _training(title: str, case: Case, plan: Plan) -> dict[str, Any]:
    _say(f"meta-steps: {title}, {case.layers} layers")
    seconds = best_of(MetaStep(case, examples=plan.examples), rounds=2 * plan.rounds)
    return {"family": title, "layers": case.layers, "seconds": seconds, "steps_per_second": 1 / seconds}


def _latency(title: str, case: Case, plan: Plan) -> dict[str, Any]:
    _say(f"one pass: {title}, {case.networks} networks")
    seconds = best_of(Pass("amortopt", case).infer, rounds=plan.rounds)
    return {"family": title, "layers": case.layers, "networks": case.networks, "seconds": seconds}


def _reference(case: Case, plan: Plan) -> dict[str, Any]:
    """Time and memory of both sides; the edge list is left out where it is not expected to fit."""
    _say(f"against the edge list: {case.title}")
    some = Case(case.title, case.family, max(1, case.networks // 8), case.layers)
    expected = case.networks / some.networks * cases.in_process({"growth": SIDES[1], "case": some})
    fits = expected < plan.share * cases.available_memory()
    sides = list(SIDES if fits else SIDES[:1])
    times = cases.in_process({"sides": sides, "rounds": max(2, plan.rounds // 2), "case": case})
    for side in sides:
        times[side]["memory_bytes"] = cases.in_process({"growth": side, "case": case})
    result: dict[str, Any] = {"case": case.title, "networks": case.networks, "layers": case.layers, **times}
    if not fits:
        result["left_out"] = {"edge list": {"expected_memory_bytes": expected}}
    return result


def _variants(title: str, family: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Seconds of a meta-step: eager float32, bfloat16 autocast of the metanet, compiled meta-loss."""
    _say(f"number format and compilation: {title}")
    case = Case(title, family, plan.networks, plan.layers[0])
    steps = {
        "float32": MetaStep(case, examples=plan.examples),
        "bfloat16 autocast": MetaStep(case, examples=plan.examples, autocast=True),
    }
    first: dict[str, float] = {}
    failed: dict[str, str] = {}
    if title in plan.compiled:
        steps["compiled"] = MetaStep(case, examples=plan.examples, compiled=True)
    for name in list(steps):
        started = time.perf_counter()
        try:
            steps[name]()
        except Exception as error:  # a compiler that is not there, or refuses: a result, not the end
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            del steps[name]
            continue
        first[name] = time.perf_counter() - started
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(2 * plan.rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    best = {name: min(many) for name, many in times.items()}
    return {"family": title, "layers": case.layers, "seconds": best, "first_call_s": first, "failed": failed}


def table(results: dict[str, Any]) -> str:
    """Markdown of a results file."""
    by, plan = results["made_by"], results["plan"]
    lines = [
        "# Throughput",
        "",
        f"{by['hardware']}; torch {by['torch']}; commit {by['commit']}; allocator: {by['allocator']}; load "
        f"average {by['load_average']:.1f} at the start. Metanet: ScaleGMN, width "
        f"{results['metanet']['width']}, {results['metanet']['channels']} channels; tanh networks; times are "
        "the shortest of several rounds.",
        "",
        f"## Meta-training: steps of {plan['networks']} networks and {plan['examples']} examples",
        "",
        "| family | layers | steps per second | ms per step |",
        "|---|---:|---:|---:|",
    ]
    for row in results["training"]:
        speed, ms = row["steps_per_second"], 1e3 * row["seconds"]
        lines.append(f"| {row['family']} | {row['layers']} | {speed:.1f} | {ms:.0f} |")
    sizes = plan["latency"]
    lines += [
        "",
        f"## One pass over 1 to {max(sizes)} networks, ms (per network)",
        "",
        "| family | " + " | ".join(str(n) for n in sizes) + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    for family in FAMILIES:
        rows = [row for row in results["latency"] if row["family"] == family]
        cells = [f"{1e3 * r['seconds']:.1f} ({1e3 * r['seconds'] / r['networks']:.2f})" for r in rows]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *_reference_table(results), *_variants_table(results)]) + "\n"


def _reference_table(results: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "## Against an edge list with an MLP on every edge, same depth and node width",
        "",
        "| batch | layers | | forward s | forward + backward s | memory GB |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in results["reference"]:
        for side in SIDES:
            cells = "does not fit | | "
            if side in row:
                r = row[side]
                cells = (
                    f"{r['forward_s']:.3f} | {r['forward_backward_s']:.3f} | {r['memory_bytes'] / 1e9:.2f}"
                )
            else:
                expected = row["left_out"][side]["expected_memory_bytes"] / 1e9
                cells = f"| left out | about {expected:.0f} expected"
            lines.append(f"| {row['case']} | {row['layers']} | {side} | {cells} |")
        if all(side in row for side in SIDES):
            keys = ("forward_s", "forward_backward_s", "memory_bytes")
            ratios = " | ".join(f"{row[SIDES[1]][k] / max(row[SIDES[0]][k], 1e-9):.1f}x" for k in keys)
            lines.append(f"| | | ratio | {ratios} |")
    return lines


def _variants_table(results: dict[str, Any]) -> list[str]:
    names = ("float32", "bfloat16 autocast", "compiled")
    lines = ["", "## Meta-step, ms (first call, s)", "", "| family | " + " | ".join(names) + " |"]
    lines.append("|---|" + "---:|" * len(names))
    for row in results["variants"]:
        cells = [
            f"{1e3 * row['seconds'][name]:.0f} ({row['first_call_s'][name]:.1f})"
            if name in row["seconds"]
            else row["failed"].get(name, "not measured")
            for name in names
        ]
        lines.append(f"| {row['family']} | " + " | ".join(cells) + " |")
    return lines


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little of everything")
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides")
    parser.add_argument("--out", type=Path, default=None, help="folder for throughput.json and throughput.md")
    options = parser.parse_args(argv)
    if options.threads < 1:
        parser.error(f"--threads: got {options.threads}, expected at least 1")
    torch.set_num_threads(options.threads)
    default = ROOT / ("runs/throughput_quick" if options.quick else "benchmarks/results")
    results = measure(QUICK if options.quick else Plan())
    text = table(results)
    folder = options.out or default
    write_whole(folder / "throughput.json", (json.dumps(results, indent=2) + "\n").encode())
    write_whole(folder / "throughput.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
