from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from amortopt.symmetry import Axis, Block, NeuronGroup, Operation, SymmetrySpec, extract, meet
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
