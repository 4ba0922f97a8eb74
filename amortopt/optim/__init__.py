"""Learned optimizers: one forward pass over a network's weights, or step by step."""

from __future__ import annotations

from amortopt.optim.checks import OutOfRangeWarning as OutOfRangeWarning
from amortopt.optim.one_shot import ScaleGMNOptimizer as ScaleGMNOptimizer
from amortopt.optim.stepwise import UNFOptimizer as UNFOptimizer
from amortopt.optim.structure import OutOfFamilyWarning as OutOfFamilyWarning

__all__ = ["OutOfFamilyWarning", "OutOfRangeWarning", "ScaleGMNOptimizer", "UNFOptimizer"]
