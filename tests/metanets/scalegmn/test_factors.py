"""Canonical factors move like the units, dead units too; RMSNorm."""

from __future__ import annotations

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets.scalegmn.factors import CanonicalScaling, Factors, rescaled
from amortopt.metanets.scalegmn.layer import RMSNorm
from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.symmetry import Element, SymmetrySpec, act, sample
from tests.cases import Case, case
from tests.metanets.networks import READABLE, networks, spec_of
from tests.metanets.scalegmn.zeros import DEAD, zero
from tests.metanets.specs import SPECS, params_like, random_spec, written

ZEROED = ("mlp-relu", "mlp-identity", "mlp-leaky-relu", "residual", "cnn-flatten")


def _factors(layout: GraphLayout, params: Params) -> tuple[Factors, Factors]:
    return CanonicalScaling(layout).solve(params, layout.sizes(params))


def _moved(factors: dict[str, torch.Tensor], g: Element) -> dict[str, torch.Tensor]:
    """What the factors of the moved network have to be."""
    return {name: q.gather(1, g.permutations[name]) * g.scales[name].abs() for name, q in factors.items()}


def _check(spec: SymmetrySpec, params: Params) -> None:
    layout = GraphLayout.from_spec(spec)
    g = sample(spec, generator=torch.Generator().manual_seed(1), low=1e-3, high=1e3, batch=2)
    q, inverse = _factors(layout, params)
    moved_q, moved_inverse = _factors(layout, act(spec, g, params, batched=True))
    torch.testing.assert_close(moved_q, _moved(q, g), rtol=1e-12, atol=0)
    for name, x in moved_q.items():
        torch.testing.assert_close(x * moved_inverse[name], (x != 0).to(x), rtol=1e-12, atol=0)
        assert torch.equal(x == 0, moved_inverse[name] == 0)
    assert all(bool(x.isfinite().all()) for x in (*q.values(), *inverse.values()))


@pytest.mark.parametrize("base", READABLE, ids=str)
def test_canonical_factors_move_like_the_units(base: Case) -> None:
    _check(spec_of(base), networks(base))


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("name", ZEROED)
def test_canonical_factors_of_dead_units_move_like_the_units(name: str, dead: str) -> None:
    params = networks(case(name))
    zero(params, dead)
    _check(spec_of(case(name)), params)


@pytest.mark.parametrize("name", ["mlp-relu", "mlp-identity", "residual"])
def test_canonical_factors_of_random_sparse_networks_move_like_the_units(name: str) -> None:
    for share in (0.5, 0.9, 0.97):
        params = networks(case(name))
        params = {key: p * (torch.rand_like(p) > share) for key, p in params.items()}
        _check(spec_of(case(name)), params)


def test_canonical_factors_of_a_network_of_zeros_are_zero() -> None:
    base = case("mlp-relu")
    layout = GraphLayout.from_spec(spec_of(base))
    q, inverse = _factors(layout, {name: 0 * p for name, p in networks(base).items()})
    assert len(q) == 2
    assert not any(bool(x.any()) for x in (*q.values(), *inverse.values()))


def test_canonical_factors_of_a_dead_unit_come_from_its_readers() -> None:
    base = case("mlp-relu")
    layout = GraphLayout.from_spec(spec_of(base))
    params = networks(base)
    params["0.weight"][:, 3] = 0
    params["0.bias"][:, 3] = 0
    q, inverse = _factors(layout, params)
    column = params["2.weight"][:, :, 3] * inverse["h2"]
    torch.testing.assert_close(q["h1"][:, 3], 1 / column.norm(dim=1))


def test_canonical_factors_of_a_chain_of_dead_units_come_from_its_end() -> None:
    base = case("mlp-relu")
    params = networks(base)
    zero(params, "chain")
    # Unit 0 is read only by unit 1 of the next layer, which reads nothing and is read by the outputs.
    params["2.weight"][:, :1, 0] = 0
    params["2.weight"][:, 2:, 0] = 0
    _, inverse = _factors(GraphLayout.from_spec(spec_of(base)), params)
    end = params["4.weight"][:, :, 1].norm(dim=1)
    torch.testing.assert_close(inverse["h2"][:, 1], end)
    torch.testing.assert_close(inverse["h1"][:, 0], params["2.weight"][:, 1, 0].abs() * end)


def test_canonical_weights_of_live_units_have_norm_one() -> None:
    base = case("mlp-relu")
    layout = GraphLayout.from_spec(spec_of(base))
    params = {name: p * 100 for name, p in networks(base).items()}
    q, inverse = _factors(layout, params)
    for edges, nodes in list(zip(layout.edge_blocks, layout.node_blocks, strict=True))[:-1]:
        weight = rescaled(edges, edges.read(params), inverse, q)
        bias = rescaled(nodes, nodes.read(params), inverse, q)
        norms = torch.cat([weight[:, 0], bias.mT], 2).norm(dim=2)
        torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-gelu", "cnn-2d"])
