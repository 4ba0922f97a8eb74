"""Conditions: what is declared is checked; the range of trained L1 strengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amortopt.metanets import Conditions, L1Range

PARAMS = {"w": torch.ones(2, 3)}


def test_conditions_that_were_declared_pass() -> None:
    conditions = Conditions(lambda params: {"w": 2 * params["w"]}, torch.zeros(2))
    conditions.check({"batch", "l1"}, 2)
    gradient = conditions.gradient_at(PARAMS)
    assert gradient is not None and torch.equal(gradient["w"], torch.full((2, 3), 2.0))
    Conditions().check((), 2)
    assert Conditions().gradient_at(PARAMS) is None


@pytest.mark.parametrize(
    ("conditions", "declared", "match"),
    [
        (Conditions(l1=torch.zeros(2)), (), r"conditions\.l1: got one, .* conditions=\[\]"),
        (Conditions(), ("batch",), r"conditions\.gradient: got none, .* conditions=\['batch'\]"),
        (Conditions(l1=torch.zeros(3)), ("l1",), r"conditions\.l1: got shape \(3,\), expected \(2,\)"),
    ],
)
def test_conditions_that_were_not_declared_are_refused(
    conditions: Conditions, declared: tuple[str, ...], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        conditions.check(declared, 2)


@pytest.mark.parametrize("gradient", [{}, {"w": torch.zeros(2, 4)}], ids=["missing", "shape"])
def test_conditions_refuse_a_gradient_that_does_not_fit(gradient: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"conditions\.gradient: got .* for 'w', expected .*\(2, 3\)"):
        Conditions(lambda _: gradient).gradient_at(PARAMS)


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.5), (1.0, float("inf"))])
def test_l1_range_is_positive_and_in_order(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="l1: got"):
        L1Range(low, high)


@pytest.mark.parametrize("config", [{}, {"low": 1e-3, "high": None, "zero": True}, 3], ids=str)
def test_l1_range_of_a_damaged_config_is_refused(config: Any) -> None:
    with pytest.raises(ValueError, match="l1_range: got"):
        L1Range.from_config(config)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_l1_range_points_are_within_and_hold_both_ends(count: int) -> None:
    for chosen in (L1Range(1e-5, 1e-2), L1Range(1e-3, 1e-3), L1Range(1e-3, 1.001e-3)):
        points = chosen.points(count)
        assert points == sorted(set(points)) and len(points) <= max(2, count)
        assert points[0] == chosen.low and points[-1] == chosen.high
        assert not chosen.outside(torch.tensor(points)).any()
