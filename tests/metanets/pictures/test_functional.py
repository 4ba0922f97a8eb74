"""A functional that reads pictures: invariant, learns from pictures alone, refuses other families."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets import PictureFunctional, make
from amortopt.symmetry import act, extract, sample
from amortopt.tasks import Family, init_many, make_family

SIREN = make_family("siren", widths=(2, 5, 4, 1), w0=20.0)
MLP = make_family("mlp", activation="relu", widths=(5, 4, 3))
TWO = {"name": "classes", "count": 2}


def _made(**config: Any) -> PictureFunctional:
    torch.manual_seed(0)
    spec = extract(SIREN.build(), SIREN.example_input())
    config = {"head": TWO, "family": SIREN.to_config(), "side": 7, "width": 2, "hidden": 8} | config
    return make("picture_functional", spec, **config).double().eval()


def _networks(family: Family, count: int) -> Params:
    return {name: p.double() for name, p in init_many(family.build, range(count)).items()}


def test_picture_functional_invariant() -> None:
    made, params = _made(), _networks(SIREN, 3)
    g = sample(made.spec, generator=torch.Generator().manual_seed(0), batch=3)
    moved = act(made.spec, g, params, batched=True)
    assert any(not torch.equal(moved[name], p) for name, p in params.items())
    before = made(params)
    torch.testing.assert_close(made(moved), before, rtol=1e-9, atol=1e-9)
    # Other pictures are read as other numbers.
    assert (before[1:] - before[:1]).abs().min() > 1e-6


def test_picture_functional_reads_several_widths() -> None:
    made, wide = _made(), make_family("siren", widths=(2, 9, 4, 1), w0=20.0)
    mixed = made.forward_mixed([_networks(SIREN, 2), _networks(wide, 3)])
    assert [tuple(m.shape) for m in mixed] == [(2, 2), (3, 2)]


def test_picture_functional_learns_brightness() -> None:
    made, params = _made(dropout=0.0).train(), _networks(SIREN, 12)
    shown = made.shown(params).mean((1, 2))
    target = (shown > shown.median()).long()
    adam = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(60):
        adam.zero_grad()
        made.head.loss(made.raw([params])[0], target).backward()
        adam.step()
    assert torch.equal(made(params).argmax(1), target)
    assert {name.split(".")[0] for name in made.state_dict()} == {"head", "features", "trunk"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"side": 3}, "side: got 3"),
        ({"side": True}, "side: got True"),
        ({"width": 0}, "width: got 0"),
        ({"hidden": 1.5}, "hidden: got 1.5"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
        ({"head": {"name": "regression", "units": "h1"}}, "head.units: got a group, expected none"),
        ({"family": MLP.to_config()}, "family: got .*, which differs from the spec in"),
        ({"family": {"name": "siren", "widths": [3, 5, 4, 1]}}, "family: got networks from .3,. to .1,."),
    ],
)
def test_picture_functional_bad_arguments_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _made(**config)
