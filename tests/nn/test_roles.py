"""Role assignment: rows sum to one, units compete, and it moves with the units."""

from __future__ import annotations

import pytest
import torch

from amortopt.nn import DenseWiring, PackedWiring, RoleAssignment, Wiring

N, D, R = 6, 8, 6


def _features() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, N, D, dtype=torch.float64), torch.randn(2, N, D, dtype=torch.float64)


def _assign(roles: RoleAssignment, h: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """P and S [B, n, R] of a dense batch, from features [B, n, d]."""
    wiring = DenseWiring(len(h), (h.shape[1],))
    soft, signed = roles(wiring, 0, *(wiring.pack_nodes([x]) for x in (h, v)))
    return wiring.unpack_nodes(0, soft)[0], wiring.unpack_nodes(0, signed)[0]


def _roles(*, odd: bool = True) -> RoleAssignment:
    return RoleAssignment(D, R, odd=odd).double()


@pytest.mark.parametrize("odd", [True, False])
def test_roles_move_with_permutations_and_signs(odd: bool) -> None:
    roles = _roles(odd=odd)
    h, v = _features()
    order = torch.randperm(N)
    sign = (2 * torch.randint(2, (N, 1)) - 1).double()
    soft, signed = _assign(roles, h, v)
    moved_soft, moved_signed = _assign(roles, h[:, order], (sign if odd else 1) * v[:, order])
    torch.testing.assert_close(moved_soft, soft[:, order], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moved_signed, (sign if odd else 1) * signed[:, order], rtol=1e-9, atol=1e-12)


def test_roles_without_signs_ignore_odd_features() -> None:
    roles = _roles(odd=False)
    h, v = _features()
    soft, signed = _assign(roles, h, v)
    assert torch.equal(soft, signed) and torch.equal(signed, _assign(roles, h, -v)[1])


@pytest.mark.parametrize("units", [N, 4, 9])
def test_roles_are_shared_out_evenly(units: int) -> None:
    roles = _roles()
    soft, _ = _assign(roles, *(torch.randn(2, units, D, dtype=torch.float64) for _ in range(2)))
    assert bool((soft >= 0).all())
    torch.testing.assert_close(soft.sum(-1), torch.ones(2, units, dtype=torch.float64))
    torch.testing.assert_close(soft.sum(-2), torch.full((2, R), units / R, dtype=torch.float64))


def test_roles_of_as_many_units_are_a_bijection() -> None:
    soft, signed = _assign(_roles(), *_features())
    # Up to what rounding leaves of the division of [0, 1].
    torch.testing.assert_close(soft, soft.round(), rtol=0, atol=1e-4)
    torch.testing.assert_close(signed.abs(), soft, rtol=0, atol=1e-4)


def test_roles_of_packed_networks_are_those_of_dense_ones() -> None:
    roles = _roles()
    networks = [[torch.randn(1, n, D, dtype=torch.float64) for _ in range(2)] for n in (3, 6, 8)]
    packed = roles(
        PackedWiring([1, 1, 1], [(3,), (6,), (8,)]),
        0,
        *(torch.cat([network[k][0] for network in networks]) for k in range(2)),
    )
    dense = [_assign(roles, h, v) for h, v in networks]
    for k in range(2):
        torch.testing.assert_close(packed[k], torch.cat([each[k][0] for each in dense]))


@pytest.mark.parametrize("wiring", [DenseWiring(2, (1,)), PackedWiring([2], [(1,)])], ids=["dense", "packed"])
def test_roles_of_one_unit_are_finite(wiring: Wiring) -> None:
    # Its features tell it apart from nobody.
    roles = RoleAssignment(D, 1, odd=True)
    h = torch.randn(2, D)
    soft, signed = roles(wiring, 0, h, torch.randn_like(h))
    assert bool((soft == 1).all()) and bool(signed.isfinite().all())


@pytest.mark.parametrize("equal", [N, 2])
def test_roles_of_equal_units_are_the_same(equal: int) -> None:
    roles = _roles()
    h, v = _features()
    h[:, :equal], v[:, :equal] = h[:, :1], v[:, :1]
    soft, _ = _assign(roles, h, v)
    torch.testing.assert_close(soft[:, :equal], soft[:, :1].expand(-1, equal, -1))
    torch.testing.assert_close(soft.sum(-2), torch.ones(2, R, dtype=torch.float64))


def test_roles_of_units_without_odd_features_have_no_sign() -> None:
    h, v = _features()
    v[:, 0] = 0
    _, signed = _assign(_roles(), h, v)
    assert bool((signed[:, 0] == 0).all()) and bool((signed[:, 1:].abs().sum(-1) > 0.99).all())
