"""Written-out gradients of chains, and their derivatives, are autograd's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.chain import chain_loss_and_grad
from amortopt.functional.networks import apply_many
from amortopt.tasks import make_family

B, N = 3, 5


def tied() -> nn.Module:
    twice = nn.Linear(4, 4)
    return nn.Sequential(twice, nn.Tanh(), twice, nn.ReLU(), nn.Linear(4, 3))


CHAINS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (make_family("mlp", widths=(6, 4, 5, 3)).build, (6,)),
    "images first flattened": (make_family("mlp", widths=(12, 4, 3), input_shape=(3, 4)).build, (3, 4)),
    "cnn 1-D": (
        make_family("cnn", channels=(4, 5, 6), input_shape=(1, 11), kernel_size=5, padding=2).build,
        (1, 11),
    ),
    "cnn 2-D": (
        make_family("cnn", activation="relu", channels=(4, 5), input_shape=(2, 9, 7)).build,
        (2, 9, 7),
    ),
    "no bias, dilation, no pooling": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, dilation=2, bias=False),
            nn.Tanh(),
            nn.Conv1d(3, 2, 2, stride=2),
            nn.Identity(),
            nn.Flatten(),
            nn.Linear(8, 3, bias=False),
        ),
        (2, 12),
    ),
    "tied": (tied, (4,)),
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "an activation without a written form": (lambda: nn.Sequential(nn.Linear(4, 3), nn.GELU()), (4,)),
    "padding by name": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3, padding="same"), nn.Flatten()), (2, 4)),
    "a layer of another kind": (lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), (4,)),
    "inputs of another width": (lambda: nn.Sequential(nn.Linear(4, 3)), (5,)),
    "inputs shorter than a kernel": (lambda: nn.Sequential(nn.Conv1d(2, 3, 5), nn.Flatten()), (2, 4)),
    "no params": (lambda: nn.Sequential(nn.Flatten()), (4,)),
}


def losses(outputs: Tensor) -> Tensor:
    return outputs.logsumexp(-1).square().mean(-1) - outputs[..., 0].sin().mean(-1)


def drawn(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Params, Tensor]:
    module = build().eval()
    params = {
        name: torch.randn(B, *p.shape, dtype=torch.float64, requires_grad=True)
        for name, p in module.named_parameters()
    }
    return module, params, torch.randn(B, N, *shape, dtype=torch.float64)


@pytest.mark.parametrize("name", CHAINS)
def test_chain_gradient_and_its_derivative_are_autograds(name: str) -> None:
    module, params, x = drawn(*CHAINS[name])
    written_out = chain_loss_and_grad(module, params, x, losses)
    assert written_out is not None
    loss = losses(apply_many(module, params, x, shared=False))
    grads = torch.autograd.grad(loss.sum(), list(params.values()), create_graph=True)
    ways = []
    for ours, by in (written_out, (loss, dict(zip(params, grads, strict=True)))):
        assert list(by) == list(params)
        meta = ours.square().sum() + sum(g.pow(3).sum() for g in by.values())
        ways.append((ours, *by.values(), *torch.autograd.grad(meta, list(params.values()))))
    for ours, theirs in zip(*ways, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11 * float(theirs.detach().abs().max()))


def test_chain_gradient_alone_and_loss_alone_have_derivatives() -> None:
    module, params, x = drawn(*CHAINS["mlp"])
    for k in range(2):
        written_out = chain_loss_and_grad(module, params, x, losses)
        assert written_out is not None
        loss, grads = written_out
        value = grads["4.bias"].sum() if k else loss.sum()
        first = torch.autograd.grad(value, params["0.weight"], retain_graph=True)[0]
        again = torch.autograd.grad(value, params["0.weight"])[0]
        torch.testing.assert_close(first, again)
        if not k:
            torch.testing.assert_close(first, grads["0.weight"])


def test_chain_has_third_derivatives() -> None:
    module, params, x = drawn(*CHAINS["cnn 1-D"])
    written_out = chain_loss_and_grad(module, params, x, losses)
    assert written_out is not None
    loss = losses(apply_many(module, params, x, shared=False))
    grads = torch.autograd.grad(loss.sum(), list(params.values()), create_graph=True)
    weight = params["2.weight"]
    ways = []
    for ours, by in (written_out, (loss, dict(zip(params, grads, strict=True)))):
        value = ours.square().sum() + by["0.weight"].pow(3).sum()
        (second,) = torch.autograd.grad(value, weight, create_graph=True)
        ways.append((second, *torch.autograd.grad(second.square().sum(), weight)))
    for ours, theirs in zip(*ways, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11 * float(theirs.detach().abs().max()))


@pytest.mark.parametrize("name", OTHERS)
def test_chain_leaves_others_to_autograd(name: str) -> None:
    module, params, x = drawn(*OTHERS[name])
    assert chain_loss_and_grad(module, params, x, losses) is None


def test_chain_leaves_inputs_with_gradients_and_missing_params_to_autograd() -> None:
    module, params, x = drawn(*CHAINS["mlp"])
    assert chain_loss_and_grad(module, params, x.clone().requires_grad_(), losses) is None
    assert chain_loss_and_grad(module, params, x[:2], losses) is None
    del params["0.bias"]
    assert chain_loss_and_grad(module, params, x, losses) is None
