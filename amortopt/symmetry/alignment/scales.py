"""The scaling in which every unit's incoming and outgoing weights are equally large."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry.action import Element, act_on_some, identity
from amortopt.symmetry.axes import Block
from amortopt.symmetry.blocks import read

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec

_SWEEPS = 1000
_TOLERANCE = 1e-12


def balancing(spec: SymmetrySpec, params: Params) -> Element:
    r"""The scales that make the sum of squares of all weights as small as it can be.

    Along an orbit of positive scales :math:`q = e^t` the sum of squares is convex in t, so the smallest point
    is one for the whole orbit: two networks that differ in scales only become equal. For a unit whose weights
    are read and written with exponents :math:`\pm 1` it is where both have the same norm; a group at a time
    is solved, :math:`t = \tfrac14 \log(\lVert w_{-}\rVert^2 / \lVert w_{+}\rVert^2)`, until nothing changes.

    Args:
        spec: Symmetry of the network.
        params: Its parameters, float64; not modified.

    Returns:
        An element without permutations and signs. Units that nothing reads, or nothing writes, keep their
        scale.
    """
    g, along = identity(spec), _blocks_along(spec)
    current = dict(params)
    for _ in range(_SWEEPS):
        largest = 0.0
        for name, blocks in along.items():
            grows, shrinks, exponent = _sides(spec, name, blocks, current)
            alive = (grows > 0) & (shrinks > 0)
            t = torch.where(alive, (shrinks / grows).log(), 0) / (4 * exponent)
            if any(len(_scales(block, name)) > 1 for block in blocks):
                t = t / 2  # a recurrent weight is scaled from both sides at once
            step = identity(spec)
            step.scales[name] = t.exp()
            touched = {block.param for block in blocks}
            current |= act_on_some(spec, step, {param: current[param] for param in touched})
            g.scales[name] = g.scales[name] * step.scales[name]
            largest = max(largest, float(t.abs().max()))
        if largest < _TOLERANCE:
            break
    return g


def of_layers(spec: SymmetrySpec, g: Element) -> Element:
    """One scale for all units of a group: the geometric mean of those that an element has, without signs."""
    means = identity(spec)
    for name, scales in g.scales.items():
        means.scales[name] = torch.full_like(scales, float(scales.abs().log().mean().exp()))
    return means


def canonical_scales(spec: SymmetrySpec, params: Params) -> Element:
    r"""As [balancing][amortopt.symmetry.alignment.scales.balancing], for networks with dead units too.

    A unit without incoming or without outgoing weights, or without a path to such, has no balanced scale: the
    sum of squares falls for ever along its orbit. The others are balanced as if it was not there. Then the
    weights that tie it to units with a scale are brought to norm one, unit after unit.

    Args:
        spec: Symmetry of the network.
        params: Its parameters, float64; not modified.

    Returns:
        An element without permutations and signs, which leads from every point of an orbit to the same one.
        Only units that no chain of weights ties to an input, output, bias or balanced unit keep their scale.
    """
    along = _blocks_along(spec)
    dead = {name: torch.zeros(spec.group(name).size, dtype=torch.bool) for name in along}
    while True:
        left = without_units(spec, params, dead)
        now = {}
        for name, blocks in along.items():
            grows, shrinks, _ = _sides(spec, name, blocks, left)
            now[name] = (grows == 0) | (shrinks == 0)
        if all(bool((now[name] == dead[name]).all()) for name in dead):
            break
        dead = now
    g = balancing(spec, left)
    while any(bool(units.any()) for units in dead.values()):
        progress = False
        for name, blocks in along.items():
            waiting = dead[name]
            # Weights to other units that wait do not count; those to all but this group's own do.
            others = {other: units for other, units in dead.items() if other != name}
            current = act_on_some(spec, g, without_units(spec, params, others))
            grows, shrinks, exponent = _sides(spec, name, blocks, current)
            both = (grows > 0) & (shrinks > 0)
            t = torch.where(both, (shrinks / grows).log() / (4 * exponent), 0)
            t = torch.where(~both & (grows > 0), -grows.log() / (2 * exponent), t)
            t = torch.where(~both & (shrinks > 0), shrinks.log() / (2 * exponent), t)
            settled = waiting & ((grows > 0) | (shrinks > 0))
            g.scales[name] = torch.where(settled, g.scales[name] * t.exp(), g.scales[name])
            dead[name] = waiting & ~settled
            progress = progress or bool(settled.any())
        if not progress:
            break
    return g


def without_units(spec: SymmetrySpec, params: Params, units: dict[str, Tensor]) -> Params:
    """Params with zeros where a weight is scaled by one of the marked units, group -> bool [n]."""
    mark, generator = identity(spec), torch.Generator().manual_seed(0)
    for name, marked in units.items():
        # Scales that differ, so that no two of them cancel
        scale = 2 + torch.rand(len(marked), generator=generator, dtype=torch.float64)
        mark.scales[name] = torch.where(marked, scale, 1)
    ones = {name: torch.ones_like(params[name]) for name in spec.params}
    moved = act_on_some(spec, mark, ones)
    return {name: torch.where(moved[name] == 1, params[name], 0) for name in spec.params}


def _blocks_along(spec: SymmetrySpec) -> dict[str, list[Block]]:
    """Groups with continuous scales -> the blocks of parameters that they scale; none if there are none."""
    scaled = [group.name for group in spec.groups if group.kind in ("positive", "free")]
    along = {name: [b for b in spec.blocks if not b.buffer and _scales(b, name)] for name in scaled}
    return {name: blocks for name, blocks in along.items() if blocks}


def _sides(spec: SymmetrySpec, name: str, blocks: list[Block], params: Params) -> tuple[Tensor, Tensor, int]:
    """Of a group's units: squares of weights that grow with the scale, of those that shrink, both times their
    exponents' size [n]; and the largest exponent."""
    # Exponent -> squares [n] of the weights that the unit's scale multiplies with that exponent
    squares: dict[int, Tensor] = {}
    for block in blocks:
        values = read(params[block.param], block, 0).square()
        for exponent, per_unit in _per_unit(spec, block, values, name):
            squares[exponent] = squares.get(exponent, 0) + per_unit
    zero = torch.zeros(spec.group(name).size, dtype=torch.float64)
    grows = sum((e * x for e, x in squares.items() if e > 0), zero)
    shrinks = sum((-e * x for e, x in squares.items() if e < 0), zero)
    return grows, shrinks, max(map(abs, squares))


def _scales(block: Block, name: str) -> list[tuple[int, int]]:
    """Positions of the block's axes that a group scales, with the exponent."""
    return [(p, e) for p, axis in enumerate(block.axes) for other, e in axis.scales if other == name and e]


def _per_unit(spec: SymmetrySpec, block: Block, values: Tensor, name: str) -> list[tuple[int, Tensor]]:
    """Sums of a block's values over all that one unit of a group scales: (exponent, [n])."""
    n, sums = spec.group(name).size, []
    for position, exponent in _scales(block, name):
        owner = spec.owner_axis(block, position)
        if owner is None:
            per_index = values.movedim(position, 0).reshape(values.shape[position], -1).sum(1)
        else:
            # [W a, r, ...] -> [W, a, r] -> [W r]: entry (w a, c) is scaled by unit c of run w
            within = spec.group(str(block.axes[position].group)).within
            owners = spec.group(str(within)).size
            pair = values.movedim((owner, position), (0, 1))
            pair = pair.reshape(*pair.shape[:2], -1).sum(2)
            per_index = pair.unflatten(0, (owners, -1)).sum(1).flatten()
        # The scale of an owner multiplies its whole run.
        sums.append((exponent, per_index.unflatten(0, (n, -1)).sum(1)))
    return sums
