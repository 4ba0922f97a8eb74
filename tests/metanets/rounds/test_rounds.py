"""Rounds: equivariant to the gauge, whatever the maps are; the function of what they propose."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import apply_many, params_of, stack
from amortopt.metanets import Conditions, Rounds
from amortopt.symmetry import SymmetrySpec, extract
from amortopt.tasks import CrossEntropy, Examples, Family, loss_and_grad_many, make_family
from amortopt.testing import assert_equivariant
from tests.metanets.networks import without_scales

MLP = make_family("mlp", widths=(6, 5, 4, 3))
RELU = make_family("mlp", activation="relu", widths=(6, 5, 4, 3))
SINE = make_family("mlp", activation="sin", widths=(2, 5, 4, 3))
CNN = make_family("cnn", activation="relu", channels=(4, 3), input_shape=(1, 8), num_classes=3)
CNN2D = make_family("cnn", channels=(3, 2), input_shape=(1, 6, 6), num_classes=3)
FAMILIES = [MLP, RELU, SINE, CNN, CNN2D]


@cache
def spec_of(family: Family) -> SymmetrySpec:
    return extract(family.build(), family.example_input())


def networks(family: Family, count: int, seed: int = 0) -> Params:
    torch.manual_seed(seed)
    return stack([{name: p.double() for name, p in params_of(family.build()).items()} for _ in range(count)])


def made(family: Family, **config: Any) -> Rounds:
    torch.manual_seed(7)
    shapes = {name: tuple(p.shape) for name, p in family.build().named_parameters()}
    metanet = Rounds(
        spec_of(family), shapes=shapes, **{"rounds": 2, "channels": 2, "hidden": 4} | config
    ).double()
    with torch.no_grad():
        for p in metanet.rule.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return metanet


def problem(family: Family, count: int, examples: int = 12) -> tuple[nn.Module, Examples]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, examples, *family.input_shape, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (count, examples), generator=generator)
    return family.build(), Examples(x, y, shared=False)


def conditions(
    family: Family, count: int, l1: Tensor | None = None, create_graph: bool = False
) -> Conditions:
    network, examples = problem(family, count)

    def gradient(params: Params) -> Params:
        return loss_and_grad_many(network, params, examples, CrossEntropy(3), create_graph=create_graph)[1]

    return Conditions(gradient, l1, torch.full((count,), float(len(examples))))


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_rounds_equivariant(family: Family) -> None:
    metanet, given = made(family), conditions(family, 3)
    assert_equivariant(
        lambda params: metanet(params, given), spec_of(family), networks(family, 3), batched=True
    )


def test_ablation_is_equivariant_to_permutations_alone() -> None:
    metanet, given = made(RELU, respects="permutation"), conditions(RELU, 3)
    params, spec = networks(RELU, 3), spec_of(RELU)
    assert_equivariant(lambda p: metanet(p, given), without_scales(spec), params, batched=True)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda p: metanet(p, given), spec, params, batched=True)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_what_comes_out_computes_what_was_proposed(family: Family) -> None:
    metanet, given = made(family), conditions(family, 3)
    network, examples = problem(family, 3)
    params = networks(family, 3)
    assert given.examples is not None
    proposals = metanet.rule(metanet._gradient(given), given.examples, torch.ones(3, 1).double())
    for proposal, written in zip(proposals, metanet.after_rounds(params, given), strict=True):
        slots = metanet.matrices.unpack(proposal)
        outputs = [apply_many(network, p, examples.x, shared=False) for p in (slots, written)]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)


def test_networks_with_one_problem_come_out_as_one_function() -> None:
    metanet = made(MLP)
    network, examples = problem(MLP, 1)
    both = Examples(examples.x.repeat(2, 1, 1), examples.y.repeat(2, 1), shared=False)

    def gradient(params: Params) -> Params:
        return loss_and_grad_many(network, params, both, CrossEntropy(3))[1]

    better = metanet(networks(MLP, 2), Conditions(gradient, None, torch.full((2,), 12.0)))
    outputs = apply_many(network, better, both.x, shared=False)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(better["0.weight"][0], better["0.weight"][1])


def test_rounds_pass_gradients_to_every_map() -> None:
    metanet = made(MLP, conditions=["batch", "l1"], l1_knots=2)
    given = conditions(MLP, 2, torch.tensor([1e-4, 1e-2]).double(), create_graph=True)
    sum(p.square().sum() for p in metanet(networks(MLP, 2), given).values()).backward()
    missing = [
        name for name, p in metanet.rule.named_parameters() if p.grad is None or not bool(p.grad.any())
    ]
    assert missing == []


def test_order_of_examples_does_not_matter() -> None:
    metanet, params = made(MLP), networks(MLP, 2)
    network, examples = problem(MLP, 2)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    results = []
    for each in (examples, examples.take(order)):
        given = Conditions(
            lambda p, each=each: loss_and_grad_many(network, p, each, CrossEntropy(3))[1],
            None,
            torch.full((2,), 12.0),
        )
        results.append(metanet(params, given))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-10, atol=1e-10)


def test_padding_does_not_matter() -> None:
    metanet, params = made(MLP), networks(MLP, 2)
    network, examples = problem(MLP, 2)
    short = [(x[:n], y[:n]) for x, y, n in zip(examples.x, examples.y, (12, 7), strict=True)]
    padded = Examples.from_list(short)

    def given(each: Examples, counts: list[float]) -> Conditions:
        return Conditions(
            lambda p: loss_and_grad_many(network, p, each, CrossEntropy(3))[1], None, torch.tensor(counts)
        )

    together = metanet(params, given(padded, [12.0, 7.0]))
    alone = metanet({name: p[1:] for name, p in params.items()}, given(Examples.from_list(short[1:]), [7.0]))
    for name, value in alone.items():
        torch.testing.assert_close(together[name][1:], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rounds": 0}, "rounds: got 0"),
        ({"channels": 1.5}, "channels: got 1.5"),
        ({"conditions": ["l1"]}, "conditions: got no 'batch'"),
        ({"conditions": ["batch", "weather"]}, "conditions: got"),
        ({"respects": "signs"}, "respects: got 'signs'"),
        ({"shapes": {}}, "shapes: got none of"),
    ],
)
def test_bad_arguments_are_named(config: dict[str, Any], message: str) -> None:
    shapes = {name: tuple(p.shape) for name, p in MLP.build().named_parameters()}
    with pytest.raises(ValueError, match=message):
        Rounds(spec_of(MLP), **{"shapes": shapes} | config)


def test_gradient_without_its_number_of_examples_is_refused() -> None:
    with pytest.raises(ValueError, match=r"conditions\.examples: got none"):
        made(MLP)(networks(MLP, 2), Conditions(conditions(MLP, 2).gradient))


def test_rounds_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds: got 3, expected 0 to 2"):
        made(MLP).after_rounds(networks(MLP, 2), conditions(MLP, 2), rounds=3)
