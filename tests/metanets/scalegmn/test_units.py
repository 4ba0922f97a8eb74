"""Which node sets a spec needs, what they are made of, and which factors are found first."""

from __future__ import annotations

import pytest

from amortopt.metanets.scalegmn.factors import CanonicalScaling
from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.metanets.scalegmn.units import NodeSet, Part
from tests.cases import CASES, Case
from tests.metanets.networks import spec_of
from tests.metanets.specs import SPECS, written


def _layout(name: str) -> GraphLayout:
    return GraphLayout.from_spec(SPECS[name])


def _derived(layout: GraphLayout) -> dict[str, NodeSet]:
    return {node.group: node for node in layout.nodes if node.derived}


def _ends(layout: GraphLayout) -> dict[str, tuple[str, ...]]:
    return {b.view.block.label: tuple(layout.nodes[end.node].group for end in b.ends) for b in layout.blocks}


@pytest.mark.parametrize("base", [base for base in CASES if base.name != "mixer"], ids=str)
def test_sets_of_plain_networks_are_their_groups(base: Case) -> None:
    spec = spec_of(base)
    layout = GraphLayout.from_spec(spec)
    assert [node.group for node in layout.nodes] == [group.name for group in spec.groups]
    assert not any(node.parts for node in layout.nodes)


@pytest.mark.parametrize("name", SPECS)
def test_sets_are_the_same_without_scales(name: str) -> None:
    scaled, permuted = (GraphLayout.from_spec(SPECS[name], s) for s in ("scale", "permutation"))
    assert [node.group for node in scaled.nodes] == [node.group for node in permuted.nodes]
    assert _ends(scaled) == _ends(permuted)
    assert not permuted.positive and not any(node.odd for node in permuted.nodes)


def test_sets_of_a_norm_between_odd_activations() -> None:
    layout = _layout("conv-norm-tanh")
    gain = _derived(layout)["a a b"]
    assert gain.odd and gain.size == 4
    assert gain.parts == (Part(1, 1, 1, odd=True, slots=True), Part(2, 1, 1, odd=True, slots=False))
    assert _ends(layout)["1.weight"] == ("b", "x") and _ends(layout)["norm1.bias"] == ("a",)


def test_sets_of_a_norm_before_relu() -> None:
    layout = _layout("conv-norm-relu")
    assert not _derived(layout)
    ends = _ends(layout)
    assert ends["norm1.gain"] == ("b",) and ends["norm1.bias"] == ("a",) and ends["2.weight"] == ("d", "a")


def test_sets_leave_out_followers_that_never_change_their_sign() -> None:
    layout = _layout("depthwise-after")
    assert [node.group for node in layout.nodes] == ["x", "s", "a", "y"]
    assert list(layout.positive) == ["s", "a", "b"]


def test_sets_of_gates_that_keep_their_sign() -> None:
    layout = _layout("lstm")
    ends = _ends(layout)
    ((name, gates),) = _derived(layout).items()
    assert not gates.odd and gates.parts == (Part(1, 1, 1, odd=False, slots=True),)
    assert layout.nodes.index(gates) == layout.edge_blocks[0].out
    assert ends["hh[0:5, 0:5]"] == (name, "h") and ends["hh[10:15, 0:5]"] == ("h", "h")


def test_sets_of_heads_and_their_channels() -> None:
    layout = _layout("attention")
    assert not _derived(layout)
    channels = layout.nodes[2]
    assert channels.run == 2 and channels.parts == (Part(1, 1, 2, odd=False, slots=True),)


def test_sets_of_a_block_with_three_groups() -> None:
    layout = _layout("mixer")
    both = _derived(layout)["a a × p p"]
    assert both.size == 20 and both.odd
    assert both.parts == (Part(1, 1, 5, odd=True, slots=True), Part(2, 4, 1, odd=True, slots=True))
    assert _ends(layout)["head"] == ("y", "a a × p p")


PER_HEAD = {"q": "s^-1, h^+1, d^+1", "q.bias": "h^+1, d^+1", "k": "d^-1, h^-1, s^-1"}
"""Queries and keys of heads h with channels d that are the same group in all heads."""


def _per_head(kind: str, extra: dict[str, str]) -> GraphLayout:
    groups = f"s 4 none yes\nh 3 {kind} yes\nd 2 {kind} yes\nx 4 none no"
    return GraphLayout.from_spec(written(groups, {"embed": "s^0, x^-1", **PER_HEAD, **extra}))


def test_sets_of_scales_that_are_met_only_together_have_one_factor() -> None:
    layout = _per_head("free", {})
    scaling = CanonicalScaling(layout)
    assert list(scaling.factors) == ["d × h"]
    assert {end.node for block in layout.edge_blocks[1:] for end in block.ends} == {0, 4}
    assert scaling.steps[0].first and scaling.steps[0].fallback


def test_sets_of_scales_that_are_met_apart_have_their_own_factors() -> None:
    layout = _per_head("free", {"gate": "h^+1"})
    steps = CanonicalScaling(layout).steps
    assert [step.factor for step in steps] == ["h", "d"] and all(step.first for step in steps)


@pytest.mark.parametrize(("extra", "sided"), [({}, True), ({"gate": "h^+1"}, False)])
def test_sets_find_signs_of_products_from_their_parts_where_these_show(
    extra: dict[str, str], sided: bool
) -> None:
    (both,) = _derived(_per_head("sign", extra)).values()
    assert both.sided == sided


def test_sets_of_biases_are_those_of_the_weights_that_write_with_them() -> None:
    layout = _per_head("none", {})
    assert [item.view.block.param for item in layout.node_blocks] == ["q.bias"]
