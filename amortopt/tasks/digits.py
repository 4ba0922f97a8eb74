"""Handwritten digits on a larger canvas: real images that need no download."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from amortopt.system.extras import needed_for
from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import CrossEntropy
from amortopt.tasks.problem import SPLITS, Problem, Which, check_which, register_problem

_SIDE = 16
_COPIES = 3  # jittered copies of a base image
_VAL, _TEST = 180, 360  # base images held out of 1,797
_NOISE = 0.1  # standard deviation in grey levels; ink is 1, paper 0
# Inputs are rounded to multiples of this. NumPy's sums, sines and logarithms differ in their last bits
# between processors; a grid far above them and far below the noise makes the data the same bits everywhere.
_GRID = 2.0**-16


@register_problem("digits")
class Digits(Problem):
    """Ten classes of handwritten digits [1, 16, 16]: 3,771 train, 540 val, 1,080 test.

    scikit-learn's 1,797 images of 8x8 (Alpaydin and Kaynak 1998), three jittered copies each: rotated,
    scaled, sheared and shifted at random, drawn by bilinear interpolation on 16x16, with white noise. The
    three parts share no base image: all copies of an image are in one part. Inputs are standardised by mean
    and standard deviation (two scalars) of the train part.

    Args:
        seed: Seed of the parts, the jitter and the noise.
    """

    arguments = ("seed",)
    objective = CrossEntropy(10)

    def __init__(self, seed: int = 42) -> None:
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"seed: got {seed!r}, expected an integer from 0 to 2**32 - 1")
        self.seed = seed

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, _SIDE, _SIDE)

    def split(self, which: Which) -> Examples:
        check_which(which)
        return _generate(self.seed)[which]


@lru_cache(maxsize=8)
def _generate(seed: int) -> dict[Which, Examples]:
    with needed_for("the problem digits", extra="data"):
        from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16.0
    centre = (images.shape[1] - 1) / 2
    offset = np.arange(_SIDE) - (_SIDE - 1) / 2  # of canvas pixels
    bases = base_images(len(images), seed)
    drawn: dict[Which, np.ndarray] = {}
    for part, which in enumerate(SPLITS):
        copies = np.repeat(images[bases[which]], _COPIES, axis=0)  # [n, 8, 8]
        n = len(copies)
        # NumPy freezes the streams of its legacy generator: the same draws for every version.
        rng = np.random.RandomState([seed, part])
        angle = rng.uniform(-0.25, 0.25, n)[:, None, None]  # radians
        scale = 1.5 * np.exp(rng.uniform(-0.15, 0.15, (n, 2)))[:, :, None, None]  # canvas per image pixel
        shear = rng.uniform(-0.1, 0.1, n)[:, None, None]
        shift = rng.uniform(-1.5, 1.5, (n, 2))[:, :, None, None]  # canvas pixels
        noise = _NOISE * rng.standard_normal((n, _SIDE, _SIDE))
        # Canvas -> image: every canvas pixel looks up where it came from.
        rows, columns = offset[None, :, None] - shift[:, 0], offset[None, None, :] - shift[:, 1]
        cos, sin = np.cos(angle), np.sin(angle)
        u = (cos * rows + sin * columns) / scale[:, 0]
        v = (cos * columns - sin * rows) / scale[:, 1] + shear * u
        drawn[which] = interpolate(copies, u + centre, v + centre) + noise
    mean, std = drawn["train"].mean(), drawn["train"].std()
    parts: dict[Which, Examples] = {}
    for which in SPLITS:
        x = (np.round((drawn[which] - mean) / std / _GRID) * _GRID).astype(np.float32)
        y = np.repeat(labels[bases[which]], _COPIES).astype(np.int64)
        parts[which] = Examples(torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y))
    return parts


def base_images(count: int, seed: int) -> dict[Which, np.ndarray]:
    """Indices of the base images of each part, in ascending order."""
    order = np.random.RandomState([seed, len(SPLITS)]).permutation(count)
    test, val, train = np.split(order, [_TEST, _TEST + _VAL])
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}


def interpolate(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear interpolation at fractional positions [n, H, W]; outside an image, paper (0)."""
    size = images.shape[1]
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2)))
    rows, columns = np.clip(rows, -1, size) + 1, np.clip(columns, -1, size) + 1
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, right = rows - top, columns - left
    each = np.arange(len(images))[:, None, None]
    upper = (1 - right) * padded[each, top, left] + right * padded[each, top, left + 1]
    lower = (1 - right) * padded[each, top + 1, left] + right * padded[each, top + 1, left + 1]
    return (1 - down) * upper + down * lower
