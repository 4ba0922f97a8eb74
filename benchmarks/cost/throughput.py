"""How fast a metanet trains and runs, and how much faster and leaner it is than one in edge-list form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.cost import mixed_widths
from benchmarks.cost import throughput_cases as cases
from benchmarks.cost.throughput_cases import Case, MetaStep, Pass
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import document, made_by, table
from benchmarks.harness.timing import best_of, in_process, in_turns, timed

BENCHMARK = "throughput"
PROGRAM = "benchmarks.cost.throughput_cases"
SIDES = ("amortopt", "edge list")
VARIANTS = ("float32", "bfloat16 autocast", "compiled")
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


def parts(plan: Plan) -> list[Part]:
    """All measurements of a plan."""
    # References first, while nothing else is held in memory.
    parts = [
        Part(
            f"reference/{case.title}",
            {"case": case, "rounds": plan.rounds},
            partial(reference, case, plan),
            20,
        )
        for case in plan.reference
    ]
    steps = {"examples": plan.examples, "rounds": 2 * plan.rounds}
    for title, family in FAMILIES.items():
        for layers in plan.layers:
            case = Case(title, family, plan.networks, layers)
            work = partial(_training, case, plan)
            parts.append(Part(f"training/{title}/{layers}", {"case": case} | steps, work))
        for networks in plan.latency:
            case = Case(title, family, networks, plan.layers[0])
            work = partial(_latency, case, plan.rounds)
            parts.append(Part(f"latency/{title}/{networks}", {"case": case, "rounds": plan.rounds}, work))
        case = Case(title, family, plan.networks, plan.layers[0])
        identity = {"case": case, "compiled": title in plan.compiled} | steps
        parts.append(Part(f"variants/{title}", identity, partial(_variants, case, plan), 5))
    return parts


def _training(case: Case, plan: Plan, advance: object = None) -> Record:
    seconds = best_of(MetaStep(case, examples=plan.examples), 2 * plan.rounds)
    about = {
        "family": case.title,
        "layers": case.layers,
        "networks": case.networks,
        "examples": plan.examples,
    }
    return about | {"seconds": seconds, "steps_per_second": 1 / seconds}


def _latency(case: Case, rounds: int, advance: object = None) -> Record:
    seconds = best_of(Pass("amortopt", case).infer, rounds)
    return {"family": case.title, "layers": case.layers, "networks": case.networks, "seconds": seconds}


def reference(case: Case, plan: Plan, advance: object = None) -> Record:
    """Time and memory of both sides; the edge list is left out where it is not expected to fit."""
    some = Case(case.title, case.family, max(1, case.networks // 8), case.layers)
    expected = case.networks / some.networks * ask(some, growth=SIDES[1])["bytes"]
    fits = expected < plan.share * cases.available_memory()
    sides = list(SIDES if fits else SIDES[:1])
    times = ask(case, sides=sides, rounds=max(2, plan.rounds // 2))
    for side in sides:
        times[side]["memory_bytes"] = ask(case, growth=side)["bytes"]
    result: Record = {"case": case.title, "networks": case.networks, "layers": case.layers, **times}
    if not fits:
        result["left_out"] = {"edge list": {"expected_memory_bytes": expected}}
    return result


def ask(case: Case, **request: Any) -> Record:
    """Measure in a fresh process with as many threads; see ``throughput_cases.answer``.

    Raises:
        RuntimeError: The process failed.
    """
    request |= {"case": asdict(case), "threads": torch.get_num_threads()}
    result = in_process(PROGRAM, request)
    if "error" in result:
        raise RuntimeError(f"measuring {request} failed: {result['error']}")
    return result


def _variants(case: Case, plan: Plan, advance: object = None) -> Record:
    """Seconds of a meta-step: eager float32, bfloat16 autocast of the metanet, compiled meta-loss."""
    steps = {
        "float32": MetaStep(case, examples=plan.examples),
        "bfloat16 autocast": MetaStep(case, examples=plan.examples, autocast=True),
    }
    if case.title in plan.compiled:
        steps["compiled"] = MetaStep(case, examples=plan.examples, compiled=True)
    first: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, step in list(steps.items()):
        try:
            first[name] = timed(step)[0].wall
        except Exception as error:  # a compiler that is not there, or refuses: a result, not the end
            failed[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            del steps[name]
    best = {name: min(times) for name, times in in_turns(steps, 2 * plan.rounds).items()}
    about = {"family": case.title, "layers": case.layers}
    return about | {"seconds": best, "first_call_s": first, "failed": failed}


def markdown(records: Records) -> str:
    """Everything, for people."""
    results: dict[str, list[Record]] = {"training": [], "latency": [], "reference": [], "variants": []}
    timed_records = {key: record for key, record in records.items() if key.split("/")[0] in results}
    for key, record in timed_records.items():
        results[key.split("/")[0]].append(record["result"])
    case = next(iter(timed_records.values()))["identity"]["case"]
    order = list(FAMILIES)
    for rows in (results["training"], results["latency"], results["variants"]):
        rows.sort(key=lambda row: (order.index(row["family"]), row["layers"], row.get("networks", 0)))
    results["reference"].sort(key=lambda row: row["amortopt"]["memory_bytes"])
    first = results["training"][0]
    text = [
        "# Throughput",
        f"{made_by(timed_records)} Freed memory is kept. Metanet: ScaleGMN, width {case['width']}, "
        f"{case['channels']} channels; tanh networks; times are the shortest of several rounds.",
        f"## Meta-training: steps of {first['networks']} networks and {first['examples']} examples",
        table(
            ["family", "layers", "steps per second", "ms per step"],
            [
                [
                    row["family"],
                    str(row["layers"]),
                    f"{row['steps_per_second']:.1f}",
                    f"{1e3 * row['seconds']:.0f}",
                ]
                for row in results["training"]
            ],
        ),
    ]
    sizes = sorted({row["networks"] for row in results["latency"]})
    times = {(row["family"], row["networks"]): 1e3 * row["seconds"] for row in results["latency"]}
    rows = [[f, *(f"{times[f, n]:.1f} ({times[f, n] / n:.2f})" for n in sizes)] for f in order]
    text += [f"## One pass over 1 to {max(sizes)} networks, ms (per network)"]
    text += [table(["family", *map(str, sizes)], rows)]
    text += ["## Against an edge list with an MLP on every edge, same depth and node width"]
    text += [_reference_table(results["reference"])]
    rows = []
    for row in results["variants"]:
        cells = [
            f"{1e3 * row['seconds'][name]:.0f} ({row['first_call_s'][name]:.1f})"
            if name in row["seconds"]
            else row["failed"].get(name, "not measured")
            for name in VARIANTS
        ]
        rows.append([row["family"], *cells])
    text += ["## Meta-step, ms (first call, s)", table(["family", *VARIANTS], rows)]
    return document([*text, *mixed_widths.section(records)])


def _reference_table(results: list[Record]) -> str:
    keys = {"forward_s": ".3f", "forward_backward_s": ".3f", "memory_bytes": ".2f"}
    rows = []
    for row in results:
        for side in SIDES:
            if side in row:
                numbers = row[side] | {"memory_bytes": row[side]["memory_bytes"] / 1e9}
                cells = [format(numbers[key], digits) for key, digits in keys.items()]
            else:
                expected = row["left_out"][side]["expected_memory_bytes"] / 1e9
                cells = ["", "left out", f"about {expected:.0f} expected"]
            rows.append([row["case"], str(row["layers"]), side, *cells])
        if all(side in row for side in SIDES):
            ours, theirs = (row[side] for side in SIDES)
            rows.append(["", "", "ratio", *(f"{theirs[key] / max(ours[key], 1e-9):.1f}x" for key in keys)])
    head = ["batch", "layers", "", "forward s", "forward + backward s", "memory GB"]
    return table(head, rows, "lrlrrr")
