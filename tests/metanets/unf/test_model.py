"""UNF metanets: equivariant for every base network, and fit for the registry."""

from __future__ import annotations

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets import make
from amortopt.metanets.unf.model import UNF
from amortopt.testing import assert_equivariant
from tests.cases import Case, case
from tests.metanets.networks import conditions_of, networks, spec_of, without_scales

NAMES = ("hand-written", "residual", "per-position", "mixer", "low-rank", "cnn-2d", "cnn-flatten", "experts")
NAMES += ("resnext", "rnn-tanh", "lstm", "gru", "attention-packed-by-head", "gpt-tied")
SOME = tuple(case(name) for name in NAMES)
"""Of every family; with runs of units (resnext), slices (lstm) and views (attention-packed-by-head)."""


def _alive(made: torch.nn.Module) -> None:
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.3)


def _networks(base: Case) -> Params:
    spec = spec_of(base)
    return {name: value for name, value in networks(base).items() if name in spec.params}


@pytest.mark.parametrize("base", SOME, ids=str)
def test_unf_equivariant_to_permutations(base: Case) -> None:
    spec = without_scales(spec_of(base))
    made = UNF(spec, width=2, depth=2).double()
    _alive(made)
    assert_equivariant(lambda params: made(params), spec, _networks(base), batched=True, seeds=(0,))


def test_unf_is_the_identity_at_first_and_reads_gradients_and_l1() -> None:
    base = case("cnn-1d")
    spec, params = spec_of(base), networks(base)
    made = make("unf", spec, width=3, depth=2, conditions=["batch", "l1"]).double()
    grads = {name: torch.randn_like(p) for name, p in params.items()}
    l1 = torch.tensor([0.0, 1e-3], dtype=torch.float64)
    same = made(params, conditions_of(grads, l1))
    assert all(torch.equal(same[name], params[name]) for name in params)
    _alive(made)
    changed = made(params, conditions_of(grads, l1))
    assert all(changed[name].shape == params[name].shape for name in params)
    name = next(iter(params))
    assert not torch.equal(changed[name], made(params, conditions_of(params, l1))[name])
    assert not torch.equal(changed[name], made(params, conditions_of(grads, l1 + 0.1))[name])


def test_unf_bad_input_says_what_is_expected() -> None:
    base = case("mlp-tanh")
    made, params = UNF(spec_of(base)).double(), networks(base)
    with pytest.raises(ValueError, match=r"expected also '0\.bias'"):
        made({name: p for name, p in params.items() if name != "0.bias"})
    with pytest.raises(ValueError, match=r"conditions\.gradient: got one"):
        made(params, conditions_of(params))
    with pytest.raises(ValueError, match=r"conditions: got \['loss'\]"):
        UNF(spec_of(base), conditions=["loss"])
    with pytest.raises(ValueError, match="depth, width: got 0"):
        UNF(spec_of(base), depth=0)
