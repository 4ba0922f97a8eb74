from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import params_of
from amortopt.symmetry import (
    act,
    canonical_element,
    canonical_params,
    canonicalise,
    extract,
    identity,
    sample,
)
from amortopt.symmetry.alignment.phases import phases, without_phases
from amortopt.symmetry.proof.running import Runner, worst
from amortopt.tasks import make_family
from tests.symmetry.alignment.test_align import NAMES, inputs_of, moved_copy, network


def weights_differ_by(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_canonicalise_keeps_the_function(name: str) -> None:
    net, x = network(name, 0), inputs_of(name)
    canonical = canonicalise(net, x)
    assert weights_differ_by(net, canonical) > 1e-3
    assert worst(Runner(canonical, x).run({})[0], Runner(net, x).run({})[0]) < 1e-11


@pytest.mark.parametrize("name", NAMES)
def test_canonicalise_is_invariant_and_idempotent(name: str) -> None:
    net, x = network(name, 0), inputs_of(name)
    moved = moved_copy(net, x)
    assert weights_differ_by(net, moved) > 1e-3
    canonical = canonicalise(net, x)
    assert weights_differ_by(canonicalise(moved, x), canonical) < 1e-9
    assert weights_differ_by(canonicalise(canonical, x), canonical) < 1e-9


def siren(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make_family("siren", widths=(2, 6, 5, 1), w0=3.0).build().double()


def turned(net: nn.Module, group: str, turns: Tensor) -> nn.Module:
    """The same function with biases of a layer shifted by half periods, by hand."""
    other = copy.deepcopy(net)
    layer = {"h1": 0, "h2": 2}[group]
    with torch.no_grad():
        other[layer].bias += turns.double() * math.pi / 3
        other[layer + 2].weight *= 1 - 2 * (turns % 2)
    return other


def test_canonicalise_is_invariant_to_phases() -> None:
    net, x = siren(0), torch.randn(20, 2, dtype=torch.float64)
    other = turned(
        turned(net, "h1", torch.tensor([0, 1, 2, -1, -3, 4])), "h2", torch.tensor([1, 0, 0, 5, -2])
    )
    torch.testing.assert_close(other(x), net(x), rtol=1e-9, atol=1e-9)
    assert weights_differ_by(net, other) > 1
    other = moved_copy(other, x)
    assert weights_differ_by(canonicalise(net, x), canonicalise(other, x)) < 1e-9
    torch.testing.assert_close(canonicalise(other, x)(x), net(x), rtol=1e-9, atol=1e-9)


def test_biases_of_sines_are_within_a_quarter_of_a_period() -> None:
    net = siren(0)
    with torch.no_grad():
        net[0].bias += 40
    canonical = canonicalise(net, torch.zeros(1, 2))
    assert float(canonical[0].bias.detach().abs().max()) <= math.pi / 6 + 1e-12


def test_sines_that_are_used_twice_have_no_phases() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            before = self.a(x)
            return self.c(torch.sin(before) + self.b(before))

    assert phases(extract(Skips(), torch.zeros(1, 3))) == {}
    assert phases(extract(siren(0), torch.zeros(1, 2))).keys() == {"h1", "h2"}
    assert (
        phases(extract(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), torch.zeros(1, 2))) == {}
    )


def dead(net: nn.Module, kind: str) -> nn.Module:
    with torch.no_grad():
        if kind in ("writes nothing", "dead"):
            net[2].weight[:, 1] = 0
        if kind in ("reads nothing", "dead"):
            net[0].weight[1], net[0].bias[1] = 0, 0
        if kind == "reads dead units":
            net[0].weight[:], net[0].bias[:], net[2].bias[:] = 0, 0, 0
        if kind == "writes to dead units":
            net[4].weight[:] = 0
        if kind == "zero":
            for p in net.parameters():
                p.zero_()
    return net


KINDS = ["writes nothing", "reads nothing", "dead", "reads dead units", "writes to dead units", "zero"]


@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
@pytest.mark.parametrize("kind", KINDS)
def test_canonicalise_is_invariant_where_units_are_dead(kind: str, activation: str) -> None:
    torch.manual_seed(0)
    net = dead(make_family("mlp", activation=activation, widths=(3, 6, 5, 2)).build().double(), kind)
    x = torch.randn(20, 3, dtype=torch.float64)
    canonical = canonicalise(net, x)
    torch.testing.assert_close(canonical(x), net(x), rtol=1e-9, atol=1e-9)
    assert weights_differ_by(canonicalise(moved_copy(net, x), x), canonical) < 1e-9
    assert weights_differ_by(canonicalise(canonical, x), canonical) < 1e-9
    assert all(bool(p.isfinite().all()) for p in canonical.parameters())


def test_equal_units_are_a_tie_that_changes_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for p in (net[0].weight, net[0].bias, net[2].weight.T):
            p[2] = p[1]
    x = torch.randn(5, 3, dtype=torch.float64)
    assert weights_differ_by(canonicalise(moved_copy(net, x), x), canonicalise(net, x)) < 1e-9


def test_units_with_equal_inputs_are_told_apart_by_what_reads_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        net[0].weight[:], net[0].bias[:] = net[0].weight[0].clone(), net[0].bias[0].clone()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert weights_differ_by(canonicalise(moved_copy(net, x), x), canonicalise(net, x)) < 1e-9


def mlps(count: int) -> Params:
    family = make_family("mlp", activation="relu", widths=(3, 6, 5, 2))
    params = []
    for seed in range(count):
        torch.manual_seed(seed)
        params.append(params_of(family.build().double()))
    return {name: torch.stack([p[name] for p in params]) for name in params[0]}


def mlp_spec() -> Any:
    return extract(make_family("mlp", activation="relu", widths=(3, 6, 5, 2)).build(), torch.zeros(1, 3))


def test_canonical_params_of_many_are_those_of_each() -> None:
    many = mlps(3)
    together = canonical_params(mlp_spec(), many, batched=True)
    for b in range(3):
        one = canonical_params(mlp_spec(), {name: p[b] for name, p in many.items()})
        assert all(torch.equal(one[name], together[name][b]) for name in one)


def test_canonical_element_leads_to_the_canonical_params() -> None:
    spec, params = mlp_spec(), {name: p[0] for name, p in mlps(1).items()}
    moved = act(spec, canonical_element(spec, params), params)
    for name, p in canonical_params(spec, params).items():
        torch.testing.assert_close(moved[name], p, rtol=1e-12, atol=1e-12)


def test_a_network_that_is_its_own_reference_keeps_its_order() -> None:
    spec, params = mlp_spec(), {name: p[0] for name, p in mlps(1).items()}
    generator = torch.Generator().manual_seed(1)
    moved = act(spec, sample(spec, generator=generator), params)
    element = canonical_element(spec, params, reference=params)
    assert all(torch.equal(element.permutations[k], identity(spec).permutations[k]) for k in ("h1", "h2"))
    like, other = (canonical_params(spec, p, reference=params) for p in (params, moved))
    for name in like:
        torch.testing.assert_close(other[name], like[name], rtol=1e-9, atol=1e-12)


def test_without_phases_leaves_other_params_as_they_are() -> None:
    spec, params = mlp_spec(), {name: p[0] for name, p in mlps(1).items()}
    assert all(torch.equal(params[name], p) for name, p in without_phases(spec, params).items())


def test_canonicalise_keeps_dtype_and_the_given_network() -> None:
    net = make_family("mlp", widths=(3, 6, 2)).build()
    before = params_of(net)
    canonical = canonicalise(net, torch.zeros(1, 3))
    assert all(p.dtype == torch.float32 for p in canonical.parameters())
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_canonicalise_refuses_weights_that_are_not_finite(bad: float) -> None:
    net = make_family("mlp", widths=(3, 6, 2)).build()
    with torch.no_grad():
        net[0].weight[2, 1] = bad
    with pytest.raises(ValueError, match=r"'0\.weight' has 1 NaN or infinite values of 18; .* leave it out"):
        canonicalise(net, torch.zeros(1, 3))


def test_canonicalise_says_what_is_missing() -> None:
    net = make_family("mlp", widths=(3, 6, 2)).build()
    with pytest.raises(ValueError, match="model: got list, expected one network"):
        canonicalise([net], torch.zeros(1, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"example_input: got none.*pass it, or spec="):
        canonicalise(net)
    spec = extract(net, torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"params: got none of 0\.bias, expected all of spec\.params"):
        canonical_params(spec, {k: p for k, p in params_of(net).items() if k != "0.bias"})
    with pytest.raises(ValueError, match=r"reference: got none of 2\.bias"):
        canonicalise(net, spec=spec, reference={k: p for k, p in params_of(net).items() if k != "2.bias"})
