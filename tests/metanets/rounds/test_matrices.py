"""Params as matrices, in units."""

from __future__ import annotations

import pytest
import torch

from amortopt.functional.networks import params_of, stack
from amortopt.metanets.rounds.matrices import Matrices
from amortopt.tasks import Family, make_family

FAMILIES = [
    make_family("siren", widths=(2, 5, 4, 3)),
    make_family("cnn", channels=(4, 3), input_shape=(1, 8)),
]


def both(family: Family) -> tuple[Matrices, dict[str, torch.Tensor]]:
    params = stack([params_of(family.build()) for _ in range(2)])
    shapes = {name: tuple(p.shape[1:]) for name, p in params.items()}
    return Matrices(shapes, family.scales()), params


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_unpack_is_the_inverse_of_pack(family: Family) -> None:
    matrices, params = both(family)
    again = matrices.unpack(matrices.pack(params))
    assert again.keys() == params.keys()
    for name, p in params.items():
        torch.testing.assert_close(again[name], p)


def test_matrices_are_params_in_units_of_their_scales() -> None:
    matrices, params = both(FAMILIES[0])
    assert torch.equal(matrices.pack(params)[0][:, :, :-1], params["0.weight"] * 30)
    assert torch.equal(matrices.pack(params)[2][:, :, :-1], params["4.weight"])


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_pack_gradient_is_the_chain_rule(family: Family) -> None:
    matrices, params = both(family)
    packed = [m.requires_grad_() for m in matrices.pack(params)]
    at = matrices.unpack(packed)
    loss = torch.stack([p.sin().square().sum() for p in at.values()]).sum()
    by_params = dict(zip(at, torch.autograd.grad(loss, list(at.values()), retain_graph=True), strict=True))
    for expected, got in zip(
        torch.autograd.grad(loss, packed), matrices.pack_gradient(by_params), strict=True
    ):
        torch.testing.assert_close(got, expected)
