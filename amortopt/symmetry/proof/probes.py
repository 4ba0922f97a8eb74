"""Elements one step outside a spec, to find out whether the spec could be larger."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from amortopt.symmetry.action import Element, identity
from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.gauge import rescalings
from amortopt.symmetry.proof.running import Comparison

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec

_FAR = 1e4
_WIDER: dict[ScaleKind, tuple[str, ...]] = {
    "none": ("signs", "positive scales"),
    "sign": ("positive scales",),
    "positive": ("signs",),
    "free": (),
}


@dataclass(frozen=True)
class Larger:
    """An element outside a spec that leaves the function unchanged, so that the spec could be larger.

    Attributes:
        group: Name of the group.
        origin: Parameter or operation that the group comes from.
        what: Freedom of its units beyond the spec, as in `Probe`.
        error: Relative difference of the outputs.
    """

    group: str
    origin: str
    what: str
    error: float

    def __str__(self) -> str:
        return f"{self.group} ({self.origin}): {self.what}, to {self.error:.1g}"


@dataclass(frozen=True)
class Probe:
    """An element to try on one group.

    Attributes:
        group: Name of the group.
        what: "signs", "positive scales", "permutation", "permutation inside h3" or "permutation across h3".
    """

    group: str
    what: str


def candidates(spec: SymmetrySpec) -> list[Probe]:
    """All probes one step outside a spec; none on inputs and outputs, since these are not the network's."""
    probes: list[Probe] = []
    axes = [(block, i, axis) for block in spec.blocks for i, axis in enumerate(block.axes)]
    for group in spec.groups:
        if {"input", "output"} & {*group.origin.split(", ")}:
            continue
        if any(name == group.name for _, _, axis in axes for name, _ in axis.scales):
            probes += [Probe(group.name, what) for what in _WIDER[group.kind]]
        if group.size == 1 or not any(group.name in block.groups for block in spec.blocks):
            continue
        if group.within is None:
            probes += [] if group.permutable else [Probe(group.name, "permutation")]
            continue
        if not group.permutable and spec.run(group.name) > 1:
            probes.append(Probe(group.name, f"permutation inside {group.within}"))
        # An axis along single runs of the group, or of groups that it owns, allows only whole runs to move.
        if spec.run(group.name) < group.size and not any(
            axis.group is not None
            and group.name in spec.owners(axis.group)
            and spec.owner_axis(block, i) is not None
            for block, i, axis in axes
        ):
            probes.append(Probe(group.name, f"permutation across {group.within}"))
    return probes


def spread(probes: list[Probe], count: int | None, generator: torch.Generator) -> list[Probe]:
    """At most ``count`` of the probes, evenly over the groups; all of them in their order for None."""
    if count is None:
        return probes
    waiting: dict[str, list[Probe]] = {}
    for i in torch.randperm(len(probes), generator=generator).tolist():
        waiting.setdefault(probes[i].group, []).append(probes[i])
    chosen: list[Probe] = []
    while len(chosen) < min(count, len(probes)):
        for rest in waiting.values():
            if rest and len(chosen) < count:
                chosen.append(rest.pop())
    return chosen


