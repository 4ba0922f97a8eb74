"""Params to graph features and back."""

from __future__ import annotations

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.symmetry import Axis, Block, NeuronGroup, SymmetrySpec
from tests.cases import Case, case
from tests.metanets.networks import READABLE, RESIZABLE, networks, spec_of, wider


def _round_trip(layout: GraphLayout, params: Params) -> Params:
    return layout.write(params, [block.read(params) for block in layout.blocks])


@pytest.mark.parametrize("respects", ["scale", "permutation"])
@pytest.mark.parametrize("base", READABLE, ids=str)
def test_graph_round_trip_gives_the_params(base: Case, respects: str) -> None:
    layout = GraphLayout.from_spec(spec_of(base), respects)  # type: ignore[arg-type]
    wide = [{name: p[None] for name, p in wider(base, 2).items()}] if base in RESIZABLE else []
    for params in (networks(base, 3), *wide):
        back = _round_trip(layout, params)
        assert list(back) == list(params)
        assert all(torch.equal(back[name], p) for name, p in params.items())


@pytest.mark.parametrize("base", READABLE, ids=str)
def test_graph_write_uses_the_features(base: Case) -> None:
    layout = GraphLayout.from_spec(spec_of(base))
    params, other = networks(base), networks(base)
    written = layout.write(params, [block.read(other) for block in layout.blocks])
    for name in params:
        expected = params[name] if name in layout.fixed else other[name]
        assert torch.equal(written[name], expected)


@pytest.mark.parametrize("base", RESIZABLE, ids=str)
def test_graph_features_have_the_units_of_their_sets(base: Case) -> None:
    layout = GraphLayout.from_spec(spec_of(base))
    params = {name: p[None] for name, p in wider(base, 3).items()}
    sizes = layout.sizes(params)
    for item in layout.node_blocks:
        assert item.read(params).shape == (1, item.channels, sizes[item.node])
    for item in layout.edge_blocks:
        expected = (1, item.channels, sizes[item.out], sizes[item.into])
        assert item.read(params).shape == expected


@pytest.mark.parametrize("base", RESIZABLE, ids=str)
def test_graph_sizes_of_wider_networks(base: Case) -> None:
    layout = GraphLayout.from_spec(spec_of(base))
    assert layout.sizes(networks(base)) == tuple(node.size for node in layout.nodes)
    found = layout.sizes({name: p[None] for name, p in wider(base, 2).items()})
    read = {item.node for item in layout.node_blocks}
    read |= {end for item in layout.edge_blocks for end in (item.out, item.into)}
    assert found == tuple(
        node.size + (2 + k % 2) * (node.permutable and k in read) for k, node in enumerate(layout.nodes)
    )


def test_graph_edges_point_from_what_is_read_to_what_is_written() -> None:
    # x @ w2 with w2 stored [in, out]
    base = case("matrix-products")
    layout = GraphLayout.from_spec(spec_of(base))
    params = networks(base)
    second = next(item for item in layout.edge_blocks if item.view.block.param == "w2")
    assert torch.equal(second.read(params), params["w2"].mT[:, None])


def test_graph_kernel_positions_are_channels() -> None:
    base = case("cnn-2d")
    layout = GraphLayout.from_spec(spec_of(base))
    params = networks(base)
    first = layout.edge_blocks[0].read(params)
    for position in range(9):
        row, column = divmod(position, 3)
        assert torch.equal(first[:, position], params["0.weight"][..., row, column])


def test_graph_of_a_parameter_in_slices() -> None:
    groups = (
        NeuronGroup("a", 3, "positive", True, "a"),
        NeuronGroup("x", 2, "none", False, "input"),
        NeuronGroup("b", 4, "none", True, "b"),
    )
    blocks = (
        Block("w", (Axis("b", 1, 4), Axis("x", -1, 2)), ((3, 7), (0, 2))),
        Block("w", (Axis("a", 1, 3), Axis("x", -1, 2)), ((0, 3), (0, 2))),
    )
    layout = GraphLayout.from_spec(SymmetrySpec(groups, blocks))
    params = {"w": torch.randn(2, 7, 2)}
    assert layout.edge_blocks[0].read(params).shape == (2, 1, 4, 2)
    assert torch.equal(_round_trip(layout, params)["w"], params["w"])


