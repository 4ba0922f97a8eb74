"""The gradient of truncated backpropagation against finite differences of an explicit unroll."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from amortopt.meta.rule.runs import InnerRuns
from amortopt.meta.rule.truncated import TruncatedBackprop
from tests.meta.rule.toy import UNIT, ToyInner, ToyRule


def flattened(grads: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in grads])


def runs_of(inner: Any, rule: Any, count: int = 2, steps_before: int = 2) -> InnerRuns:
    """Inner runs that are in the middle of something."""
    runs = InnerRuns(inner, rule, count, 1000, seed=3, draws=UNIT)
    runs.limits[:] = 1000
    if steps_before:
        TruncatedBackprop(steps_before)(rule, runs, 1000)
    return runs


def objective(rule: Any, runs: InnerRuns, estimator: TruncatedBackprop) -> Tensor:
    """What the estimator minimises, step by step."""
    terms = []
    flat, state = runs.flat, runs.state
    for k in range(estimator.truncation + 1):
        x, y = runs.draw()
        losses, grads = runs.inner.losses_and_grads(flat, x, y)
        if k > 0:
            told = runs.inner.losses(flat, *runs.draw("val")) if estimator.data == "val" else losses
            terms.append(told.log() if estimator.objective == "log" else told)
        update, state = rule(runs.inner.layout, flat, grads, state)
        flat = flat - update
    return torch.stack(terms).mean()


@pytest.mark.parametrize("objective_name", ["loss", "log"])
@pytest.mark.parametrize("data", ["train", "val"])
def test_gradient_is_that_of_the_explicit_unroll(objective_name: Any, data: Any) -> None:
    inner: Any = ToyInner()
    rule: Any = ToyRule()
    estimator = TruncatedBackprop(4, objective=objective_name, data=data, bound=0.0)
    runs = runs_of(inner, rule)
    start = {"generator": runs.generator.get_state(), "flat": runs.flat, "state": runs.state}

    def at(vector: Tensor) -> Tensor:
        vector_to_parameters(vector, rule.parameters())
        runs.generator.set_state(start["generator"])
        with torch.no_grad():
            return objective(rule, runs, estimator)

    center = parameters_to_vector(rule.parameters()).detach().clone()
    h = 1e-5
    numeric = [(at(center + h * e) - at(center - h * e)) / (2 * h) for e in torch.eye(3, dtype=torch.float64)]
    at(center)
    runs.generator.set_state(start["generator"])
    grads = estimator(rule, runs, 1000).grads
    torch.testing.assert_close(flattened(grads), torch.stack(numeric), rtol=1e-6, atol=1e-9)


def test_first_order_gradient_differs_but_points_the_same_way() -> None:
    inner: Any = ToyInner()
    rule: Any = ToyRule()
    full, first = (
        torch.cat(
            [g.flatten() for g in TruncatedBackprop(5, second_order=s)(rule, runs_of(inner, rule), 9).grads]
        )
        for s in (True, False)
    )
    assert not torch.allclose(full, first, rtol=1e-2)
    assert torch.cosine_similarity(full, first, dim=0) > 0.5


@pytest.mark.parametrize("second_order", [True, False])
def test_loss_is_the_mean_after_every_step(second_order: bool) -> None:
    inner: Any = ToyInner()
    rule: Any = ToyRule()
    estimator = TruncatedBackprop(3, second_order=second_order)
    expected = objective(rule, runs_of(inner, rule), TruncatedBackprop(3))
    torch.testing.assert_close(estimator(rule, runs_of(inner, rule), 9).loss, expected.detach())


def norm_of(curvature: float, bound: float) -> float:
    inner: Any = ToyInner(noise=0.01, curvature=curvature)
    rule: Any = ToyRule()
    estimate = TruncatedBackprop(4, bound=bound)(rule, runs_of(inner, rule, steps_before=0), 9)
    return flattened(estimate.grads).norm().item()


def test_bound_holds_back_large_gradients_and_nothing_else() -> None:
    assert norm_of(0.5, 2.0) == pytest.approx(norm_of(0.5, 0.0))
    assert norm_of(5.0, 0.3) < 0.5 * norm_of(5.0, 0.0)


def test_divergence_does_not_make_the_gradient_explode() -> None:
    # With the losses as they are it would be 2e11, 2e33 and 2e60.
    assert all(norm_of(curvature, 0.0) < 100 for curvature in (5.0, 6.0, 8.0))


def test_bound_is_about_one_network_at_a_time() -> None:
    inner: Any = ToyInner(noise=0.0)
    rule: Any = ToyRule()

    def grads(scale: float) -> Tensor:
        runs = runs_of(inner, rule, steps_before=0)
        runs.flat = torch.tensor([[1.0, 1.0, 1.0], [scale, scale, scale]], dtype=torch.float64)
        return flattened(TruncatedBackprop(4, bound=1e-3)(rule, runs, 9).grads)

    # A network at rest adds nothing, and takes nothing from the bound of the other.
    alone = runs_of(inner, rule, count=1, steps_before=0)
    alone.flat = torch.ones(1, 3, dtype=torch.float64)
    single = flattened(TruncatedBackprop(4, bound=1e-3)(rule, alone, 9).grads)
    torch.testing.assert_close(2 * grads(0.0), single)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"truncation": 0}, "truncation: got 0"),
        ({"objective": "mse"}, "objective: got 'mse'"),
        ({"data": "test"}, "data: got 'test'"),
        ({"bound": -1.0}, "bound: got -1.0"),
    ],
)
def test_wrong_arguments_are_named(wrong: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TruncatedBackprop(**wrong)