def test_canonical_factors_are_those_of_positive_scalings_only(name: str) -> None:
    assert _factors(GraphLayout.from_spec(spec_of(case(name))), networks(case(name))) == ({}, {})


@pytest.mark.parametrize("dead", DEAD)
def test_canonical_factors_gradients_are_finite_with_exact_zeros(dead: str) -> None:
    base = case("mlp-relu")
    params = networks(base)
    zero(params, dead)
    params = {name: p.requires_grad_() for name, p in params.items()}
    q, inverse = _factors(GraphLayout.from_spec(spec_of(base)), params)
    loss = torch.stack([x.sum() for x in (*q.values(), *inverse.values())]).sum()
    for gradient in torch.autograd.grad(loss, list(params.values()), allow_unused=True):
        assert gradient is None or bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", SPECS)
def test_canonical_factors_of_any_symmetry_move_like_the_units(name: str) -> None:
    params = params_like(SPECS[name])
    _check(SPECS[name], params)
    q, _ = _factors(GraphLayout.from_spec(SPECS[name]), params)
    assert all(bool((x > 0).all()) for x in q.values())


@pytest.mark.parametrize("seed", range(20))
def test_canonical_factors_of_random_symmetries_move_like_the_units(seed: int) -> None:
    spec = random_spec(seed)
    _check(spec, params_like(spec))


def test_canonical_factors_start_where_everything_read_is_known() -> None:
    # The scale behind the depthwise weights is listed first and needs the one before them.
    layout = GraphLayout.from_spec(SPECS["depthwise-after"])
    order = [step.factor for step in CanonicalScaling(layout).steps]
    assert order == ["s", "b", "a"]


def test_canonical_factors_of_squares_are_roots() -> None:
    spec = written("x 3 none no\na 4 positive yes", {"w": "a^+2, x^-1"})
    params = params_like(spec)
    q, _ = _factors(GraphLayout.from_spec(spec), params)
    torch.testing.assert_close(q["a"].square(), params["w"].norm(dim=2))


def test_canonical_factors_that_nothing_tells_are_zero() -> None:
    spec = written("a 4 positive yes\nb 3 positive yes", {"w": "a^+1, b^-1"})
    q, inverse = _factors(GraphLayout.from_spec(spec), params_like(spec))
    assert not any(bool(x.any()) for x in (*q.values(), *inverse.values()))


def test_canonical_factors_gradcheck() -> None:
    base = case("residual")
    layout = GraphLayout.from_spec(spec_of(base))
    params = networks(base, 1)
    params["stem.weight"][:, 0] = 0
    params["stem.bias"][:, 0] = 0
    params["b.weight"][:, 0] = 0
    params["b.bias"][:, 0] = 0
    # Only the readers' weights: at a dead unit's own the factor jumps.
    fixed = {name: p for name, p in params.items() if not name.startswith("a")}

    def factors(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, inverse = _factors(layout, {**fixed, "a.weight": weight, "a.bias": bias})
        return (*q.values(), *inverse.values())

    inputs = [params[name].requires_grad_() for name in ("a.weight", "a.bias")]
    assert torch.autograd.gradcheck(factors, inputs)


@pytest.mark.parametrize("value", [1e-6, 1e6])
def test_canonical_factors_float32_of_four_layers(value: float) -> None:
    layers = [part for _ in range(4) for part in (torch.nn.Linear(5, 5), torch.nn.ReLU())]
    build = lambda: torch.nn.Sequential(*layers, torch.nn.Linear(5, 2))  # noqa: E731
    base = Case(f"deep-{value}", build, lambda: torch.randn(2, 5), ("positive",) * 4)
    params = {name: p * value for name, p in networks(base).items()}
    layout = GraphLayout.from_spec(spec_of(base))
    expected, _ = _factors(layout, params)
    got, _ = _factors(layout, {name: p.float() for name, p in params.items()})
    for name, q in got.items():
        torch.testing.assert_close(q.double(), expected[name], rtol=1e-5, atol=0)


def test_rms_norm_is_odd_and_has_unit_scale() -> None:
    norm = RMSNorm(16).double()
    norm.gain.data.copy_(torch.rand(16))
    x = torch.randn(5, 16, dtype=torch.float64) * 100
    assert torch.equal(norm(-x), -norm(x))
    torch.testing.assert_close(
        (norm(x) / norm.gain).square().mean(-1), torch.ones(5, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_rms_norm_of_zero_is_zero_with_a_bounded_gradient() -> None:
    norm = RMSNorm(4)
    x = torch.zeros(3, 4, requires_grad=True)
    assert not norm(x).any()
    (gradient,) = torch.autograd.grad(norm(x).sum(), x)
    assert float(gradient.abs().max()) <= 100 * (1 + 1e-5)


def test_rms_norm_is_torchs() -> None:
    norm = RMSNorm(5).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (5,), norm.gain, norm.eps))
    assert torch.autograd.gradcheck(lambda x, _: norm(x), (x, norm.gain))
