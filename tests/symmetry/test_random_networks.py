"""Soundness over networks that nobody would write: whatever the rules claim has to hold."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from amortopt.symmetry import SymmetrySpec, UnknownOperationWarning, extract
from amortopt.testing import assert_function_preserved
from tests.symmetry.programs import Program, refused, settled, shows

_SEEDS = range(150)
# Of torch, about operations that are new, slow or deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.no_grad():
        yield
    torch.set_default_dtype(before)


@cache
def _extracted(seed: int) -> tuple[Program, Tensor, SymmetrySpec | None]:
    """A program, its input and its symmetry; None if its output can tell nothing, or it is refused."""
    torch.manual_seed(seed)
    program = Program([1000 * seed + step for step in range(4 + 2 * (seed % 5))]).eval()
    x = torch.randn(3, 3, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownOperationWarning)
        if not shows(program, x):
            return program, x, None
        try:
            return program, x, extract(program, x)
        except ValueError as error:
            if not refused(program, error):
                raise
            return program, x, None


@pytest.mark.parametrize("seed", _SEEDS)
def test_what_is_claimed_of_a_random_network_holds(seed: int) -> None:
    program, x, spec = _extracted(seed)
    if spec is None:
        pytest.skip("its output shows nothing, or numbers of elements decide what it computes")
    print("\n".join(program.log))
    # Some of these networks hardly use some of their weights: no negative control.
    assert_function_preserved(program, x, spec, low=0.3, high=3, rtol=1e-6, control=False, drawn=True)


def test_random_networks_have_symmetry_to_claim() -> None:
    specs = [spec for seed in _SEEDS if (spec := _extracted(seed)[2]) is not None]
    moving = [any(not group.trivial for group in spec.groups) for spec in specs]
    assert sum(moving) >= len(moving) / 2
    groups = [group for spec in specs for group in spec.groups if not group.trivial]
    assert {group.kind for group in groups} == {"positive", "sign", "free", "none"}
    assert {(group.permutable, group.within is None) for group in groups} == {
        *((True, True), (True, False), (False, True), (False, False))
    }


class Above(nn.Module):
    """Adds 1 where an input is above a threshold."""

    def __init__(self, threshold: Tensor) -> None:
        super().__init__()
        self.threshold = nn.Parameter(threshold)

    def forward(self, x: Tensor) -> Tensor:
        return x + (x > self.threshold)


def test_program_that_compares_equals_is_not_settled() -> None:
    x = torch.linspace(-1, 1, 12).view(3, 4)
    for threshold, expected in ((x.clone(), False), (torch.tensor(0.01), True)):
        program = Above(threshold.clone())
        assert settled(program, x) is expected
        assert torch.equal(program.threshold, threshold)  # weights are as they were
