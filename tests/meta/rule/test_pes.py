"""Persistent evolution strategies are without bias, truncated ones are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from amortopt.meta.rule.pes import PersistentES
from amortopt.meta.rule.runs import InnerRuns
from amortopt.meta.rule.truncated import TruncatedBackprop
from tests.meta.rule.toy import UNIT, ToyInner, ToyRule

HORIZON, TRUNCATION = 6, 2


def flattened(grads: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in grads])


def exact() -> Tensor:
    """Gradient of the mean loss over the whole horizon; the problem has no noise."""
    inner: Any = ToyInner(noise=0.0)
    rule: Any = ToyRule()
    runs = InnerRuns(inner, rule, 1, HORIZON, seed=0, draws=UNIT)
    return flattened(TruncatedBackprop(HORIZON, bound=0.0)(rule, runs, HORIZON).grads)


def estimates(persistent: bool, batches: int = 24, pairs: int = 400) -> Tensor:
    """Independent estimates, each the mean over the truncations of whole runs: [batches, M]."""
    inner: Any = ToyInner(noise=0.0)
    rule: Any = ToyRule()
    estimator = PersistentES(TRUNCATION, sigma=0.003, persistent=persistent)
    found = []
    for seed in range(batches):
        runs = InnerRuns(inner, rule, 2 * pairs, HORIZON, seed=seed, copies=2, draws=UNIT)
        runs.limits[:] = HORIZON
        parts = [flattened(estimator(rule, runs, HORIZON).grads) for _ in range(HORIZON // TRUNCATION)]
        assert (runs.steps == 0).all() and runs.diverged == 0
        found.append(torch.stack(parts).mean(0))
    return torch.stack(found)


def deviation(found: Tensor) -> Tensor:
    """Of the mean from the exact gradient, in standard errors: [M]."""
    error = found.std(0) / len(found) ** 0.5
    return (found.mean(0) - exact()).abs() / error


def test_pes_is_without_bias() -> None:
    found = estimates(persistent=True)
    assert (deviation(found) < 4).all()
    assert (found.std(0) / len(found) ** 0.5 < 0.05 * exact().norm()).all()  # it could have been seen


def test_truncated_es_is_biased() -> None:
    assert (deviation(estimates(persistent=False)) > 10).any()


def test_perturbations_start_anew_with_their_network() -> None:
    inner: Any = ToyInner()
    rule: Any = ToyRule()
    runs = InnerRuns(inner, rule, 8, HORIZON, seed=0, copies=2, draws=UNIT)
    estimator = PersistentES(TRUNCATION)
    for _ in range(5):
        estimator(rule, runs, HORIZON)
        assert runs.perturbations is not None
        assert torch.equal((runs.perturbations == 0).all(1), runs.steps[:4] == 0)


def test_antithetic_networks_differ_and_see_the_same() -> None:
    inner: Any = ToyInner()
    rule: Any = ToyRule()
    runs = InnerRuns(inner, rule, 4, 100, seed=0, copies=2, draws=UNIT)
    runs.limits[:] = 100
    PersistentES(2, sigma=1e-12)(rule, runs, 100)
    torch.testing.assert_close(runs.flat[:2], runs.flat[2:])
    PersistentES(2, sigma=0.1)(rule, runs, 100)
    assert not torch.allclose(runs.flat[:2], runs.flat[2:])


def test_saved_perturbations_go_on() -> None:
    inner: Any = ToyInner()
    rule: Any = ToyRule()
    one, other = (InnerRuns(inner, rule, 4, 10, seed=s, copies=2, draws=UNIT) for s in (0, 1))
    estimator = PersistentES(2)
    estimator(rule, one, 10)
    other.load_state_dict(one.state_dict())
    for _ in range(3):
        a, b = (flattened(estimator(rule, runs, 10).grads) for runs in (one, other))
        assert torch.equal(a, b)


def test_diverged_pair_does_not_spoil_the_estimate() -> None:
    inner: Any = ToyInner()
    rule: Any = ToyRule()
    runs = InnerRuns(inner, rule, 4, 100, seed=0, copies=2, draws=UNIT)
    runs.limits[:] = 100
    PersistentES(2)(rule, runs, 100)
    runs.flat[0] = float("nan")
    assert flattened(PersistentES(2)(rule, runs, 100).grads).isfinite().all()
    assert runs.diverged == 1 and runs.steps.tolist() == [0, 4, 0, 4]


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("inf")])
def test_sigma_out_of_range_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma: got"):
        PersistentES(sigma=sigma)
