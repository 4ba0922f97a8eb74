"""From weights, gradients and L1 strengths to features of about unit size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amortopt.graph import EdgeBlock


def usual_size(block: EdgeBlock, sizes: tuple[int, ...]) -> float:
    """Usual size of a weight, 1 / sqrt(fan in)."""
    return 1 / math.sqrt(sizes[block.into] * block.channels)


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
    there = l1 > 0
    log = torch.log10(torch.where(there, l1, 1)) + 3
    return torch.stack([torch.where(there, log, 0), there.to(l1)], -1)
