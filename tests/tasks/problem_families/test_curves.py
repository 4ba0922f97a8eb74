"""Curves against the package mnist1d, of whose examples they are equal in distribution."""

from __future__ import annotations

import random

import numpy as np
import torch

from amortopt.tasks.problem_families import Curves
from amortopt.tasks.problem_families.curves import random_curves, transformed


def test_transformed_curves_have_the_moments_of_mnist1d() -> None:
    from mnist1d.data import get_dataset_args
    from mnist1d.transform import transform

    args = get_dataset_args()
    template = random_curves(1, torch.Generator().manual_seed(0))[0, 0]
    random.seed(0)
    state = np.random.get_state()
    np.random.seed(0)
    count = 4000
    theirs = np.stack(
        [transform(template.numpy().astype(float), np.arange(12), args)[0] for _ in range(count)]
    )
    np.random.set_state(state)
    ours = transformed(template.expand(count, -1), torch.Generator().manual_seed(1)).double()
    reference = torch.from_numpy(theirs)
    # Five standard errors of the difference of two means, position by position.
    error = 5 * (2 / count) ** 0.5
    assert float(((ours.mean(0) - reference.mean(0)) / reference.std(0)).abs().max()) < error
    # Standard deviations, and correlations between neighbours and further ones.
    assert torch.allclose(ours.std(0), reference.std(0), rtol=0.1)
    for lag in (1, 2, 5):
        pairs = [(x[:, lag:] * x[:, :-lag]).mean() / x.square().mean() for x in (ours, reference)]
        assert abs(float(pairs[0] - pairs[1])) < 0.03


def test_random_curves_begin_and_end_at_zero_with_the_spread_of_mnist1d() -> None:
    curves = random_curves(3, torch.Generator().manual_seed(0))
    assert curves.shape == (3, 10, 12)
    assert float(curves[..., [0, -1]].abs().max()) < 1e-6
    assert torch.allclose(curves.std(-1, correction=0), torch.full((3, 10), 1 / 6))


def test_curves_are_standardised_by_two_scalars() -> None:
    read, judged = Curves().draw("train", 0, 2, 300, 300)
    x = torch.cat([read.x, judged.x], 1)
    assert torch.allclose(x.mean((1, 2)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(x.std((1, 2)), torch.ones(2), atol=1e-3)


def test_mnist1d_is_the_real_problem_of_curves() -> None:
    for channel_axis in (False, True):
        family = Curves(channel_axis=channel_axis)
        problem = family.real()["mnist1d"]
        assert problem.input_shape == family.input_shape and problem.objective == family.objective
