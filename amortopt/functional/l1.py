"""The L1 strengths λ that a metanet was trained for, and the L1 norm of networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from amortopt._types import Params


@dataclass(frozen=True)
class L1Range:
    """Strengths λ of the objective L(θ) + λ‖θ‖₁ that were met in training.

    Attributes:
        low: Lowest positive strength.
        high: Highest strength.
        zero: Whether 0 was met too.

    Raises:
        ValueError: Unless 0 < low <= high < infinity.

    Example:
        >>> print(L1Range(1e-5, 1e-2))
        0 and 1e-05 to 0.01
        >>> L1Range(1e-5, 1e-2).points(3)
        [1e-05, 0.00032, 0.01]
    """

    low: float
    high: float
    zero: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(f"l1: got {self.low} to {self.high}, expected [low, high] with 0 < low <= high")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> L1Range:
        """Undo [to_config][amortopt.functional.l1.L1Range.to_config].

        Raises:
            ValueError: It is no such mapping.
        """
        try:
            return cls(float(config["low"]), float(config["high"]), bool(config["zero"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"l1_range: got {config!r}, expected low, high and zero") from error

    def to_config(self) -> dict[str, Any]:
        """JSON-able ``{"low": ..., "high": ..., "zero": ...}``."""
        return asdict(self)

    def outside(self, strengths: Tensor) -> Tensor:
        """Which of the strengths [n] were not met in training, as a mask [n]."""
        edge = 1e-6  # strengths are drawn in float32
        within = (strengths >= self.low * (1 - edge)) & (strengths <= self.high * (1 + edge))
        return ~(within | (strengths == 0)) if self.zero else ~within

    def points(self, count: int) -> list[float]:
        """At most so many strengths, evenly spread on a log scale: both ends, and rounded ones between."""
        steps = max(1, count - 1)
        spread = [self.low * (self.high / self.low) ** (i / steps) for i in range(1, steps)]
        between = [point for point in (float(f"{value:.2g}") for value in spread) if point > self.low]
        chosen = [self.low, *(point for point in between if point < self.high), self.high]
        return list(dict.fromkeys(chosen))

    def __str__(self) -> str:
        positive = f"{self.low:g} to {self.high:g}" if self.low < self.high else f"{self.low:g}"
        return f"0 and {positive}" if self.zero else positive


def l1_norm(params: Params) -> Tensor:
    """Sum of the absolute values of all params per network.

    Args:
        params: Tensors [B, ...].

    Returns:
        [B]; differentiable.
    """
    return torch.stack([p.abs().reshape(len(p), -1).sum(1) for p in params.values()]).sum(0)
