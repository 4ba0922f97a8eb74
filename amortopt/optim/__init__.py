"""Learned optimizers: one forward pass over a network's weights, or step by step."""

from __future__ import annotations

from amortopt.optim.networks import OutOfFamilyWarning as OutOfFamilyWarning
from amortopt.optim.one_shot import ScaleGMNOptimizer as ScaleGMNOptimizer
from amortopt.optim.prune import Pruned as Pruned
from amortopt.optim.prune import prune as prune
from amortopt.optim.report import NetworkReport as NetworkReport
from amortopt.optim.report import Report as Report
from amortopt.optim.running import OutOfRangeWarning as OutOfRangeWarning
from amortopt.optim.stepwise import UNFOptimizer as UNFOptimizer

__all__ = [
    "NetworkReport",
    "OutOfFamilyWarning",
    "OutOfRangeWarning",
    "Pruned",
    "Report",
    "ScaleGMNOptimizer",
    "UNFOptimizer",
    "prune",
]
