"""Small real metanets, so that the optimizer's tests depend on no architecture."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from amortopt._types import Params
from amortopt.metanets import Conditions, Metanet, make, register
from amortopt.optim import ScaleGMNOptimizer
from amortopt.symmetry import SymmetrySpec, extract
from amortopt.tasks import make_family

TANH = make_family("mlp", activation="tanh")
NONE = Conditions()
PROBLEM = {"name": "mnist1d"}


@register("test-scale")
class Scale(Metanet):
    """W' = (1 + s) W with one learned s per parameter; with gradients also - g, with L1 also * (1 - l1)."""

    def __init__(
        self, spec: SymmetrySpec, start: float = 0.5, conditions: tuple[str, ...] | list[str] = ()
    ) -> None:
        super().__init__(spec, start=start, conditions=list(conditions))
        self.gains = nn.ParameterList(
            [nn.Parameter(torch.tensor(start + i / 8)) for i in range(len(spec.params))]
        )
        self.calls: list[int] = []

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        return {}

    def forward(self, params: Params, conditions: Conditions = NONE) -> Params:
        count = len(next(iter(params.values())))
        conditions.check(self.conditions, count)
        gradient, l1 = conditions.gradient_at(params), conditions.l1
        self.calls.append(count)
        new = {}
        for gain, name in zip(self.gains, self.spec.params, strict=True):
            new[name] = (1 + gain) * params[name]
            if gradient is not None:
                new[name] = new[name] - gradient[name]
            if l1 is not None:
                new[name] = new[name] * (1 - l1).reshape(-1, *(1,) * (params[name].ndim - 1))
        return new


@register("test-same")
class Same(Metanet):
    """Returns the very tensors that it got, and has no parameters."""

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        return {}

    def forward(self, params: Params, conditions: Conditions = NONE) -> Params:
        return params


def tanh_spec() -> SymmetrySpec:
    return extract(TANH.build(), TANH.example_input())


SPEC = tanh_spec()


def optimizer(*conditions: str, start: float = 0.5, **trained: Any) -> ScaleGMNOptimizer:
    """An optimizer for the tanh family; gains 1.5, 1.625, ..."""
    metanet = make("test-scale", SPEC, start=start, conditions=conditions)
    return ScaleGMNOptimizer(metanet, family=TANH, problem=PROBLEM, name="test", **trained)


def scaled(module: nn.Module, start: float = 0.5) -> Params:
    """The slow reference for a network with the family's order of parameters."""
    return {name: (1 + start + i / 8) * p.detach() for i, (name, p) in enumerate(module.named_parameters())}
