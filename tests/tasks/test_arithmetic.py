"""Arithmetic as a problem, and the networks that learn it."""

from __future__ import annotations

import pytest
import torch

from amortopt.functional.networks import apply, apply_many, params_of, stack, unstack
from amortopt.symmetry import extract
from amortopt.symmetry.proof.verify import verify
from amortopt.tasks import Arithmetic, ArithmeticRnn, Examples, loss_and_grad_many
from amortopt.tasks.arithmetic import VOCABULARY, text

ARITHMETIC = Arithmetic(terms=2, digits=1, held_out=30)
FAMILY = ArithmeticRnn(6, ARITHMETIC.input_shape, ARITHMETIC.answer)


@pytest.mark.parametrize("arithmetic", [ARITHMETIC, Arithmetic(), Arithmetic(terms=2, digits=2)])
def test_arithmetic_has_every_sum_once_with_its_answer(arithmetic: Arithmetic) -> None:
    symbols = arithmetic.symbols
    texts = [text(row) for row in symbols]
    assert len(set(texts)) == arithmetic.count
    for one in texts[::7]:
        question, answer = one.split("=")
        terms = question.split("+")
        assert [len(term) for term in terms] == [arithmetic.digits] * arithmetic.terms
        assert len(answer) == arithmetic.answer and sum(map(int, terms)) == int(answer)
    train, test = arithmetic.split("train"), arithmetic.split("test")
    assert len(train) + len(test) == arithmetic.count and len(test) == arithmetic.held_out
    assert train.x.shape[1:] == arithmetic.input_shape
    assert torch.equal(torch.cat([train.x, train.y[:, -1:]], 1), symbols[: len(train)])


def test_arithmetic_has_no_val_part() -> None:
    with pytest.raises(ValueError, match="which: arithmetic has no val part"):
        ARITHMETIC.split("val")


@pytest.mark.parametrize(
    "wrong", [{"terms": 1}, {"digits": 0}, {"digits": 3, "terms": 4}, {"held_out": 1000}]
)
def test_arithmetic_names_a_bad_argument(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Arithmetic(**wrong)


def test_arithmetic_networks_at_once_are_each_network() -> None:
    many = [params_of(FAMILY.build().double()) for _ in range(3)]
    module, params = FAMILY.build().double(), stack(many)
    data = ARITHMETIC.split("train").take(torch.arange(33).view(3, 11))
    outputs = apply_many(module, params, data.x, shared=False)
    _, grads = loss_and_grad_many(module, params, data, ARITHMETIC.objective)
    for b, one in enumerate(unstack(params)):
        torch.testing.assert_close(outputs[b], apply(module, one, data.x[b]), rtol=1e-12, atol=1e-14)
        module.load_state_dict(one)
        module.zero_grad()
        alone = Examples(data.x[b], data.y[b])
        ARITHMETIC.objective.loss(module(alone.x), alone.y).backward()
        for name, p in module.named_parameters():
            torch.testing.assert_close(grads[name][b], p.grad, rtol=1e-9, atol=1e-15)


def test_arithmetic_networks_symmetry_is_extracted_and_proved() -> None:
    torch.manual_seed(0)
    net, example = FAMILY.build(), ARITHMETIC.split("test").x[:5]
    spec = extract(net, example)
    assert verify(spec, net, example).holds
    hidden = [group for group in spec.groups if group.permutable]
    assert [(group.size, group.kind) for group in hidden] == [(6, "sign")]
    assert {block.param for block in spec.blocks} == set(params_of(net))
    gates = spec.blocks_of("gru.weight_hh_l0")
    assert [len(block.groups) for block in gates] == [2, 2, 2]
    assert len(VOCABULARY) == net.gru.input_size
