from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry import (
    Axis,
    Block,
    Element,
    NeuronGroup,
    SymmetrySpec,
    act,
    compose,
    extract,
    identity,
    inverse,
    sample,
)
from tests.cases import CASES, Case, case


def _spec_and_params(case: Case) -> tuple[SymmetrySpec, Params]:
    net = case.build().double()
    params = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    return extract(net, case.example_input().double()), params


def _close(got: Params, expected: Params) -> None:
    assert list(got) == list(expected)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def _act_reference(spec: SymmetrySpec, g: Element, params: Params) -> Params:
    """Entry by entry: W'[o, i] = q_o W[perm(o), perm(i)] / q_i."""
    moved = {}
    for block in spec.blocks:
        view = params[block.param].reshape(block.shape)
        out = torch.empty_like(view)
        for index in torch.cartesian_prod(*(torch.arange(n) for n in block.shape)).reshape(
            -1, len(block.shape)
        ):
            source, factor = [], 1.0
            for axis, i in zip(block.axes, index.tolist(), strict=True):
                source.append(i if axis.group is None else int(g.permutations[axis.group][i]))
                if axis.group is not None:
                    factor *= float(g.scales[axis.group][i]) ** axis.exponent
            out[tuple(index)] = factor * view[tuple(source)]
        moved[block.param] = out.reshape(params[block.param].shape)
    return moved


@pytest.mark.parametrize("name", ["mlp-width-one", "cnn-flatten", "cnn-prelu", "residual"])
def test_act_agrees_with_the_entrywise_reference(name: str, generator: torch.Generator) -> None:
    spec, params = _spec_and_params(case(name))
    g = sample(spec, generator=generator)
    _close(act(spec, g, params), {n: _act_reference(spec, g, params)[n] for n in params})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_elements_form_a_group_that_acts(case: Case, generator: torch.Generator) -> None:
    spec, params = _spec_and_params(case)
    g, h, k = (sample(spec, generator=generator) for _ in range(3))
    _close(act(spec, identity(spec), params), params)
    _close(act(spec, inverse(g), act(spec, g, params)), params)
    _close(act(spec, compose(g, h), params), act(spec, g, act(spec, h, params)))
    _close(act(spec, compose(compose(g, h), k), params), act(spec, compose(g, compose(h, k)), params))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_act_on_a_batch_is_act_on_every_network(case: Case, generator: torch.Generator) -> None:
    spec, params = _spec_and_params(case)
    stacked = {name: torch.stack([p, 2 * p, p.sin()]) for name, p in params.items()}
    shared, own = sample(spec, generator=generator), sample(spec, generator=generator, batch=3)
    for i in range(3):
        one = {name: p[i] for name, p in stacked.items()}
        row = Element(
            {n: p[i] for n, p in own.permutations.items()}, {n: q[i] for n, q in own.scales.items()}
        )
        for g, single in ((shared, shared), (own, row)):
            moved = act(spec, g, stacked, batched=True)
            _close({name: p[i] for name, p in moved.items()}, act(spec, single, one))
    back = act(spec, inverse(own), act(spec, own, stacked, batched=True), batched=True)
    _close(back, stacked)


