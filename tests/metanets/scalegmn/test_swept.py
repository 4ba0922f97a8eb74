"""Swept: arguments of the functional and the editor are checked in one place, and errors name the choices."""

from __future__ import annotations

import pytest
import torch

from amortopt.metanets import make
from tests.cases import case
from tests.metanets.networks import networks, spec_of

OTHERS = {"scalegmn_functional": {"head": {"name": "regression"}}, "scalegmn_editor": {}}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            {"direction": "bidirektional"},
            "direction: got 'bidirektional', expected 'forward' or 'bidirectional'",
        ),
        ({"respects": "scales"}, "respects: got 'scales', expected 'scale' or 'permutation'"),
        ({"frequency": 0.5}, "frequency: got 0.5, expected at least 1"),
        ({"frequency": float("nan")}, "frequency: got nan, expected at least 1"),
        ({"sweeps": 0}, "sweeps: got 0, expected a whole number of at least 1"),
        ({"width": 6, "channels": 4}, "channels: got 4, expected a divisor of width=6"),
    ],
)
def test_swept_refuses(name: str, argument: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, spec_of(case("mlp-tanh")), **OTHERS[name], **argument)


@pytest.mark.parametrize("name", OTHERS)
def test_swept_standardized_features_have_size_one(name: str) -> None:
    torch.manual_seed(0)
    made = make(name, spec_of(case("mlp-tanh")), width=4, channels=2, **OTHERS[name]).double()
    params = networks(case("mlp-tanh"))
    made.standardize(params)
    for feature in made.standardized(made.read(params)).features:
        torch.testing.assert_close(feature.square().mean().sqrt().item(), 1.0)


@pytest.mark.parametrize("name", OTHERS)
def test_swept_config_makes_the_same_again(name: str) -> None:
    made = make(name, spec_of(case("mlp-tanh")), width=4, channels=2, direction="forward", **OTHERS[name])
    again = make(name, made.spec, **made.config)
    assert again.config == made.config
    again.load_state_dict(made.state_dict())
