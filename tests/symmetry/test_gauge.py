from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from amortopt.symmetry import Axis, Block, NeuronGroup, SymmetrySpec, extract, identity, null_directions
from amortopt.symmetry.action import act
from amortopt.symmetry.gauge import GaugeDimension, gauge_dimension
from tests.cases import CASES, case
from tests.symmetry.solve.nested import nested


def exponents(spec: SymmetrySpec) -> Tensor:
    """Reference: what every unit's scale does to every weight, by acting on weights that are all one."""
    ones = {}
    for name in spec.params:
        slices = [block.slices or tuple((0, n) for n in block.shape) for block in spec.blocks_of(name)]
        shape = [max(stop for _, stop in along) for along in zip(*slices, strict=True)]
        ones[name] = torch.ones(shape, dtype=torch.float64)
    columns = []
    for group in spec.groups:
        if group.kind not in ("positive", "free"):
            continue
        for unit in range(group.size):
            g = identity(spec)
            g.scales[group.name][unit] = 2.0
            columns.append(torch.cat([p.flatten() for p in act(spec, g, ones).values()]).log2())
    return torch.stack(columns, 1) if columns else torch.zeros(1, 1)


def brute_force(spec: SymmetrySpec) -> int:
    return int(torch.linalg.matrix_rank(exponents(spec)))


@pytest.mark.parametrize("name", [case.name for case in CASES if "mlp" not in case.name] + ["mlp-width-one"])
def test_continuous_directions_of_a_network_agree_with_brute_force(name: str) -> None:
    spec = extract(case(name).build(), case(name).example_input())
    assert gauge_dimension(spec).continuous == brute_force(spec)


@pytest.mark.parametrize("seed", range(25))
def test_continuous_directions_of_any_spec_agree_with_brute_force(seed: int) -> None:
    spec, _ = nested()
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(len(spec.blocks), generator=generator) < 0.6
    free = torch.rand(len(spec.groups), generator=generator) < 0.7
    names = {block.param for block, kept in zip(spec.blocks, keep, strict=True) if kept}
    spec = dataclasses.replace(
        spec,
        groups=tuple(
            dataclasses.replace(g, kind="free" if yes else "none")
            for g, yes in zip(spec.groups, free, strict=True)
        ),
        blocks=tuple(block for block in spec.blocks if block.param in names),
    )
    gauge = gauge_dimension(spec)
    assert gauge.continuous == brute_force(spec) <= gauge.units


def test_combinations_of_scales_that_change_no_weight_do_not_count() -> None:
    """Two groups that scale the same units in one way only, and a third that scales none."""
    groups = (
        NeuronGroup("h", 5, "positive", True, ""),
        NeuronGroup("again", 5, "free", False, "", "h"),
        NeuronGroup("idle", 7, "positive", True, ""),
    )
    block = Block("w", (Axis("h", 2, 5, also=(("again", -1),)), Axis("idle", 0, 7)))
    gauge = gauge_dimension(SymmetrySpec(groups, (block,)))
    assert (gauge.continuous, gauge.units) == (5, 17)
    assert "12 combinations change no weight" in repr(gauge)


def test_a_group_on_both_sides_of_a_weight_has_one_direction_less() -> None:
    spec = SymmetrySpec(
        (NeuronGroup("h", 6, "positive", True, ""),), (Block("w", (Axis("h", 1, 6), Axis("h", -1, 6))),)
    )
    assert gauge_dimension(spec).continuous == 5


def test_the_discrete_part_counts_permutations_and_signs() -> None:
    groups = (
        NeuronGroup("in", 9, "none", False, "input"),
        NeuronGroup("heads", 4, "none", True, ""),
        NeuronGroup("qk", 12, "free", True, "", "heads"),
        NeuronGroup("still", 12, "sign", False, "", "heads"),
        NeuronGroup("unused", 50, "sign", True, ""),
    )
    blocks = (
        Block("w", (Axis("qk", 1, 12), Axis("in", -1, 9))),
        Block("v", (Axis("still", 1, 12),)),
    )
    gauge = gauge_dimension(SymmetrySpec(groups, blocks))
    assert gauge.sign_bits == 24
    assert gauge.permutation_bits == pytest.approx(math.log2(math.factorial(4) * math.factorial(3) ** 4))
    assert gauge.discrete_bits == gauge.permutation_bits + 24
    assert gauge.continuous == 12
    assert repr(GaugeDimension(1234, 1234, 10.4, 3)) == (
        "1,234 continuous directions of rescaling, 13 bits of discrete symmetry "
        "(10 of permutations, 3 of signs)"
    )


@pytest.mark.parametrize(
    ("activation", "hidden", "null"),
    [(nn.ReLU, (5,), 5), (nn.Tanh, (4, 3), 0), (nn.LeakyReLU, (4,), 4), (nn.GELU, (4,), 0)],
)
def test_null_directions_of_a_dense_network_are_its_rescalings(
    activation: Callable[[], nn.Module], hidden: tuple[int, ...], null: int
) -> None:
    widths, layers = (3, *hidden, 2), []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    net, x = nn.Sequential(*layers[:-1]), 3 * torch.randn(200, 3)
    found = null_directions(net, x)
    assert found.dimension == null == gauge_dimension(extract(net, x)).continuous
    assert found.gap > 1e6


def test_two_dense_layers_in_a_row_have_more_than_rescalings() -> None:
    """GL(3), of which the 3 rescalings are the diagonal."""
    net, x = nn.Sequential(nn.Linear(5, 3, bias=False), nn.Linear(3, 4)), torch.randn(100, 5)
    assert gauge_dimension(extract(net, x)).continuous == 3
    assert null_directions(net, x).dimension == 9


def test_null_directions_leave_the_network_alone() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    null_directions(net, torch.randn(20, 2))
    assert net.training and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_null_directions_need_more_outputs_than_weights() -> None:
    with pytest.raises(ValueError, match="got 4 outputs for 15 weights"):
        null_directions(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False)), torch.randn(2, 2))
