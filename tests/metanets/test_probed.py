"""A functional that reads answers: invariant to any symmetry, learns its inputs, refuses other families."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets import ProbedFunctional, make
from amortopt.symmetry import act, extract, sample
from amortopt.tasks import Family, init_many, make_family

FAMILIES = (
    make_family("mlp", activation="relu", widths=(5, 4, 3)),
    make_family("siren", widths=(2, 5, 4, 1), w0=20.0),
    make_family("cnn", channels=(3, 2), input_shape=(1, 6, 6), num_classes=3),
)


def _made(family: Family, **config: Any) -> ProbedFunctional:
    torch.manual_seed(0)
    spec = extract(family.build(), family.example_input())
    config = {"head": {"name": "regression"}, "probes": 3, "hidden": 8} | config
    return make("probed_functional", spec, family=family.to_config(), **config).double().eval()


def _networks(family: Family, count: int) -> Params:
    return {name: p.double() for name, p in init_many(family.build, range(count)).items()}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_probed_functional_invariant(family: Family) -> None:
    made, params = _made(family), _networks(family, 3)
    g = sample(made.spec, generator=torch.Generator().manual_seed(0), batch=3)
    moved = act(made.spec, g, params, batched=True)
    assert any(not torch.equal(moved[name], p) for name, p in params.items())
    before = made(params)
    assert before.shape == (3, 1)
    torch.testing.assert_close(made(moved), before, rtol=1e-9, atol=1e-9)
    # Another function is read as another number.
    assert (made(_networks(family, 4))[1:] - made({k: 2 * p for k, p in params.items()})).abs().max() > 1e-6


def test_probed_functional_reads_other_widths_in_a_mixed_batch() -> None:
    made, wide = _made(FAMILIES[0]), make_family("mlp", activation="relu", widths=(5, 9, 3))
    networks = [_networks(FAMILIES[0], 2), _networks(wide, 3)]
    mixed = made.forward_mixed(networks)
    assert [tuple(m.shape) for m in mixed] == [(2, 1), (3, 1)]
    torch.testing.assert_close(mixed[1], made(networks[1]))


def test_probed_functional_learns_its_probes_and_its_state_holds_no_network() -> None:
    made = _made(FAMILIES[2]).train()
    before = made.probes.detach().clone()
    params, target = _networks(FAMILIES[2], 8), torch.linspace(0, 1, 8).double()
    made.head.observe(target)
    adam = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(3):
        adam.zero_grad()
        made.head.loss(made.raw([params])[0], target).backward()
        adam.step()
    assert (made.probes - before).abs().min() > 0
    assert {name.split(".")[0] for name in made.state_dict()} == {"head", "probes", "norm", "trunk", "last"}


def test_probed_functional_starts_from_inputs() -> None:
    made, inputs = _made(FAMILIES[2]), torch.randn(3, 1, 6, 6)
    made.start_from(inputs)
    assert torch.equal(made.probes, inputs.double())
    for bad in (inputs[:2], torch.full_like(inputs, torch.nan)):
        with pytest.raises(ValueError, match=r"inputs: got shape .*, expected finite ones"):
            made.start_from(bad)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"probes": 0}, "probes: got 0"),
        ({"hidden": 1.5}, "hidden: got 1.5"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
        ({"head": {"name": "regression", "units": "h1"}}, "head.units: got a group, expected none"),
        ({"family": FAMILIES[2].to_config()}, "family: got .*, which differs from the spec in"),
    ],
)
def test_probed_functional_bad_arguments_are_named(config: dict[str, Any], message: str) -> None:
    spec = extract(FAMILIES[0].build(), FAMILIES[0].example_input())
    known = {"head": {"name": "regression"}, "family": FAMILIES[0].to_config()}
    with pytest.raises(ValueError, match=message):
        ProbedFunctional(spec, **known | config)
