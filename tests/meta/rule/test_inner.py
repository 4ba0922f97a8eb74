from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from amortopt.meta.rule.inner import InnerProblem
from amortopt.tasks import make_family, make_problem


def small(batch: int = 4, activation: str = "relu") -> InnerProblem:
    family = make_family("mlp", activation=activation, widths=(40, 6, 10))
    return InnerProblem(make_problem("mnist1d"), family, batch)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_inner_problem_starts_networks_like_the_family() -> None:
    inner = small()
    flat = inner.init(3, seeded())
    assert flat.shape == (3, 40 * 6 + 6 + 6 * 10 + 10)
    assert not torch.equal(flat[0], flat[1])
    assert torch.equal(flat, inner.init(3, seeded()))
    bound = 6**-0.5
    biases = inner.layout.unpack(flat)["2.bias"]
    assert biases.abs().max() <= bound and biases.abs().max() > 0.5 * bound


def test_inner_problem_draws_train_examples_per_network() -> None:
    inner = small(batch=7)
    x, y = inner.draw(3, seeded())
    assert x.shape == (3, 7, 40) and y.shape == (3, 7)
    data = inner.problem.split("train")
    rows = {tuple(row.tolist()): int(label) for row, label in zip(data.x, data.y, strict=True)}
    assert all(rows[tuple(x[b, n].tolist())] == int(y[b, n]) for b in range(3) for n in range(7))
    assert not torch.equal(x[0], x[1])


def test_inner_problem_losses_and_gradients_are_those_of_every_network_alone() -> None:
    inner = small()
    generator = seeded()
    flat, (x, y) = inner.init(3, generator), inner.draw(3, generator)
    losses, grads = inner.losses_and_grads(flat, x, y)
    assert not losses.requires_grad and not grads.requires_grad
    for b in range(3):
        params = {name: p.requires_grad_() for name, p in inner.layout.unpack(flat[b]).items()}
        loss = torch.nn.functional.cross_entropy(functional_call(inner.network, params, (x[b],)), y[b])
        own = torch.autograd.grad(loss, list(params.values()))
        torch.testing.assert_close(losses[b], loss.detach())
        torch.testing.assert_close(grads[b], inner.layout.pack(dict(zip(params, own, strict=True))))


def test_inner_problem_gradients_can_be_differentiated() -> None:
    inner = small(activation="tanh")
    generator = seeded()
    flat, (x, y) = inner.init(2, generator).requires_grad_(), inner.draw(2, generator)
    _, grads = inner.losses_and_grads(flat, x, y, create_graph=True)
    direction = torch.randn(flat.shape, generator=generator)
    (product,) = torch.autograd.grad((grads * direction).sum(), flat)
    step = 1e-3
    up = inner.losses_and_grads(flat.detach() + step * direction, x, y)[1]
    down = inner.losses_and_grads(flat.detach() - step * direction, x, y)[1]
    torch.testing.assert_close(product, (up - down) / (2 * step), rtol=0.05, atol=2e-3)


def test_inner_problem_refuses_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="batch: got 0"):
        small(batch=0)
