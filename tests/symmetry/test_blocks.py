"""Blocks of any form, read and written: slices along any dimension, axes along runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.symmetry import Axis, Block, SymmetrySpec
from amortopt.symmetry.blocks import BlockView, cut, fits, join, read, read_all
from tests.metanets.specs import SPECS, params_like, random_spec, written


def _layout_of(groups: str, block: str) -> GraphLayout:
    return GraphLayout.from_spec(written(groups, {"w": block}))


@pytest.mark.parametrize("name", SPECS)
def test_view_round_trip_of_any_symmetry(name: str) -> None:
    layout, params = GraphLayout.from_spec(SPECS[name]), params_like(SPECS[name], 3)
    features = [block.read(params) for block in layout.blocks]
    back = layout.write({key: torch.zeros_like(p) for key, p in params.items()}, features)
    assert all(torch.equal(back[key], p) for key, p in params.items() if key not in layout.fixed)


@pytest.mark.parametrize("seed", range(20))
def test_view_round_trip_of_random_symmetries(seed: int) -> None:
    spec = random_spec(seed)
    layout, params = GraphLayout.from_spec(spec), params_like(spec)
    features = [block.read(params) for block in layout.blocks]
    back = layout.write({key: torch.zeros_like(p) for key, p in params.items()}, features)
    assert all(torch.equal(back[key], p) for key, p in params.items() if key not in layout.fixed)


def test_view_of_slices_along_the_second_dimension() -> None:
    layout, params = GraphLayout.from_spec(SPECS["dense"]), params_like(SPECS["dense"])
    first, second = [item for item in layout.edge_blocks if item.view.block.param == "2"]
    assert torch.equal(first.read(params), params["2"][:, :, :2].permute(0, 3, 1, 2))
    assert torch.equal(second.read(params), params["2"][:, :, 2:].permute(0, 3, 1, 2))


def test_view_of_a_grouped_convolution_is_block_diagonal() -> None:
    layout = _layout_of("g 3 none yes\na 6 none yes g\nb 9 none yes g", "a^+1, b^-1@3, 2")
    params = {"w": torch.randn(2, 6, 3, 2)}
    (item,) = layout.edge_blocks
    edges = item.read(params)
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
    assert torch.equal(item.read(params), expected)


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
    assert "norm1.mean" not in {*layout.fixed, *(block.view.block.param for block in layout.blocks)}


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
    queries, keys = (item.read(params)[:, 0] for item in layout.edge_blocks)
    heads = params["w"].unflatten(1, (3, 2, 2))
    assert torch.equal(queries, heads[:, :, 0].flatten(1, 2)) and torch.equal(
        keys, heads[:, :, 1].flatten(1, 2)
    )
    back = layout.write({"w": torch.zeros(2, 12, 4)}, [queries[:, None], keys[:, None]])
    assert torch.equal(back["w"], params["w"])


@pytest.mark.parametrize("lead", [0, 1, 2])
@pytest.mark.parametrize("name", SPECS)
def test_join_undoes_reading_with_any_number_of_leading_axes(name: str, lead: int) -> None:
    spec = SPECS[name]
    params = {
        key: p[0] if lead == 0 else p if lead == 1 else p[None] for key, p in params_like(spec, 3).items()
    }
    found = read_all(spec, params, lead)
    for key, value in params.items():
        blocks = spec.blocks_of(key)
        tensors = [found[block.label] for block in blocks]
        assert all(t.shape[lead:] == block.shape for t, block in zip(tensors, blocks, strict=True))
        assert torch.equal(join(blocks, tensors, value.shape[lead:], lead), value)


def _alternating() -> SymmetrySpec:
    """Rows of queries and keys that alternate head by head, as one parameter [12, 4]."""
    spec = written("h 3 none yes\nq 6 free yes h\nx 4 none no", {"w": "1"})
    blocks = tuple(
        Block("w", (Axis("q", e, 6), Axis("x", -1, 4)), ((0, 3), (2 * k, 2 * k + 2), (0, 4)), view=(3, 4, 4))
        for k, e in enumerate((1, -1))
    )
    return replace(spec, blocks=blocks)


def test_join_of_a_reshaped_parameter() -> None:
    spec, w = _alternating(), torch.randn(2, 12, 4)
    found = [read(w, block) for block in spec.blocks]
    assert torch.equal(found[1], w.unflatten(1, (3, 2, 2))[:, :, 1].flatten(1, 2))
    assert torch.equal(join(spec.blocks, found, (12, 4)), w)


def test_cut_is_a_view_that_can_be_written_to() -> None:
    spec, w = _alternating(), torch.zeros(12, 4)
    cut(w, spec.blocks[0], 0).fill_(1)
    assert w.sum() == 24 and torch.equal(read(w, spec.blocks[0], 0), torch.ones(6, 4))


def test_join_follows_autograd_and_vmap() -> None:
    spec, w = _alternating(), torch.randn(12, 4, dtype=torch.float64, requires_grad=True)

    def both(x: torch.Tensor) -> torch.Tensor:
        return join(spec.blocks, [read(x, b, 0) * (k + 2) for k, b in enumerate(spec.blocks)], (12, 4), 0)

    assert torch.autograd.gradcheck(both, (w,))
    assert torch.equal(torch.vmap(both)(w[None])[0], both(w))


def test_join_refuses_blocks_with_gaps() -> None:
    spec = _alternating()
    with pytest.raises(ValueError, match=r"params\['w'\]: got shape \(12, 4\), expected one .* without gaps"):
        join(spec.blocks[:1], [torch.zeros(1, 6, 4)], (12, 4))


def test_read_refuses_a_shape_without_the_block() -> None:
    with pytest.raises(ValueError, match=r"params\['w'\]: got shape \(10, 4\)"):
        read(torch.zeros(10, 4), _alternating().blocks[0], 0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 4), True), ((24,), True), ((2, 3, 4), True), ((4, 6), False), ((6, 5), False)],
)
def test_fits_means_that_axes_divide_dimensions(shape: tuple[int, ...], expected: bool) -> None:
    block = Block("w", (Axis("a", 1, 2), Axis("b", 1, 3), Axis("c", 1, 4)))
    assert fits(block, shape) is expected


def test_view_of_a_wider_network_keeps_run_axes() -> None:
    spec = written("g 3 none yes\na 6 none yes g\nh 4 none yes", {"w": "g^0, a^+1@2, h^-1"})
    view = BlockView.of(spec, spec.blocks[0])
    assert view.view(torch.zeros(2, 3, 2, 9)).shape == (2, 3, 2, 9)
    assert view.view(torch.zeros(2, 6, 4)).shape == (2, 3, 2, 4)
