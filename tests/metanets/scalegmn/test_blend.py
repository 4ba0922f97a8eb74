"""Blend: one prototype for all strengths, one for none, the nearest knots for the others."""

from __future__ import annotations

import pytest
import torch

from amortopt.metanets.scalegmn.readout import Blend


def test_blend_of_zero_and_of_knots() -> None:
    weights = Blend(1e-4, 1e-2, 3)(torch.tensor([0.0, 1e-4, 1e-3, 1e-2]))
    expected = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]).float()
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)


def test_blend_is_linear_on_a_log_scale_between_knots() -> None:
    weights = Blend(1e-4, 1e-2, 3)(torch.tensor([1e-4 * 10**0.25], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([[1, 0, 0.75, 0.25, 0]], dtype=torch.float64))


def test_blend_beyond_the_ends_is_that_of_the_ends() -> None:
    blend = Blend(1e-4, 1e-2, 4)
    torch.testing.assert_close(blend(torch.tensor([1e-9, 10.0])), blend(torch.tensor([1e-4, 1e-2])))


def test_blend_of_one_knot() -> None:
    assert Blend(1e-3, 1e-3, 1)(torch.tensor([0.0, 1e-3])).tolist() == [[1, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("ends", [(0.0, 1e-2), (1e-2, 1e-4), (1e-4, float("inf")), (1e-3, 1e-3)])
def test_blend_refuses_a_bad_range(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="l1_range: got"):
        Blend(*ends, 3)
