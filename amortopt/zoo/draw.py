"""The draws of a zoo: hyper-parameters per network.

Everything is a function of the zoo's seed and the network's index, never of a generator that is handed on.
So no result depends on which process builds what, and the first n networks of a recipe are the same whatever
its count is.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from amortopt.zoo.config import ZooConfig

Table: TypeAlias = dict[str, np.ndarray]  # column name -> [n]
SplitName: TypeAlias = Literal["train", "val", "test"]

_NETWORK, _OFFSET = 0, 3  # independent random streams of one zoo seed; 1 and 2 are the training's
_GOLDEN = (5**0.5 - 1) / 2


def draw_table(config: ZooConfig, start: int = 0, stop: int | None = None) -> Table:
    """Hyper-parameters of the networks with index in ``[start, stop)``.

    Args:
        config: Recipe of the zoo.
        start: First index.
        stop: One past the last index; by default the recipe's count.

    Returns:
        Columns index, seed, learning_rate, init_scale, epochs and split, each of shape [stop - start].
    """
    index = np.arange(start, config.count if stop is None else stop)
    choices = np.array(config.epoch_choices())
    seeds, uniforms = [], []
    for i in index:
        rng = np.random.default_rng([config.seed, _NETWORK, int(i)])
        seeds.append(rng.integers(2**48))
        uniforms.append(rng.random(3))
    u = np.array(uniforms).reshape(-1, 3)
    return {
        "index": index,
        "seed": np.array(seeds, dtype=np.int64),
        "learning_rate": _log_uniform(u[:, 0], config.learning_rate),
        "init_scale": _log_uniform(u[:, 1], config.init_scale),
        "epochs": choices[(u[:, 2] * len(choices)).astype(np.int64)],
        "split": draw_split(config, index),
    }


def draw_split(config: ZooConfig, index: np.ndarray) -> np.ndarray:
    """Split of the networks: "train", "val" or "test" per index, shape [n].

    The fractions hold for any count, and a network keeps its split when the count grows.
    """
    offset = np.random.default_rng([config.seed, _OFFSET]).random()
    return even_split(index, config.val_fraction, config.test_fraction, offset)


def even_split(
    index: np.ndarray, val_fraction: float, test_fraction: float, offset: float = 0.0
) -> np.ndarray:
    """Split of networks by their index: "train", "val" or "test", shape [n].

    A golden-ratio sequence is spread evenly over [0, 1) at every length.

    Args:
        index: Index of each network, [n].
        val_fraction: Share of networks for validation.
        test_fraction: Share of networks for testing.
        offset: Start of the sequence, in [0, 1).

    Returns:
        Name of each network's split, [n].
    """
    u = (offset + _GOLDEN * index) % 1.0
    return np.select([u < val_fraction, u < val_fraction + test_fraction], ["val", "test"], default="train")


def _log_uniform(u: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    low, high = np.log(bounds[0]), np.log(bounds[1])
    return np.exp(low + u * (high - low))
