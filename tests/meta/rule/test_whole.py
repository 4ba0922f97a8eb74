"""Evolution strategies over whole trainings follow the gradient of the last loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from amortopt.meta.rule import whole
from amortopt.meta.rule.inner import InnerProblem
from amortopt.meta.rule.runs import GUARD, Draws, InnerRuns
from amortopt.meta.rule.whole import LARGEST, SMALLEST, WholeTrainings
from amortopt.metanets import UNFRule
from tests.meta.rule.toy import UNIT, ToyInner, ToyRule

HORIZON = 6


def flattened(grads: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in grads])


def runs_of(pairs: int, seed: int = 0, noise: float = 0.3, **options: Any) -> InnerRuns:
    inner: Any = ToyInner(noise=noise)
    rule: Any = ToyRule()
    return InnerRuns(inner, rule, 2 * pairs, HORIZON, seed=seed, copies=2, draws=UNIT, **options)


def estimate(runs: InnerRuns, **options: Any) -> Tensor:
    rule: Any = ToyRule()
    return flattened(WholeTrainings(**options)(rule, runs, HORIZON).grads)


def exact() -> Tensor:
    """Gradient of the logarithm of the loss after the last step, by backpropagation through all of them."""
    inner, rule = ToyInner(noise=0.0), ToyRule()
    generator = torch.Generator()
    flat = inner.init(1, generator)
    state = rule.init_state(None, flat)
    first = inner.losses(flat, *inner.draw(1, generator))
    for _ in range(HORIZON):
        losses = inner.losses(flat.requires_grad_(), *inner.draw(1, generator))
        (grads,) = torch.autograd.grad(losses.sum(), flat, create_graph=True)
        direction, state = rule(None, flat, grads, state)
        flat = flat - direction
    last = (inner.losses(flat, *inner.draw(1, generator)) + SMALLEST * GUARD * first).log().sum()
    return flattened(list(torch.autograd.grad(last, list(rule.parameters()))))


def test_estimate_is_the_gradient_of_the_last_loss() -> None:
    found = torch.stack([estimate(runs_of(400, seed, noise=0.0), sigma=0.003) for seed in range(24)])
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact()).abs() < 4 * error).all()
    assert (error < 0.05 * exact().norm()).all()  # it could have been seen


def test_estimate_is_the_gradient_of_the_smoothed_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of E[f(theta + sigma e)], computed with values where the estimator has differences of pairs."""
    monkeypatch.setattr(whole, "LARGEST", 100.0)
    sigma, count = 0.3, 20_000
    inner, rule = ToyInner(noise=0.0), ToyRule()
    generator = torch.Generator().manual_seed(5)
    noise = sigma * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        many = rule.of_vectors(parameters_to_vector(rule.parameters()) + noise)
        flat = inner.init(count, generator)
        state = rule.init_state(None, flat)
        first = inner.losses(flat, *inner.draw(count, generator))
        for _ in range(HORIZON):
            _, grads = inner.losses_and_grads(flat, *inner.draw(count, generator))
            direction, state = functional_call(rule, many, (None, flat, grads, state))
            flat = flat - direction
        final = inner.losses(flat, *inner.draw(count, generator)).minimum(GUARD * first)
        values = (final + SMALLEST * GUARD * first).log()
    terms = noise * (values - values.mean()).unsqueeze(1) / sigma**2
    found = torch.stack([estimate(runs_of(400, seed, noise=0.0), sigma=sigma) for seed in range(12)])
    error = (found.var(0) / len(found) + terms.var(0) / count).sqrt()
    assert ((found.mean(0) - terms.mean(0)).abs() < 4 * error).all()
    assert ((exact() - terms.mean(0)).abs() > 4 * error).any()  # smoothing is seen


def test_one_seed_gives_one_estimate() -> None:
    assert torch.equal(estimate(runs_of(4)), estimate(runs_of(4)))
    assert not torch.equal(estimate(runs_of(4)), estimate(runs_of(4, seed=1)))


def test_saved_runs_go_on() -> None:
    one, other = runs_of(2), runs_of(2, seed=1)
    estimate(one)
    other.load_state_dict(one.state_dict())
    for _ in range(3):
        assert torch.equal(estimate(one), estimate(other))


def test_pair_differs_by_its_perturbation_only() -> None:
    seen: list[Tensor] = []

    class Watched(InnerRuns):
        def advance(self, flat: Tensor, *args: Any) -> None:
            seen.append(flat.clone())
            super().advance(flat, *args)

    for sigma in (1e-12, 0.1):
        inner: Any = ToyInner()
        rule: Any = ToyRule()
        runs = Watched(inner, rule, 4, HORIZON, seed=0, copies=2, draws=UNIT)
        estimate(runs, sigma=sigma)
    torch.testing.assert_close(seen[0][:2], seen[0][2:])
    assert not torch.allclose(seen[0][0], seen[0][1])  # pairs differ
    assert not torch.allclose(seen[1][:2], seen[1][2:])


def test_every_training_is_whole() -> None:
    runs, lengths = runs_of(2, shortest=2), []
    for _ in range(8):
        align = InnerRuns.align(runs, HORIZON)
        lengths.append(align)
        assert (runs.limits == align).all()
        estimate(runs)
        assert (runs.steps == 0).all()
    assert len(set(lengths)) > 2 and min(lengths) >= 2 and max(lengths) <= HORIZON


def test_diverged_training_counts_as_a_bounded_difference() -> None:
    runs = runs_of(2)
    runs.flat[0] = float("nan")
    runs.first[0] = 1.0
    sigma = 0.01
    grad = estimate(runs, sigma=sigma)
    assert grad.isfinite().all()
    assert grad.norm() < 4 * LARGEST / (2 * sigma)  # |noise| is about sigma times the root of 3
    assert runs.diverged == 1 and (runs.steps == 0).all()


@pytest.mark.parametrize("net", ["unf", "deepset", "mlp"])
def test_last_layers_learn_alone(net: Any) -> None:
    torch.manual_seed(0)
    config = {
        "problem": {"name": "mnist1d"},
        "family": {"name": "mlp", "activation": "tanh", "widths": [40, 4, 10]},
    }
    inner, rule = InnerProblem.from_config(config, "inner"), UNFRule(net, width=4).requires_grad_(False)
    for last in (True, False):
        runs = InnerRuns(inner, rule, 8, 4, seed=0, copies=2, draws=Draws())
        found = WholeTrainings(last=last)(rule, runs, 4)
        for (name, _), grad in zip(rule.named_parameters(), found.grads, strict=True):
            assert bool(grad.any()) == (name.endswith("_out") or not last), name


@pytest.mark.parametrize(
    "options, words",
    [({"sigma": 0.0}, "sigma: got 0.0"), ({"last": 1}, "last: got 1"), ({"data": "all"}, "data: got 'all'")],
)
def test_option_out_of_range_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WholeTrainings(**options)
