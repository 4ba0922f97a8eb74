"""Rules, networks and steps for the tests of the learned optimizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from amortopt import UNFOptimizer
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.symmetry import SymmetrySpec, extract

X = torch.linspace(-2, 2, 6 * 5).view(6, 5).sin()
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def any_rule(seed: int = 0, **config: Any) -> UNFRule:
    """A rule with random weights, none of which are zero."""
    torch.manual_seed(seed)
    rule = UNFRule(**{"width": 4, "floor": 0.1, **config})
    with torch.no_grad():
        for p in rule.parameters():
            if not p.any():
                p.normal_(std=0.2)
    return rule


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


@cache
def _spec() -> SymmetrySpec:
    return extract(mlp(), X)


def optimizer(model: nn.Module, **options: Any) -> UNFOptimizer:
    plain = {name: p.shape for name, p in mlp().named_parameters()}
    known = {name: p.shape for name, p in model.named_parameters()} == plain
    given = {"spec": _spec()} if known else {"example_input": X}
    return UNFOptimizer(model, **{"rule": any_rule(), **given, **options})


def backward(model: nn.Module, seed: int = 0) -> Tensor:
    """Gradients of the loss on a few examples, added to what is there."""
    noise = 0.1 * torch.randn(X.shape, generator=torch.Generator().manual_seed(seed))
    x = (X + noise).to(next(model.parameters()).dtype)
    loss = nn.functional.cross_entropy(model(x).float(), Y)
    loss.backward()
    return loss.detach()


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for seed in range(first, first + steps):
        opt.zero_grad()
        backward(model, seed)
        opt.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether both have bit for bit the same weights."""
    left, right = weights(a), weights(b)
    return all(torch.equal(left[name], right[name]) for name in left)
