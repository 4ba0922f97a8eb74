"""MNIST's 5,000 images: parts, sizes, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from amortopt.tasks import MNIST5k, make_problem
from amortopt.tasks.mnist5k import images


def test_parts_have_every_class_equally_often_and_share_no_image() -> None:
    problem = MNIST5k(side=8)
    parts = {which: problem.split(which) for which in ("train", "val", "test")}  # type: ignore[arg-type]
    assert [len(part) for part in parts.values()] == [3500, 500, 1000]
    for part in parts.values():
        assert part.y.bincount().tolist() == [len(part) // 10] * 10
        assert part.x.shape[1:] == problem.input_shape == (1, 8, 8)
    every = torch.cat([MNIST5k().split(which).x for which in parts])  # type: ignore[arg-type]
    assert len(every.flatten(1).unique(dim=0)) == len(images()[0].flatten(1).unique(dim=0))


def test_inputs_are_standardised_and_small_sides_are_means_of_neighbours() -> None:
    train = MNIST5k(side=14).split("train")
    assert abs(float(train.x.mean())) < 1e-4
    assert abs(float(train.x.std()) - 1) < 1e-3
    # Averaging neighbours and drawing at half the size are nearly the same picture.
    whole = F.avg_pool2d(MNIST5k().split("train").x, 2)
    pairs = torch.stack([whole.flatten(1), train.x.flatten(1)])
    agreement = F.cosine_similarity(pairs[0], pairs[1], dim=1)
    assert float(agreement.min()) > 0.95


def test_seed_decides_the_parts_alone() -> None:
    first, again, other = (MNIST5k(8, seed).split("test").x for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert make_problem(name="mnist_5k", side=8, seed=0).to_config() == MNIST5k(8, 0).to_config()


@pytest.mark.parametrize("wrong", [{"side": 3}, {"side": 29}, {"side": 8.0}, {"seed": -1}, {"seed": True}])
def test_wrong_arguments_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MNIST5k(**wrong)  # type: ignore[arg-type]
