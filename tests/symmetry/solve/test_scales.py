"""Equations between monomials of scale variables."""

from __future__ import annotations

import random

import pytest

from amortopt.symmetry.axes import SCALE_KINDS, ScaleKind
from amortopt.symmetry.solve.dims import Monomial, power, times
from amortopt.symmetry.solve.scales import Scales


def _of(*pairs: tuple[int, int]) -> Monomial:
    return tuple(pairs)


def _some(scales: Scales, *kinds: ScaleKind) -> list[int]:
    return [scales.fresh(unit, kind) for unit, kind in enumerate(kinds)]


def test_limits_only_ever_shrink() -> None:
    scales = Scales()
    (a,) = _some(scales, "free")
    for kind, left in [
        ("positive", "positive"),
        ("free", "positive"),
        ("sign", "none"),
        ("positive", "none"),
    ]:
        scales.limit(_of((a, 1)), kind, "")
        assert scales.kind(a) == left


def test_the_reason_is_that_of_the_last_limit_that_took_something() -> None:
    scales = Scales()
    (a,) = _some(scales, "free")
    for kind, reason in [("positive", "relu"), ("positive", "pool"), ("none", "gelu"), ("none", "exp")]:
        scales.limit(_of((a, 1)), kind, reason)
    assert scales.reason(a) == "gelu"


def test_what_is_tied_is_expressed_through_the_older_one() -> None:
    scales = Scales()
    a, b = _some(scales, "free", "free")
    scales.tie(_of((b, 1)), _of((a, -1)), "")
    assert scales.reduce(_of((a, 1), (b, 2))) == _of((a, -1))
    assert scales.over(1) == []


def test_a_free_variable_gives_way_without_a_condition_on_the_others() -> None:
    scales = Scales()
    free, positive, sign = _some(scales, "free", "positive", "sign")
    scales.tie(_of((free, 1)), _of((positive, 1), (sign, 1)), "")
    assert scales.reduce(_of((free, 1))) == _of((positive, 1), (sign, 1))
    assert (scales.kind(positive), scales.kind(sign)) == ("positive", "sign")


def test_magnitudes_and_signs_are_equal_separately() -> None:
    scales = Scales()
    p, s, q, t = _some(scales, "positive", "sign", "positive", "sign")
    scales.tie(_of((p, 1), (s, 1)), _of((q, 1), (t, 1)), "")
    assert scales.reduce(_of((q, 1))) == _of((p, 1))
    assert scales.reduce(_of((t, 1))) == _of((s, 1))


def test_a_magnitude_that_is_a_sign_is_one() -> None:
    scales = Scales()
    p, s = _some(scales, "positive", "sign")
    scales.tie(_of((p, 1)), _of((s, 1)), "")
    assert scales.reduce(_of((p, 1), (s, 1))) == ()


def test_a_squared_sign_is_one() -> None:
    scales = Scales()
    s, f = _some(scales, "sign", "free")
    assert scales.reduce(_of((s, 2), (f, 2))) == _of((f, 2))
    assert scales.reduce(_of((s, -3))) == _of((s, -1))


@pytest.mark.parametrize(("kind", "left"), [("free", "sign"), ("positive", "none"), ("sign", "sign")])
def test_a_square_that_is_one_leaves_signs(kind: ScaleKind, left: ScaleKind) -> None:
    scales = Scales()
    (a,) = _some(scales, kind)
    scales.tie(_of((a, 2)), (), "")
    assert scales.kind(a) == left


def test_one_free_factor_makes_up_for_the_others() -> None:
    scales = Scales()
    a, b = _some(scales, "free", "free")
    scales.limit(_of((a, 1), (b, 1)), "positive", "relu")
    assert scales.kind(a) == "free"
    ((var, exponent),) = scales.reduce(_of((a, 1), (b, 1)))
    assert (scales.kind(var), exponent) == ("positive", 1)


def test_what_nested_units_have_in_common_is_not_expressed_through_theirs() -> None:
    scales = Scales()
    owner, nested = 0, 1
    inner = scales.fresh(nested, "free")
    common = scales.fresh(owner, "free")
    scales.tie(_of((common, 1)), _of((inner, 1)), "", along=(nested, owner))
    assert scales.reduce(_of((inner, 1))) == _of((common, 1))
    assert scales.over(owner) == [common]


def test_a_choice_is_another_variable_at_every_index() -> None:
    scales = Scales()
    a, b, first, second = _some(scales, *["free"] * 4)
    scales.choose(a, [first, second])
    assert scales.at(_of((a, 2), (b, 1)), 1) == _of((b, 1), (second, 2))
    assert scales.forget_choices(a) == [first, second]
    assert scales.at(_of((a, 2), (b, 1)), 1) == _of((a, 2), (b, 1))


def test_shares_multiply() -> None:
    scales = Scales()
    a, b, c, d = _some(scales, *["free"] * 4)
    scales.share(a, [_of((c, 1)), ()])
    scales.share(b, [_of((c, 1)), _of((d, -1))])
    assert scales.shares(_of((a, 1), (b, 2)), 2) == [_of((c, 3)), _of((d, -2))]


_VALUES = {
    "free": lambda r: r.choice([-1, 1]) * r.uniform(0.5, 2),
    "positive": lambda r: r.uniform(0.5, 2),
    "sign": lambda r: r.choice([-1, 1]),
    "none": lambda r: 1.0,
}


def _allowed(value: float, kind: ScaleKind) -> bool:
    return {
        "free": True,
        "positive": value > 0,
        "sign": abs(abs(value) - 1) < 1e-6,
        "none": abs(value - 1) < 1e-6,
    }[kind]


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_left_fulfils_all_equations_and_limits(seed: int) -> None:
    r, scales = random.Random(seed), Scales()
    variables = _some(scales, *r.choices(SCALE_KINDS, k=6))

    def monomial() -> Monomial:
        return times(
            *(((var, r.choice([-2, -1, -1, 1, 1, 2])),) for var in r.sample(variables, r.randint(0, 3)))
        )

    equations: list[Monomial] = []
    limits: list[tuple[Monomial, ScaleKind]] = [(((var, 1),), scales.kind(var)) for var in variables]
    for _ in range(r.randint(1, 5)):
        left, right = monomial(), monomial()
        if r.random() < 0.6:
            scales.tie(left, right, "")
            equations.append(times(left, power(right, -1)))
        else:
            kind = r.choice(SCALE_KINDS)
            scales.limit(left, kind, "")
            limits.append((left, kind))
    values: dict[int, float] = {}

    def value(scale: Monomial) -> float:
        total = 1.0
        for var, exponent in scales.reduce(scale):
            values.setdefault(var, _VALUES[scales.kind(var)](r))
            total *= values[var] ** exponent
        return total

    assert all(abs(value(equation) - 1) < 1e-6 for equation in equations)
    assert all(_allowed(value(scale), kind) for scale, kind in limits)
