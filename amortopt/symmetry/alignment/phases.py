r"""Phases of sines: a bias may be shifted by half a period if what reads the unit is negated.

.. math:: \sin\big(c\,(w x + b)\big) = -\sin\big(c\,(w x + b + \pi / c)\big)

A spec has no shifts, only scales; this is where they are found.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry.axes import Axis
from amortopt.symmetry.blocks import BlockView

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


def reduce_phases(spec: SymmetrySpec, params: Params) -> Params:
    """The same functions with all biases of phases within a quarter of a period of 0.

    It commutes with the symmetry of the spec: a unit's sign turns its bias into the negative one.

    Args:
        spec: Symmetry of the networks.
        params: Networks [B, ...], which may be wider than those of the spec; not modified.

    Returns:
        All of ``params``; what no phase changes are the same tensors.
    """
    reduced = dict(params)
    for group, (bias, half) in phases(spec).items():
        turns = torch.round(reduced[bias] / half)  # [B, n]
        reduced[bias] = reduced[bias] - turns * half
        sign = 1 - 2 * turns.remainder(2)
        for name in {block.param: None for block in spec.blocks if not block.buffer}:
            reduced[name] = _negated(spec, name, reduced[name], group, sign)
    return reduced


def without_phases(spec: SymmetrySpec, params: Params) -> Params:
    """As `reduce_phases`, for the parameters of one network, without network axis."""
    reduced = reduce_phases(spec, {name: params[name][None] for name in spec.params})
    return params | {name: p[0] for name, p in reduced.items()}


def _negated(spec: SymmetrySpec, name: str, value: Tensor, group: str, sign: Tensor) -> Tensor:
    """A parameter [B, ...] with what reads units of a group multiplied by their signs [B, n].

    These are weights with an odd negative exponent towards the units. Not `act`: it takes networks of the
    spec's widths alone, and it would move the biases too.
    """
    written = None
    for block in spec.blocks_of(name):
        if not any(_reads(axis, group) for axis in block.axes):
            continue
        view = BlockView.of(spec, block)
        x = view.read(value)  # [B, *sizes]
        for place, axis in enumerate(view.axes):
            if _reads(axis, group):
                shape = [len(x), *[1] * (x.ndim - 1)]
                shape[1 + place] = x.shape[1 + place]
                # A unit is read in all units of its run.
                x = x * sign.repeat_interleave(shape[1 + place] // sign.shape[1], 1).view(shape).to(x)
        written = view.write(x, value, written)
    return value if written is None else written


def _reads(axis: Axis, group: str) -> bool:
    return any(name == group and exponent < 0 and exponent % 2 for name, exponent in axis.scales)
