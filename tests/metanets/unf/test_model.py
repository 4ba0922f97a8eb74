"""UNF metanets: equivariant and invariant for every base network, and fit for the registry."""

from __future__ import annotations

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets import make
from amortopt.metanets.unf.model import UNF, UNFInvariant
from amortopt.symmetry import act, sample
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


@pytest.mark.parametrize("base", SOME, ids=str)
def test_unf_invariant_is_invariant(base: Case) -> None:
    spec = without_scales(spec_of(base))
    made = UNFInvariant(spec, 3, width=2, depth=2, hidden=4).double()
    params = _networks(base)
    made.standardize(params)
    g = sample(spec, generator=torch.Generator().manual_seed(0), batch=2)
    y = made(params)
    assert y.shape == (2, 3)
    torch.testing.assert_close(y, made(act(spec, g, params, batched=True)), rtol=1e-9, atol=1e-9)


def test_unf_tells_networks_apart_that_differ_beyond_permutations() -> None:
    base = case("mlp-tanh")
    made = UNFInvariant(without_scales(spec_of(base)), 1, width=4, depth=2).double()
    params = networks(base)
    name = next(name for name, p in params.items() if p.ndim == 3)
    other = {**params, name: params[name].flip(1)}  # one layer's units, but not what reads them
    assert (made(params) - made(other)).abs().max() > 1e-6


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


def test_unf_other_widths_than_the_spec() -> None:
    made = UNFInvariant(spec_of(case("mlp-tanh")), 2, width=2)
    shapes = {
        "0.weight": (7, 40),
        "0.bias": (7,),
        "2.weight": (5, 7),
        "2.bias": (5,),
        "4.weight": (10, 5),
        "4.bias": (10,),
    }
    assert made({name: torch.randn(3, *shape) for name, shape in shapes.items()}).shape == (3, 2)


def test_unf_standardize_gives_unit_variance() -> None:
    base = case("mlp-relu")
    made = UNFInvariant(spec_of(base), 1).double()
    params = {name: 5 + 3 * p for name, p in networks(base).items()}
    made.standardize(params)
    for k, x in enumerate(made.tensors.read(params)):
        y = (x - made.body.mean[k]) * made.body.scale[k]
        assert abs(y.mean()) < 1e-9 and abs(y.std(correction=0) - 1) < 1e-9


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
