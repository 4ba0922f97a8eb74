"""Images: photographs apart by part, and MNIST's digits as pictures that no photograph is."""

from __future__ import annotations

import pytest
import torch

from amortopt.tasks import Examples, MNIST5k, make_problem_family
from amortopt.tasks.problem import Which
from amortopt.tasks.problem_families.images import Images, photographs

SIDE = 12


def pictures_of(pixels: Examples, side: int) -> torch.Tensor:
    """Grey levels row by row [B, side²], of pixels in any order."""
    row, column = ((pixels.x + 1) / 2 * (side - 1)).round().long().unbind(-1)
    order = (row * side + column).argsort(1)
    return pixels.y[..., 0].gather(1, order)


@pytest.mark.parametrize("pictures", ["photographs", "mnist"])
def test_all_pixels_of_a_picture_are_read_and_judged(pictures: str) -> None:
    family = make_problem_family("images", side=SIDE, pictures=pictures)
    read, judged = family.draw("test", 3, 5, SIDE**2, SIDE**2)
    one, other = pictures_of(read, SIDE), pictures_of(judged, SIDE)
    assert torch.equal(one, other)
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    assert bool((one.amax(1) > one.amin(1)).all())


def test_photographs_of_parts_are_different_ones() -> None:
    shapes = [{p.shape for p in photographs(which)} for which in ("train", "val", "test")]
    means = [{round(float(p.mean()), 6) for p in photographs(which)} for which in ("train", "val", "test")]
    assert all(shapes)
    assert not means[0] & means[1]
    assert not means[0] & means[2]
    assert not means[1] & means[2]


@pytest.mark.parametrize("which", ["train", "val", "test"])
def test_digits_are_those_of_the_part(which: Which) -> None:
    read, _ = Images(side=28, pictures="mnist").draw(which, 0, 4, 784, 784)
    known = MNIST5k().split(which).x.flatten(1)
    # One scale and offset for all: the problem is standardised, the pictures are not.
    ink = torch.stack([known.min(), known.max()])
    known = (known - ink[0]) / (ink[1] - ink[0])
    drawn = pictures_of(read, 28)
    assert float((known - drawn[:, None]).abs().amax(-1).amin(1).max()) < 1e-3


def test_real_pictures_are_no_photographs() -> None:
    (digits,) = Images(side=SIDE).real().values()
    assert digits.to_config() == {"name": "images", "seed": 0, "side": SIDE, "pictures": "mnist"}
    assert digits.objective.score_name == Images().objective.score_name
    assert not digits.real()
    assert not Images(side=40).real()


@pytest.mark.parametrize(
    "arguments", [{"pictures": "paintings"}, {"pictures": "mnist", "side": 29}, {"side": True}]
)
def test_bad_arguments_are_named(arguments: dict) -> None:
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        make_problem_family("images", **arguments)
