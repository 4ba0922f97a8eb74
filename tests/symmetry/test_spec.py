from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from amortopt.symmetry import (
    Axis,
    Block,
    NeuronGroup,
    Operation,
    SymmetrySpec,
    act,
    extract,
    identity,
    meet,
    sample,
)
from tests.cases import CASES, Case, case

GOLDEN = """\
group  size  scale  permute  origin
in     40    none   no       input
h1     32    sign   yes      0.weight, tanh
h2     32    sign   yes      2.weight, tanh
out    10    none   no       output

parameter  shape  axes
0.weight   32x40  h1^+1, in^-1
0.bias     32     h1^+1
2.weight   32x32  h2^+1, h1^-1
2.bias     32     h2^+1
4.weight   10x32  out^+1, h2^-1
4.bias     10     out^+1

computes  linear(0.weight, 0.bias)
          tanh()
          linear(2.weight, 2.bias)
          tanh()
          linear(4.weight, 4.bias)"""


def _spec_of(case: Case) -> SymmetrySpec:
    return extract(case.build(), case.example_input())


def _renamed(spec: SymmetrySpec, names: dict[str, str]) -> SymmetrySpec:
    def axis(a: Axis) -> Axis:
        return a if a.group is None else dataclasses.replace(a, group=names.get(a.group, a.group))

    return SymmetrySpec(
        tuple(dataclasses.replace(g, name=names.get(g.name, g.name)) for g in reversed(spec.groups)),
        tuple(dataclasses.replace(b, axes=tuple(map(axis, b.axes))) for b in spec.blocks),
        spec.operations,
    )


def test_repr_is_the_table() -> None:
    assert repr(_spec_of(case("mlp-tanh"))) == GOLDEN


@pytest.mark.parametrize("case", CASES, ids=str)
def test_json_returns_an_equal_spec(case: Case) -> None:
    spec = _spec_of(case)
    assert SymmetrySpec.from_json(spec.to_json()) == spec
    assert SymmetrySpec.from_json(json.loads(spec.to_json())) == spec


def test_same_symmetry_ignores_group_names_and_order() -> None:
    spec = _spec_of(case("mlp-tanh"))
    other = _renamed(spec, {"h1": "h2", "h2": "h1"})
    assert other != spec
    assert other.same_symmetry(spec)


def test_same_symmetry_sees_a_group_tied_to_another() -> None:
    spec = _spec_of(case("mlp-tanh"))
    tied = _renamed(spec, {})
    blocks = tuple(
        dataclasses.replace(b, axes=(Axis("h1", 1, 32), *b.axes[1:])) if b.param == "2.weight" else b
        for b in tied.blocks
    )
    assert not dataclasses.replace(tied, blocks=blocks).same_symmetry(spec)


@pytest.mark.parametrize("field", [{"kind": "none"}, {"permutable": False}])
def test_same_symmetry_sees_what_is_allowed(field: dict[str, object]) -> None:
    spec = _spec_of(case("mlp-tanh"))
    groups = tuple(dataclasses.replace(g, **field) if g.name == "h1" else g for g in spec.groups)
    assert not dataclasses.replace(spec, groups=groups).same_symmetry(spec)


def test_meet_is_the_largest_common_kind() -> None:
    assert meet() == "free"
    assert meet("free", "positive") == "positive"
    assert meet("positive", "sign") == "none"
    assert meet("none", "free") == "none"


def test_lookup_of_unknown_names_lists_the_known() -> None:
    spec = _spec_of(case("mlp-tanh"))
    with pytest.raises(KeyError, match="h1"):
        spec.group("hidden")
    with pytest.raises(KeyError, match=r"0\.weight"):
        spec.blocks_of("weight")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("groups", 1, "permutable"), 1),
        (("groups", 1, "size"), 32.0),
        (("groups", 1, "origin"), {"a": 1}),
        (("groups", 1, "within"), 0),
        (("blocks", 0, "buffer"), "no"),
        (("blocks", 0, "axes", 0, "exponent"), True),
        (("blocks", 0, "axes", 0, "exponent"), 1e308),
        (("blocks", 0, "axes", 0, "role"), -1),
        (("blocks", 0, "axes", 0), []),
        (("operations", 0, "params"), [1]),
        (("operations", 0, "config"), [["stride", 2]]),
        (("operations", 0), []),
    ],
)
def test_from_json_refuses_other_types(place: tuple[Any, ...], value: Any) -> None:
    data: Any = json.loads(_spec_of(case("mlp-tanh")).to_json())
    *inner, last = place
    table = data
    for key in inner:
        table = table[key]
    table[last] = value
    with pytest.raises(ValueError, match="wrong fields"):
        SymmetrySpec.from_json(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "got format None"),
        ('{"format": 99}', "got format 99"),
        ('{"format": 1, "groups": []}', "wrong fields"),
        ('{"format": 1, "groups": [{"nam": 1}], "blocks": [], "operations": []}', "wrong fields"),
    ],
)
def test_from_json_refuses_other_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SymmetrySpec.from_json(text)