def test_act_runs_under_vmap(generator: torch.Generator) -> None:
    spec, params = _spec_and_params(case("cnn-flatten"))
    stacked = {name: torch.stack([p, 2 * p]) for name, p in params.items()}
    g = sample(spec, generator=generator)
    _close(torch.vmap(lambda p: act(spec, g, p))(stacked), act(spec, g, stacked, batched=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_dual_action_keeps_inner_products(case: Case, generator: torch.Generator) -> None:
    spec, params = _spec_and_params(case)
    grads = {name: torch.randn_like(p) for name, p in params.items()}
    g = sample(spec, generator=generator)
    moved, dual = act(spec, g, params), act(spec, g, grads, dual=True)

    def product(a: Params, b: Params) -> Tensor:
        return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()

    torch.testing.assert_close(product(moved, dual), product(params, grads), rtol=1e-10, atol=1e-10)


def test_gradients_move_by_the_dual_action(generator: torch.Generator) -> None:
    net, x = case("cnn-1d").build().double(), case("cnn-1d").example_input().double()
    spec = extract(net, x)
    params = {name: p.detach() for name, p in net.named_parameters()}

    def gradient(p: Params) -> Params:
        return torch.func.grad(lambda q: torch.func.functional_call(net, q, (x,)).square().sum())(p)

    g = sample(spec, generator=generator)
    torch.testing.assert_close(
        gradient(act(spec, g, params)), act(spec, g, gradient(params), dual=True), rtol=1e-9, atol=1e-12
    )


def test_act_leaves_its_input_and_dtype_alone(generator: torch.Generator) -> None:
    spec, params = _spec_and_params(case("mlp-relu"))
    params = {name: p.float() for name, p in params.items()}
    copies = {name: p.clone() for name, p in params.items()}
    moved = act(spec, sample(spec, generator=generator), params)
    assert all(torch.equal(params[name], copies[name]) for name in params)
    assert all(
        moved[name].dtype == torch.float32 and moved[name].shape == params[name].shape for name in params
    )


def test_act_moves_the_slices_of_a_parameter_separately(generator: torch.Generator) -> None:
    group = NeuronGroup("h", 3, "sign", True, "")
    spec = SymmetrySpec(
        (group,),
        (Block("w", (Axis("h", 1, 3),), 0, 3), Block("w", (Axis("h", 0, 3),), 3, 6)),
    )
    w = torch.randn(6, dtype=torch.float64)
    g = sample(spec, generator=generator)
    order, sign = g.permutations["h"], g.scales["h"]
    expected = torch.cat([sign * w[:3][order], w[3:][order]])
    _close(act(spec, g, {"w": w}), {"w": expected})
    stacked = act(spec, g, {"w": torch.stack([w, w])}, batched=True)
    _close(stacked, {"w": torch.stack([expected, expected])})


def test_samples_are_of_the_groups_kind(generator: torch.Generator) -> None:
    kinds = ("positive", "sign", "free", "none")
    spec = SymmetrySpec(tuple(NeuronGroup(k, 200, k, k != "none", "") for k in kinds), ())
    g = sample(spec, generator=generator, low=1e-3, high=1e3)
    q = g.scales
    assert (q["positive"] > 0).all()
    assert set(q["sign"].tolist()) == {-1.0, 1.0}
    assert (q["free"] > 0).any() and (q["free"] < 0).any()
    assert (q["none"] == 1).all()
    magnitudes = torch.cat([q["positive"], q["free"].abs()]).log10()
    assert magnitudes.abs().max() <= 3 and magnitudes.min() < -2 and magnitudes.max() > 2
    assert torch.equal(g.permutations["none"], torch.arange(200))
    assert not torch.equal(g.permutations["sign"], torch.arange(200))
    assert torch.equal(g.permutations["sign"].sort().values, torch.arange(200))


def test_a_seed_gives_one_element() -> None:
    spec, _ = _spec_and_params(case("mlp-relu"))
    first, second, third = (sample(spec, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first.scales["h1"], second.scales["h1"])
    assert not torch.equal(first.scales["h1"], third.scales["h1"])


def test_act_refuses_what_does_not_fit(generator: torch.Generator) -> None:
    spec, params = _spec_and_params(case("mlp-tanh"))
    g = sample(spec, generator=generator)
    lacking = dataclasses.replace(g, scales={n: q for n, q in g.scales.items() if n != "h1"})
    with pytest.raises(ValueError, match=r"g: got an element without groups \['h1'\]"):
        act(spec, lacking, params)
    with pytest.raises(ValueError, match=r"params: got \['other'\].*\['4.bias'\]"):
        act(spec, g, {n.replace("4.bias", "other"): p for n, p in params.items()})
    with pytest.raises(ValueError, match=r"'0\.weight'.*32x40.*batched=True"):
        act(spec, g, {n: torch.stack([p, p]) for n, p in params.items()})


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (2, 1), (1, float("inf")), (float("nan"), 1)])
def test_sample_refuses_bad_ranges(low: float, high: float, generator: torch.Generator) -> None:
    spec, _ = _spec_and_params(case("mlp-relu"))
    with pytest.raises(ValueError, match="low, high"):
        sample(spec, generator=generator, low=low, high=high)
