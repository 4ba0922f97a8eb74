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
    g = identity(spec)
    scaled = [group.name for group in spec.groups if group.kind in ("positive", "free")]
    along = {name: [b for b in spec.blocks if not b.buffer and _scales(b, name)] for name in scaled}
    current = dict(params)
    for _ in range(_SWEEPS):
        largest = 0.0
        for name in scaled:
            # Exponent -> squares [n] of the weights that the unit's scale multiplies with that exponent
            squares: dict[int, Tensor] = {}
            for block in along[name]:
                values = read(current[block.param], block, 0).square()
                for exponent, per_unit in _per_unit(spec, block, values, name):
                    squares[exponent] = squares.get(exponent, 0) + per_unit
            if not squares:
                continue
            zero = torch.zeros(spec.group(name).size, dtype=torch.float64)
            grows = sum((e * x for e, x in squares.items() if e > 0), zero)
            shrinks = sum((-e * x for e, x in squares.items() if e < 0), zero)
            alive = (grows > 0) & (shrinks > 0)
            t = torch.where(alive, (shrinks / grows).log(), zero) / (4 * max(map(abs, squares)))
            if any(len(_scales(block, name)) > 1 for block in along[name]):
                t = t / 2  # a recurrent weight is scaled from both sides at once
            step = identity(spec)
            step.scales[name] = t.exp()
            touched = {block.param for block in along[name]}
            current |= act_on_some(spec, step, {param: current[param] for param in touched})
            g.scales[name] = g.scales[name] * step.scales[name]
            largest = max(largest, float(t.abs().max()))
        if largest < _TOLERANCE:
            break
    return g


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
