"""What the tests of update rules share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.symmetry import SymmetrySpec, extract
from amortopt.symmetry.action import Element, sample
from tests.cases import Case


def layout_of(network: nn.Module, spec: SymmetrySpec) -> UpdateLayout:
    return UpdateLayout(spec, {name: p.shape for name, p in network.named_parameters()})


def extracted(case: Case) -> tuple[nn.Module, SymmetrySpec, UpdateLayout]:
    network = case.build()
    spec = extract(network, case.example_input())
    return network, spec, layout_of(network, spec)


def permutation(spec: SymmetrySpec, seed: int = 0) -> Element:
    """A random element without scales."""
    g = sample(spec, generator=torch.Generator().manual_seed(seed))
    return Element(g.permutations, {name: torch.ones_like(q) for name, q in g.scales.items()})


def random_params(layout: UpdateLayout, seed: int, *batch: int, dtype: torch.dtype = torch.float64) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn((*batch, *shape), generator=generator, dtype=dtype)
        for name, shape in layout.shapes.items()
    }


def flat_noise(layout: UpdateLayout, seed: int, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((*batch, layout.size), generator=generator, dtype=dtype)
