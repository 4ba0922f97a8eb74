"""How large the weights of the networks are that a predictor was trained on, so that it notices others.

Legend: B networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry import SymmetrySpec, act
from amortopt.symmetry.alignment.scales import balancing

NETWORKS = 256
"""Networks that are measured, if there are as many."""
_FAR = 4.5
"""Standard deviations: of 20 sizes that are normal, one network in 7,000 has one farther out."""


def weight_sizes(spec: SymmetrySpec, params: Params) -> dict[str, Tensor]:
    """Root mean square of every parameter of B networks, name -> [B].

    Weights are compared in the scales in which incoming and outgoing weights of every unit have equal norms,
    so order, signs and scales of the units change nothing.
    """
    rows = []
    for b in range(len(next(iter(params.values())))):
        one = {name: p[b].detach().to("cpu", torch.float64) for name, p in params.items()}
        balanced = act(spec, balancing(spec, one), one)
        rows.append({name: balanced[name].square().mean().sqrt() for name in spec.params})
    return {name: torch.stack([row[name] for row in rows]) for name in spec.params}


def measure_sizes(spec: SymmetrySpec, params: Params) -> dict[str, dict[str, float]]:
    """Sizes between which other networks of the same origin lie.

    Args:
        spec: Symmetry of the family.
        params: Networks [B, ...]; the first 256 are measured.

    Returns:
        Parameter -> ``lowest`` and ``highest``: those met, moved away from the median as if sizes were
        normal, to 4.5 standard deviations.
    """
    met = weight_sizes(spec, {name: p[:NETWORKS] for name, p in params.items()})
    count = len(next(iter(met.values())))
    stretch = _FAR / NormalDist().inv_cdf(1 - 1 / max(count, 16))
    bounds = {}
    for name, sizes in met.items():
        low, mid, high = (float(value) for value in (sizes.min(), sizes.median(), sizes.max()))
        # Weights that no training moved are all alike but for rounding.
        room = 0.01 * mid
        bounds[name] = {
            "lowest": max(0.0, mid - stretch * (mid - low) - room),
            "highest": mid + stretch * (high - mid) + room,
        }
    return bounds


def unusual(
    spec: SymmetrySpec, params: Params, bounds: Mapping[str, Any]
) -> tuple[str, float, float, float] | None:
    """The parameter of one network that lies farthest outside of what was met.

    Args:
        spec: Symmetry of the family.
        params: Params of a network of the family's widths, without a batch axis.
        bounds: What ``measure_sizes`` returned.

    Returns:
        Its name, its size, the lowest and the highest size that are usual; None if all are usual.
    """
    met = {k: float(v) for k, v in weight_sizes(spec, {k: p[None] for k, p in params.items()}).items()}
    found = [
        (max(low / max(size, 1e-12), size / max(high, 1e-12)), name, size, low, high)
        for name, size in met.items()
        if name in bounds
        for low, high in [(float(bounds[name]["lowest"]), float(bounds[name]["highest"]))]
        if not low <= size <= high
    ]
    return max(found)[1:] if found else None
