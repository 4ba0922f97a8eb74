"""UNF as a functional: numbers from weights that do not change when neurons are permuted (Zhou et al. 2024).

Legend: B networks, n units, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Functional, register
from amortopt.metanets.unf.layer import FixedUNFLayer
from amortopt.metanets.unf.tensors import FoldedTensors
from amortopt.symmetry import SymmetrySpec
from amortopt.system.numbers import check_counts


@register("unf_functional")
class UNFFunctional(Functional):
    """Permutation-equivariant linear layers between folded weights, and invariant pooling.

    Axes that no symmetry moves (inputs, outputs, kernel positions) become channels, which loses nothing and
    gives each of their positions its own weights. Then all blocks along the same groups are one tensor with
    more channels: one per group, one per pair of groups that weights lie between. Layers of
    [FixedUNFLayer][amortopt.metanets.FixedUNFLayer] follow, then means, largest values and deviations over
    units, and means and mean diagonals over pairs, for an MLP.

    Scalings are no symmetry of it: bring networks into a canonical scaling first, or use
    [ScaleGMNFunctional][amortopt.metanets.ScaleGMNFunctional].

    Args:
        spec: Symmetry of the family.
        head: What the numbers mean, see [Functional][amortopt.metanets.Functional].
        width: Channels C of every tensor.
        layers: Number of UNF layers.
        hidden: Units of the MLP's hidden layer.
        dropout: Share of the invariants that training drops.

    Attributes:
        scale: Root mean square of every block, by which it is divided; one until ``standardize``.

    Raises:
        ValueError: An argument is out of range.
    """

    scale: Tensor

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        head: Mapping[str, Any],
        width: int = 16,
        layers: int = 3,
        hidden: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, head=head, width=width, layers=layers, hidden=hidden, dropout=dropout)
        check_counts(width=width, layers=layers, hidden=hidden)
        self.tensors = FoldedTensors(spec)
        specs = self.tensors.specs
        self.inputs = nn.ModuleList(nn.Linear(count, width) for count in self.tensors.channels)
        self.layers = nn.ModuleList(
            FixedUNFLayer(specs, width, width, runs=self.tensors.runs) for _ in range(layers)
        )
        invariants = sum(_pooled(each) for each in specs) * width
        self.trunk = nn.Sequential(nn.Dropout(dropout), nn.Linear(invariants, hidden), nn.SiLU())
        self.of_units = None if self.head.units is None else self.tensors.along(spec, self.head.units)
        per_unit = 0 if self.of_units is None else width
        self.last = nn.Linear(hidden + per_unit, self.head.raw)
        self.register_buffer("scale", torch.ones(len(self.tensors.blocks)))

    @torch.no_grad()
    def standardize(self, params: Params) -> None:
        for number, value in enumerate(self.tensors.read_blocks(params)):
            size = value.square().mean().sqrt()
            self.scale[number] = torch.where(size > 0, size, 1.0)

    def raw(self, networks: Sequence[Params]) -> list[Tensor]:
        return [self._raw(params) for params in networks]

    def _raw(self, params: Params) -> Tensor:
        blocks = self.tensors.read_blocks(params)
        scales = self.scale.to(blocks[0].dtype)
        folded = self.tensors.fold([x / s for x, s in zip(blocks, scales, strict=True)])
        xs = [linear(x) for linear, x in zip(self.inputs, folded, strict=True)]
        for layer in self.layers:
            xs = layer([F.silu(x) for x in xs])
        pooled = [_pool(F.silu(x), spec) for x, spec in zip(xs, self.tensors.specs, strict=True)]
        hidden = self.trunk(torch.cat(pooled, dim=-1))
        if self.of_units is None:
            return self.last(hidden)
        units = F.silu(xs[self.of_units])  # [B, n, C]
        return self.last(torch.cat([hidden[:, None].expand(-1, units.shape[1], -1), units], -1))


def _pooled(spec: tuple[int, ...]) -> int:
    """How many invariants `_pool` gives per channel."""
    return {0: 1, 1: 3}.get(len(spec), 1 + (len(spec) == 2 and spec[0] == spec[1]))


def _pool(x: Tensor, spec: tuple[int, ...]) -> Tensor:
    """Invariants of the order of units, of [B, *units, C]."""
    if len(spec) == 0:
        return x
    if len(spec) == 1:
        return torch.cat([x.mean(1), x.amax(1), x.std(1, unbiased=False)], dim=-1)
    means = x.flatten(1, -2).mean(1)
    if len(spec) == 2 and spec[0] == spec[1]:
        return torch.cat([means, x.diagonal(dim1=1, dim2=2).mean(2)], dim=-1)
    return means
