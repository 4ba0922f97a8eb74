"""What an update rule reads: running averages of the gradient, normalised per block, and the time.

Legend: B networks, N elements, M momenta, S second moments, L blocks of a bucket, F features.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from amortopt.metanets.update_rule.layout import UpdateLayout

RuleState: TypeAlias = dict[str, Tensor]
"""``step`` [*batch], ``momenta`` [*batch, M, N], ``second`` [*batch, S, N]; float32."""

MOMENTA = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
"""Decays of the momenta that are features (Zhou et al. 2024, sec. 4.3); the direction's comes before them."""
SECOND = (0.99, 0.999)
"""Decays of the second moments."""
TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""Of the time features tanh(t / scale - 1), in steps."""
BOUND = 8.0
"""Largest absolute value of a normalised feature, and of the gate's logarithm."""
TINY = 1e-16
"""Added to mean squares before roots and logarithms are taken."""


def time_features(step: Tensor) -> Tensor:
    r""":math:`\tanh(t / \tau - 1)` for eleven time scales: steps taken so far [B] -> [B, 11]."""
    return torch.tanh(step.unsqueeze(-1) / step.new_tensor(TIMESCALES) - 1)


def running_average(average: Tensor, value: Tensor, decays: Tensor, inplace: bool) -> Tensor:
    """decay * average + (1 - decay) * value: [B, M, N], [B, N] and decays [M] -> [B, M, N]."""
    weight = (1 - decays).unsqueeze(-1)
    value = value.unsqueeze(-2).expand_as(average)
    return average.lerp_(value, weight) if inplace else average.lerp(value, weight)


def mean_squares(parts: list[Tensor]) -> Tensor:
    """Mean square of every block: by bucket [B, L, *shape, F] -> [B, blocks, F]."""
    return torch.cat([part.square().flatten(2, -2).mean(2) for part in parts], dim=1)


def normalised(layout: UpdateLayout, parts: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Divide every block by its root mean square, then clip to ``BOUND``: by bucket [B, L, *shape, F].

    Also returns the mean squares, [B, blocks, F].
    """
    squares = mean_squares(parts)
    factors = layout.split_blocks((squares + TINY).rsqrt())
    return [(x * q).clamp(-BOUND, BOUND) for x, q in zip(parts, factors, strict=True)], squares


def block_means(layout: UpdateLayout, x: Tensor) -> Tensor:
    """Mean of every block, at all its elements: [B, S, N] -> [B, S, N]."""
    sizes = [bucket.elements[1] - bucket.elements[0] for bucket in layout.buckets]
    means = []
    for bucket, part in zip(layout.buckets, x.split(sizes, dim=-1), strict=True):
        blocks = part.unflatten(-1, (bucket.count, -1))
        means.append(blocks.mean(-1, keepdim=True).expand_as(blocks).flatten(-2))
    return torch.cat(means, dim=-1)
