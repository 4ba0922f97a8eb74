"""Rounds: equivariant to the gauge, whatever the maps are; the function of what they propose."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import apply_many, params_of, stack
from amortopt.metanets import Conditions, Rounds
from amortopt.metanets.rounds.rule import from_channels, into_channels
from amortopt.symmetry import SymmetrySpec, act, extract, sample
from amortopt.symmetry.alignment.scales import balancing
from amortopt.tasks import (
    CrossEntropy,
    Examples,
    Family,
    Objective,
    answers_many,
    loss_and_grad_many,
    make_family,
)
from amortopt.testing import assert_equivariant
from tests.metanets.networks import without_scales

MLP = make_family("mlp", widths=(6, 5, 4, 3))
RELU = make_family("mlp", activation="relu", widths=(6, 5, 4, 3))
SINE = make_family("siren", widths=(2, 5, 4, 3), w0=20.0)
CNN = make_family("cnn", activation="relu", channels=(4, 3), input_shape=(1, 8), num_classes=3)
CNN2D = make_family("cnn", channels=(3, 2), input_shape=(1, 6, 6), num_classes=3)
FAMILIES = [MLP, RELU, SINE, CNN, CNN2D]
DEEP = make_family("mlp", widths=(6, 5, 5, 5, 5, 3))


@cache
def spec_of(family: Family) -> SymmetrySpec:
    return extract(family.build(), family.example_input())


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def networks(family: Family, count: int, seed: int = 0) -> Params:
    torch.manual_seed(seed)
    return stack([{name: p.double() for name, p in params_of(family.build()).items()} for _ in range(count)])


def made(family: Family, **config: Any) -> Rounds:
    torch.manual_seed(7)
    shapes = {name: tuple(p.shape) for name, p in family.build().named_parameters()}
    sizes = {"rounds": 2, "channels": 2, "hidden": 4, "input_shape": family.input_shape, "probes": 9}
    sizes |= {"scales": family.scales()}
    metanet = Rounds(spec_of(family), shapes=shapes, **sizes | config).double()
    with torch.no_grad():
        if metanet.probes is not None:
            metanet.probes.copy_(torch.randn_like(metanet.probes))
        for p in metanet.rules.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return metanet


def problem(family: Family, count: int, examples: int = 12) -> tuple[nn.Module, Examples]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, examples, *family.input_shape, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (count, examples), generator=generator)
    return family.build(), Examples(x, y, shared=False)


def conditions(
    family: Family,
    count: int,
    l1: Tensor | None = None,
    create_graph: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Conditions:
    network, examples = problem(family, count)
    examples = examples.to(dtype=dtype)

    def gradient(params: Params) -> Params:
        return loss_and_grad_many(network, params, examples, CrossEntropy(3), create_graph=create_graph)[1]

    return Conditions(gradient, l1, torch.full((count,), float(len(examples))))


def reading(
    metanet: Rounds, family: Family, params: Params, what: str, create_graph: bool = False
) -> Conditions:
    """Conditions that read the batch, the function of ``params``, or both."""
    assert metanet.probes is not None
    network, batch = problem(family, len(next(iter(params.values()))))
    answers = answers_many(network, params, metanet.probes)

    def gradient_on(examples: Examples, objective: Objective) -> Callable[[Params], Params]:
        return lambda at: loss_and_grad_many(network, at, examples, objective, create_graph=create_graph)[1]

    return Conditions(
        None if what == "function" else gradient_on(batch, CrossEntropy(3)),
        None,
        None if what == "function" else batch.counts(len(answers.x)),
        None if what == "batch" else gradient_on(answers, CrossEntropy(3).matching()),
    )


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_rounds_equivariant(family: Family) -> None:
    metanet, given = made(family), conditions(family, 3)
    assert_equivariant(
        lambda params: metanet(params, given), spec_of(family), networks(family, 3), batched=True
    )


@pytest.mark.parametrize("what", ["batch", "function", "both"])
def test_every_reading_is_equivariant(what: str) -> None:
    metanet = made(RELU, conditions=["batch", "function"])
    assert metanet.readings == ["batch", "function", "both"]
    assert_equivariant(
        lambda params: metanet(params, reading(metanet, RELU, params, what)),
        spec_of(RELU),
        networks(RELU, 3),
        batched=True,
    )


def test_function_decides_what_comes_out() -> None:
    metanet, params = made(MLP, conditions=["function"]), networks(MLP, 2)
    network, examples = problem(MLP, 2)
    better = metanet(params, reading(metanet, MLP, params, "function"))
    outputs = apply_many(network, better, examples.x, shared=False)
    assert not torch.allclose(outputs[0], outputs[1])
    given = reading(metanet, MLP, params, "function")
    # Another network of the same function reads the same.
    element = sample(spec_of(MLP), generator=generator(1), batch=2)
    same = act(spec_of(MLP), element, params, batched=True)
    assert given.function is not None
    other = reading(metanet, MLP, same, "function").function
    assert other is not None
    for name, value in given.function(params).items():
        torch.testing.assert_close(other(params)[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("what", ["function", "both"])
def test_other_readings_pass_gradients_to_every_map(what: str) -> None:
    metanet, params = made(MLP, conditions=["batch", "function"]), networks(MLP, 2)
    given = reading(metanet, MLP, params, what, create_graph=True)
    sum(p.square().sum() for p in metanet(params, given).values()).backward()
    rule = metanet.rule(metanet.reading_of(given))
    missing = [name for name, p in rule.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert missing == []


def test_a_reading_begins_where_another_is() -> None:
    metanet, params = made(MLP, conditions=["batch", "function"], rounds=3), networks(MLP, 2)
    function = reading(metanet, MLP, params, "function")
    as_batch = Conditions(function.function, None, torch.full((2,), 9.0).double())
    before = metanet.after_rounds(params, as_batch)
    metanet.begin("function", "batch", 2)
    after = metanet.after_rounds(params, function)
    for k in range(3):
        for name, value in before[k].items():
            torch.testing.assert_close(after[k][name], value, rtol=1e-9, atol=1e-9)
    # The third round repeats the second with smaller steps.
    copied = metanet.rule("function")
    torch.testing.assert_close(copied.left[0][2], copied.left[0][1])
    torch.testing.assert_close(copied.step[2], copied.step[1] - 2)


def test_both_begins_with_the_maps_of_one() -> None:
    metanet = made(MLP, conditions=["batch", "function"], l1_knots=2)
    metanet.begin("both", "batch")
    one, two = metanet.rule("batch"), metanet.rule("both")
    for k in range(len(one.left)):
        torch.testing.assert_close(two.left[k].unflatten(0, (2, 2)), one.left[k].expand(2, -1, -1, -1))
        mix = two.mix_left[k].unflatten(0, (2, 4))
        torch.testing.assert_close(mix, one.mix_left[k].expand_as(mix))
        torch.testing.assert_close(two.back_left[k], one.back_left[k])


def test_channels_are_products_of_matrices() -> None:
    g = generator(0)
    m, left, right = (torch.randn(*size, generator=g).double() for size in ((3, 4, 5), (2, 6, 4), (2, 5, 6)))
    hidden = into_channels(m, left, right)
    torch.testing.assert_close(hidden, torch.einsum("cho,boi,cij->cbhj", left, m, right))
    left, right = left.mT, right.mT
    torch.testing.assert_close(
        from_channels(hidden, left, right), torch.einsum("coh,cbhj,cji->boi", left, hidden, right)
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
    proposals = metanet.rule("batch")(metanet._sources("batch", given, 3, 2), torch.ones(3, 1).double())
    every = [metanet.after_rounds(params, given, written=written) for written in (True, False)]
    for proposal, written, left in zip(proposals, *every, strict=True):
        slots = metanet.matrices.unpack(proposal)
        assert all(torch.equal(left[name], p) for name, p in slots.items())
        outputs = [apply_many(network, p, examples.x, shared=False) for p in (slots, written)]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)


def without_biases(params: Params) -> Params:
    return {name: torch.zeros_like(p) if p.ndim == 2 else p for name, p in params.items()}


def with_equal_units(params: Params) -> Params:
    return {name: torch.full_like(p, 0.1) for name, p in params.items()}


def with_dead_units(params: Params) -> Params:
    dead = {name: p.clone() for name, p in params.items()}
    for p in dead.values():
        p[:, :2] = 0
    return dead


def with_nearly_equal_units(params: Params) -> Params:
    return {name: 0.1 + 1e-12 * p for name, p in params.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", [*FAMILIES, DEEP], ids=repr)
@pytest.mark.parametrize(
    "change", [without_biases, with_equal_units, with_dead_units, with_nearly_equal_units]
)
def test_networks_whose_units_look_alike_get_what_was_proposed(
    family: Family, change: Callable[[Params], Params], dtype: torch.dtype
) -> None:
    """The gauge cannot tell their units apart; any order of these has the same function."""
    metanet, given = made(family), conditions(family, 3)
    network, examples = problem(family, 3)
    expected = apply_many(network, metanet(networks(family, 3), given), examples.x, shared=False)
    metanet, examples = metanet.to(dtype), examples.to(dtype=dtype)
    read = conditions(family, 3, dtype=dtype)
    new = metanet({name: p.to(dtype) for name, p in change(networks(family, 3)).items()}, read)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(apply_many(network, new, examples.x, shared=False).double(), expected, **close)


def test_weights_of_other_widths_are_always_written() -> None:
    metanet, given = made(MLP), conditions(MLP, 1)
    wide = make_family("mlp", widths=(6, 8, 4, 3))
    params = networks(wide, 1)
    for written in (True, False):
        assert metanet.after_rounds(params, given, written=written)[-1]["0.weight"].shape == (1, 8, 6)


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
        name
        for name, p in metanet.rule("batch").named_parameters()
        if p.grad is None or not bool(p.grad.any())
    ]
    assert missing == []


def test_rounds_that_read_l1_are_equivariant_and_sparse() -> None:
    metanet, params = made(RELU, conditions=["batch", "l1"], l1_knots=3), networks(RELU, 3)
    with torch.no_grad():
        for logs in metanet.rule("batch").log_threshold or ():
            logs[:2] += 3  # the two rounds of what is common to all strengths
            logs[4:6] -= 2  # the lowest strength
    given = conditions(RELU, 3, torch.tensor([0.0, 1e-4, 2e-2]).double())
    assert_equivariant(lambda p: metanet(p, given), spec_of(RELU), params, batched=True)
    zeros = torch.stack([(p == 0).flatten(1).sum(1) for p in metanet(params, given).values()]).sum(0)
    assert zeros[0] == 0
    assert 0 < zeros[1] < zeros[2]


def test_thresholds_are_soft() -> None:
    metanet = made(MLP, conditions=["batch", "l1"], l1_knots=1, rounds=1)
    l1 = torch.full((2,), 1e-3).double()
    dense, sparse = copy.deepcopy(metanet), metanet
    for rule, log in ((dense.rule("batch"), -40.0), (sparse.rule("batch"), -1.5)):
        assert rule.log_threshold is not None
        for logs in rule.log_threshold:
            logs.data.fill_(0.0)
            logs.data[0].fill_(log)
    results = []
    for each in (dense, sparse):
        given, weights = conditions(MLP, 2, l1), each.rule("batch")
        assert given.examples is not None and each.blend is not None
        results.append(weights(each._sources("batch", given, 2, 1), each.blend(l1))[-1])
    t = math.exp(-1.5)
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(after, before.sign() * (before.abs() - t).clamp(min=0))


@pytest.mark.parametrize("reading", ["batch", "function"])
def test_zeros_are_as_many_as_the_strength_asks_for_in_every_gauge(reading: str) -> None:
    metanet = made(CNN, conditions=[reading, "l1"], l1_range=(1e-4, 1e-2), zeros=(0.2, 0.9))
    l1, params = torch.tensor([0.0, 1e-4, 1e-3, 5e-2]).double(), networks(CNN, 4)
    network, examples = problem(CNN, 4)
    given = conditions(CNN, 4, l1)
    if reading == "function":
        given = Conditions(
            None, l1, None, lambda p: loss_and_grad_many(network, p, examples, CrossEntropy(3))[1]
        )
    assert_equivariant(lambda p: metanet(p, given), spec_of(CNN), params, batched=True)
    for new in metanet.after_rounds(params, given)[1:]:
        weights = torch.cat([p.flatten(1) for p in new.values() if p.ndim > 2], 1)
        shares = torch.tensor([0.0, 0.2, 0.55, 0.9]).double()
        assert torch.equal((weights == 0).sum(1), (shares * weights.shape[1]).round().long())
    assert metanet.strength_for(0.55) == pytest.approx(1e-3)
    assert metanet.strength_for(0.1) == 0.0
    with pytest.raises(ValueError, match=r"zeros: got 0.95, expected at most 0.9"):
        metanet.strength_for(0.95)


def test_weights_that_stay_are_those_that_were_large_in_every_scaling() -> None:
    metanet = made(RELU, conditions=["batch", "l1"], l1_range=(1e-4, 1e-2), zeros=(0.2, 0.9)).train()
    params, given = networks(RELU, 4), conditions(RELU, 4, torch.full((4,), 1e-3).double())
    for _ in range(3):
        metanet(params, given)
    metanet.rank_weights()
    shapes = {name: p.shape[1:] for name, p in params.items()}
    flat, sizes = metanet.mean_square.sqrt(), {}
    for name, shape in shapes.items():
        count = shape.numel() if len(shape) > 1 else 0
        sizes[name] = flat[:count].view(shape) if count else torch.zeros(shape).double()
        flat = flat[count:]
    balanced = act(metanet.spec, balancing(metanet.spec, sizes), sizes)
    order = torch.cat([p.flatten() for p in balanced.values() if p.ndim > 1]).argsort(descending=True)
    assert torch.equal(metanet.rank[order], torch.arange(len(order)))
    ranks = metanet.rank.clone()
    metanet.eval()(params, given)
    metanet.set_progress(0.2)
    assert torch.equal(metanet.rank, ranks) and 0 < metanet.share_of_zeros < 1
    metanet.set_progress(0.5)
    assert metanet.share_of_zeros == 1


def test_rounds_read_portions_of_large_batches() -> None:
    """Each round takes the gradient of its portion; a pass with fewer rounds has fewer, larger ones."""
    whole, metanet = (made(MLP, rounds=3, portion=portion) for portion in (None, 2))
    (network, examples), params = problem(MLP, 2), networks(MLP, 2)
    read: list[Examples] = []

    def gradient_on(portion: Examples) -> Callable[[Params], Params]:
        def gradient(at: Params) -> Params:
            read.append(portion)
            return loss_and_grad_many(network, at, portion, CrossEntropy(3))[1]

        return gradient

    given = Conditions.of_batch(examples, gradient_on, 2)
    after = metanet.after_rounds(params, given)
    assert [len(portion) for portion in read] == [4, 4, 4]
    rows = torch.cat([portion.x for portion in read], 1)
    assert torch.equal(rows.sum(2).sort(1).values, examples.x.sum(2).sort(1).values)
    # The reference: a metanet that reads whole batches is given the portions one after the other.
    portions = iter(examples.portions(3, 2))
    one_by_one = replace(
        given, gradient=lambda at: gradient_on(next(portions))(at), examples=torch.full((2,), 4.0)
    )
    for a, b in zip(after, whole.after_rounds(params, one_by_one), strict=True):
        for name, p in a.items():
            torch.testing.assert_close(p, b[name], rtol=1e-9, atol=1e-9)
    read.clear()
    metanet.after_rounds(params, given, rounds=2)
    metanet.after_rounds(params, given, rounds=1)
    assert [len(portion) for portion in read] == [6, 6, 12]
    read.clear()
    few = made(MLP, rounds=3, portion=12)
    few.after_rounds(params, given)
    metanet.after_rounds(params, replace(given, portions=None))
    assert all(portion is examples for portion in read) and len(read) == 6
    with pytest.raises(ValueError, match=r"conditions.portions: got 1 for 3 rounds, expected one for each"):
        metanet.after_rounds(
            params, replace(given, portions=lambda *_: [(gradient_on(examples), examples.counts(2))])
        )
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=r"portion: got .*, expected a whole number of at least 1"):
            made(MLP, portion=wrong)


def test_rounds_that_read_portions_are_equivariant() -> None:
    metanet, (network, examples) = made(RELU, portion=3), problem(RELU, 3)

    def gradient_on(portion: Examples) -> Callable[[Params], Params]:
        return lambda at: loss_and_grad_many(network, at, portion, CrossEntropy(3))[1]

    given = Conditions.of_batch(examples, gradient_on, 3)
    assert_equivariant(lambda p: metanet(p, given), spec_of(RELU), networks(RELU, 3), batched=True)
    # Beside a function, which every round reads as a whole.
    metanet = made(RELU, conditions=["batch", "function"], rounds=3, portion=3)

    def both(params: Params) -> Conditions:
        whole = reading(metanet, RELU, params, "both")
        return replace(given, function=whole.function)

    assert_equivariant(lambda p: metanet(p, both(p)), spec_of(RELU), networks(RELU, 3), batched=True)
    params = networks(RELU, 3)
    changed = metanet(params, both(params)), metanet(params, replace(both(params), portions=None))
    assert not torch.allclose(changed[0]["0.weight"], changed[1]["0.weight"])


def test_further_rounds_copy_gates_and_thresholds() -> None:
    metanet = made(MLP, conditions=["batch", "function", "l1"], l1_knots=2)
    metanet.begin("both", "batch", rounds=1)
    one, two = metanet.rule("batch"), metanet.rule("both")
    assert one.log_threshold is not None and two.log_threshold is not None
    for k, gate in enumerate(one.gate):
        # [K, S, R, o, i]: every source and round is the first round of the one source
        of, to = gate.unflatten(0, (4, 1, 2)), two.gate[k].unflatten(0, (4, 2, 2))
        torch.testing.assert_close(to, of[:, :, :1].expand_as(to))
        of, to = (logs[k].unflatten(0, (4, 2)) for logs in (one.log_threshold, two.log_threshold))
        torch.testing.assert_close(to, of[:, :1].expand_as(to))


def test_more_examples_than_meta_training_read_change_nothing() -> None:
    metanet, params = made(MLP, most_examples=20), networks(MLP, 2)
    with torch.no_grad():
        for p in (metanet.rule("batch").step_slope, metanet.rule("batch").unit_slope):
            p.add_(0.5)
    given = conditions(MLP, 2)

    def proposed(count: float) -> Tensor:
        counts = torch.full((2,), count)
        return torch.cat([p.flatten() for p in metanet(params, replace(given, examples=counts)).values()])

    assert torch.equal(proposed(20.0), proposed(500.0))
    assert not torch.allclose(proposed(10.0), proposed(20.0))
    metanet.set_most_examples(500)
    assert not torch.allclose(proposed(20.0), proposed(500.0))
    again = Rounds(metanet.spec, **metanet.config)
    assert again.rule("batch").most_examples == 500
    # Of portions, what a round reads.
    for portion, most in ((50, 250), (300, 300), (800, 500)):
        portioned = made(MLP, portion=portion)
        portioned.set_most_examples(500)
        assert portioned.config["most_examples"] == most


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
        ({"conditions": ["l1"]}, r"conditions: got \['l1'\], expected 'batch' or 'function'"),
        ({"conditions": ["function"]}, "input_shape: got none"),
        ({"probes": 0}, "probes: got 0"),
        ({"conditions": ["batch", "weather"]}, "conditions: got"),
        ({"respects": "signs"}, "respects: got 'signs'"),
        ({"shapes": {}}, "shapes: got none of"),
        ({"step": 0.0}, "step: got 0.0"),
        ({"scales": {"0.weight": -1.0}}, r"scales: got \{'0.weight': -1.0\}"),
        ({"zeros": [0.1, 0.9]}, r"zeros: got \[0.1, 0.9\], expected .* and 'l1' among the conditions"),
        ({"conditions": ["batch", "l1"], "zeros": [0.9, 0.1]}, r"zeros: got \[0.9, 0.1\], expected"),
        ({"scales": {"weight": 1.0}}, r"scales: got \{'weight': 1.0\}"),
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


def test_start_from_lets_the_pass_begin_at_the_function_of_one_network() -> None:
    metanet, given = made(SINE), conditions(SINE, 3)
    torch.manual_seed(5)
    network = SINE.build().double()
    metanet.start_from(params_of(network))
    x = torch.randn(7, 2, dtype=torch.float64)
    before = metanet.after_rounds(networks(SINE, 3), given, rounds=0)[0]
    torch.testing.assert_close(apply_many(network, before, x), network(x).expand(3, 7, 3))


def test_step_is_the_size_of_steps_before_meta_training() -> None:
    shapes = {name: tuple(p.shape) for name, p in MLP.build().named_parameters()}
    metanet = Rounds(spec_of(MLP), shapes=shapes, step=0.1)
    torch.testing.assert_close(metanet.rule("batch").step.exp(), torch.full((1, 3), 0.1))
