"""Params against families whose parameters are read in slices, in runs, or not at all."""

from __future__ import annotations

import pytest
import torch

from amortopt.optim.networks import align
from tests.metanets.specs import SPECS, params_like


@pytest.mark.parametrize("name", SPECS)
def test_align_takes_params_of_any_symmetry(name: str) -> None:
    params = params_like(SPECS[name])
    found = align(SPECS[name], params)
    assert found.batched and not found.width_changes and found.names == {key: key for key in params}
    alone = align(SPECS[name], {key: p[0] for key, p in params.items()})
    assert not alone.batched and not alone.width_changes


def test_align_leaves_buffers_out() -> None:
    params = params_like(SPECS["conv-norm-relu"])
    assert "norm1.mean" not in align(SPECS["conv-norm-relu"], params).names


def test_align_says_which_units_are_more() -> None:
    params = params_like(SPECS["attention"], 1)
    params |= {"up": torch.zeros(1, 7, 5), "down": torch.zeros(1, 5, 7)}
    (change,) = align(SPECS["attention"], params).width_changes
    assert "group 'm'" in change and "7 units" in change


@pytest.mark.parametrize(
    ("name", "key", "shape"), [("attention", "out", (5, 8)), ("grouped-relu", "2", (9, 3, 3))]
)
def test_align_refuses_other_runs(name: str, key: str, shape: tuple[int, ...]) -> None:
    params = params_like(SPECS[name], 1) | {key: torch.zeros(1, *shape)}
    with pytest.raises(ValueError, match=rf"params\['{key}'\]: got shape .* expected \[B, "):
        align(SPECS[name], params)
