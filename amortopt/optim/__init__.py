"""Learned optimizers: one forward pass over a network's weights, or step by step."""

from __future__ import annotations

from amortopt.optim.networks import OutOfFamilyWarning as OutOfFamilyWarning
from amortopt.optim.one_shot import ScaleGMNOptimizer as ScaleGMNOptimizer
from amortopt.optim.running import OutOfRangeWarning as OutOfRangeWarning
from amortopt.optim.stepwise import UNFOptimizer as UNFOptimizer

__all__ = ["OutOfFamilyWarning", "OutOfRangeWarning", "ScaleGMNOptimizer", "UNFOptimizer"]
