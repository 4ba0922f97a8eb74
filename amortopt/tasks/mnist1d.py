"""The MNIST-1D benchmark (Greydanus and Kobak 2020, arXiv 2011.14439), generated locally."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from amortopt.system.extras import needed_for
from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import CrossEntropy
from amortopt.tasks.problem import Problem, Which, check_which, hold_out, register_problem

_LENGTH = 40
_VAL = 500
# Inputs are rounded to multiples of this. NumPy's sums differ in their last bits between processors; a grid
# far above them and far below the noise in the data (2e-2) makes the data the same bits everywhere.
_GRID = 2.0**-16


@register_problem("mnist1d")
class Mnist1d(Problem):
    """Ten classes of one-dimensional digits, 40 samples long: 3,500 train, 500 val, 1,000 test.

    Made by the package ``mnist1d`` with its default arguments and the given seed; 500 of its 4,000 train
    examples are held out by a fixed permutation. Inputs are standardised by mean and standard deviation (two
    scalars) of the other 3,500.

    Args:
        seed: Seed of the generated data.
        channel_axis: Whether inputs are [1, 40] (for convolutions) instead of [40].
    """

    arguments = ("seed", "channel_axis")
    objective = CrossEntropy(10)

    def __init__(self, seed: int = 42, channel_axis: bool = False) -> None:
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"seed: got {seed!r}, expected an integer from 0 to 2**32 - 1")
        self.seed = seed
        self.channel_axis = channel_axis

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, _LENGTH) if self.channel_axis else (_LENGTH,)

    def split(self, which: Which) -> Examples:
        check_which(which)
        return _parts(self.seed, self.input_shape)[which]


@lru_cache(maxsize=16)
def _parts(seed: int, input_shape: tuple[int, ...]) -> dict[Which, Examples]:
    return {which: Examples(p.x.unflatten(1, input_shape), p.y) for which, p in _generate(seed).items()}


@lru_cache(maxsize=8)
def _generate(seed: int) -> dict[Which, Examples]:
    with needed_for("the problem mnist1d", extra="data"):
        from mnist1d.data import get_dataset_args, make_dataset

    args: Any = get_dataset_args()
    args.seed = seed
    # The package seeds Python's and NumPy's global generators; give them back as they were.
    states = random.getstate(), np.random.get_state()
    try:
        data = make_dataset(args)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    train, val = hold_out(len(data["y"]), _VAL, seed)
    mean, std = data["x"][train].mean(), data["x"][train].std()

    raw: dict[Which, tuple[np.ndarray, np.ndarray]] = {
        "train": (data["x"][train], data["y"][train]),
        "val": (data["x"][val], data["y"][val]),
        "test": (data["x_test"], data["y_test"]),
    }
    parts: dict[Which, Examples] = {}
    for which, (x, y) in raw.items():
        x = (np.round((x - mean) / std / _GRID) * _GRID).astype(np.float32)
        parts[which] = Examples(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))
    return parts
