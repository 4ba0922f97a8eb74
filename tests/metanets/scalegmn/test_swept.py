"""Swept: arguments of the functional and the editor are checked in one place, and errors name the choices."""

from __future__ import annotations

import pytest
import torch

from amortopt.functional.networks import apply_many
from amortopt.metanets import make
from amortopt.metanets.scalegmn.swept import Swept
from amortopt.symmetry import extract
from amortopt.tasks import init_many, make_family
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
        ({"start": "own"}, "start: got 'own', expected 'random' or 'pass'"),
        ({"start": "pass"}, "spec: got a network with parameters .*, expected a chain of linear layers with"),
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


@pytest.mark.parametrize("respects", ["scale", "permutation"])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("widths", [(2, 6, 5, 1), (3, 4, 2)], ids=["one-output", "two-outputs"])
def test_swept_started_as_pass_has_the_answers_in_its_channels(
    name: str, respects: str, widths: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    family = make_family("siren", widths=widths, w0=5.0)
    spec = extract(family.build(), family.example_input())
    shape = {"width": 8, "channels": 1, "sweeps": 1, "direction": "forward", "respects": respects}
    made = make(name, spec, start="pass", **shape, **OTHERS[name]).double()
    assert isinstance(made, Swept)
    params = {key: p.double() for key, p in init_many(family.build, range(3)).items()}
    made.standardize(params)
    encoded = made.sweep([made.standardized(made.read(params))])
    rows = encoded.wiring.split(encoded.odd)[-1]  # of the output units, [k B, d]
    x = torch.sin(made.encoder.odd_index["0"]).mT  # the learned inputs [d, coordinates]
    assert float(x.detach().abs().max()) < 1 and float(x.detach().std()) > 0.4
    answers = apply_many(family.build().double(), params, x)  # [B, d, k]
    torch.testing.assert_close(rows.unflatten(0, (-1, 3)), answers.movedim(2, 0), rtol=1e-9, atol=1e-9)
