"""Universal neural functionals: metanets of permutation-equivariant linear layers (Zhou et al. 2024).

Legend: B networks, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Metanet, register
from amortopt.metanets.conditions import Conditions
from amortopt.metanets.unf.layer import FixedUNFLayer
from amortopt.metanets.unf.tensors import WeightTensors
from amortopt.symmetry import SymmetrySpec

_NONE = Conditions()


class UNFBody(nn.Module):
    """Weights through UNF layers with ReLUs between them.

    Args:
        tensors: How params become tensors.
        in_channels: C of what it reads.
        width: C of the hidden layers.
        out_channels: C of what it returns.
        depth: Number of layers, at least 1.

    Raises:
        ValueError: ``depth`` or ``width`` below 1.
    """

    def __init__(
        self, tensors: WeightTensors, *, in_channels: int, width: int, out_channels: int, depth: int
    ) -> None:
        super().__init__()
        if depth < 1 or width < 1:
            raise ValueError(f"depth, width: got {depth} and {width}, expected at least 1")
        channels = [in_channels, *[width] * (depth - 1), out_channels]
        self.layers = nn.ModuleList(
            FixedUNFLayer(tensors.specs, before, after, runs=tensors.runs)
            for before, after in pairwise(channels)
        )

    def forward(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Per tensor [B, *shape, in_channels] -> [B, *shape, out_channels]."""
        ys = list(xs)
        for number, layer in enumerate(self.layers):
            ys = layer(ys if number == 0 else [F.relu(y) for y in ys])
        return ys


@register("unf")
class UNF(Metanet):
    r"""Weights to weights by UNF layers: :math:`\theta' = \theta + s\,\Delta(\theta, \nabla, \lambda)`.

    Equivariant to permutations of neurons, not to scalings. The strength s per block is zero at first: the
    identity.

    Args:
        spec: Symmetry of the family.
        width: Channels of the hidden layers.
        depth: Number of UNF layers.
        conditions: What it reads beside the weights, of ``"batch"`` and ``"l1"``.

    Raises:
        ValueError: An unknown condition, or ``depth`` or ``width`` below 1.
    """

    def __init__(
        self, spec: SymmetrySpec, *, width: int = 16, depth: int = 3, conditions: Sequence[str] = ()
    ) -> None:
        super().__init__(spec, width=width, depth=depth, conditions=list(conditions))
        self.tensors = WeightTensors(spec)
        self.body = UNFBody(
            self.tensors, in_channels=1 + len(self.conditions), width=width, out_channels=1, depth=depth
        )
        self.strength = nn.Parameter(torch.zeros(len(self.tensors.specs)))

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        return {}

    def forward(self, params: Params, conditions: Conditions = _NONE) -> Params:
        conditions.check(self.conditions, len(next(iter(params.values()))))
        grads, l1 = conditions.gradient_at(params), conditions.l1
        read = self.tensors.read(params) if grads is None else self.tensors.read(params, grads)
        xs = read
        if l1 is not None:
            # From 1e-8 to 1, about the range in use, is from -1 to 0.
            level = torch.log10(l1.clamp_min(1e-8)) / 8
            levels = [level.to(x.dtype).view(-1, *[1] * (x.ndim - 1)).expand(*x.shape[:-1], 1) for x in xs]
            xs = [torch.cat([x, one], dim=-1) for x, one in zip(xs, levels, strict=True)]
        updates = self.body(xs)
        changed = [x[..., 0] + s * u[..., 0] for x, s, u in zip(read, self.strength, updates, strict=True)]
        return self.tensors.write(changed, params)
