"""Features between sets about the same units: products have the signs of their factors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amortopt.metanets.scalegmn.layer import Exchange
from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.metanets.scalegmn.wiring import DenseWiring, PackedWiring, Wiring
from tests.metanets.specs import SPECS

D, B = 4, 2


def _features(sizes: list[int]) -> Tensor:
    return torch.randn(sum(sizes) * B, D, dtype=torch.float64)


def _setup(name: str) -> tuple[GraphLayout, Wiring, Exchange, list[int]]:
    layout = GraphLayout.from_spec(SPECS[name])
    sizes = [node.size for node in layout.nodes]
    return layout, DenseWiring(B, tuple(sizes)), Exchange(layout.nodes, D).double(), sizes


def _signs(layout: GraphLayout, sizes: list[int]) -> list[Tensor]:
    """A random sign for every unit of every odd set, those of products being products."""
    wiring = DenseWiring(B, tuple(sizes))
    signs: list[Tensor] = []
    for node in layout.nodes:
        own = torch.randint(2, (node.size * B, 1)).double() * 2 - 1
        own = own if node.odd else torch.ones_like(own)
        if node.derived:
            own = torch.ones_like(own)
            for part in node.parts:
                own = own * (wiring.expand(part, signs[part.node]) if part.odd else 1)
        signs.append(own)
    return signs


@pytest.mark.parametrize("name", ["conv-norm-tanh", "mixer", "lstm", "grouped-tanh", "signs-of-known-units"])
def test_exchange_keeps_signs(name: str) -> None:
    layout, wiring, exchange, sizes = _setup(name)
    h, v, signs = _features(sizes), _features(sizes), torch.cat(_signs(layout, sizes))
    for step in (exchange.up, exchange.down):
        even, odd = step(wiring, h, v)
        even_moved, odd_moved = step(wiring, h, signs * v)
        torch.testing.assert_close(even_moved, even)
        torch.testing.assert_close(odd_moved, signs * odd)
        assert bool(odd.any()) == any(part.odd for node in layout.nodes for part in node.parts)


def test_exchange_of_a_product_is_the_product() -> None:
    layout, wiring, exchange, sizes = _setup("mixer")
    p = next(p for p, node in enumerate(layout.nodes) if node.derived)
    v = _features(sizes)
    odds = wiring.split(v)
    first, second = (
        wiring.expand(part, exchange.odd_down[str(k)](odds[part.node])) for k, part in exchange.parts[0][1]
    )
    _, odd = exchange.down(wiring, _features(sizes), v)
    torch.testing.assert_close(wiring.split(odd)[p], first * second)


def test_exchange_tells_owners_the_mean_of_what_they_own() -> None:
    _, wiring, exchange, sizes = _setup("attention")
    h = _features(sizes)
    even, _ = exchange.up(wiring, h, _features(sizes))
    rows = [exchange.even_up[str(k)](x) for k, x in enumerate(wiring.split(h)[2:4])]
    expected = sum(x.unflatten(0, (3, 2, B)).mean(1).flatten(0, 1) for x in rows)
    torch.testing.assert_close(wiring.split(even)[1], expected)


@pytest.mark.parametrize("name", ["conv-norm-tanh", "attention", "mixer", "signs-of-known-units"])
def test_exchange_of_packed_networks_is_that_of_dense_ones(name: str) -> None:
    _, dense, exchange, sizes = _setup(name)
    packed = PackedWiring([B], [tuple(sizes)])
    parts = [torch.randn(B, n, D, dtype=torch.float64) for n in sizes]
    rows = [torch.cat([wiring.pack_nodes([x]) for x in parts]) for wiring in (dense, packed)]
    for step in (exchange.up, exchange.down):
        for x, y in zip(step(dense, rows[0], rows[0]), step(packed, rows[1], rows[1]), strict=True):
            for p in range(len(sizes)):
                got = packed.unpack_nodes(p, packed.split(y)[p])
                torch.testing.assert_close(got, dense.unpack_nodes(p, dense.split(x)[p]))
