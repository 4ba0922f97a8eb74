"""One pass over 64 networks of 64 different widths: packed into one batch, or one dense pass per shape."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import product

import torch

from amortopt._types import Params
from amortopt.metanets import Conditions, ScaleGMN
from amortopt.symmetry import extract
from amortopt.tasks import make_family
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import made_by, table
from benchmarks.harness.timing import timed

WIDTHS = range(16, 48)
"""Of the two hidden layers of 40-h1-h2-10 networks."""
SIDES = ("packed", "one by one")


def parts(networks: int = 64, layers: tuple[int, ...] = (1, 2), rounds: int = 7) -> list[Part]:
    """A part per depth of the metanet."""
    return [
        Part(
            f"mixed widths/{networks}/{depth}",
            {"networks": networks, "layers": depth, "rounds": rounds},
            partial(_measured, networks, depth, rounds),
        )
        for depth in layers
    ]


def _measured(networks: int, layers: int, rounds: int, advance: object = None) -> Record:
    """Shortest processor seconds of a pass, without and with its backward pass, in turns."""
    torch.manual_seed(0)
    pairs = random.Random(0).sample(list(product(WIDTHS, WIDTHS)), networks)
    nets = [make_family("mlp", activation="tanh", widths=(40, *pair, 10)).build() for pair in pairs]
    params: list[Params] = [{name: p.detach()[None] for name, p in net.named_parameters()} for net in nets]
    metanet = ScaleGMN(extract(nets[0], torch.zeros(1, 40)), layers=layers)
    sides: dict[str, Callable[[], list[Params]]] = {
        "packed": lambda: metanet.forward_mixed(params, [Conditions()] * networks),
        "one by one": lambda: [metanet(one) for one in params],
    }

    def both(side: str) -> None:
        better = sides[side]()
        torch.stack([p.square().sum() for one in better for p in one.values()]).sum().backward()

    result: Record = {"networks": networks, "layers": layers}
    times: dict[str, list[list[float]]] = {side: [[], []] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            with torch.no_grad():
                times[side][0].append(timed(sides[side])[0].cpu)
            times[side][1].append(timed(partial(both, side))[0].cpu)
    for side, (forward, backward) in times.items():
        result[side] = {"forward_s": min(forward), "forward_backward_s": min(backward)}
    return result


def section(records: Records) -> list[str]:
    """Title, explanation and table of the records; nothing if there are none."""
    mixed = {key: record for key, record in records.items() if key.startswith("mixed widths/")}
    if not mixed:
        return []
    rows = []
    for row in (record["result"] for record in mixed.values()):
        cells = [f"{row[side][key]:.2f}" for key in ("forward_s", "forward_backward_s") for side in SIDES]
        rows.append([str(row["networks"]), str(row["layers"]), *cells])
    head = ["networks", "layers", "forward s, packed", "one by one"]
    head += ["forward + backward s, packed", "one by one"]
    return [
        "## One pass over networks of as many widths, packed or one dense pass per shape",
        f"Processor seconds, the shortest of several rounds. {made_by(mixed)}",
        table(head, rows),
    ]
