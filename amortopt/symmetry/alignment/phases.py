r"""Phases of sines: a bias may be shifted by half a period if what reads the unit is negated.

.. math:: \sin\big(c\,(w x + b)\big) = -\sin\big(c\,(w x + b + \pi / c)\big)

A spec has no shifts, only scales; this is where they are found.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from amortopt._types import Params
from amortopt.symmetry.action import act_on_some, identity

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec

_LAYERS = ("linear", "addmm", "conv1d", "conv2d", "conv3d")


def phases(spec: SymmetrySpec) -> dict[str, tuple[str, float]]:
    """Groups whose biases have a phase: group -> (name of the bias, half a period).

    They are recognised in chains, networks without branches, where a sine directly follows a linear or
    convolutional layer with a bias, or a constant factor behind one; in other networks none are.
    """
    operations, found = spec.operations, {}
    read = [name for operation in operations for name in operation.params]
    if len(set(read)) != len(read) or any(dict(op.config).get("reads") for op in operations):
        return {}
    for before, operation in enumerate(operations):
        if operation.kind != "sin" or operation.params:
            continue
        factor, layer = 1.0, before - 1
        if layer >= 0 and operations[layer].kind == "mul" and not operations[layer].params:
            try:
                factor = float(dict(operations[layer].config).get("other", ""))
            except ValueError:  # a tensor of constants
                continue
            layer -= 1
        if layer < 0 or operations[layer].kind not in _LAYERS or not factor:
            continue
        for bias in operations[layer].params:
            blocks = spec.blocks_of(bias)
            axis = blocks[0].axes[0]
            if (
                len(blocks) == 1 == len(blocks[0].axes)
                and axis.group
                and spec.group(axis.group).kind == "sign"
            ):
                found[axis.group] = (bias, math.pi / abs(factor))
    return found


def without_phases(spec: SymmetrySpec, params: Params) -> Params:
    """The same function with all biases of phases within a quarter of a period of 0.

    Args:
        spec: Symmetry of the network.
        params: Its parameters, without network axis; not modified.
    """
    params = dict(params)
    for group, (bias, half) in phases(spec).items():
        turns = (params[bias] / half).round()
        flip = identity(spec)
        flip.scales[group] = torch.where(turns.remainder(2) == 1, -1.0, 1.0).double()
        flipped = act_on_some(spec, flip, {name: params[name] for name in spec.params})
        writes = {b.param for b in spec.blocks if any(a.group == group and a.exponent > 0 for a in b.axes)}
        params |= {name: p for name, p in flipped.items() if name not in writes}
        params[bias] = params[bias] - turns * half
    return params


def reduce_phases(spec: SymmetrySpec, params: Params) -> Params:
    """As `without_phases`, for many networks at once; what nothing changes are the same tensors.

    It commutes with the symmetry of the spec: a unit's sign turns its bias into the negative one.

    Args:
        spec: Symmetry of the networks.
        params: Networks [B, ...]; not modified.
    """
    reduced = dict(params)
    for group, (bias, half) in phases(spec).items():
        turns = torch.round(reduced[bias] / half)  # [B, n]
        reduced[bias] = reduced[bias] - turns * half
        sign = 1 - 2 * turns.remainder(2)
        for block in spec.blocks:
            for place, axis in enumerate(block.axes):
                # What reads the units: weights with an odd negative exponent towards them.
                if axis.group == group and axis.exponent < 0 and axis.exponent % 2:
                    value = reduced[block.param]
                    shape = [len(value), *[1] * (value.ndim - 1)]
                    shape[1 + place] = -1
                    reduced[block.param] = value * sign.view(shape)
    return reduced