def test_spec_refuses_contradictions() -> None:
    group = NeuronGroup("a", 3, "sign", True, "")
    with pytest.raises(ValueError, match="every name once"):
        SymmetrySpec((group, group), ())
    with pytest.raises(ValueError, match="axis and group agree"):
        SymmetrySpec((group,), (Block("w", (Axis("a", 1, 4),)),))
    with pytest.raises(ValueError, match="no such group"):
        SymmetrySpec((group,), (Block("w", (Axis("b", 1, 4),)),))
    with pytest.raises(ValueError, match="exponent"):
        Axis(None, 1, 3)
    with pytest.raises(ValueError, match="kind"):
        NeuronGroup("a", 3, "odd", True, "")  # type: ignore[arg-type]


def test_spec_holds_no_tensors() -> None:
    spec = _spec_of(case("cnn-flatten"))
    assert hash(spec) == hash(SymmetrySpec.from_json(spec.to_json()))
    assert all(not torch.is_tensor(value) for op in spec.operations for value in op.config)
    assert isinstance(spec.operations[0], Operation)


def _chain() -> SymmetrySpec:
    """h has 2 units; a and b scale them again, b within a; c has a run of 3 units in each, d scales those."""
    return SymmetrySpec(
        (
            NeuronGroup("h", 2, "positive", True, "hand"),
            NeuronGroup("a", 2, "sign", False, "hand", within="h"),
            NeuronGroup("b", 2, "free", False, "hand", within="a"),
            NeuronGroup("c", 6, "sign", True, "hand", within="b"),
            NeuronGroup("d", 6, "positive", False, "hand", within="c"),
        ),
        (
            Block("w", (Axis("h", 1, 2, also=(("b", -1),)), Axis("c", -1, 3, also=(("d", 1),)))),
            Block("v", (Axis("d", 1, 6, also=(("a", 1),)),)),
        ),
    )


def test_units_of_a_chain_of_scalings_are_those_at_its_end() -> None:
    assert [_chain().units_of(name) for name in "habcd"] == ["h", "h", "h", "c", "c"]


def test_owner_axis_of_a_chain_is_along_the_units_at_its_end() -> None:
    spec = _chain()
    assert (
        spec.owner_axis(spec.blocks_of("w")[0], 1) == 0 and spec.owner_axis(spec.blocks_of("v")[0], 0) is None
    )


def test_scales_of_a_chain_act_on_the_units_at_its_end(generator: torch.Generator) -> None:
    spec = _chain()
    g = sample(spec, generator=generator)
    params = {"w": torch.randn(2, 3, dtype=torch.float64), "v": torch.randn(6, dtype=torch.float64)}
    moved = act(spec, g, params)
    h, run = g.permutations["h"], g.permutations["c"]
    factor = g.scales["h"] / g.scales["b"]
    inner = (g.scales["d"] / g.scales["c"]).view(2, 3)
    expected = factor[:, None] * params["w"][h].gather(1, run.view(2, 3) % 3) * inner
    torch.testing.assert_close(moved["w"], expected, rtol=1e-12, atol=0)
    expected = g.scales["d"] * g.scales["a"].repeat_interleave(3) * params["v"][run]
    torch.testing.assert_close(moved["v"], expected, rtol=1e-12, atol=0)


def test_gauge_dimension_of_a_chain_counts_its_scalings_once_per_unit() -> None:
    # The rows of w, columns and v see 5 independent scales: h / b of two units, and d, c of six.
    assert _chain().gauge_dimension().continuous == torch.linalg.matrix_rank(_exponents(_chain()))


def _exponents(spec: SymmetrySpec) -> torch.Tensor:
    """Entry of a parameter x unit that may be scaled continuously: the exponent, read off by acting."""
    scalable = [group for group in spec.groups if group.kind in ("positive", "free")]
    ones = {name: torch.ones(2, 3) if name == "w" else torch.ones(6) for name in spec.params}
    columns = []
    for group in scalable:
        for unit in range(group.size):
            g = identity(spec)
            g.scales[group.name][unit] = math.e
            moved = act(spec, g, {name: value.double() for name, value in ones.items()})
            columns.append(torch.cat([moved[name].flatten() for name in spec.params]).log())
    return torch.stack(columns, dim=1)
