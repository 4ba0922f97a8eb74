from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.align.networks import NETWORKS, TABLES
from benchmarks.align.rebasins import weight_matching
from benchmarks.align.run import barrier


@pytest.mark.parametrize("name", NETWORKS)
def test_tables_are_those_of_the_networks(name: str) -> None:
    shapes = {key: tuple(p.shape) for key, p in NETWORKS[name]().named_parameters()}
    table = TABLES[name]
    assert {key: len(axes) for key, axes in table.items()} == {
        key: len(shape) for key, shape in shapes.items()
    }
    sizes = {(p, shapes[key][k]) for key, axes in table.items() for k, p in enumerate(axes) if p is not None}
    assert len(sizes) == len({p for p, _ in sizes})


@pytest.mark.parametrize("name", NETWORKS)
def test_weight_matching_keeps_the_function(name: str) -> None:
    torch.manual_seed(0)
    a, b = (NETWORKS[name]().eval() for _ in range(2))
    x = torch.randn(3, 40)
    torch.testing.assert_close(weight_matching(a, b, TABLES[name])(x), b(x), rtol=1e-4, atol=1e-5)


def test_weight_matching_finds_a_known_permutation() -> None:
    torch.manual_seed(0)
    a = NETWORKS["mlp-tanh"]()
    b, order = copy.deepcopy(a), torch.randperm(128)
    with torch.no_grad():
        b[0].weight.copy_(a[0].weight[order])
        b[0].bias.copy_(a[0].bias[order])
        b[2].weight.copy_(a[2].weight[:, order])
    found = weight_matching(a, b, TABLES["mlp-tanh"])
    assert all(p.equal(q) for p, q in zip(found.parameters(), a.parameters(), strict=True))


def test_barrier_is_what_the_midpoint_adds_to_the_mean_of_both_ends() -> None:
    assert barrier([1.0, 9.0, 4.0, 9.0, 2.0]) == 2.5
