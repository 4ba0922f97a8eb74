"""Small real metanets, so that the optimizer's tests depend on no architecture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets import Metanet, make_metanet, register_metanet
from amortopt.optim import ScaleGMNOptimizer
from amortopt.symmetry import SymmetrySpec, extract
from amortopt.tasks import make_family

TANH = make_family("mlp", activation="tanh")
PROBLEM = {"name": "mnist1d"}


@register_metanet("test-scale")
class Scale(Metanet):
    """W' = (1 + s) W with one learned s per parameter; with gradients also - g, with L1 also * (1 - l1)."""

    def __init__(
        self, spec: SymmetrySpec, start: float = 0.5, reads: tuple[str, ...] | list[str] = ()
    ) -> None:
        super().__init__(spec, start=start, reads=list(reads))
        self._inputs = frozenset(reads)
        self.gains = nn.ParameterList(
            [nn.Parameter(torch.tensor(start + i / 8)) for i in range(len(spec.params))]
        )
        self.calls: list[int] = []

    @property
    def inputs(self) -> frozenset[str]:
        return self._inputs

    def forward(self, params: Params, *, grads: Params | None = None, l1: Tensor | None = None) -> Params:
        assert (grads is not None) == ("grads" in self.inputs)
        assert (l1 is not None) == ("l1" in self.inputs)
        self.calls.append(len(next(iter(params.values()))))
        new = {}
        for gain, name in zip(self.gains, self.spec.params, strict=True):
            new[name] = (1 + gain) * params[name]
            if grads is not None:
                new[name] = new[name] - grads[name]
            if l1 is not None:
                new[name] = new[name] * (1 - l1).reshape(-1, *(1,) * (params[name].ndim - 1))
        return new


@register_metanet("test-same")
class Same(Metanet):
    """Returns the very tensors that it got, and has no parameters."""

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset()

    def forward(self, params: Params, *, grads: Params | None = None, l1: Tensor | None = None) -> Params:
        return params


def tanh_spec() -> SymmetrySpec:
    return extract(TANH.build(), TANH.example_input())


SPEC = tanh_spec()


def optimizer(*reads: str, start: float = 0.5, **trained: Any) -> ScaleGMNOptimizer:
    """An optimizer for the tanh family; gains 1.5, 1.625, ..."""
    metanet = make_metanet("test-scale", SPEC, start=start, reads=reads)
    return ScaleGMNOptimizer(metanet, family=TANH, problem=PROBLEM, name="test", **trained)


def scaled(module: nn.Module, start: float = 0.5) -> Params:
    """The slow reference for a network with the family's order of parameters."""
    return {name: (1 + start + i / 8) * p.detach() for i, (name, p) in enumerate(module.named_parameters())}