def test_graph_permutation_option_forgets_scales() -> None:
    layout = GraphLayout.from_spec(spec_of(case("mlp-identity")), "permutation")
    assert not layout.positive and not any(node.odd for node in layout.nodes)
    scaled = GraphLayout.from_spec(spec_of(case("mlp-identity")))
    assert [node.odd for node in scaled.nodes] == [False, True, True, False]
    assert list(scaled.positive.values()) == [1, 2]


def test_graph_missing_name_says_which() -> None:
    base = case("mlp-tanh")
    params = networks(base)
    del params["2.weight"]
    with pytest.raises(ValueError, match=r"expected '2\.weight' among them; rename"):
        GraphLayout.from_spec(spec_of(base)).sizes(params)


@pytest.mark.parametrize("shape", [(2, 32, 32, 2), (2, 32), (2,), (2, 33, 32), (2, 31, 31)])
def test_graph_wrong_shape_says_which(shape: tuple[int, ...]) -> None:
    base = case("mlp-tanh")
    params = {**networks(base), "2.weight": torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"params: '[0-9]\.(weight|bias)' has .*; give "):
        GraphLayout.from_spec(spec_of(base)).sizes(params)


def test_graph_different_numbers_of_networks_are_refused() -> None:
    base = case("mlp-tanh")
    params = {**networks(base, 2), "2.bias": torch.zeros(3, 32)}
    with pytest.raises(ValueError, match=r"'2\.bias' has \[3\] networks .* expected \[2\]; give tensors"):
        GraphLayout.from_spec(spec_of(base)).sizes(params)


def test_graph_wrong_number_of_positions_is_refused() -> None:
    base = case("mlp-image")
    params = networks(base)
    layout = GraphLayout.from_spec(spec_of(base))
    convolution = case("cnn-flatten")
    positions = networks(convolution)
    name = next(n for n, p in positions.items() if p.shape[1:] == (6, 20))
    positions[name] = torch.zeros(2, 6, 21)
    with pytest.raises(ValueError, match="expected one that can be viewed as 6x5x4"):
        GraphLayout.from_spec(spec_of(convolution)).sizes(positions)
    assert layout.sizes(params)


def test_graph_params_without_a_group_stay() -> None:
    groups = (NeuronGroup("a", 3, "none", True, "a"),)
    blocks = (Block("b", (Axis("a", 1, 3),)), Block("temperature", (Axis(None, 0, 1, "scalar"),)))
    layout = GraphLayout.from_spec(SymmetrySpec(groups, blocks))
    params = {"temperature": torch.randn(2, 1), "b": torch.randn(2, 3)}
    assert layout.fixed == ("temperature",)
    written = layout.write(params, [torch.zeros(2, 1, 3)])
    assert list(written) == ["temperature", "b"]
    assert torch.equal(written["temperature"], params["temperature"]) and not written["b"].any()


def test_graph_slice_without_a_group_stays() -> None:
    groups = (NeuronGroup("a", 3, "none", True, "a"),)
    blocks = (
        Block("p", (Axis(None, 0, 2, "offset"),), ((0, 2),)),
        Block("p", (Axis("a", 1, 3),), ((2, 5),)),
        Block("p", (Axis(None, 0, 1, "scalar"),), ((5, 6),)),
    )
    layout = GraphLayout.from_spec(SymmetrySpec(groups, blocks))
    params = {"p": torch.randn(2, 6)}
    assert torch.equal(_round_trip(layout, params)["p"], params["p"])
    written = layout.write(params, [torch.zeros(2, 1, 3)])["p"]
    assert not written[:, 2:5].any() and torch.equal(written[:, [0, 1, 5]], params["p"][:, [0, 1, 5]])
