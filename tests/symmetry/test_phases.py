"""Phases of sine units: which biases have them, and that reducing them changes no function."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from amortopt.functional.networks import apply_many, params_of, stack
from amortopt.symmetry import act, extract, sample
from amortopt.symmetry.phases import half_periods, reduce_phases
from amortopt.tasks import make_family
from amortopt.tasks.families import Sine


class _Branched(nn.Module):
    """A sine whose input is read a second time: no phase may be shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.last(torch.sin(y) + y)


def test_half_periods_are_of_biases_that_feed_a_sine() -> None:
    family = make_family("siren", widths=(2, 6, 5, 1), w0=3.0)
    spec = extract(family.build(), family.example_input())
    assert half_periods(spec) == pytest.approx({"0.bias": math.pi / 3, "2.bias": math.pi / 3})
    plain = nn.Sequential(nn.Linear(2, 3), Sine(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    assert half_periods(extract(plain, torch.zeros(1, 2))) == pytest.approx({"0.bias": math.pi})
    assert half_periods(extract(_Branched(), torch.zeros(1, 2))) == {}


def test_reduce_phases_keeps_the_function_and_bounds_the_biases() -> None:
    torch.manual_seed(0)
    family = make_family("siren", widths=(2, 6, 5, 1), w0=3.0)
    network = family.build().double()
    spec = extract(network, family.example_input().double())
    params = stack([params_of(network), params_of(network)])
    params = {name: p + torch.randn_like(p) for name, p in params.items()}
    reduced = reduce_phases(spec, params)
    x = torch.randn(9, 2, dtype=torch.float64)
    before, after = (apply_many(network, p, x) for p in (params, reduced))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    for name in ("0.bias", "2.bias"):
        assert params[name].abs().max() > math.pi / 6 >= reduced[name].abs().max()


def test_reduce_phases_commutes_with_the_symmetry() -> None:
    torch.manual_seed(0)
    family = make_family("siren", widths=(2, 6, 5, 1), w0=3.0)
    spec = extract(family.build(), family.example_input())
    params = {name: torch.randn(2, *p.shape).double() for name, p in family.build().named_parameters()}
    g = sample(spec, generator=torch.Generator().manual_seed(0), batch=2)
    first = reduce_phases(spec, act(spec, g, params, batched=True))
    second = act(spec, g, reduce_phases(spec, params), batched=True)
    for name in params:
        torch.testing.assert_close(first[name], second[name], rtol=1e-9, atol=1e-9)
