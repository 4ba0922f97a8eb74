"""Slots: rows sum to one, units compete, and the assignment moves with the units."""

from __future__ import annotations

import pytest
import torch

from amortopt.metanets.scalegmn.layer import GraphLayer
from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.metanets.scalegmn.slots import Assigned, SlotAssignment, assign
from amortopt.metanets.scalegmn.wiring import DenseWiring, PackedWiring, Wiring
from tests.metanets.specs import SPECS

N, D, R = 6, 8, 6


def _features() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, N, D, dtype=torch.float64), torch.randn(2, N, D, dtype=torch.float64)


def _assign(slots: SlotAssignment, h: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """P and S [B, n, R] of a dense batch, from features [B, n, d]."""
    wiring = DenseWiring(len(h), (h.shape[1],))
    soft, signed = _signed(slots, wiring, *(wiring.pack_nodes([x]) for x in (h, v)))
    return wiring.unpack_nodes(0, soft)[0], wiring.unpack_nodes(0, signed)[0]


def _signed(
    slots: SlotAssignment, wiring: Wiring, h: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """P and S of rows."""
    soft, sign = slots(wiring, 0, h, v)
    return soft, soft if sign is None else soft * sign


def _slots(*, odd: bool = True) -> SlotAssignment:
    return SlotAssignment(D, R, odd=odd).double()


@pytest.mark.parametrize("odd", [True, False])
def test_slots_move_with_permutations_and_signs(odd: bool) -> None:
    slots = _slots(odd=odd)
    h, v = _features()
    order = torch.randperm(N)
    sign = (2 * torch.randint(2, (N, 1)) - 1).double()
    soft, signed = _assign(slots, h, v)
    moved_soft, moved_signed = _assign(slots, h[:, order], (sign if odd else 1) * v[:, order])
    torch.testing.assert_close(moved_soft, soft[:, order], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moved_signed, (sign if odd else 1) * signed[:, order], rtol=1e-9, atol=1e-12)


def test_slots_without_signs_ignore_odd_features() -> None:
    slots = _slots(odd=False)
    h, v = _features()
    soft, signed = _assign(slots, h, v)
    assert torch.equal(soft, signed) and torch.equal(signed, _assign(slots, h, -v)[1])


@pytest.mark.parametrize("units", [N, 4, 9])
def test_slots_are_shared_out_evenly(units: int) -> None:
    slots = _slots()
    soft, _ = _assign(slots, *(torch.randn(2, units, D, dtype=torch.float64) for _ in range(2)))
    assert bool((soft >= 0).all())
    torch.testing.assert_close(soft.sum(-1), torch.ones(2, units, dtype=torch.float64))
    torch.testing.assert_close(soft.sum(-2), torch.full((2, R), units / R, dtype=torch.float64))


def test_slots_of_as_many_units_are_a_bijection() -> None:
    soft, signed = _assign(_slots(), *_features())
    # Up to what rounding leaves of the division of [0, 1].
    torch.testing.assert_close(soft, soft.round(), rtol=0, atol=1e-4)
    torch.testing.assert_close(signed.abs(), soft, rtol=0, atol=1e-4)


def test_slots_of_packed_networks_are_those_of_dense_ones() -> None:
    slots = _slots()
    networks = [[torch.randn(1, n, D, dtype=torch.float64) for _ in range(2)] for n in (3, 6, 8)]
    packed = _signed(
        slots,
        PackedWiring([1, 1, 1], [(3,), (6,), (8,)]),
        *(torch.cat([network[k][0] for network in networks]) for k in range(2)),
    )
    dense = [_assign(slots, h, v) for h, v in networks]
    for k in range(2):
        torch.testing.assert_close(packed[k], torch.cat([each[k][0] for each in dense]))


@pytest.mark.parametrize("wiring", [DenseWiring(2, (1,)), PackedWiring([2], [(1,)])], ids=["dense", "packed"])
def test_slots_of_one_unit_are_finite(wiring: Wiring) -> None:
    # Its features tell it apart from nobody.
    slots = SlotAssignment(D, 1, odd=True)
    h = torch.randn(2, D)
    soft, signed = _signed(slots, wiring, h, torch.randn_like(h))
    assert bool((soft == 1).all()) and bool(signed.isfinite().all())


@pytest.mark.parametrize("equal", [N, 2])
def test_slots_of_equal_units_are_the_same(equal: int) -> None:
    slots = _slots()
    h, v = _features()
    h[:, :equal], v[:, :equal] = h[:, :1], v[:, :1]
    soft, _ = _assign(slots, h, v)
    torch.testing.assert_close(soft[:, :equal], soft[:, :1].expand(-1, equal, -1))
    torch.testing.assert_close(soft.sum(-2), torch.ones(2, R, dtype=torch.float64))


def test_slots_of_units_without_odd_features_have_no_sign() -> None:
    h, v = _features()
    v[:, 0] = 0
    _, signed = _assign(_slots(), h, v)
    assert bool((signed[:, 0] == 0).all()) and bool((signed[:, 1:].abs().sum(-1) > 0.99).all())


def _assigned(name: str) -> tuple[GraphLayout, DenseWiring, dict[int, Assigned]]:
    """Slots in one network of a hand-written symmetry, from random features."""
    layout = GraphLayout.from_spec(SPECS[name])
    sizes = tuple(node.size for node in layout.nodes)
    layer = GraphLayer(layout, width=D, channels=2, heads=2, backward=True).double()
    wiring = DenseWiring(1, sizes)
    features = [[torch.randn(n, D, dtype=torch.float64) for n in sizes] for _ in range(2)]
    return layout, wiring, assign(layer.slots, layout.nodes, wiring, *features)


def test_slots_of_channels_are_those_of_their_heads() -> None:
    _, _, found = _assigned("attention")
    head, queries, values = (found[p].slots for p in (1, 2, 3))
    for channels in (queries, values):
        # [head, channel, role of the head, role of the channel]
        shares = channels.unflatten(1, (3, 2)).unflatten(0, (3, 2))
        torch.testing.assert_close(shares.sum((1, 3)) / 2, head)
        torch.testing.assert_close(channels.sum(0), torch.ones(6, dtype=torch.float64))
    assert not torch.equal(queries, values)


def test_slots_of_followers_are_those_of_their_units_with_signs_of_their_own() -> None:
    layout, _, found = _assigned("conv-norm-tanh")
    units, follower = found[1], found[2]
    assert torch.equal(units.slots, follower.slots)
    assert units.sign is not None and follower.sign is not None and not torch.equal(units.sign, follower.sign)
    gain = next(p for p, node in enumerate(layout.nodes) if node.derived)
    torch.testing.assert_close(found[gain].signed, units.slots * units.sign * follower.sign)


def test_slots_of_gates_are_those_of_the_hidden_units_without_sign() -> None:
    _, _, found = _assigned("lstm")
    assert torch.equal(found[3].signed, found[1].slots) and found[1].sign is not None


def test_slots_of_pairs_are_pairs_of_roles() -> None:
    layout, _, found = _assigned("mixer")
    pair = next(p for p, node in enumerate(layout.nodes) if node.group == "a a × p p")
    torch.testing.assert_close(found[pair].signed, torch.kron(found[1].signed, found[2].signed))


def test_slots_of_known_units_are_none_or_signs() -> None:
    _, _, found = _assigned("signs-of-known-units")
    assert 0 not in found
    assert torch.equal(found[1].slots, torch.eye(4).double()) and found[1].sign is not None
    torch.testing.assert_close(found[1].signed, found[1].sign.flatten().diag())
