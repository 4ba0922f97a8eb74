"""An invariant universal neural functional for networks with one group of hidden units (arXiv 2402.05232).

Axes that no symmetry moves (characters of the input, digits of the output) become channels, which loses
nothing. Then all blocks with the same axes are one tensor with more channels, and three are left: features
per network, per unit and per pair of units. Legend: B networks, H units, c channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.metanets.unf.layer import FixedUNFLayer
from amortopt.symmetry import SymmetrySpec

KINDS = ((), (1,), (1, 1))
"""Group of every axis, of the features per network, per unit and per pair of units."""


class UNF(nn.Module):
    """The package's equivariant layers, invariant pooling, MLP.

    Args:
        spec: Symmetry with a single permutable group, which no block has more than twice.
        width: Channels per network, unit and pair of units.
        layers: Equivariant layers.

    Raises:
        ValueError: The spec has another number of permutable groups.
    """

    def __init__(self, spec: SymmetrySpec, width: int, layers: int = 3) -> None:
        super().__init__()
        groups = [group for group in spec.groups if group.permutable]
        if len(groups) != 1:
            raise ValueError(f"spec: got {len(groups)} permutable groups, expected 1, of one layer")
        self.axes = {
            block.label: tuple(k for k, axis in enumerate(block.axes) if axis.group == groups[0].name)
            for block in spec.blocks
        }
        counts = [0, 0, 0]
        for block in spec.blocks:
            rank = len(self.axes[block.label])
            counts[rank] += torch.Size(block.shape).numel() // groups[0].size ** rank
        self.inputs = nn.ModuleList([nn.Linear(count, width) for count in counts])
        self.layers = nn.ModuleList([FixedUNFLayer(KINDS, width, width) for _ in range(layers)])
        self.head = nn.Sequential(nn.Linear(6 * width, 128), nn.SiLU(), nn.Linear(128, 1))

    def forward(self, params: dict[str, Tensor]) -> Tensor:
        """Block -> [B, *shape] to logits [B]."""
        xs = [linear(x) for linear, x in zip(self.inputs, self.fold(params), strict=True)]
        for layer in self.layers:
            xs = layer([F.silu(x) for x in xs])
        return self.head(torch.cat([pool(F.silu(x)) for x in xs], dim=-1)).squeeze(-1)

    def fold(self, params: dict[str, Tensor]) -> list[Tensor]:
        """Axes along units in front, all others in the channels: [B, c], [B, H, c] and [B, H, H, c]."""
        folded: tuple[list[Tensor], ...] = ([], [], [])
        for label, value in params.items():
            axes = self.axes[label]
            ahead = value.movedim([a + 1 for a in axes], list(range(1, len(axes) + 1)))
            folded[len(axes)].append(ahead.reshape(*ahead.shape[: len(axes) + 1], -1))
        return [torch.cat(values, dim=-1) for values in folded]


def pool(x: Tensor) -> Tensor:
    """Invariants of the order of units: c numbers of [B, c], 3 c of [B, H, c], 2 c of [B, H, H, c]."""
    if x.ndim == 4:
        return torch.cat([x.mean((1, 2)), x.diagonal(dim1=1, dim2=2).mean(2)], dim=-1)
    return x if x.ndim == 2 else torch.cat([x.mean(1), x.amax(1), x.std(1, unbiased=False)], dim=-1)
