"""Inner runs: staggered, restarted at their horizon or when they diverge, and resumed bit-exactly."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from amortopt.meta.rule.inner import InnerProblem
from amortopt.meta.rule.runs import GUARD, Draws, InnerRuns, horizon_at
from amortopt.meta.rule.truncated import TruncatedBackprop
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.tasks import make_family, make_problem
from tests.meta.rule.toy import UNIT, ToyInner, ToyRule


def toy_runs(count: int = 4, horizon: int = 8, seed: int = 0, copies: int = 1) -> InnerRuns:
    inner: Any = ToyInner()
    rule: Any = ToyRule()
    return InnerRuns(inner, rule, count, horizon, seed, copies=copies, draws=UNIT)


def losses_of(*per_network: float, steps: int = 2) -> Tensor:
    return torch.tensor(per_network, dtype=torch.float64).expand(steps + 1, -1)


def test_networks_restart_at_different_steps() -> None:
    runs = toy_runs(count=4, horizon=8)
    restarts = []
    for _ in range(8):
        before = runs.steps.clone()
        runs.advance(runs.flat, runs.state, losses_of(1.0, 1.0, 1.0, 1.0), 8)
        restarts.append((runs.steps < before + 2).sum().item())
    assert restarts == [1] * 8
    assert runs.steps.unique().numel() == 4


def test_restart_changes_its_own_network_only() -> None:
    runs = toy_runs(count=3, horizon=3)
    flat = torch.full_like(runs.flat, 7.0)
    state = {"step": torch.full((3,), 5.0), "momenta": torch.full_like(flat, 2.0)}
    runs.advance(flat, state, losses_of(1.0, 1.0, 1.0, steps=2), 10)  # limits are 1, 2 and 3 steps
    over = torch.tensor([True, True, False])
    assert (runs.flat[2] == 7).all() and (runs.flat[:2] != 7).all()
    assert torch.equal(runs.state["step"] == 0, over)
    assert torch.equal((runs.state["momenta"] == 0).all(1), over)
    assert runs.limits.tolist() == [10, 10, 3] and runs.steps.tolist() == [0, 0, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.1 * GUARD])
def test_diverged_network_is_restarted_and_counted(bad: float) -> None:
    runs = toy_runs(count=2, horizon=100)
    runs.limits[:] = 100
    losses = losses_of(1.0, 1.0).clone()
    losses[1:, 1] = bad * 1.5
    runs.advance(runs.flat, runs.state, losses, 100)
    assert runs.diverged == 1
    assert runs.steps.tolist() == [2, 0]


def test_copies_start_alike_and_restart_together() -> None:
    runs = toy_runs(count=6, horizon=100, copies=2)
    assert torch.equal(runs.flat[:3], runs.flat[3:])
    x, _ = runs.draw()
    assert torch.equal(x[:3], x[3:])
    runs.limits[:] = 100
    runs.perturbations = torch.ones(3, 2)
    bad = losses_of(1.0, 1.0, 1.0, 1.0, float("nan"), 1.0)
    runs.advance(torch.arange(18.0, dtype=torch.float64).view(6, 3), runs.state, bad, 100)
    assert runs.steps.tolist() == [2, 0, 2, 2, 0, 2]
    assert torch.equal(runs.flat[1], runs.flat[4])
    assert runs.perturbations.sum(1).tolist() == [2, 0, 2]


def test_saved_runs_go_on_bit_exactly() -> None:
    rule: Any = ToyRule()
    estimator = TruncatedBackprop(3)
    one, other = toy_runs(), toy_runs(seed=1)
    estimator(rule, one, 6)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    expected = [estimator(rule, one, 6) for _ in range(4)]
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for estimate in expected:
        resumed = estimator(rule, other, 6)
        assert torch.equal(resumed.loss, estimate.loss)
        assert all(torch.equal(a, b) for a, b in zip(resumed.grads, estimate.grads, strict=True))
    assert torch.equal(one.flat, other.flat)


def test_state_of_other_networks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inner runs \(4, 3\), expected \(2, 3\)"):
        toy_runs(count=2).load_state_dict(toy_runs(count=4).state_dict())


@pytest.mark.parametrize(
    ("count", "horizon", "copies", "match"),
    [(0, 5, 1, "networks: got 0"), (3, 5, 2, "of 2"), (2, 0, 1, "horizon")],
)
def test_wrong_counts_are_refused(count: int, horizon: int, copies: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        toy_runs(count, horizon, copies=copies)


def test_horizon_grows_in_whole_truncations() -> None:
    kw = {"first": 20, "last": 500, "share": 0.5, "truncation": 10}
    grown = [horizon_at(share / 20, **kw) for share in range(21)]
    assert grown[0] == 20 and grown[10:] == [500] * 11
    assert grown == sorted(grown) and all(steps % 10 == 0 for steps in grown)
    assert horizon_at(0.0, **(kw | {"share": 0.0})) == 500


def test_runs_last_log_uniformly() -> None:
    runs = InnerRuns(ToyInner(), ToyRule(), 4, 1000, seed=0, shortest=10, draws=UNIT)
    lengths = runs._lengths(4000, 1000)
    assert lengths.min() >= 10 and lengths.max() <= 1000
    # As many below the geometric mean of the two ends as above it.
    assert 0.45 < (lengths < 100).float().mean() < 0.55
    assert toy_runs()._lengths(3, 7).tolist() == [7, 7, 7]


def inner_runs(count: int = 64, **draws: Any) -> InnerRuns:
    family = make_family("mlp", activation="tanh", widths=(40, 6, 10))
    inner = InnerProblem(make_problem("mnist1d"), family, 4)
    return InnerRuns(inner, UNFRule(width=2), count, 10, seed=0, draws=Draws(**draws))


def test_rates_are_log_uniform_and_differ_from_run_to_run() -> None:
    runs = inner_runs(slowest=0.001, fastest=0.1, cosine=0.0)
    rates = runs.rate(0).squeeze(1)
    assert rates.min() >= 0.001 and rates.max() <= 0.1
    assert 0.3 < (rates < 0.01).float().mean() < 0.7
    assert torch.equal(runs.rate(7).squeeze(1), rates)


def test_rates_fall_as_a_cosine_in_their_share_of_the_runs() -> None:
    runs = inner_runs(cosine=0.5)
    assert 0.25 < runs.falling.float().mean() < 0.75
    runs.limits[:] = 10
    middle, end = runs.rate(5).squeeze(1), runs.rate(10).squeeze(1)
    torch.testing.assert_close(middle, torch.where(runs.falling, 0.01, 0.02))
    torch.testing.assert_close(end, torch.where(runs.falling, 0.0, 0.02))


def test_reparametrised_networks_start_as_the_same_functions() -> None:
    plain, other = inner_runs(count=3), inner_runs(count=3, reparametrise=3.0)
    assert plain.scales is None and other.scales is not None
    torch.testing.assert_close(other.flat * other.scales, plain.flat)
    assert other.scales.min() < 0.9 and other.scales.max() > 1.1
    assert other.scales.min() >= 1 / 3 and other.scales.max() <= 3
    per_block = other.inner.layout.split(other.scales)
    assert all(
        bool((part == part.flatten(2)[..., :1].view(*part.shape[:2], *[1] * (part.ndim - 2))).all())
        for part in per_block
    )


def test_copies_share_their_draws() -> None:
    family = make_family("mlp", activation="tanh", widths=(40, 6, 10))
    inner = InnerProblem(make_problem("mnist1d"), family, 4)
    draws = Draws(slowest=0.01, fastest=0.1, cosine=0.5, reparametrise=2.0)
    runs = InnerRuns(inner, UNFRule(width=2), 6, 10, seed=0, copies=2, draws=draws)
    assert runs.scales is not None
    for value in (runs.flat, runs.scales, runs.rates, runs.falling):
        assert torch.equal(value[:3], value[3:])
