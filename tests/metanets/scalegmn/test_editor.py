"""The editor: equivariant, the identity at first, and phases keep the function that it makes."""

from __future__ import annotations

import pytest
import torch

from amortopt.functional.networks import apply_many
from amortopt.metanets import ScaleGMNEditor
from amortopt.symmetry import extract
from amortopt.tasks import init_many, make_family
from amortopt.testing import assert_equivariant
from tests.cases import Case, case
from tests.metanets.networks import networks, spec_of

SMALL = {"width": 6, "channels": 2, "sweeps": 2}
NAMES = ("mlp-relu", "mlp-tanh", "cnn-2d", "residual", "attention-packed-by-head", "gru", "resnext")
SOME = tuple(case(name) for name in NAMES)


def _made(base: Case, **config: object) -> ScaleGMNEditor:
    torch.manual_seed(0)
    made = ScaleGMNEditor(spec_of(base), **(SMALL | config)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in made.changes.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return made


@pytest.mark.parametrize("base", SOME, ids=str)
def test_editor_equivariant(base: Case) -> None:
    made = _made(base)
    params = {name: p for name, p in networks(base).items() if name in made.spec.params}
    made.standardize(params)
    assert_equivariant(lambda p: made(p), made.spec, params, batched=True, seeds=(0,))


def test_editor_is_the_identity_at_first() -> None:
    base = case("mlp-tanh")
    made, params = ScaleGMNEditor(spec_of(base), **SMALL).double(), networks(base)  # type: ignore[arg-type]
    edited = made(params)
    for name in params:
        torch.testing.assert_close(edited[name], params[name], rtol=1e-12, atol=1e-12)


def test_editor_phases_of_the_input_do_not_show_in_the_function() -> None:
    family = make_family("siren", widths=(2, 6, 5, 1), w0=3.0)
    spec, module = extract(family.build(), family.example_input()), family.build().double()
    torch.manual_seed(0)
    made = ScaleGMNEditor(spec, **SMALL).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in made.changes.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    params = {name: p.double() for name, p in init_many(family.build, range(2)).items()}
    turned = {name: p.clone() for name, p in params.items()}
    turned["0.bias"][:, 2] += torch.pi / 3
    turned["2.weight"][:, :, 2] *= -1
    x = torch.randn(5, 2, dtype=torch.float64)
    with torch.no_grad():
        answers = [apply_many(module, made(p), x) for p in (params, turned)]
        before = apply_many(module, params, x)
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-9, atol=1e-9)
    assert float((answers[0] - before).abs().max()) > 1e-3


def test_editor_proposals_differ_and_the_first_is_forward() -> None:
    made, params = _made(case("mlp-tanh"), proposals=3), networks(case("mlp-tanh"))
    proposed = made.propose(params)
    assert len(proposed) == 3
    assert torch.equal(proposed[0]["0.weight"], made(params)["0.weight"])
    assert not torch.allclose(proposed[0]["0.weight"], proposed[1]["0.weight"])


def test_editor_refuses() -> None:
    with pytest.raises(ValueError, match="proposals: got 0"):
        _made(case("mlp-tanh"), proposals=0)
    with pytest.raises(ValueError, match="channels: got 4, expected a divisor of width=6"):
        _made(case("mlp-tanh"), channels=4)
    with pytest.raises(ValueError, match=r"strength: got 0, expected a finite number above 0"):
        _made(case("mlp-tanh"), strength=0)
