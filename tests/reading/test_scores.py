"""Scores and intervals of predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from amortopt.metanets import Functional, make
from amortopt.reading.scores import calibrate, distances, functional_scores, tau, tau_bound
from tests.cases import case
from tests.metanets.networks import spec_of


def _functional(head: dict[str, object]) -> Functional:
    return make("unf_functional", spec_of(case("mlp-tanh")), head=head, width=2, layers=1, hidden=4)


@pytest.mark.parametrize("levels", [1000, 7, 2])
def test_tau_is_scipys_with_and_without_ties(levels: int) -> None:
    source = torch.Generator().manual_seed(levels)
    a = torch.randint(levels, (200,), generator=source).double()
    b = a + torch.randint(levels, (200,), generator=source)
    assert tau(a, b) == pytest.approx(stats.kendalltau(a, b)[0], abs=1e-12)
    assert tau(a, -a) == pytest.approx(-1)


def test_tau_of_a_constant_is_0_and_lengths_have_to_agree() -> None:
    assert tau(torch.ones(5), torch.arange(5.0)) == 0
    with pytest.raises(ValueError, match=r"expected \(5,\) as predicted"):
        tau(torch.ones(5), torch.arange(4.0))


def test_bound_of_tau_falls_with_the_noise_of_the_labels() -> None:
    accuracy = np.linspace(0.3, 0.9, 200)
    bounds = [tau_bound(accuracy, held_out) for held_out in (30, 300, 30_000)]
    assert bounds == sorted(bounds) and bounds[-1] > 0.98 > bounds[0]
    # Two normal measurements with the correlation rho have tau = 2 / pi * arcsin(rho).
    p = np.clip(0.5 + 0.05 * np.random.default_rng(1).standard_normal(1500), 0.01, 0.99)
    rho = 0.05 / np.hypot(0.05, np.sqrt(0.25 / 100))
    assert tau_bound(p, 100, draws=3) == pytest.approx(
        2 / np.pi * np.arcsin(rho), abs=0.03
    )  # ties count a little


def test_labels_that_are_all_equal_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least two that differ"):
        tau_bound(np.full(10, 0.5), 100)


def test_calibrated_radius_is_the_conformal_quantile() -> None:
    functional = _functional({"name": "regression"})
    truth = torch.arange(1.0, 10.0)  # distances 1 .. 9 from answers of 0
    found = calibrate(functional, torch.zeros(9, 1), truth, 0.8)
    assert found == {"coverage": 0.8, "networks": 9, "radius": 8.0}  # ceil(10 * 0.8) = 8th smallest
    assert calibrate(functional, torch.zeros(9, 1), truth, 0.95)["radius"] is None  # ceil(9.5) > 9


def test_calibrated_radius_covers_new_networks() -> None:
    functional = _functional({"name": "classes", "count": 3})
    source = torch.Generator().manual_seed(0)
    raw = torch.randn(4000, 3, generator=source)
    truth = torch.multinomial(raw.softmax(-1), 1, generator=source)[:, 0]
    radius = calibrate(functional, raw[:2000], truth[:2000])["radius"]
    inside = distances(functional, raw[2000:], truth[2000:]) <= radius
    assert 0.87 < float(inside.double().mean()) < 0.93


def test_scores_of_classes_and_numbers() -> None:
    classes = _functional({"name": "classes", "count": 2})
    raw = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert functional_scores(classes, raw, torch.tensor([0, 1, 1, 1]))["accuracy"] == 0.75
    numbers = _functional({"name": "regression"})
    scores = functional_scores(numbers, torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.0, 2.0, 1.0]))
    assert scores["mae"] == pytest.approx(2 / 3) and scores["tau"] == pytest.approx(1 / 3)
    several = _functional({"name": "regression", "outputs": 2})
    with pytest.raises(ValueError, match="head: got 2 numbers, expected one"):
        distances(several, torch.zeros(3, 2), torch.zeros(3, 2))
