"""Blocks of any form, read and written: slices along any dimension, axes along runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amortopt.metanets.scalegmn.graph.layout import GraphLayout
from amortopt.symmetry import Axis, Block
from tests.metanets.specs import SPECS, params_like, random_spec, written


def _layout_of(groups: str, block: str) -> GraphLayout:
    return GraphLayout.from_spec(written(groups, {"w": block}))


@pytest.mark.parametrize("name", SPECS)
def test_view_round_trip_of_any_symmetry(name: str) -> None:
    layout, params = GraphLayout.from_spec(SPECS[name]), params_like(SPECS[name], 3)
    nodes = [layout.read_node(item, params) for item in layout.node_blocks]
    edges = [layout.read_edge(item, params) for item in layout.edge_blocks]
    back = layout.write({key: torch.zeros_like(p) for key, p in params.items()}, nodes, edges)
    assert all(torch.equal(back[key], p) for key, p in params.items() if key not in layout.fixed)


@pytest.mark.parametrize("seed", range(20))
def test_view_round_trip_of_random_symmetries(seed: int) -> None:
    spec = random_spec(seed)
    layout, params = GraphLayout.from_spec(spec), params_like(spec)
    nodes = [layout.read_node(item, params) for item in layout.node_blocks]
    edges = [layout.read_edge(item, params) for item in layout.edge_blocks]
    back = layout.write({key: torch.zeros_like(p) for key, p in params.items()}, nodes, edges)
    assert all(torch.equal(back[key], p) for key, p in params.items() if key not in layout.fixed)


def test_view_of_slices_along_the_second_dimension() -> None:
    layout, params = GraphLayout.from_spec(SPECS["dense"]), params_like(SPECS["dense"])
    first, second = [item for item in layout.edge_blocks if item.block.param == "2"]
    assert torch.equal(layout.read_edge(first, params), params["2"][:, :, :2].permute(0, 3, 1, 2))
    assert torch.equal(layout.read_edge(second, params), params["2"][:, :, 2:].permute(0, 3, 1, 2))


def test_view_of_a_grouped_convolution_is_block_diagonal() -> None:
    layout = _layout_of("g 3 none yes\na 6 none yes g\nb 9 none yes g", "a^+1, b^-1@3, 2")
    params = {"w": torch.randn(2, 6, 3, 2)}
    (item,) = layout.edge_blocks
    edges = layout.read_edge(item, params)
    expected = torch.zeros(2, 2, 6, 9)
    for unit in range(6):
        for place in range(3):
            expected[:, :, unit, unit // 2 * 3 + place] = params["w"][:, unit, place]
    assert torch.equal(edges, expected) and item.view.diagonal == 3


def test_view_of_an_owner_and_its_run_is_the_owned_group() -> None:
    layout = _layout_of("x 5 none no\ng 3 none yes\na 6 none yes g", "a^+1@2, x^-1, g^0")
    params = {"w": torch.randn(2, 2, 5, 3)}
    (item,) = layout.edge_blocks
    assert [layout.nodes[end].group for end in (item.out, item.into)] == ["a", "x"]
    expected = params["w"].permute(0, 3, 1, 2).reshape(2, 1, 6, 5)
    assert torch.equal(layout.read_edge(item, params), expected)


def test_view_prefers_the_familys_own_shape() -> None:
    # [8, 1] could also be eight units of the first group and one of the second.
    layout = _layout_of("a 4 none yes\nb 2 none yes", "a^0, b^0, 1")
    assert layout.sizes({"w": torch.randn(1, 8, 1)}) == (4, 2)


def test_view_of_slices_refuses_another_shape() -> None:
    layout, params = GraphLayout.from_spec(SPECS["dense"]), params_like(SPECS["dense"])
    params["2"] = params["2"][:, :, :, :2]
    with pytest.raises(ValueError, match=r"expected 4x5x3, as its slices are the family's; give"):
        layout.sizes(params)


def test_view_leaves_buffers_out() -> None:
    layout = GraphLayout.from_spec(SPECS["conv-norm-relu"])
    items = (*layout.node_blocks, *layout.edge_blocks)
    assert "norm1.mean" not in {*layout.fixed, *(item.block.param for item in items)}


def test_view_of_slices_of_a_reshaped_parameter() -> None:
    # Queries and keys alternate head by head.
    spec = written(
        "h 3 none yes\nq 6 free yes h\nx 4 none no",
        {"w": "1"},
    )
    blocks = tuple(
        Block(
            "w",
            (Axis("q", power, 6), Axis("x", -1, 4)),
            ((0, 3), (2 * place, 2 * place + 2), (0, 4)),
            view=(3, 4, 4),
        )
        for place, power in enumerate((1, -1))
    )
    layout = GraphLayout.from_spec(replace(spec, blocks=blocks))
    params = {"w": torch.randn(2, 12, 4)}
    queries, keys = (layout.read_edge(item, params)[:, 0] for item in layout.edge_blocks)
    heads = params["w"].unflatten(1, (3, 2, 2))
    assert torch.equal(queries, heads[:, :, 0].flatten(1, 2)) and torch.equal(
        keys, heads[:, :, 1].flatten(1, 2)
    )
    back = layout.write({"w": torch.zeros(2, 12, 4)}, [], [queries[:, None], keys[:, None]])
    assert torch.equal(back["w"], params["w"])