def element_of(spec: SymmetrySpec, probe: Probe, generator: torch.Generator) -> Element:
    """A random element that moves the probe's group and the groups that it owns, and no others."""
    g, group = identity(spec), spec.group(probe.group)
    if probe.what == "signs":
        signs = 2.0 * torch.randint(2, (group.size,), generator=generator) - 1
        signs[0] = -1
        signs[1:2] = 1  # not all alike, which would be one sign for the whole group
        g.scales[group.name] = signs.double()
    elif probe.what == "positive scales":
        # Far enough to meet the bounds of what is linear up to them, as relu6 is.
        draw = torch.rand(group.size, generator=generator, dtype=torch.float64)
        draw[0] = 1
        g.scales[group.name] = torch.exp(math.log(_FAR) * (2 * draw - 1))
    else:
        run = spec.run(group.name)
        if probe.what.startswith("permutation across"):
            permutation = torch.randperm(group.size, generator=generator)
            if torch.equal(permutation // run, torch.arange(group.size) // run):
                permutation = permutation.roll(1)  # every unit had stayed in its run
        else:
            # [runs, run]: within every run a permutation that is not the identity
            inside = torch.stack([torch.randperm(run, generator=generator) for _ in range(group.size // run)])
            still = (inside == torch.arange(run)).all(1, keepdim=True)
            inside = torch.where(still, inside.roll(1, 1), inside)
            permutation = (torch.arange(0, group.size, run)[:, None] + inside).flatten()
        g.permutations[group.name] = permutation
        for other in spec.groups:
            if other.name != group.name and group.name in spec.owners(other.name):
                assert other.within is not None
                of_run, size = g.permutations[other.within], spec.run(other.name)
                g.permutations[other.name] = (of_run[:, None] * size + torch.arange(size)).flatten()
    return g


def search(
    spec: SymmetrySpec,
    comparison: Comparison,
    other: Callable[[int], Comparison],
    *,
    count: int | None,
    seconds: float,
    generator: torch.Generator,
    rtol: float,
    progress: Callable[[int, int], None] | None,
) -> tuple[int, int, tuple[Larger, ...]]:
    """Try elements one step outside a spec that is a symmetry of the network.

    ``other`` gives the network at other weights and inputs, by seed: a probe that changes nothing at the
    first ones, where a unit may be dead, is tried at these too. The remaining arguments are those of
    [verify][amortopt.symmetry.proof.verify.verify].

    Returns:
        Number of probes tried, number of probes, and those that change nothing.
    """
    possible = candidates(spec)
    chosen = spread(possible, count, generator)
    tried = 0
    unnoticed: list[tuple[Probe, Element, float]] = []
    started = time.perf_counter()
    for done, probe in enumerate(chosen):
        if count is not None and time.perf_counter() - started > seconds:
            break
        g = element_of(spec, probe, generator)
        g = Element(
            {name: permutation.to(comparison.device) for name, permutation in g.permutations.items()},
            {name: scale.to(comparison.device) for name, scale in g.scales.items()},
        )
        error = comparison.try_outside(g, _touched(spec, probe), rtol)
        tried += error is not None
        if error is not None and error <= rtol and not _redundant(spec, probe):
            unnoticed.append((probe, g, error))
        if progress is not None:
            progress(done + 1, len(chosen))
    for seed in (1, 2):
        if unnoticed and (again := other(seed)).finite:
            errors = [again.try_outside(g, _touched(spec, probe), rtol) or 0.0 for probe, g, _ in unnoticed]
            unnoticed = [
                (p, g, max(e, new)) for (p, g, e), new in zip(unnoticed, errors, strict=True) if new <= rtol
            ]
    if unnoticed and comparison.runner.random:
        # A weight that multiplies random numbers of mean zero has no effect while these are at their mean.
        drawn = comparison.drawn()
        unnoticed = [
            (p, g, e)
            for p, g, e in unnoticed
            if (drawn.try_outside(g, _touched(spec, p), rtol) or 0.0) <= rtol
        ]
    larger = tuple(Larger(p.group, spec.group(p.group).origin, p.what, error) for p, _, error in unnoticed)
    return tried, len(possible), larger


def _redundant(spec: SymmetrySpec, probe: Probe) -> bool:
    """Whether other groups allow the same rescaling: one scale for all units of a head is one of the head."""
    kinds = {"signs": ("sign", "free"), "positive scales": ("positive", "free")}.get(probe.what)
    if kinds is None:
        return False
    allowed = {group.name for group in spec.groups if group.kind in kinds}
    return rescalings(spec, {*allowed, probe.group}) == rescalings(spec, allowed)


def _touched(spec: SymmetrySpec, probe: Probe) -> list[str]:
    """Parameters and buffers with an axis that the probe's group, or one that it owns, moves or scales."""
    owned = {group.name for group in spec.groups if probe.group in spec.owners(group.name)}
    names = [
        block.param
        for block in spec.blocks
        for axis in block.axes
        if axis.group in owned or any(name == probe.group for name, _ in axis.also)
    ]
    return list(dict.fromkeys(names))
