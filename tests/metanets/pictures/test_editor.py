"""An editor by way of pictures: equivariant, shows what its pass draws, learns, refuses other families."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets import Conditions, PictureEditor, make
from amortopt.symmetry import act, extract, sample
from amortopt.tasks import Family, init_many, make_family
from amortopt.testing import assert_equivariant

SIREN = make_family("siren", widths=(2, 5, 4, 1), w0=20.0)
MLP = make_family("mlp", activation="relu", widths=(5, 4, 3))
SMALL = {"side": 6, "rounds": 2, "channels": 2, "hidden": 4, "width": 3}


def _made(**config: Any) -> PictureEditor:
    torch.manual_seed(0)
    spec = extract(SIREN.build(), SIREN.example_input())
    made = make("picture_editor", spec, **{"family": SIREN.to_config()} | SMALL | config).double()
    with torch.no_grad():
        for p in made.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return made


def _networks(family: Family, count: int) -> Params:
    return {name: p.double() for name, p in init_many(family.build, range(count)).items()}


def test_picture_editor_is_equivariant() -> None:
    made = _made()
    assert_equivariant(made, made.spec, _networks(SIREN, 3), batched=True)


def test_picture_editor_depends_on_what_networks_show_and_on_nothing_else() -> None:
    made, params = _made(), _networks(SIREN, 3)
    g = sample(made.spec, generator=torch.Generator().manual_seed(0), batch=3)
    moved = act(made.spec, g, params, batched=True)
    shown = [made.shown(made(each)) for each in (params, moved)]
    torch.testing.assert_close(shown[0], shown[1], rtol=1e-9, atol=1e-9)
    assert (shown[0][0] - shown[0][1]).abs().max() > 1e-6


def test_picture_editor_learns_an_edit() -> None:
    made, params = _made(), _networks(SIREN, 6)
    made.standardize(params)
    target = 1 - made.shown(params).detach()  # inverted

    def error() -> float:
        return (made.shown(made(params)) - target).square().mean().item()

    before = error()
    adam = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(40):
        adam.zero_grad()
        drawn, pictures = made.edit(params)
        ((made.shown(drawn) - target).square() + (pictures - target).square()).mean().backward()
        adam.step()
    assert error() < 0.5 * before


def test_picture_editor_state_holds_no_network() -> None:
    assert {name.split(".")[0] for name in _made().state_dict()} == {"map", "draw"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"side": 3}, "side: got 3"),
        ({"width": 1.5}, "width: got 1.5"),
        ({"rounds": 0}, "rounds: got 0"),
        ({"family": MLP.to_config()}, "family: got .*, which differs from the spec in"),
        ({"family": {"name": "siren", "widths": [3, 5, 4, 1]}}, "family: got networks from .3,. to .1,."),
        ({"family": {"name": "siren", "widths": [2, 5, 4, 2]}}, "family: got networks from .2,. to .2,."),
    ],
)
def test_picture_editor_bad_arguments_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _made(**config)


def test_picture_editor_refuses_bad_networks_and_conditions() -> None:
    made, params = _made(), _networks(SIREN, 2)
    with pytest.raises(ValueError, match=r"params: '0.bias' of network 1 is NaN"):
        made(params | {"0.bias": params["0.bias"].index_fill(0, torch.tensor([1]), float("nan"))})
    with pytest.raises(ValueError, match=r"conditions\.l1: got one"):
        made(params, Conditions(l1=torch.zeros(2)))
