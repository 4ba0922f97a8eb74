from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry import (
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
from tests.symmetry.solve.nested import nested


def _spec_and_params(case: Case) -> tuple[SymmetrySpec, Params]:
    net = case.build().double()
    params = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    return extract(net, case.example_input().double()), params


def _close(got: Params, expected: Params) -> None:
    assert list(got) == list(expected)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def _units(spec: SymmetrySpec, block: Block, index: tuple[int, ...]) -> list[int | None]:
    """For every axis of an entry, the unit of the axis' group that it is about."""
    units: list[int | None] = []
    for position, (axis, i) in enumerate(zip(block.axes, index, strict=True)):
        owner = spec.owner_axis(block, position)
        if owner is not None and axis.group is not None:
            along = block.axes[owner].group
            assert along is not None
            of_owner = spec.group(spec.group(axis.group).within or "").size
            i += index[owner] * of_owner // spec.group(along).size * spec.run(axis.group)
        units.append(None if axis.group is None else i)
    return units


def _act_reference(spec: SymmetrySpec, g: Element, params: Params) -> Params:
    """Entry by entry: W'[o, i] = q_o^e W[perm(o), perm(i)] q_i^f."""
    moved = {name: torch.full_like(p, float("nan")) for name, p in params.items()}
    for block in spec.blocks:
        view = params[block.param][block.index].reshape(block.shape)
        out = torch.empty_like(view)
        for index in itertools.product(*map(range, block.shape)):
            source, factor = [], 1.0
            for position, (axis, unit) in enumerate(zip(block.axes, _units(spec, block, index), strict=True)):
                if unit is None or axis.group is None:
                    source.append(index[position])
                    continue
                source.append(int(g.permutations[axis.group][unit]) % axis.size)
                for name, exponent in ((axis.group, axis.exponent), *axis.also):
                    mine = unit * spec.group(name).size // spec.group(axis.group).size
                    factor *= float(g.scales[name][mine]) ** exponent
            out[index] = factor * view[tuple(source)]
        moved[block.param][block.index] = out.reshape(params[block.param][block.index].shape)
    return moved


@pytest.mark.parametrize("name", ["mlp-width-one", "cnn-flatten", "cnn-prelu", "residual"])
def test_act_agrees_with_the_entrywise_reference(name: str, generator: torch.Generator) -> None:
    spec, params = _spec_and_params(case(name))
    g = sample(spec, generator=generator)
    _close(act(spec, g, params), _act_reference(spec, g, params))


def test_act_on_nested_groups_agrees_with_the_entrywise_reference(generator: torch.Generator) -> None:
    spec, params = nested()
    for _ in range(5):
        g = sample(spec, generator=generator)
        _close(act(spec, g, params), _act_reference(spec, g, params))


@pytest.mark.parametrize("setting", [*CASES, None], ids=str)
def test_elements_form_a_group_that_acts(setting: Case | None, generator: torch.Generator) -> None:
    spec, params = nested() if setting is None else _spec_and_params(setting)
    g, h, k = (sample(spec, generator=generator) for _ in range(3))
    _close(act(spec, identity(spec), params), params)
    _close(act(spec, inverse(g), act(spec, g, params)), params)
    _close(act(spec, compose(g, h), params), act(spec, g, act(spec, h, params)))
    _close(act(spec, compose(compose(g, h), k), params), act(spec, compose(g, compose(h, k)), params))


@pytest.mark.parametrize("setting", [*CASES, None], ids=str)
def test_act_on_a_batch_is_act_on_every_network(setting: Case | None, generator: torch.Generator) -> None:
    spec, params = nested() if setting is None else _spec_and_params(setting)
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


@pytest.mark.parametrize("setting", [case("cnn-flatten"), None], ids=str)
def test_act_runs_under_vmap(setting: Case | None, generator: torch.Generator) -> None:
    spec, params = nested() if setting is None else _spec_and_params(setting)
    stacked = {name: torch.stack([p, 2 * p]) for name, p in params.items()}
    g, own = sample(spec, generator=generator), sample(spec, generator=generator, batch=2)
    _close(torch.vmap(lambda p: act(spec, g, p))(stacked), act(spec, g, stacked, batched=True))

    def of_one(permutations: Params, scales: Params, p: Params) -> Params:
        return act(spec, Element(permutations, scales), p)

    moved = torch.vmap(of_one)(own.permutations, own.scales, stacked)
    _close(moved, act(spec, own, stacked, batched=True))


def test_act_is_differentiable_in_params_and_scales(generator: torch.Generator) -> None:
    spec, params = nested()
    g = sample(spec, generator=generator, low=0.5, high=2)
    names = ["w", "grouped", "turned", "both"]

    def run(scale: Tensor, *some: Tensor) -> tuple[Tensor, ...]:
        moved = act(
            spec,
            dataclasses.replace(g, scales={**g.scales, "qk": scale}),
            {**params, **dict(zip(names, some, strict=True))},
        )
        return tuple(moved[name] for name in names)

    inputs = [x.clone().requires_grad_() for x in (g.scales["qk"], *(params[name] for name in names))]
    assert torch.autograd.gradcheck(run, inputs)


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


def test_samples_move_runs_with_their_owners(generator: torch.Generator) -> None:
    spec, _ = nested()
    g = sample(spec, generator=generator, batch=4)
    for group in spec.groups:
        permutation = g.permutations[group.name]
        assert torch.equal(permutation.sort(-1).values, torch.arange(group.size).expand(4, -1))
        if group.within is None:
            continue
        run = spec.run(group.name)
        owner = g.permutations[group.within].repeat_interleave(run, -1)
        assert torch.equal(permutation // run, owner)
        if not group.permutable:
            assert torch.equal(permutation % run, torch.arange(group.size).expand(4, -1) % run)
    # The runs have permutations of their own: one of 6 runs of 2 is not another.
    inside = (g.permutations["fine"] % 2).unflatten(-1, (6, 2))[..., 0]
    assert (inside == 0).any() and (inside == 1).any()


def test_buffers_move_if_they_are_given(generator: torch.Generator) -> None:
    spec, params = nested()
    g = sample(spec, generator=generator)
    without = {name: p for name, p in params.items() if name not in spec.buffers}
    moved = act(spec, g, params)
    assert spec.buffers == ("stats",) and "stats" in moved
    _close(act(spec, g, without), {name: moved[name] for name in without})


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
    with pytest.raises(ValueError, match=r"params: .* without \['4.bias'\] and with \['other'\]"):
        act(spec, g, {n.replace("4.bias", "other"): p for n, p in params.items()})
    with pytest.raises(ValueError, match=r"'0\.weight'.*32x40.*batched=True"):
        act(spec, g, {n: torch.stack([p, p]) for n, p in params.items()})
    with pytest.raises(ValueError, match=r"'0\.weight'.*\[B, \.\.\.\]"):
        act(spec, g, params, batched=True)
    with pytest.raises(ValueError, match=r"one scale per network for .*'h1'.*batched=True"):
        act(spec, sample(spec, generator=generator, batch=2), params)


@pytest.mark.parametrize("shape", [(5, 6), (7, 6), (6, 7), (6, 5)])
def test_act_refuses_what_slices_do_not_cover(shape: tuple[int, int], generator: torch.Generator) -> None:
    spec, params = nested()
    wrong = {**params, "rows": torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"params\['rows'\]: got shape"):
        act(spec, sample(spec, generator=generator), wrong)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (2, 1), (1, float("inf")), (float("nan"), 1)])
def test_sample_refuses_bad_ranges(low: float, high: float, generator: torch.Generator) -> None:
    spec, _ = _spec_and_params(case("mlp-relu"))
    with pytest.raises(ValueError, match="low, high"):
        sample(spec, generator=generator, low=low, high=high)
