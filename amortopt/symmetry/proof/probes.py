"""Elements one step outside a spec: what it does not allow, but might."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amortopt.symmetry.action import Element, identity
from amortopt.symmetry.axes import NeuronGroup, ScaleKind
from amortopt.symmetry.gauge import rescalings
from amortopt.symmetry.proof.comparison import Comparison

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec

_ENDS = {"input", "output"}
_FAR = 1e4
_WIDER: dict[ScaleKind, tuple[str, ...]] = {
    "none": ("signs", "positive scales"),
    "sign": ("positive scales",),
    "positive": ("signs",),
    "free": (),
}


@dataclass(frozen=True)
class Larger:
    """Something outside a spec that leaves the function as it is, so that the spec could be larger.

    Attributes:
        group: Name of the group.
        origin: Where it comes from.
        what: What its units may do beyond the spec.
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
    """One thing to try on one group.

    Attributes:
        group: Name of the group.
        what: What its units get, for a person: "signs", "permutation across h3", ...
    """

    group: str
    what: str


def candidates(spec: SymmetrySpec) -> list[Probe]:
    """All that is one step outside a spec, except on inputs and outputs, where the function is at stake."""
    return [
        Probe(group.name, what)
        for group in spec.groups
        if not _ENDS & {*group.origin.split(", ")}
        for what in _untried(spec, group)
    ]


def _untried(spec: SymmetrySpec, group: NeuronGroup) -> Iterator[str]:
    run = spec.run(group.name)
    if any(name == group.name for block in spec.blocks for axis in block.axes for name, _ in axis.scales):
        yield from _WIDER[group.kind]
    if group.size == 1 or not any(group.name in block.groups for block in spec.blocks):
        return
    if group.within is None and not group.permutable:
        yield "permutation"
    if group.within is not None and not group.permutable and run > 1:
        yield f"permutation inside {group.within}"
    if group.within is not None and run < group.size and not _runs(spec, group.name):
        yield f"permutation across {group.within}"


def _runs(spec: SymmetrySpec, name: str) -> bool:
    """Whether a block has an axis along single runs of the group, or of what it owns, which ties them."""
    return any(
        axis.group is not None and name in spec.owners(axis.group) and spec.owner_axis(block, i) is not None
        for block in spec.blocks
        for i, axis in enumerate(block.axes)
    )


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
    """A random element that moves the probe's group, and what it owns, and nothing else."""
    g, group = identity(spec), spec.group(probe.group)
    if probe.what == "signs":
        signs = 2.0 * torch.randint(2, (group.size,), generator=generator) - 1
        signs[0] = -1
        signs[1:2] = 1  # all alike would be less than was asked for
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
            inside = torch.stack([_moving(run, generator) for _ in range(group.size // run)])
            permutation = (torch.arange(0, group.size, run)[:, None] + inside).flatten()
        g.permutations[group.name] = permutation
        for other in spec.groups:
            if other.name != group.name and group.name in spec.owners(other.name):
                assert other.within is not None
                of_run, size = g.permutations[other.within], spec.run(other.name)
                g.permutations[other.name] = (of_run[:, None] * size + torch.arange(size)).flatten()
    return g


def _moving(n: int, generator: torch.Generator) -> Tensor:
    """A random permutation that is not the identity, of at least two units."""
    permutation = torch.randperm(n, generator=generator)
    return permutation.roll(1) if torch.equal(permutation, torch.arange(n)) else permutation


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
    """Try what is one step outside a spec.

    Args:
        spec: A symmetry of the network.
        comparison: The network.
        other: The same at other weights and inputs, by seed: what changes nothing at one point, where a
            unit may be dead, has to change nothing at others.
        count: At most how many probes; None for all, however long it takes.
        seconds: After how long no further one is started.
        generator: Source of their choice and of their elements.
        rtol: Difference up to which the function counts as the same.
        progress: Called with probes done and to do.

    Returns:
        How many were tried, how many there are, and those that change nothing.
    """
    possible = candidates(spec)
    chosen = spread(possible, count, generator)
    tried = 0
    unnoticed: list[tuple[Probe, Element, float]] = []
    started = time.perf_counter()
    for done, probe in enumerate(chosen):
        if count is not None and time.perf_counter() - started > seconds:
            break
        g = _to(element_of(spec, probe, generator), comparison.device)
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
        # At their means random numbers hide what they make of the weights.
        drawn = comparison.drawn()
        unnoticed = [
            (p, g, e)
            for p, g, e in unnoticed
            if (drawn.try_outside(g, _touched(spec, p), rtol) or 0.0) <= rtol
        ]
    found = tuple(Larger(p.group, spec.group(p.group).origin, p.what, error) for p, _, error in unnoticed)
    return tried, len(possible), found


def _redundant(spec: SymmetrySpec, probe: Probe) -> bool:
    """Whether other groups allow the same, as one scale for all units of a head is a scale of the head."""
    kinds = {"signs": ("sign", "free"), "positive scales": ("positive", "free")}.get(probe.what)
    if kinds is None:
        return False
    allowed = {group.name for group in spec.groups if group.kind in kinds}
    return rescalings(spec, {*allowed, probe.group}) == rescalings(spec, allowed)


def _touched(spec: SymmetrySpec, probe: Probe) -> list[str]:
    """Parameters and buffers with an axis that the probe's group, or what it owns, moves or scales."""
    owned = {group.name for group in spec.groups if probe.group in spec.owners(group.name)}
    names = [
        block.param
        for block in spec.blocks
        for axis in block.axes
        if axis.group in owned or any(name == probe.group for name, _ in axis.also)
    ]
    return list(dict.fromkeys(names))


def _to(g: Element, device: torch.device) -> Element:
    return Element(
        {name: permutation.to(device) for name, permutation in g.permutations.items()},
        {name: scale.to(device) for name, scale in g.scales.items()},
    )
