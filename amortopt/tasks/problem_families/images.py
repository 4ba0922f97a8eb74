"""Problems that are pictures: an implicit representation learns the grey level at every pixel's coordinates.

Legend: P problems, N pixels of a picture.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amortopt.system.extras import needed_for
from amortopt.tasks import mnist5k
from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import SquaredError
from amortopt.tasks.problem import Which
from amortopt.tasks.problem_families.base import GeneratedFamily, ProblemFamily, register_problem_family

Pictures = Literal["photographs", "mnist"]
"""Where pictures come from."""

# Photographs that come with scikit-learn and scikit-image, apart by part: no crop of one part is in another.
_PHOTOGRAPHS: dict[Which, tuple[str, ...]] = {
    "train": (
        "china.jpg",
        "coffee",
        "chelsea",
        "stereo_motorcycle",
        "rocket",
        "grass",
        "gravel",
        "hubble_deep_field",
        "immunohistochemistry",
        "moon",
    ),
    "val": ("camera", "brick"),
    "test": ("astronaut", "flower.jpg", "coins"),
}
_ZOOMS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""By how much photographs are made smaller before they are cropped."""
_LARGEST = 64
"""Pixels along an edge of the largest crop."""


@register_problem_family("images")
class Images(GeneratedFamily):
    """Pictures: pixel coordinates in [-1, 1]² to grey levels in [0, 1], squared error, PSNR.

    Examples to read and to judge are pixels of one picture, each without repetition: a picture is fitted, and
    judged by how well it is.

    Args:
        seed: Seed of all pictures.
        side: Pixels along an edge of a picture.
        pictures: ``"photographs"``: crops at random zooms, turned and mirrored at random; those of a part are
            of photographs that no other part has. ``"mnist"``: whole handwritten digits, ink being 1, of the
            part of [MNIST5k][amortopt.tasks.MNIST5k].

    Raises:
        ValueError: If an argument is out of range.
    """

    objective = SquaredError((1,), score_kind="psnr")

    def __init__(self, seed: int = 0, side: int = 24, pictures: Pictures = "photographs") -> None:
        super().__init__(seed)
        if pictures not in get_args(Pictures):
            raise ValueError(f"pictures: got {pictures!r}, expected 'photographs' or 'mnist'")
        largest = mnist5k.SIDE if pictures == "mnist" else _LARGEST
        if isinstance(side, bool) or not isinstance(side, int) or not 4 <= side <= largest:
            raise ValueError(f"side: got {side!r}, expected a whole number of pixels from 4 to {largest}")
        self.side, self.pictures = side, pictures

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (2,)

    def to_config(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed, "side": self.side, "pictures": self.pictures}

    def real(self) -> dict[str, ProblemFamily]:
        if self.pictures == "mnist" or self.side > mnist5k.SIDE:
            return {}
        return {"mnist_5k": Images(self.seed, self.side, "mnist")}

    def block(
        self, which: Which, data: torch.Generator, noise: torch.Generator, train: int, test: int
    ) -> tuple[Examples, Examples]:
        if max(train, test) > self.side**2:
            raise ValueError(
                f"train, test: got {train}, {test}, expected at most the {self.side**2} pixels of a picture"
            )
        if self.pictures == "mnist":
            digits = mnist5k.pictures(which, self.side)
            grey = digits[torch.randint(len(digits), (self.BLOCK,), generator=data)].flatten(1)
        else:
            grey = random_crops(photographs(which), self.BLOCK, self.side, data).flatten(1)
        first, second = torch.rand(2, self.BLOCK, self.side**2, generator=noise).argsort(-1)
        read, judged = first[:, :train], second[:, :test]
        x = pixel_coordinates(self.side)
        return (
            Examples(x[read], grey.gather(1, read)[..., None], shared=False),
            Examples(x[judged], grey.gather(1, judged)[..., None], shared=False),
        )


def pixel_coordinates(side: int) -> Tensor:
    """Row and column of every pixel, row by row, from -1 to 1: [side², 2]."""
    along = torch.linspace(-1, 1, side)
    return torch.cartesian_prod(along, along)


def random_crops(pictures: tuple[Tensor, ...], count: int, side: int, generator: torch.Generator) -> Tensor:
    """Crops [count, side, side] of random pictures [h, w] at random places, mirrored at random."""

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    crops = []
    for _ in range(count):
        picture = pictures[below(len(pictures))]
        top, left = below(picture.shape[0] - side + 1), below(picture.shape[1] - side + 1)
        crop = picture[top : top + side, left : left + side]
        crops.append(crop.rot90(below(4)).flip(0) if below(2) else crop.rot90(below(4)))
    return torch.stack(crops)


@cache
def photographs(which: Which) -> tuple[Tensor, ...]:
    """Grey pictures [h, w] in [0, 1] of one part, at every zoom that leaves the largest crop room."""
    pictures = []
    for name in _PHOTOGRAPHS[which]:
        grey = torch.from_numpy(_grey(name))
        for zoom in _ZOOMS:
            size = [round(length / zoom) for length in grey.shape]
            if min(size) >= _LARGEST:
                smaller = F.interpolate(grey[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
                pictures.append(smaller.clamp(0, 1))
    return tuple(pictures)


def _grey(name: str) -> np.ndarray:
    """A photograph [h, w] in [0, 1], float32."""
    with needed_for("the family images", extra="data"):
        if name.endswith(".jpg"):
            from sklearn.datasets import load_sample_image

            picture = load_sample_image(name)
        else:
            from skimage import data

            picture = getattr(data, name)()
            picture = picture[0] if isinstance(picture, tuple) else picture
    picture = picture.astype(np.float32) / 255
    # Luma of ITU-R BT.601
    return picture[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32) if picture.ndim == 3 else picture
