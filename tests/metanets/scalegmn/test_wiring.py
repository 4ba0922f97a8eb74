"""Dense and packed wiring against slow loops over networks and units, operation by operation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from amortopt.metanets.scalegmn.layout import GraphBlock, GraphLayout
from amortopt.metanets.scalegmn.units import Part
from amortopt.metanets.scalegmn.wiring import DenseWiring, PackedWiring, Wiring
from tests.cases import case
from tests.metanets.networks import spec_of

LAYOUT = GraphLayout.from_spec(spec_of(case("mlp-tanh")))
BLOCK = LAYOUT.edge_blocks[1]
"""From node set 1 to node set 2."""
COUNTS, SIZES = (2, 1, 1), ((2, 3, 4, 2), (2, 5, 1, 2), (2, 1, 6, 2))
C, K, H = 2, 3, 2
Nets = list[Tensor]
"""One tensor [n, ...] or [C, o, i] per network."""


def _between(out: int, into: int, channels: int) -> GraphBlock:
    ends = replace(BLOCK.ends[0], node=out), replace(BLOCK.ends[1], node=into)
    return GraphBlock(BLOCK.view, ends, channels)


def _sizes(dense: bool) -> list[tuple[int, ...]]:
    if dense:
        return [SIZES[0]] * 3
    return [size for size, count in zip(SIZES, COUNTS, strict=True) for _ in range(count)]


@pytest.fixture(params=["dense", "packed"])
def wired(request: pytest.FixtureRequest) -> tuple[Wiring, bool]:
    if request.param == "dense":
        return DenseWiring(3, SIZES[0]), True
    return PackedWiring(COUNTS, SIZES), False


def _nodes(dense: bool, node: int, *shape: int) -> Nets:
    return [torch.randn(size[node], *shape, dtype=torch.float64) for size in _sizes(dense)]


def _edges(dense: bool, channels: int = C) -> Nets:
    return [
        torch.randn(channels, size[BLOCK.out], size[BLOCK.into], dtype=torch.float64)
        for size in _sizes(dense)
    ]


def _nodes_in(parts: Nets, dense: bool) -> Tensor:
    """Rows, of dense batches node by node, of packed ones network by network."""
    return torch.stack(parts, 1).flatten(0, 1) if dense else torch.cat(parts)


def _edges_in(parts: Nets, dense: bool) -> Tensor:
    if dense:
        return torch.stack(parts)
    return torch.cat([part.permute(1, 2, 0).flatten(0, 1) for part in parts])


def _close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_wiring_split_and_join(wired: tuple[Wiring, bool]) -> None:
    wiring, dense = wired
    parts = [_nodes_in(_nodes(dense, node, K), dense) for node in range(4)]
    for got, part in zip(wiring.split(wiring.join(list(parts), parts[0])), parts, strict=True):
        assert torch.equal(got, part)


def test_wiring_joins_nothing_as_zeros(wired: tuple[Wiring, bool]) -> None:
    wiring, dense = wired
    parts = [_nodes_in(_nodes(dense, node, K), dense) for node in range(4)]
    joined = wiring.join([parts[0], None, parts[2], None], parts[0])
    assert torch.equal(joined, wiring.join([parts[0], 0 * parts[1], parts[2], 0 * parts[3]], parts[0]))


def test_wiring_units_and_spread(wired: tuple[Wiring, bool]) -> None:
    wiring, dense = wired
    networks = len(_sizes(dense))
    table = torch.randn(2, K)
    assert torch.equal(wiring.units(0, table), _nodes_in([table] * networks, dense))
    vectors = torch.randn(networks, K)
    expected = [vectors[b].expand(size[2], K) for b, size in enumerate(_sizes(dense))]
    assert torch.equal(wiring.spread(2, vectors), _nodes_in(expected, dense))


def test_wiring_mix(wired: tuple[Wiring, bool]) -> None:
    wiring, dense = wired
    edges, weight = _edges(dense), torch.randn(5, C, dtype=torch.float64)
    expected = [
        torch.stack([sum(w * x for w, x in zip(row, e, strict=True)) for row in weight]) for e in edges
    ]
    _close(wiring.mix(weight, _edges_in(edges, dense)), _edges_in(expected, dense))


def _slow_message(e: Tensor, x: Tensor) -> Tensor:
    """e [C, to, from], x [from, C, K]."""
    result = torch.zeros(e.shape[1], C, K, dtype=torch.float64)
    for to in range(e.shape[1]):
        for of in range(e.shape[2]):
            for c in range(C):
                result[to, c] += e[c, to, of] * x[of, c] / math.sqrt(e.shape[2])
    return result.flatten(1)


@pytest.mark.parametrize("forward", [True, False], ids=["to_out", "to_in"])
def test_wiring_message(wired: tuple[Wiring, bool], forward: bool) -> None:
    wiring, dense = wired
    edges = _edges(dense)
    x = _nodes(dense, BLOCK.into if forward else BLOCK.out, C, K)
    given = (BLOCK, _edges_in(edges, dense), _nodes_in(x, dense).flatten(1))
    got = wiring.to_out(*given) if forward else wiring.to_in(*given)
    expected = [_slow_message(e if forward else e.mT, part) for e, part in zip(edges, x, strict=True)]
    _close(got, _nodes_in(expected, dense))


def test_wiring_outer(wired: tuple[Wiring, bool]) -> None:
    wiring, dense = wired
    a, b = _nodes(dense, BLOCK.out, C, K), _nodes(dense, BLOCK.into, C, K)
    expected = []
    for x, y in zip(a, b, strict=True):
        rows = [
            [[torch.dot(x[o, c], y[i, c]) for i in range(len(y))] for o in range(len(x))] for c in range(C)
        ]
        expected.append(torch.tensor(rows, dtype=torch.float64))
    got = wiring.outer(BLOCK, _nodes_in(a, dense).flatten(1), _nodes_in(b, dense).flatten(1), C)
    _close(got, _edges_in(expected, dense))


def _slow_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = []
    for unit in range(len(q)):
        heads = []
        for head in range(H):
            weights = (k[:, head] @ q[unit, head] / math.sqrt(K)).softmax(0)
            heads.append(sum(w * x for w, x in zip(weights, v[:, head], strict=True)))
        rows.append(torch.cat(heads))
    return torch.stack(rows)


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_wiring_attend(wired: tuple[Wiring, bool], size: float) -> None:
    wiring, dense = wired
    q, k, v = ([size * x for x in _nodes(dense, 2, H, K)] for _ in range(3))
    expected = [_slow_attention(*parts) for parts in zip(q, k, v, strict=True)]
    got = wiring.attend(2, torch.cat([_nodes_in(x, dense).flatten(1) for x in (q, k, v)], 1), H)
    torch.testing.assert_close(got, _nodes_in(expected, dense), rtol=1e-9, atol=1e-9)


def test_wiring_mean(wired: tuple[Wiring, bool]) -> None:
    wiring, dense = wired
    x = _nodes(dense, 1, K)
    _close(
        wiring.mean(1, _nodes_in(x, dense)), _nodes_in([part.mean(0).expand_as(part) for part in x], dense)
    )


def test_wiring_order(wired: tuple[Wiring, bool]) -> None:
    wiring, dense = wired
    scores = _nodes(dense, 2, 1)
    start, end = wiring.order(2, 1e9 * _nodes_in(scores, dense))
    ranks = [part.argsort(0).argsort(0).double() for part in scores]
    _close(start, _nodes_in([rank / len(rank) for rank in ranks], dense))
    _close(end, _nodes_in([(rank + 1) / len(rank) for rank in ranks], dense))


def test_wiring_order_of_ties_shares_their_parts(wired: tuple[Wiring, bool]) -> None:
    wiring, dense = wired
    start, end = wiring.order(1, 0 * _nodes_in(_nodes(dense, 1, 1), dense))
    _close(start, torch.zeros_like(start))
    _close(end, torch.ones_like(end))


def test_wiring_ranks_are_whole_also_of_ties(wired: tuple[Wiring, bool]) -> None:
    wiring, dense = wired
    scores = [part.mul(2).round() for part in _nodes(dense, 2, 1)]
    ranks = [part.argsort(dim=0, stable=True).argsort(0).double() for part in scores]
    _close(wiring.ranks(2, _nodes_in(scores, dense)), _nodes_in(ranks, dense))


@pytest.mark.parametrize("known", [False, True], ids=["slots", "known by index"])
def test_wiring_at_slots(wired: tuple[Wiring, bool], known: bool) -> None:
    wiring, dense = wired
    node, slots = (0, 2) if known else (2, 3)
    tables = torch.randn(len(_sizes(dense)), slots, 5, dtype=torch.float64)
    shares, factor = _slots(dense, node, slots, known), _nodes(dense, node, 1)
    expected = [f * (share @ table) for f, share, table in zip(factor, shares, tables, strict=True)]
    given = None if known else _nodes_in(shares, dense)
    _close(wiring.at_slots(node, (given, _nodes_in(factor, dense)), tables), _nodes_in(expected, dense))


def _slots(dense: bool, node: int, slots: int, known: bool) -> Nets:
    if known:
        return [torch.eye(slots, dtype=torch.float64)] * len(_sizes(dense))
    return _nodes(dense, node, slots)


@pytest.mark.parametrize(("out", "into"), [(2, 1), (2, 0), (3, 2), (3, 0)])
def test_wiring_between(wired: tuple[Wiring, bool], out: int, into: int) -> None:
    wiring, dense = wired
    block = _between(out, into, C)
    count = {node: 2 if node in (0, 3) else 4 for node in (out, into)}
    shares = {node: _slots(dense, node, count[node], node in (0, 3)) for node in (out, into)}
    factor = {node: _nodes(dense, node, 1) for node in (out, into)}
    tables = torch.randn(len(_sizes(dense)), count[out], C, count[into], dtype=torch.float64)
    expected = [
        torch.einsum("or,rcs,is,o,i->coi", a, table, b, t[:, 0], u[:, 0])
        for a, table, b, t, u in zip(
            shares[out], tables, shares[into], factor[out], factor[into], strict=True
        )
    ]
    ends = [
        (None if node in (0, 3) else _nodes_in(shares[node], dense), _nodes_in(factor[node], dense))
        for node in (out, into)
    ]
    got = wiring.between(block, ends[0], tables, ends[1])
    _close(got, _edges_in(expected, dense))


PARTS = [
    Part(2, before, repeat, odd=False, slots=True) for before, repeat in ((1, 1), (1, 3), (2, 1), (2, 3))
]


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("dense", [True, False])
def test_wiring_expand_and_pool(part: Part, dense: bool) -> None:
    # Two networks of one size each: what is about other units has as many in all networks.
    units, b, r = 4, part.before, part.repeat
    sizes = (2, 3, units, units * b * r)
    wiring = DenseWiring(2, sizes) if dense else PackedWiring([1, 1], [sizes, sizes])
    x = torch.randn(2, units, K, dtype=torch.float64)
    wide = torch.randn(2, units * b * r, K, dtype=torch.float64)
    expanded, pooled = torch.zeros_like(wide), torch.zeros_like(x)
    for place in range(units * b * r):
        unit = place // r % units
        expanded[:, place] = x[:, unit]
        pooled[:, unit] += wide[:, place] / (b * r)
    pack = lambda x: wiring.pack_nodes([x] if dense else [x[:1], x[1:]])  # noqa: E731
    _close(wiring.expand(part, pack(x)), pack(expanded))
    _close(wiring.pool(part, pack(wide)), pack(pooled))


@pytest.mark.parametrize("dense", [True, False])
def test_wiring_order_inside_runs(dense: bool) -> None:
    sizes = (2, 3, 6, 2)
    wiring = DenseWiring(2, sizes) if dense else PackedWiring([1, 1], [sizes, sizes])
    scores = torch.tensor([[3.0, 1, 2, 9, 8, 8], [0, 5, 4, 7, 7, 7]], dtype=torch.float64)[..., None]
    starts = torch.tensor([[2.0, 0, 1, 2, 0, 0], [0, 2, 1, 0, 0, 0]], dtype=torch.float64)[..., None] / 3
    ends = torch.tensor([[3.0, 1, 2, 3, 2, 2], [1, 3, 2, 3, 3, 3]], dtype=torch.float64)[..., None] / 3
    pack = lambda x: wiring.pack_nodes([x] if dense else [x[:1], x[1:]])  # noqa: E731
    got = wiring.order(2, pack(100 * scores), 3)
    _close(got[0], pack(starts))
    _close(got[1], pack(ends))
    ranks = torch.tensor([[2.0, 0, 1, 2, 0, 1], [0, 2, 1, 0, 1, 2]], dtype=torch.float64)[..., None]
    _close(wiring.ranks(2, pack(scores), 3), pack(ranks))


def test_packed_wiring_unpacks_what_it_packs() -> None:
    wiring = PackedWiring(COUNTS, SIZES)
    nodes = [torch.randn(n, size[2], K) for n, size in zip(COUNTS, SIZES, strict=True)]
    edges = [
        torch.randn(n, C, size[BLOCK.out], size[BLOCK.into]) for n, size in zip(COUNTS, SIZES, strict=True)
    ]
    for got, part in zip(wiring.unpack_nodes(2, wiring.pack_nodes(nodes)), nodes, strict=True):
        assert torch.equal(got, part)
    packed = wiring.pack_edges(edges)
    for got, part in zip(wiring.unpack_edges(BLOCK, packed), edges, strict=True):
        assert torch.equal(got, part)
    one_by_one = [network for part in edges for network in part]
    assert torch.equal(packed, _edges_in(one_by_one, dense=False))


def test_packed_wiring_serves_blocks_within_one_set() -> None:
    own = _between(2, 2, 1)
    wiring = PackedWiring(COUNTS, SIZES)
    edges = [torch.randn(C, size[2], size[2], dtype=torch.float64) for size in _sizes(False)]
    x = _nodes(False, 2, C, K)
    expected = [_slow_message(e, part) for e, part in zip(edges, x, strict=True)]
    _close(wiring.to_out(own, _edges_in(edges, False), torch.cat(x).flatten(1)), torch.cat(expected))


@pytest.mark.parametrize(("counts", "sizes"), [((), ()), ((1,), ()), ((1, 0), ((1,), (2,)))])
def test_packed_wiring_refuses_bad_counts(
    counts: tuple[int, ...], sizes: tuple[tuple[int, ...], ...]
) -> None:
    with pytest.raises(ValueError, match=r"counts, sizes: got .* expected at least one network"):
        PackedWiring(counts, sizes)
