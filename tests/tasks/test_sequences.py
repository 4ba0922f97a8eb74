"""Sequence networks: their symmetry, and the form for many networks against the ordinary module."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from amortopt._types import Params
from amortopt.functional.networks import apply_many
from amortopt.symmetry import NeuronGroup, SymmetrySpec, extract
from amortopt.tasks import (
    CrossEntropy,
    Examples,
    Family,
    init_many,
    loss_and_grad_many,
    loss_many,
    make_family,
)
from amortopt.tasks.derivatives import attend, recur, standardise
from amortopt.tasks.sequences import causal_attention

COUNT, EXAMPLES, LENGTH = 3, 4, 5
OBJECTIVE = CrossEntropy(9, (LENGTH,))
RNN = make_family("char_rnn", embedding=3, hidden=6, num_classes=9, input_shape=(LENGTH,))
RNN_RELU = make_family("char_rnn", activation="relu", hidden=6, num_classes=9, input_shape=(LENGTH,))
TRANSFORMER = make_family(
    "transformer", activation="gelu", width=6, heads=2, num_classes=9, input_shape=(LENGTH,)
)
TINY = make_family("transformer", width=4, heads=4, blocks=1, ratio=1, num_classes=9, input_shape=(8,))
every = pytest.mark.parametrize("family", [RNN, RNN_RELU, TRANSFORMER, TINY], ids=repr)


def drawn(family: Family, generator: torch.Generator) -> tuple[Params, Tensor, Tensor]:
    """Params with no special values, symbols and targets."""
    params = {
        name: value.double() + 0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in init_many(family.build, range(COUNT)).items()
    }
    symbols = torch.randint(9, (COUNT, EXAMPLES, LENGTH + 1), generator=generator)
    return params, symbols[..., :-1], symbols[..., 1:]


def one_by_one(family: Family, params: Params, x: Tensor) -> Tensor:
    net = family.build().double()
    return torch.stack(
        [functional_call(net, {n: p[b] for n, p in params.items()}, (x[b],)) for b in range(COUNT)]
    )


@every
def test_sequences_many_networks_are_each_ones_outputs(family: Family, generator: torch.Generator) -> None:
    params, x, _ = drawn(family, generator)
    out = apply_many(family.build(), params, x, shared=False)
    torch.testing.assert_close(out, one_by_one(family, params, x), rtol=1e-9, atol=1e-11)
    shared = apply_many(family.build(), params, x[0])
    torch.testing.assert_close(shared[0], out[0], rtol=1e-9, atol=1e-11)


@every
def test_sequences_gradients_and_their_gradients_are_those_of_the_module(
    family: Family, generator: torch.Generator
) -> None:
    params, x, y = drawn(family, generator)

    def derivatives(many: bool) -> list[Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        logits = (
            apply_many(family.build(), leaves, x, shared=False) if many else one_by_one(family, leaves, x)
        )
        first = torch.autograd.grad(OBJECTIVE.loss(logits, y).sum(), list(leaves.values()), create_graph=True)
        # A function of the gradient whose derivative is nowhere constant, as a learned update's is.
        target = torch.stack([g.sin().sum() for g in first]).sum() + logits.cos().sum()
        return [*first, *torch.autograd.grad(target, list(leaves.values()))]

    for got, expected in zip(derivatives(True), derivatives(False), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


@every
def test_sequences_loss_and_grad_many_is_differentiable(family: Family, generator: torch.Generator) -> None:
    params, x, y = drawn(family, generator)
    net = family.build().double()
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    losses, grads = loss_and_grad_many(
        net, leaves, Examples(x, y, shared=False), OBJECTIVE, create_graph=True
    )
    alone, alone_grad = _one_loss_and_grad(net, {n: p[1] for n, p in params.items()}, x[1], y[1])
    torch.testing.assert_close(losses[1], alone)
    for name, value in alone_grad.items():
        torch.testing.assert_close(grads[name][1], value, rtol=1e-8, atol=1e-10)
    second = torch.autograd.grad(_squares(grads), list(leaves.values()))
    assert all(value.isfinite().all() and value.any() for value in second)


def _squares(grads: Params) -> Tensor:
    return torch.stack([(g * g).sum() for g in grads.values()]).sum()


def _one_loss_and_grad(net: torch.nn.Module, params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Params]:
    def loss(p: Params) -> Tensor:
        return F.cross_entropy(functional_call(net, p, (x,)).flatten(0, 1), y.flatten())

    return loss(params), grad(loss)(params)


@every
def test_sequences_run_under_vmap(family: Family, generator: torch.Generator) -> None:
    """Evolution strategies run perturbed copies of B networks under ``vmap``."""
    params, x, _ = drawn(family, generator)
    net = family.build()
    twice = {name: torch.stack([value, value + 0.1]) for name, value in params.items()}

    def run(p: Params) -> Tensor:
        return apply_many(net, p, x, shared=False)

    outputs = vmap(run)(twice)
    for i in range(2):
        alone = apply_many(net, {name: value[i] for name, value in twice.items()}, x, shared=False)
        torch.testing.assert_close(outputs[i], alone)


@every
def test_sequences_take_parts_of_params_and_keep_hooks(family: Family, generator: torch.Generator) -> None:
    params, x, _ = drawn(family, generator)
    net = family.build().double()
    some = {"readout.bias": params["readout.bias"]}
    full = {name: p.detach().expand(COUNT, *p.shape) for name, p in net.named_parameters()} | some
    torch.testing.assert_close(
        apply_many(net, some, x, shared=False), one_by_one(family, full, x), rtol=1e-9, atol=1e-11
    )
    net.register_forward_hook(_plus_one)
    torch.testing.assert_close(
        apply_many(net, full, x, shared=False), one_by_one(family, full, x) + 1, rtol=1e-9, atol=1e-11
    )


def _plus_one(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + 1


@every
def test_sequences_see_no_later_symbol(family: Family, generator: torch.Generator) -> None:
    params, x, _ = drawn(family, generator)
    changed = x.clone()
    changed[..., 3:] = (changed[..., 3:] + 1) % 9
    net = family.build()
    before, after = (apply_many(net, params, inputs, shared=False) for inputs in (x, changed))
    torch.testing.assert_close(before[:, :, :3], after[:, :, :3])
    assert ((before - after).abs().amax(-1)[:, :, 3:] > 1e-6).all()


@cache
def spec_of(family: Family) -> SymmetrySpec:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return extract(family.build(), family.example_input())


def axes_of(family: Family, name: str) -> list[tuple[str | None, int]]:
    """Group and exponent on each axis of a parameter that is one block."""
    (block,) = spec_of(family).blocks_of(name)
    return [(axis.group, axis.exponent) for axis in block.axes]


def group_of(family: Family, name: str, axis: int = 0) -> NeuronGroup:
    group = axes_of(family, name)[axis][0]
    return next(g for g in spec_of(family).groups if g.name == group)


@every
def test_sequences_symmetry_holds(family: Family) -> None:
    torch.manual_seed(1)
    net = family.build()
    for name, parameter in net.named_parameters():
        if name == "recurrent":
            torch.nn.init.normal_(parameter)
    proof = spec_of(family).verify(net, family.example_input())
    assert proof.holds, proof


def test_char_rnn_hidden_group_stands_twice_on_the_recurrent_matrix() -> None:
    hidden = group_of(RNN, "recurrent")
    assert (hidden.size, hidden.kind, hidden.permutable) == (6, "sign", True)
    assert axes_of(RNN, "recurrent") == [(hidden.name, 1), (hidden.name, -1)]
    assert axes_of(RNN, "input.weight")[0] == axes_of(RNN, "input.bias")[0] == (hidden.name, 1)
    assert axes_of(RNN, "readout.weight")[1] == (hidden.name, -1)


def test_char_rnn_embedding_is_a_group_of_its_own_and_symbols_stay() -> None:
    width = group_of(RNN, "embedding.weight", 1)
    assert (width.size, width.kind, width.permutable) == (3, "free", True)
    assert axes_of(RNN, "input.weight")[1] == (width.name, -1)
    assert group_of(RNN, "embedding.weight").trivial and group_of(RNN, "readout.weight").trivial
    moved = [g for g in spec_of(RNN).groups if not g.trivial]
    assert {g.name for g in moved} == {width.name, group_of(RNN, "recurrent").name}


def test_transformer_residual_stream_is_one_group_everywhere() -> None:
    stream = group_of(TRANSFORMER, "embedding.weight", 1)
    assert stream.size == 6 and stream.permutable
    for name, axis in (
        ("positions.weight", 1),
        ("blocks.0.query.weight", 1),
        ("blocks.0.project.weight", 0),
        ("blocks.0.norm2.bias", 0),
        ("blocks.1.up.weight", 1),
        ("blocks.1.down.bias", 0),
        ("norm.weight", 0),
        ("readout.weight", 1),
    ):
        assert axes_of(TRANSFORMER, name)[axis][0] == stream.name, name


@pytest.mark.parametrize("block", [0, 1])
def test_transformer_heads_own_their_channels(block: int) -> None:
    queries, keys, values = (
        group_of(TRANSFORMER, f"blocks.{block}.{name}.weight") for name in ("query", "key", "value")
    )
    # Queries and keys meet channel by channel: one group, scaled against each other. Values are their own.
    assert queries == keys != values
    exponents = [axes_of(TRANSFORMER, f"blocks.{block}.{name}.weight")[0][1] for name in ("query", "key")]
    assert sorted(exponents) == [-1, 1]
    assert axes_of(TRANSFORMER, f"blocks.{block}.project.weight")[1] == (values.name, -1)
    assert queries.within is not None and queries.within == values.within
    heads = next(g for g in spec_of(TRANSFORMER).groups if g.name == queries.within)
    assert heads.size == 2 and heads.permutable and heads.within is None
    for channels in (queries, values):
        assert (channels.size, channels.kind, channels.permutable) == (6, "free", True)


def test_transformer_inner_units_of_a_block_only_move() -> None:
    inner = group_of(TRANSFORMER, "blocks.0.up.weight")
    assert (inner.size, inner.kind, inner.permutable) == (24, "none", True)


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


def test_standardise_is_layer_norm_with_its_derivatives(generator: torch.Generator) -> None:
    x = _random(generator, 3, 2, 5)
    torch.testing.assert_close(standardise(x, 1e-5), F.layer_norm(x, (5,), eps=1e-5))
    assert torch.autograd.gradcheck(lambda a: standardise(a, 0.1), (x,))
    assert torch.autograd.gradgradcheck(lambda a: standardise(a, 0.1), (x,))


def test_attend_is_causal_attention_with_its_derivatives(generator: torch.Generator) -> None:
    inputs = [_random(generator, 2, 4, 3) for _ in range(3)]
    torch.testing.assert_close(attend(*inputs), causal_attention(*inputs, heads=1))
    reference = F.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], is_causal=True)
    torch.testing.assert_close(attend(*inputs), reference)
    assert torch.autograd.gradcheck(attend, inputs)
    assert torch.autograd.gradgradcheck(attend, inputs)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_recur_is_a_tanh_layer_with_its_derivatives(generator: torch.Generator, length: int) -> None:
    inputs = _random(generator, 2, length, 3, 4), _random(generator, 2, 4, 4)
    states = recur(*inputs)
    state = torch.zeros(2, 3, 4, dtype=torch.float64)
    for t in range(length):
        state = torch.tanh(inputs[0][:, t] + state @ inputs[1].mT)
        torch.testing.assert_close(states[:, t], state)
    assert torch.autograd.gradcheck(recur, inputs)
    assert torch.autograd.gradgradcheck(recur, inputs)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x: standardise(x, 0.1), [(2, 3)]),
        (attend, [(2, 3, 2)] * 3),
        (recur, [(1, 3, 2, 2), (1, 2, 2)]),
    ],
    ids=["standardise", "attend", "recur"],
)
def test_third_derivatives_are_right(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]], generator: torch.Generator
) -> None:
    inputs = [_random(generator, *shape) for shape in shapes]

    def gradient(*values: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*values).sin().sum(), values, create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, inputs)


def test_second_derivatives_are_right_where_functions_are_nested(generator: torch.Generator) -> None:
    """``torch.func.grad`` of a gradient keeps its graph, as for a third derivative."""
    params, x, y = drawn(TRANSFORMER, generator)
    net, examples = TRANSFORMER.build().double(), Examples(x, y, shared=False)

    def squared(p: Params) -> Tensor:
        return _squares(grad(lambda q: loss_many(net, q, examples, OBJECTIVE).sum())(p))

    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    expected = torch.autograd.grad(squared(leaves), list(leaves.values()))
    for got, value in zip(grad(squared)(params).values(), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-8, atol=1e-10)
