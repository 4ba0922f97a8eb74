"""From weights, gradients and L1 strengths to features of about unit size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amortopt.metanets.scalegmn.layout import GraphBlock


def usual_size(block: GraphBlock, sizes: tuple[int, ...]) -> float:
    """Usual size of a block's values: 1 / sqrt(fan in) for weights, 1 for node features such as biases."""
    if len(block.ends) == 1:
        return 1.0
    return 1 / math.sqrt(sizes[block.into] * block.channels / block.view.diagonal)


def tame(x: Tensor, limit: float = 1024.0) -> Tensor:
    """Features of a block, scaled down in networks where they reach far beyond any that works.

    Squares of such features leave float32's range, and what is added to them rounds to nothing.
    """
    peak = x.abs().amax(tuple(range(1, x.ndim)), keepdim=True)
    # The limit is a power of two: no rounding where nothing is done. Divided first for finite gradients.
    return x / peak.clamp(min=limit) * limit


def unit_rms(x: Tensor) -> Tensor:
    """x / its RMS per network; zero stays zero."""
    axes = tuple(range(1, x.ndim))
    peak = x.abs().amax(axes, keepdim=True)
    safe = torch.where(peak > 0, peak, 1)
    x = x / safe
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + 1e-12)


def l1_features(l1: Tensor) -> Tensor:
    """[B] -> [B, 2]: position on a log scale around 1e-3, and whether there is any penalty."""
    positive = l1 > 0
    log = torch.log10(torch.where(positive, l1, 1)) + 3
    return torch.stack([torch.where(positive, log, 0), positive.to(l1)], -1)


class Blend(nn.Module):
    """Weights by which prototypes are blended, as a function of the L1 strength.

    One prototype is common to all strengths, one belongs to strength zero, and ``knots`` of them are spread
    evenly over the logarithm of the range. Between two knots both count, linearly; beyond the ends the last
    one does. Good weights for strengths that lie far apart have little in common, hence many knots.

    Args:
        low: Strength of the first knot.
        high: Strength of the last knot.
        knots: Their number.

    Raises:
        ValueError: Unless 0 < low <= high < infinity, and low < high if there are several knots.
    """

    def __init__(self, low: float, high: float, knots: int) -> None:
        super().__init__()
        if not 0 < low <= high < math.inf or (knots > 1 and low == high):
            raise ValueError(
                f"l1_range: got [{low}, {high}] for {knots} knots, expected [low, high] with 0 < low < high"
            )
        self.low, self.high, self.knots = low, high, knots

    @property
    def count(self) -> int:
        """Number of prototypes."""
        return self.knots + 2

    def forward(self, l1: Tensor) -> Tensor:
        """Strengths [B] >= 0 -> weights [B, knots + 2]."""
        positive = l1 > 0
        scale = max(1, self.knots - 1) / max(math.log(self.high / self.low), 1e-12)
        position = torch.log(torch.where(positive, l1, self.low) / self.low) * scale
        knots = torch.arange(self.knots, dtype=l1.dtype, device=l1.device)
        distance = (position.clamp(0, self.knots - 1)[:, None] - knots).abs()
        near = (1 - distance).clamp(min=0) * positive[:, None]
        common, none = torch.ones_like(near[:, :1]), (~positive).to(near)[:, None]
        return torch.cat([common, none, near], 1)
