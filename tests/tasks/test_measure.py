"""Losses, gradients and scores of many networks are those of one network at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amortopt._types import Params
from amortopt.functional.networks import apply, params_of, stack, unstack
from amortopt.tasks import (
    CrossEntropy,
    Examples,
    SquaredError,
    evaluate_many,
    loss_and_grad_many,
    loss_many,
)

B, N = 3, 5
NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), (6,)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)
        ),
        (2, 11),
    ),
    "norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).eval(),
        (1, 4, 4),
    ),
}
OBJECTIVE = CrossEntropy(3)
L1 = torch.tensor([0.0, 0.1, 2.0], dtype=torch.float64)


def drawn(name: str, *, shared: bool) -> tuple[nn.Module, Params, Examples]:
    build, shape = NETWORKS[name]
    lead = (N,) if shared else (B, N)
    x = torch.randn(*lead, *shape, dtype=torch.float64)
    params = stack([params_of(build().double()) for _ in range(B)])
    return build().double(), params, Examples(x, torch.randint(3, lead), shared)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_grad_many_is_each_networks_backward(name: str, shared: bool) -> None:
    module, params, examples = drawn(name, shared=shared)
    with torch.no_grad():
        losses, grads = loss_and_grad_many(module, params, examples, OBJECTIVE, l1=L1)
    for b, one in enumerate(unstack(params)):
        module.load_state_dict(one, strict=False)
        module.zero_grad()
        x, y = (t if shared else t[b] for t in (examples.x, examples.y))
        norm = sum(p.abs().sum() for p in module.parameters())
        loss = nn.functional.cross_entropy(module(x), y) + L1[b] * norm
        loss.backward()
        torch.testing.assert_close(losses[b], loss.detach(), rtol=1e-12, atol=1e-12)
        for key, p in module.named_parameters():
            torch.testing.assert_close(grads[key][b], p.grad, rtol=1e-12, atol=1e-12)


def test_loss_and_grad_many_leaves_module_and_params_alone() -> None:
    module, params, examples = drawn("norm", shared=True)
    before = {n: v.clone() for n, v in (params | module.state_dict()).items()}
    loss_and_grad_many(module, params, examples, OBJECTIVE)
    assert all(p.grad is None for p in [*module.parameters(), *params.values()])
    assert all(torch.equal(v, before[n]) for n, v in (params | module.state_dict()).items())


@pytest.mark.parametrize("create_graph", [True, False])
def test_loss_and_grad_many_is_differentiable_where_asked(create_graph: bool) -> None:
    module, params, examples = drawn("mlp", shared=True)
    params["0.weight"].requires_grad_()
    losses, grads = loss_and_grad_many(module, params, examples, OBJECTIVE, create_graph=create_graph)
    assert losses.requires_grad == grads["2.bias"].requires_grad == create_graph
    if create_graph:
        grads["2.bias"].square().sum().backward()
        assert params["0.weight"].grad is not None and params["0.weight"].grad.any()


def test_loss_many_of_padded_examples_is_that_of_each_networks_examples() -> None:
    module, params, _ = drawn("mlp", shared=False)
    parts = [(torch.randn(n, 6, dtype=torch.float64), torch.randint(3, (n,))) for n in (5, 2, 4)]
    losses, grads = loss_and_grad_many(module, params, Examples.from_list(parts), OBJECTIVE)
    for b, (x, y) in enumerate(parts):
        one = {name: p[b : b + 1] for name, p in params.items()}
        loss, grad = loss_and_grad_many(module, one, Examples(x, y), OBJECTIVE)
        torch.testing.assert_close(losses[b : b + 1], loss, rtol=1e-12, atol=1e-14)
        for name, g in grad.items():
            torch.testing.assert_close(grads[name][b : b + 1], g, rtol=1e-12, atol=1e-14)


def test_loss_many_refuses_examples_of_other_networks() -> None:
    module, params, examples = drawn("mlp", shared=False)
    with pytest.raises(ValueError, match="x: got shape"):
        loss_many(module, params, examples.of(slice(2)), OBJECTIVE)


@pytest.mark.parametrize("objective", [OBJECTIVE, SquaredError((3,)), SquaredError((3,), "psnr")], ids=str)
@pytest.mark.parametrize("sizes", [None, (5, 2, 4)], ids=["shared", "padded"])
def test_evaluate_many_in_chunks_equals_one_network_at_once(
    objective: CrossEntropy | SquaredError, sizes: tuple[int, ...] | None
) -> None:
    module, params, _ = drawn("mlp", shared=True)
    parts = []
    for n in sizes or (5,):
        x = torch.randn(n, 6, dtype=torch.float64)
        real = isinstance(objective, SquaredError)
        parts.append((x, torch.randn(n, 3, dtype=torch.float64) if real else torch.randint(3, (n,))))
    examples = Examples.from_list(parts) if sizes else Examples(*parts[0])
    loss, score = evaluate_many(module, params, examples, objective, chunk=2)
    for b, one in enumerate(unstack(params)):
        x, y = parts[b if sizes else 0]
        outputs = apply(module, one, x)
        torch.testing.assert_close(loss[b], objective.loss(outputs, y))
        torch.testing.assert_close(score[b], objective.score(outputs, y))
