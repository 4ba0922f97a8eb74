"""The registry of metanets."""

from __future__ import annotations

import pytest

from amortopt._types import Params
from amortopt.metanets import Metanet, UpdateRule, make, reads_answers, register, registered
from tests.optim.metanets import SPEC, TANH, Same, Scale


def test_make_uses_its_arguments() -> None:
    metanet = make("test-scale", SPEC, start=0.25, conditions=["l1"])
    assert isinstance(metanet, Scale)
    assert metanet.conditions == {"l1"} and metanet.gains[0].item() == 0.25


def test_make_from_its_own_config_is_equal() -> None:
    metanet = make("test-scale", SPEC, start=0.25, conditions=["l1"])
    again = make(metanet.name, metanet.spec, **metanet.config)
    assert again.config == metanet.config and again.conditions == metanet.conditions


def test_make_unknown_name_lists_those_there_are() -> None:
    expected = r"name: got unknown metanet 'no-such', expected one of .*test-same, test-scale"
    with pytest.raises(ValueError, match=expected):
        make("no-such", SPEC)


def test_make_unknown_argument_lists_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="strat: metanet 'test-scale' has no such argument; it has start, conditions"
    ):
        make("test-scale", SPEC, strat=1)


def test_make_names_a_missing_argument() -> None:
    with pytest.raises(ValueError, match="head: metanet 'probed_functional' needs this argument"):
        make("probed_functional", SPEC, family=TANH.to_config())


def test_metanets_that_read_answers_are_made_with_a_family() -> None:
    assert reads_answers("probed_functional") and not reads_answers("unf_functional")
    with pytest.raises(ValueError, match="got unknown metanet 'no-such'"):
        reads_answers("no-such")


def test_register_refuses_a_taken_name() -> None:
    with pytest.raises(ValueError, match="'test-same' is already Same"):
        register("test-same")(Same)
    assert "test-same" in registered()
    assert "test-same" in registered(Metanet) and "update_rule" not in registered(Metanet)


def test_make_makes_functionals_and_update_rules() -> None:
    assert make("unf_functional", SPEC, head={"name": "classes", "count": 2}, width=2)(
        {n: p[None] for n, p in _params().items()}
    ).shape == (1, 2)
    assert isinstance(make("update_rule", width=4), UpdateRule)


def test_metanet_refuses_unknown_conditions() -> None:
    with pytest.raises(ValueError, match=r"conditions: got \['loss'\], expected some of \['batch', 'l1'\]"):
        make("test-scale", SPEC, conditions=["loss"])


def _params() -> Params:
    return {name: p.detach() for name, p in TANH.build().named_parameters()}
