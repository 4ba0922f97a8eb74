"""Every family of networks: the symmetry holds, and is at least what theory says."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from amortopt.symmetry import SymmetrySpec, extract
from amortopt.symmetry.proof.verify import Proof
from tests.cases import FAMILY_CASES, Case
from tests.cases import case as case_of

CASES = pytest.mark.parametrize("case", FAMILY_CASES, ids=str)


@cache
def _proved(case: Case) -> tuple[SymmetrySpec, Proof]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = case.build(), case.example_input()
        spec = extract(net, x)
        return spec, spec.verify(net, x, low=1e-2, high=1e2, probes=None)


@CASES
def test_the_symmetry_holds_in_both_modes(case: Case) -> None:
    _, proof = _proved(case)
    assert proof.holds and set(proof.errors) == {"eval", "training"}, proof


@CASES
def test_the_proof_sees_what_is_wrong(case: Case) -> None:
    """Negative control: elements outside the spec change the function, all but a few at most."""
    _, proof = _proved(case)
    assert len(proof.larger) <= proof.probes // 2, proof


@CASES
def test_the_symmetry_is_at_least_what_theory_says(case: Case) -> None:
    spec, _ = _proved(case)
    gauge = spec.gauge_dimension()
    assert gauge.continuous >= case.scaled
    assert gauge.sign_bits >= case.flipped
    least = sum(math.lgamma(degree + 1) / math.log(2) for degree in case.permuted)
    assert gauge.permutation_bits == pytest.approx(least) or gauge.permutation_bits > least


@pytest.mark.parametrize(
    ("name", "axis"), [("positions", 1), ("gpt-tied", 1), ("llama", 1), ("wavenet", 2), ("lstm-stacked", 1)]
)
def test_the_symmetry_holds_for_a_longer_sequence(name: str, axis: int) -> None:
    spec, _ = _proved(case_of(name))
    net, x = case_of(name).build(), case_of(name).example_input()
    assert isinstance(x, torch.Tensor)
    proof = spec.verify(net, torch.cat([x, x], axis), probes=0)
    assert proof.holds, proof


@CASES
def test_the_symmetry_covers_every_parameter(case: Case) -> None:
    spec, _ = _proved(case)
    net = case.build()
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    assert set(spec.params) == set(sizes)
    for name, size in sizes.items():
        assert sum(torch.Size(block.shape).numel() for block in spec.blocks_of(name)) == size


@CASES
def test_the_symmetry_is_the_same_from_other_weights_and_batches(case: Case) -> None:
    spec, _ = _proved(case)
    torch.manual_seed(1)
    assert extract(case.build(), case.example_input()).same_symmetry(spec)
