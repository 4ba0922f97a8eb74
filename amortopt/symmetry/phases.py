r"""Phases of sine units: half a period more in a bias flips the unit's sign, so it has many equal values.

For a unit :math:`\sin(\omega(w \cdot x + b))` the bias :math:`b + \pi/\omega` gives minus the unit, which
what reads the unit undoes with its own sign. Biases in :math:`(-\pi/2\omega, \pi/2\omega]` are all that
there is; the sign of the unit, which turns a bias into its negative, is left free, so the reduction commutes
with the symmetry of a spec.

Example, for ω = 1: the unit sin(x + 3) with outgoing weight 2 is sin(x + 3 - π) with outgoing weight -2.
"""

from __future__ import annotations

import math

import torch

from amortopt._types import Params
from amortopt.symmetry.spec import SymmetrySpec


def half_periods(spec: SymmetrySpec) -> dict[str, float]:
    """Biases that feed a sine, with the shift that flips the sign of their units: name -> π/ω.

    Looked for in chains alone: linear layers and convolutions with a bias, whose outputs go through a
    constant factor ω, or none, into a sine.
    """
    operations = spec.operations
    if any(key == "reads" for op in operations for key, _ in op.config):
        return {}
    found: dict[str, float] = {}
    for place, layer in enumerate(operations):
        if len(layer.params) != 2 or not layer.kind.startswith(("linear", "conv")):
            continue
        following, omega = list(operations[place + 1 : place + 3]), 1.0
        if following and following[0].kind == "mul":
            omega, following = _number(dict(following[0].config).get("other")), following[1:]
        blocks = spec.blocks_of(layer.params[1])
        if (
            omega
            and following
            and following[0].kind == "sin"
            and len(blocks) == 1
            and len(blocks[0].axes) == 1
        ):
            group = blocks[0].axes[0].group
            if group is not None and spec.group(group).kind == "sign":
                found[layer.params[1]] = math.pi / abs(omega)
    return found


def _number(text: str | None) -> float:
    """The constant of a multiplication; zero if it is no finite number."""
    try:
        value = float(text or 0)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def reduce_phases(spec: SymmetrySpec, params: Params) -> Params:
    """Bring the biases of sine units within a quarter of a period of zero, and flip what reads the units.

    Args:
        spec: Symmetry of the networks.
        params: Networks [B, ...]; not modified.

    Returns:
        Params of networks that compute the same: those that nothing changes are the same tensors.
    """
    reduced = dict(params)
    for bias, period in half_periods(spec).items():
        (block,) = spec.blocks_of(bias)
        group = block.axes[0].group
        turns = torch.round(reduced[bias] / period)  # [B, n]
        reduced[bias] = reduced[bias] - turns * period
        sign = 1 - 2 * turns.remainder(2)
        for other in spec.blocks:
            if other.slices or other.buffer:
                continue
            for place, axis in enumerate(other.axes):
                # What reads the units: weights with an odd negative exponent towards them.
                if axis.group == group and axis.exponent < 0 and axis.exponent % 2:
                    value = reduced[other.param]
                    shape = [len(value), *[1] * (value.ndim - 1)]
                    shape[1 + place] = -1
                    reduced[other.param] = value * sign.view(shape)
    return reduced
