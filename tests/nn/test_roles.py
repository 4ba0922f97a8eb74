"""Role assignment: rows sum to one, units compete, and it moves with the units."""

from __future__ import annotations

import pytest
import torch

from amortopt.nn import DenseWiring, PackedWiring, RoleAssignment, Wiring

N, D, R = 6, 8, 6


def _features() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, N, D, dtype=torch.float64), torch.randn(2, N, D, dtype=torch.float64)


def _roles(*, odd: bool = True) -> RoleAssignment:
    return RoleAssignment(D, R, odd=odd).double()


@pytest.mark.parametrize("odd", [True, False])
def test_roles_move_with_permutations_and_signs(odd: bool) -> None:
    roles, wiring = _roles(odd=odd), DenseWiring(2, (N,))
    h, v = _features()
    order = torch.randperm(N)
    sign = (2 * torch.randint(2, (N, 1)) - 1).double()
    soft, signed = roles(wiring, 0, h, v)
    moved_soft, moved_signed = roles(wiring, 0, h[:, order], (sign if odd else 1) * v[:, order])
    torch.testing.assert_close(moved_soft, soft[:, order], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moved_signed, (sign if odd else 1) * signed[:, order], rtol=1e-9, atol=1e-12)


def test_roles_without_signs_ignore_odd_features() -> None:
    roles, wiring = _roles(odd=False), DenseWiring(2, (N,))
    h, v = _features()
    soft, signed = roles(wiring, 0, h, v)
    assert torch.equal(soft, signed) and torch.equal(signed, roles(wiring, 0, h, -v)[1])


def test_roles_rows_sum_to_one_and_roles_are_shared_out() -> None:
    roles, wiring = _roles(), DenseWiring(2, (N,))
    roles.key.data.mul_(0.1)  # Sinkhorn's iteration converges in its few steps where it starts soft.
    soft, _ = roles(wiring, 0, *_features())
    torch.testing.assert_close(soft.sum(-1), torch.ones(2, N, dtype=torch.float64))
    torch.testing.assert_close(soft.sum(-2), torch.ones(2, R, dtype=torch.float64), rtol=0.05, atol=0.05)
    assert bool((soft >= 0).all())


@pytest.mark.parametrize("wiring", [DenseWiring(2, (1,)), PackedWiring([2], [(1,)])], ids=["dense", "packed"])
def test_roles_of_one_unit_are_finite(wiring: Wiring) -> None:
    # Its features tell it apart from nobody.
    roles = RoleAssignment(D, 1, odd=True)
    h = torch.randn(2, 1, D, requires_grad=True)
    h_in = h if isinstance(wiring, DenseWiring) else h.flatten(0, 1)
    soft, signed = roles(wiring, 0, h_in, torch.randn_like(h_in))
    assert bool((soft == 1).all())
    signed.sum().backward()
    assert h.grad is not None and bool(h.grad.isfinite().all())


def test_roles_of_identical_units_are_the_same() -> None:
    roles, wiring = _roles(), DenseWiring(2, (N,))
    h, v = (x[:, :1].expand(2, N, D) for x in _features())
    soft, _ = roles(wiring, 0, h, v)
    torch.testing.assert_close(soft, torch.full_like(soft, 1 / R))
