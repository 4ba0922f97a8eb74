"""Phases of many networks at once: no function changes, and one network at a time gives the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from amortopt.functional.networks import apply_many, params_of, stack
from amortopt.symmetry import act, extract, sample
from amortopt.symmetry.alignment.phases import phases, reduce_phases, without_phases
from amortopt.tasks import make_family


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


def test_reduce_phases_is_that_of_single_networks() -> None:
    torch.manual_seed(0)
    family = make_family("siren", widths=(2, 6, 5, 1), w0=3.0)
    spec = extract(family.build(), family.example_input())
    params = {name: torch.randn(2, *p.shape).double() for name, p in family.build().named_parameters()}
    reduced = reduce_phases(spec, params)
    for b in range(2):
        alone = without_phases(spec, {name: p[b] for name, p in params.items()})
        for name, value in alone.items():
            torch.testing.assert_close(reduced[name][b], value, rtol=1e-9, atol=1e-12)


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


READERS = {
    "flattened": (nn.Conv1d(2, 4, 3), _Sine(), nn.Flatten(), nn.Linear(4 * 6, 3)),
    "in groups": (nn.Conv1d(2, 4, 3), _Sine(), nn.Conv1d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 3)),
    "each on its own": (nn.Conv1d(2, 4, 3), _Sine(), nn.Conv1d(4, 4, 3, groups=4), nn.Flatten()),
}


@pytest.mark.parametrize("name", READERS)
def test_reduce_phases_negates_whatever_reads_a_unit(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*READERS[name]).double()
    x = torch.randn(5, 2, 8, dtype=torch.float64)
    spec = extract(network, x)
    params = {name: 4 * torch.randn(3, *p.shape).double() for name, p in network.named_parameters()}
    reduced = reduce_phases(spec, params)
    before, after = (apply_many(network, p, x) for p in (params, reduced))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    if phases(spec):
        assert params["0.bias"].abs().max() > math.pi / 2 >= reduced["0.bias"].abs().max()


def test_reduce_phases_of_wider_networks_keeps_their_function() -> None:
    torch.manual_seed(0)
    family, wider = (make_family("siren", widths=(2, *hidden, 1), w0=3.0) for hidden in ((6, 5), (9, 7)))
    spec, network = extract(family.build(), family.example_input()), wider.build().double()
    params = {name: torch.randn(2, *p.shape).double() for name, p in network.named_parameters()}
    reduced = reduce_phases(spec, params)
    x = torch.randn(9, 2, dtype=torch.float64)
    before, after = (apply_many(network, p, x) for p in (params, reduced))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    assert not torch.equal(reduced["2.weight"], params["2.weight"])
