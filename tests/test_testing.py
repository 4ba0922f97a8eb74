from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from amortopt._types import Params
from amortopt.symmetry import act, extract, sample
from amortopt.testing import assert_equivariant, assert_function_preserved, wrong_specs
from tests.cases import CASES, Case, case


def _setting(name: str, batch: int | None = None):
    net, x = case(name).build().double(), case(name).example_input().double()
    lead = () if batch is None else (batch,)
    params = {n: torch.randn(*lead, *p.shape, dtype=torch.float64) for n, p in net.named_parameters()}
    return extract(net, x), params


def _scaled(params: Params) -> Params:
    return {name: 2 * p for name, p in params.items()}


def test_function_preserved_extracts_the_spec_itself() -> None:
    assert_function_preserved(case("mlp-relu").build(), case("mlp-relu").example_input())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_function_preserved_has_a_tolerance_per_dtype(dtype: torch.dtype) -> None:
    assert_function_preserved(case("cnn-1d").build(), case("cnn-1d").example_input(), dtype=dtype)


def test_function_preserved_reports_error_seed_and_spec() -> None:
    net, x = case("mlp-tanh").build(), case("mlp-tanh").example_input()
    spec = extract(net, x)
    wrong = dataclasses.replace(spec, groups=tuple(dataclasses.replace(g, kind="free") for g in spec.groups))
    with pytest.raises(AssertionError, match=r"relative difference .*seed 5(.|\n)*0\.weight"):
        assert_function_preserved(net, x, wrong, seeds=(5,))


def test_function_preserved_notices_nan() -> None:
    net, x = case("mlp-tanh").build(), case("mlp-tanh").example_input()
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    with pytest.raises(AssertionError, match="relative difference nan"):
        assert_function_preserved(net, x)


def test_function_preserved_leaves_the_module_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 2)).train()
    before = {name: p.clone() for name, p in net.named_parameters()}
    assert_function_preserved(net, torch.randn(2, 4))
    assert net.training and net[1].training
    assert all(
        torch.equal(p, before[name]) and p.dtype == torch.float32 for name, p in net.named_parameters()
    )


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("batch", [None, 2])
def test_equivariance_of_a_linear_map_holds(case: Case, batch: int | None) -> None:
    spec, params = _setting(case.name, batch)
    assert_equivariant(_scaled, spec, params, batched=batch is not None, low=1e-3, high=1e3)


def test_equivariance_with_gradients_holds() -> None:
    spec, params = _setting("mlp-relu")
    grads = {name: torch.randn_like(p) for name, p in params.items()}
    assert_equivariant(
        lambda p, g: {n: p[n] * (1 + p[n] * g[n]) for n in p}, spec, params, grads=grads, low=1e-3, high=1e3
    )
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda p, g: {n: p[n] + g[n] for n in p}, spec, params, grads=grads)


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize(
    "fn",
    [
        lambda p: {n: w + 1e-3 for n, w in p.items()},
        lambda p: {n: w.abs() for n, w in p.items()},
        lambda p: {n: w.cumsum(-1) for n, w in p.items()},
        lambda p: {n: w.relu() * float("nan") for n, w in p.items()},
    ],
    ids=["constant", "even", "order", "nan"],
)
def test_equivariance_notices_what_breaks_it(fn: object, batch: int | None) -> None:
    spec, params = _setting("mlp-tanh", batch)
    with pytest.raises(AssertionError, match=r"not equivariant: '.*(weight|bias)' has relative difference"):
        assert_equivariant(fn, spec, params, batched=batch is not None)  # type: ignore[arg-type]


def test_equivariance_is_not_blinded_by_large_scales(generator: torch.Generator) -> None:
    """A fixed absolute term of 1e-6 stands out although scaled entries reach 1e3."""
    spec, params = _setting("mlp-relu")
    moved = act(spec, sample(spec, generator=generator, low=1e-3, high=1e3), params)
    assert max(float(p.abs().max()) for p in moved.values()) > 1e3
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda p: {n: w + 1e-6 for n, w in p.items()}, spec, params, low=1e-3, high=1e3)


def test_every_wrong_spec_changes_the_function() -> None:
    net, x = case("mlp-tanh").build(), case("mlp-tanh").example_input()
    wrong = list(wrong_specs(extract(net, x)))
    assert len(wrong) == 6  # two weights read and written, one read; their biases
    for spec in wrong:
        with pytest.raises(AssertionError, match="the function changed"):
            assert_function_preserved(net, x, spec)


def test_a_result_that_is_moved_back_wrongly_is_noticed() -> None:
    spec, params = _setting("mlp-tanh")
    for wrong in wrong_specs(spec):
        with pytest.raises(AssertionError, match="not equivariant"):
            assert_equivariant(lambda p, wrong=wrong: _moved_wrongly(spec, wrong, p, params), spec, params)


def _moved_wrongly(spec, wrong, given: Params, original: Params) -> Params:
    """The params, wrong along one axis as soon as they were moved."""
    if all(torch.equal(given[name], original[name]) for name in given):
        return original
    g = sample(spec, generator=torch.Generator().manual_seed(9))
    return act(wrong, g, original)


def test_function_preserved_without_power_is_an_error() -> None:
    class Blind(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0 * super().forward(x)

    net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), Blind(6, 6), nn.Tanh()), torch.randn(5, 4)
    spec = extract(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh()), x)
    net[0].weight.data.zero_(), net[0].bias.data.zero_()  # type: ignore[union-attr]
    with pytest.raises(AssertionError, match="nothing was"):
        assert_function_preserved(net, x, spec)


def test_equivariance_of_zeros_shows_nothing() -> None:
    spec, params = _setting("mlp-tanh")
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    with pytest.raises(AssertionError, match="nothing was tested"):
        assert_equivariant(lambda _: zeros, spec, params)
    assert_equivariant(lambda _: zeros, spec, params, control=False)
