"""Editing by descent: a network's own pass at first, equivariant, the identity until it has learned."""

from __future__ import annotations

import pytest
import torch

from amortopt._types import Params
from amortopt.functional.networks import apply_many
from amortopt.metanets import ScaleGMNDescent
from amortopt.metanets.scalegmn.descent import Round
from amortopt.symmetry import extract
from amortopt.tasks import Family, init_many, make_family
from amortopt.testing import assert_equivariant
from tests.cases import case
from tests.metanets.networks import spec_of

ONE = make_family("siren", widths=(2, 6, 5, 1), w0=3.0)
TWO = make_family("siren", widths=(3, 4, 2), w0=5.0)
FAMILIES = (ONE, TWO)


def _params(family: Family, count: int = 3) -> Params:
    return {name: p.double() for name, p in init_many(family.build, range(count)).items()}


def _made(family: Family, *, trained: bool = True, **config: object) -> ScaleGMNDescent:
    torch.manual_seed(0)
    small = {"width": 9, "rounds": 2, "hidden": 7}
    made = ScaleGMNDescent(extract(family.build(), family.example_input()), **(small | config)).double()  # type: ignore[arg-type]
    made.standardize(_params(family))
    if trained:
        with torch.no_grad():
            for p in (*made.rounds.parameters(), *made.wanted.parameters()):
                p.add_(torch.randn_like(p) * 0.1)
    return made


@pytest.mark.parametrize("family", FAMILIES, ids=["one-output", "two-outputs"])
def test_descent_equivariant(family: Family) -> None:
    made = _made(family)
    assert_equivariant(lambda p: made(p), made.spec, _params(family), batched=True, seeds=(0,))


@pytest.mark.parametrize("family", FAMILIES, ids=["one-output", "two-outputs"])
def test_descent_messages_are_at_first_the_networks_own_pass(family: Family) -> None:
    made, params = _made(family, trained=False), _params(family)
    batch, _ = made._batch(made._read(params))
    first = made.rounds[0]
    assert isinstance(first, Round)
    arrived, _ = first.answers(batch, made._inputs(batch))
    answers = made._joined(batch, arrived[made.chain.output]).unflatten(1, (-1, 9)).mT  # [B, n, k]
    expected = apply_many(family.build().double(), params, made.inputs.mT)
    torch.testing.assert_close(answers, expected, rtol=1e-9, atol=1e-9)


def test_descent_changes_are_at_first_gradients_up_to_a_factor_per_block() -> None:
    made, params = _made(ONE, trained=False), _params(ONE)
    batch, scales = made._batch(made._read(params))
    first = made.rounds[0]
    assert isinstance(first, Round)
    arrived, sent = first.answers(batch, made._inputs(batch))
    errors = torch.randn_like(arrived[made.chain.output])
    with torch.no_grad():
        changed = made._written(
            made._read(params), scales, batch.moved(*first.changes(batch, arrived, sent, errors))
        )
    reduced = made._read(params).params
    at = {name: p.detach().clone().requires_grad_() for name, p in reduced.items()}
    answers = apply_many(ONE.build().double(), at, made.inputs.mT)[..., 0]
    (made._joined(batch, errors) * answers).sum().backward()
    for name in params:
        change, gradient = (changed[name] - reduced[name]).flatten(1), at[name].grad
        assert gradient is not None
        cosines = torch.cosine_similarity(change, gradient.flatten(1))
        torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("proposals", [1, 3])
def test_descent_is_the_identity_at_first(proposals: int) -> None:
    made, params = _made(ONE, trained=False, proposals=proposals), _params(ONE)
    module, x = ONE.build().double(), torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(
        apply_many(module, made(params), x), apply_many(module, params, x), rtol=1e-9, atol=1e-9
    )


def test_descent_phases_of_the_input_do_not_show_in_the_function() -> None:
    made, params, module = _made(ONE), _params(ONE), ONE.build().double()
    turned = {name: p.clone() for name, p in params.items()}
    turned["0.bias"][:, 2] += torch.pi / 3
    turned["2.weight"][:, :, 2] *= -1
    x = torch.randn(5, 2, dtype=torch.float64)
    answers = [apply_many(module, made(p), x) for p in (params, turned)]
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-9, atol=1e-9)
    assert float((answers[0] - apply_many(module, params, x)).detach().abs().max()) > 1e-3


def test_descent_proposals_differ_and_the_first_is_forward() -> None:
    made, params = _made(ONE, proposals=3), _params(ONE)
    proposed = made.propose(params)
    assert len(proposed) == 3
    assert torch.equal(proposed[0]["0.weight"], made(params)["0.weight"])
    assert not torch.allclose(proposed[0]["0.weight"], proposed[1]["0.weight"])


def test_descent_edits_networks_of_other_widths() -> None:
    made, params = _made(ONE), _params(make_family("siren", widths=(2, 8, 4, 1), w0=3.0))
    edited = made(params)
    assert {name: p.shape for name, p in edited.items()} == {name: p.shape for name, p in params.items()}


def test_descent_changes_weights_by_at_most_half_their_size_in_a_round() -> None:
    made, params = _made(ONE, rounds=1), _params(ONE)
    with torch.no_grad():
        for factor in made.rounds[0].edge_change:  # type: ignore[union-attr]
            factor.mul_(1e6)
    raw = made._read(params)
    batch, edited = made._batch(raw)[0], made._batch(made._read(made(params)))[0]
    for before, after in zip(batch.edges, edited.edges, strict=True):
        assert 0.49 < float((after - before).detach().square().mean().sqrt()) <= 0.5


def test_descent_refuses() -> None:
    with pytest.raises(ValueError, match=r"expected a chain of linear layers with biases, a sine after each"):
        ScaleGMNDescent(spec_of(case("mlp-tanh")))
    with pytest.raises(ValueError, match="rounds: got 0"):
        _made(ONE, rounds=0)
    with pytest.raises(ValueError, match="strength: got -1"):
        _made(ONE, strength=-1.0)
