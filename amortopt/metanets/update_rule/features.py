"""What an update rule reads: running averages of the gradient, normalised per tensor, and the time.

Legend: B networks, N elements, M running averages, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from amortopt.metanets.update_rule.layout import UpdateLayout

RuleState: TypeAlias = dict[str, Tensor]
"""``step`` [*batch], ``momenta`` [*batch, M, N], ``second`` [*batch, S, N]; float32."""

MOMENTA = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
SECOND = (0.99, 0.999)
TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
BOUND = 8.0
"""Largest absolute value of a normalised feature, and of the gate's logarithm."""
TINY = 1e-16
"""Added to mean squares before roots and logarithms are taken."""


def time_features(step: Tensor) -> Tensor:
    r""":math:`\tanh(t / \tau - 1)` for eleven time scales.

    Args:
        step: Steps taken so far, [B].

    Returns:
        [B, 11].
    """
    scales = step.new_tensor(TIMESCALES)
    return torch.tanh(step.unsqueeze(-1) / scales - 1)


def running(average: Tensor, value: Tensor, decays: Tensor, inplace: bool) -> Tensor:
    """Exponential running averages: decay * average + (1 - decay) * value.

    Args:
        average: [B, M, N].
        value: [B, N].
        decays: [M].
        inplace: Whether to overwrite ``average``.
    """
    weight = (1 - decays).unsqueeze(-1)
    value = value.unsqueeze(-2).expand_as(average)
    return average.lerp_(value, weight) if inplace else average.lerp(value, weight)


def mean_square(part: Tensor) -> Tensor:
    """Mean square per block: [B, L, *shape, F] -> [B, L, F]."""
    return part.square().flatten(2, -2).mean(2)


def normalised(layout: UpdateLayout, parts: list[Tensor], bound: float) -> tuple[list[Tensor], Tensor]:
    """Divide every block by its root mean square, then clip.

    Args:
        layout: Of the base network.
        parts: By bucket, [B, L, *shape, F].
        bound: Largest absolute value of what comes out.

    Returns:
        By bucket, [B, L, *shape, F]; and the logarithms of the root mean squares [B, blocks, F].
    """
    squares = torch.cat([mean_square(part) for part in parts], dim=1) + TINY
    factors = layout.split_blocks(squares.rsqrt())
    scaled = [(part * factor).clamp(-bound, bound) for part, factor in zip(parts, factors, strict=True)]
    return scaled, 0.5 * squares.log()


def block_means(layout: UpdateLayout, x: Tensor) -> Tensor:
    """Mean of every block, at all its elements: [B, S, N] -> [B, S, N]."""
    sizes = [bucket.elements[1] - bucket.elements[0] for bucket in layout.buckets]
    means = []
    for bucket, part in zip(layout.buckets, x.split(sizes, dim=-1), strict=True):
        blocks = part.unflatten(-1, (bucket.count, -1))
        means.append(blocks.mean(-1, keepdim=True).expand_as(blocks).flatten(-2))
    return torch.cat(means, dim=-1)


def damped_product(x: Tensor, factor: Tensor, damped: Tensor) -> Tensor:
    """``x * factor``, whose derivative by x is ``damped`` instead; none by the factors."""
    soft = x * damped
    return soft + (x * factor - soft).detach()


def stacked(features: Sequence[Tensor]) -> Tensor:
    """[B, N] tensors as channels: [B, N, F]."""
    return torch.stack(list(features), dim=-1)
