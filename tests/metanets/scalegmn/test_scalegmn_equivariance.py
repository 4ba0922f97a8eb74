"""ScaleGMN moves as the networks do, for permutations and scalings from 1e-3 to 1e3."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import amortopt.metanets.scalegmn.encoder as encoder
from amortopt._types import Params
from amortopt.metanets import ScaleGMN
from amortopt.metanets.scalegmn import factors
from amortopt.metanets.scalegmn.factors import Factors, rescaled
from amortopt.metanets.scalegmn.layout import GraphBlock
from amortopt.symmetry import SymmetrySpec
from amortopt.testing import assert_equivariant
from tests.cases import Case, case
from tests.metanets.networks import READABLE, conditions_of, metanet, networks, spec_of, without_scales
from tests.metanets.scalegmn.zeros import DEAD, zero

READS = ((), ("batch",), ("l1",), ("batch", "l1"))


def _operator(made: ScaleGMN) -> Callable[..., Params]:
    l1 = torch.tensor([0.0, 1e-3], dtype=torch.float64) if "l1" in made.conditions else None
    return lambda params, grads=None: made(params, conditions_of(grads, l1))


def _check(made: ScaleGMN, spec: SymmetrySpec, params: Params, **options: float) -> None:
    grads = {name: torch.randn_like(p) for name, p in params.items()} if "batch" in made.conditions else None
    assert_equivariant(
        _operator(made), spec, params, grads=grads, batched=True, seeds=(0,), **{**LARGE, **options}
    )


LARGE = {"low": 1e-3, "high": 1e3}


@pytest.mark.parametrize("conditions", READS, ids="+".join)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("base", READABLE, ids=str)
def test_scalegmn_equivariant(base: Case, direction: str, conditions: tuple[str, ...]) -> None:
    made = metanet(spec_of(base), direction=direction, conditions=conditions)
    _check(made, spec_of(base), networks(base))


@pytest.mark.parametrize("conditions", READS, ids="+".join)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("base", READABLE, ids=str)
def test_scalegmn_permutation_option_equivariant_to_permutations(
    base: Case, direction: str, conditions: tuple[str, ...]
) -> None:
    made = metanet(spec_of(base), direction=direction, conditions=conditions, respects="permutation")
    _check(made, without_scales(spec_of(base)), networks(base))


@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-relu", "mlp-identity", "cnn-1d", "cnn-2d", "cnn-prelu"])
def test_scalegmn_permutation_option_fails_on_scalings(name: str) -> None:
    made = metanet(spec_of(case(name)), respects="permutation")
    with pytest.raises(AssertionError, match="not equivariant"):
        _check(made, spec_of(case(name)), networks(case(name)))


@pytest.mark.parametrize("name", ["mlp-relu", "residual", "cnn-1d"])
def test_scalegmn_that_forgets_a_factor_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(block: GraphBlock, value: Tensor, q: Factors, inverse: Factors) -> Tensor:
        return rescaled(block, value, q, {name: torch.ones_like(x) for name, x in inverse.items()})

    for module in (encoder, factors):
        monkeypatch.setattr(module, "rescaled", forgetful)
    with pytest.raises(AssertionError, match="not equivariant"):
        _check(metanet(spec_of(case(name))), spec_of(case(name)), networks(case(name)))


def test_scalegmn_with_known_hidden_units_fails_on_permutations() -> None:
    base = case("mlp-gelu")
    made = metanet(spec_of(base))
    spec = spec_of(base)

    def knows_units(params: Params) -> Params:
        better = made(params)
        return {**better, "0.bias": better["0.bias"] + torch.linspace(0, 1, better["0.bias"].shape[1])}

    with pytest.raises(AssertionError, match=r"'0\.bias'"):
        assert_equivariant(knows_units, spec, networks(base), batched=True)


def test_scalegmn_update_of_the_wrong_exponent_fails() -> None:
    base = case("mlp-relu")
    with pytest.raises(AssertionError, match="not equivariant"):
        _check_fn(lambda params: {name: p + p.sign() for name, p in params.items()}, base)


def _check_fn(fn: Callable[[Params], Params], base: Case) -> None:
    assert_equivariant(fn, spec_of(base), networks(base), batched=True)


def test_scalegmn_gradients_that_move_like_weights_fail() -> None:
    base = case("mlp-relu")
    made = metanet(spec_of(base), conditions=("batch",))
    with pytest.raises(AssertionError, match="not equivariant"):
        _check_fn(lambda params: made(params, conditions_of(params)), base)


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-relu", "mlp-identity", "residual", "cnn-flatten"])
def test_scalegmn_equivariant_with_exact_zeros(name: str, dead: str) -> None:
    base = case(name)
    made = metanet(spec_of(base), conditions=("batch",))
    params = networks(base)
    zero(params, dead)
    # At zero everywhere, a parameter that is not moved shows nowhere.
    _check(made, spec_of(base), params, control=dead != "all")
