"""What rules can ask and say about dimensions: ties, limits, parts, owners, choices."""

from __future__ import annotations

import random

import pytest

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.dims import Atom, Dim, Sum, atoms_of, fixed, size_of, sum_of, with_exponent
from amortopt.symmetry.labels import Labels


def _kinds(labels: Labels, dim: Dim) -> list[list[ScaleKind]]:
    """Kinds of the live scales along every atom."""
    return [
        [labels.scales.kind(var) for var, _ in labels.scales.reduce(atom.scale)]
        for atom in atoms_of(labels.resolve(dim))
    ]


def _unit(labels: Labels, dim: Dim) -> int:
    unit = labels.unit_of(dim)
    assert unit is not None
    return unit


def _owned(labels: Labels, owner: Dim, size: int) -> Dim:
    return labels.fresh(size, "nested", owner=_unit(labels, owner))


def _atom(dim: Dim) -> Atom:
    (atom,) = dim
    assert isinstance(atom, Atom)
    return atom


# Ties


def test_ties_are_symmetric() -> None:
    for turned in (False, True):
        labels = Labels()
        a, b = labels.fresh(4, "a", "positive"), labels.fresh(4, "b")
        labels.freeze((b,))
        labels.tie(*((b, a) if turned else (a, b)))
        assert labels.resolve(a) == labels.resolve(b)
        assert not labels.permutable(_unit(labels, a))
        assert _kinds(labels, a) == [["positive"]]


def test_ties_are_transitive() -> None:
    labels = Labels()
    a, b, c = (labels.fresh(4, name) for name in "abc")
    labels.tie(a, b)
    labels.tie(c, b)
    assert labels.resolve(a) == labels.resolve(c)


@pytest.mark.parametrize("turned", [False, True])
def test_constants_take_the_name_of_what_they_are_tied_to(turned: bool) -> None:
    labels = Labels()
    constant, a = labels.fresh(4, "constant"), labels.fresh(4, "a")
    labels.tie(*((a, constant) if turned else (constant, a)))
    assert labels.origin(_unit(labels, constant)) == "a"


def test_what_reads_moves_with_the_inverse() -> None:
    labels = Labels()
    a, b = labels.fresh(4, "a"), labels.fresh(4, "b")
    labels.tie(b, with_exponent(labels.resolve(a), -1))
    assert labels.resolve(b) == with_exponent(labels.resolve(a), -1)


def test_a_tie_to_something_fixed_pins() -> None:
    labels = Labels()
    a = labels.fresh(4, "a")
    labels.tie(a, fixed(4, "kernel"))
    assert labels.resolve(a) == fixed(4, "kernel")


def test_sums_that_are_cut_elsewhere_agree_in_all_cuts() -> None:
    labels = Labels()
    left = sum_of([labels.fresh(2, "a"), labels.fresh(4, "b")])
    right = sum_of([labels.fresh(3, "c"), labels.fresh(3, "d")])
    labels.tie(left, right)
    (total,) = labels.resolve(left)
    assert isinstance(total, Sum)
    assert [size_of(part) for part in total.parts] == [2, 1, 3]
    assert labels.resolve(left) == labels.resolve(right)


def test_products_are_tied_factor_by_factor() -> None:
    labels = Labels()
    a, b, c, d = (labels.fresh(size, "") for size in (2, 3, 2, 3))
    labels.tie((*a, *b), (*c, *d))
    assert labels.resolve(a) == labels.resolve(c)
    assert labels.resolve(b) == labels.resolve(d)


def test_ties_of_units_leave_scales_apart() -> None:
    labels = Labels()
    a, b = labels.fresh(4, "a"), labels.fresh(4, "b")
    labels.tie_units(a, b)
    assert _unit(labels, a) == _unit(labels, b)
    assert _atom(labels.resolve(a)).scale != _atom(labels.resolve(b)).scale


def test_scales_of_a_product_are_multiplied() -> None:
    labels = Labels()
    a, b = labels.fresh(4, "a"), labels.fresh(4, "b")
    scales = dict(_atom(a).scale), dict(_atom(b).scale)
    assert dict(_atom(labels.product(a, b)).scale) == {**scales[0], **scales[1]}


# Limits


def test_a_limit_leaves_permutations_and_freezing_leaves_scales() -> None:
    labels = Labels()
    a, b, c = (labels.fresh(4, name) for name in "abc")
    labels.limit((a,), "none")
    labels.freeze((b,))
    labels.pin((c,))
    assert [labels.permutable(_unit(labels, dim)) for dim in (a, b, c)] == [True, False, False]
    assert [_kinds(labels, dim) for dim in (a, b, c)] == [[[]], [["free"]], [[]]]
    assert [labels.is_pinned(dim) for dim in (a, b, c)] == [False, False, True]


def test_inputs_are_pinned_and_keep_their_name() -> None:
    labels = Labels()
    x, a = labels.fresh_input(4), labels.fresh(4, "a")
    labels.tie(x, a)
    labels.mark_output((a,))
    assert labels.is_pinned(a)
    assert labels.origin(_unit(labels, a)) == "input"


@pytest.mark.parametrize("seed", range(60))
def test_no_constraint_gives_freedom_back(seed: int) -> None:
    r, labels = random.Random(seed), Labels()
    dims = [labels.fresh(r.choice([4, 4, 6]), str(k)) for k in range(6)]
    dims += [(*dims[0], *_owned(labels, dims[0], 2))]
    kinds: list[ScaleKind] = ["free", "positive", "sign", "none"]
    frozen: set[int] = set()
    pinned: set[int] = set()
    for _ in range(12):
        a, b = r.choice(dims), r.choice(dims)
        size = size_of(a)
        change = r.randrange(7)
        if change == 0 and size == size_of(b):
            labels.tie(a, b)
        elif change == 1:
            labels.limit((a,), r.choice(kinds))
        elif change == 2:
            labels.freeze((a,))
        elif change == 3:
            dims.append(r.choice(labels.cut(a, [size // 2, size])))
        elif change == 4 and isinstance(atom := labels.resolve(a)[0], Atom) and atom.size % 2 == 0:
            labels.split(atom, 2)
        elif change == 5:
            labels.mix((a,), (b,))
        elif size == size_of(b):
            dims.append(labels.product(a, b))
        for k, dim in enumerate(dims):
            assert size_of(labels.resolve(dim)) == size_of(dim)
            assert labels.resolve(labels.resolve(dim)) == labels.resolve(dim)
            units = labels.variables(dim)
            frozen |= {k} if not any(labels.permutable(unit) for unit in units) else set()
            pinned |= {k} if labels.is_pinned(dim) else set()
        assert not any(labels.permutable(unit) for k in frozen for unit in labels.variables(dims[k]))
        assert all(labels.is_pinned(dims[k]) for k in pinned)


# Parts


def test_what_is_cut_is_a_sum_of_its_parts() -> None:
    labels = Labels()
    a = labels.fresh(6, "a", "positive")
    parts = labels.cut(a, [2, 3, 6])
    assert [size_of(part) for part in parts] == [2, 1, 3]
    assert labels.resolve(a) == sum_of([labels.resolve(part) for part in parts])
    assert _kinds(labels, a) == [["positive"]] * 3


def test_parts_of_what_is_frozen_are_frozen() -> None:
    labels = Labels()
    a = labels.fresh(6, "a")
    labels.freeze((a,))
    assert not any(labels.permutable(_unit(labels, part)) for part in labels.cut(a, [2, 6]))


def test_what_is_pinned_is_cut_into_positions() -> None:
    labels = Labels()
    a = labels.fresh(6, "a")
    labels.pin((a,))
    assert labels.cut(a, [2, 6]) == [fixed(2, "position"), fixed(4, "position")]


def test_what_is_split_is_an_owner_times_its_runs() -> None:
    labels = Labels()
    a = labels.fresh(6, "a")
    outer, inner = labels.split(_atom(a), 2)
    assert labels.resolve(a) == (*outer, *inner)
    assert labels.owner(_unit(labels, inner)) == _unit(labels, outer)
    assert (labels.size(_unit(labels, outer)), labels.size(_unit(labels, inner))) == (2, 3)


def test_a_scaled_input_that_is_split_has_no_scale_any_more() -> None:
    labels = Labels()
    scaled = labels.rescaled(labels.fresh_input(6))
    labels.split(_atom(scaled), 2)
    assert labels.is_pinned(scaled)


def test_a_dimension_of_one_position_is_a_part_of_a_sum() -> None:
    assert sum_of([(), ()]) == fixed(2, "position")


# Owners


def test_only_what_nothing_is_known_of_is_nested() -> None:
    labels = Labels()
    a, b, c = (labels.fresh(4, name) for name in "abc")
    labels.freeze((c,))
    labels.nest((a, b, c))
    assert labels.owner(_unit(labels, b)) == _unit(labels, a)
    assert labels.owner(_unit(labels, c)) is None


def test_nesting_makes_no_circle() -> None:
    labels = Labels()
    a, b = labels.fresh(4, "a"), labels.fresh(4, "b")
    labels.nest((a, b))
    labels.nest((b, a))
    assert labels.owners(_unit(labels, b)) == [_unit(labels, b), _unit(labels, a)]


def test_units_of_different_owners_that_are_tied_are_nested_in_neither() -> None:
    labels = Labels()
    a, b = labels.fresh(2, "a"), labels.fresh(2, "b")
    inner, other = _owned(labels, a, 3), _owned(labels, b, 3)
    labels.tie(inner, other)
    assert labels.owner(_unit(labels, inner)) is None


def test_what_meets_at_other_places_of_an_owner_is_alike_for_all_of_it() -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner")
    nested = _owned(labels, owner, 3)
    deeper = _owned(labels, nested, 2)
    labels.mix((deeper,), (owner,))
    assert labels.owners(_unit(labels, deeper)) == [_unit(labels, deeper), _unit(labels, nested)]
    assert labels.owner(_unit(labels, nested)) is None


def test_nothing_is_nested_in_units_that_are_there_twice() -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner")
    nested = _owned(labels, owner, 3)
    labels.own_once((owner, nested))
    assert labels.owner(_unit(labels, nested)) == _unit(labels, owner)
    labels.own_once((owner, nested, owner))
    assert labels.owner(_unit(labels, nested)) is None


def test_nothing_is_nested_in_units_that_are_not_there() -> None:
    labels = Labels()
    nested = _owned(labels, labels.fresh(2, "owner"), 3)
    labels.own_once((nested,))
    assert labels.owner(_unit(labels, nested)) is None


def test_parts_of_a_sum_may_have_the_same_owner() -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner")
    nested = _owned(labels, owner, 3)
    labels.own_once((sum_of([owner, owner]), nested))
    assert labels.owner(_unit(labels, nested)) == _unit(labels, owner)


@pytest.mark.parametrize(("place", "stays"), [("rows", True), ("columns", False)])
def test_what_meets_has_its_owner_in_the_same_place(place: str, stays: bool) -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner")
    nested = _owned(labels, owner, 3)
    labels.align({"rows": owner, "inner": nested}, {place: owner, "inner": nested})
    assert (labels.owner(_unit(labels, nested)) is not None) is stays


# Scales that are the same all along an axis


def test_what_is_summed_over_has_no_scale() -> None:
    labels = Labels()
    a, b = labels.fresh(2, "a"), labels.fresh(3, "b")
    kept, summed = labels.even((a, b), (1,))
    assert (_kinds(labels, kept), _kinds(labels, summed), _kinds(labels, b)) == ([["free"]], [[]], [[]])


def test_what_is_nested_may_have_a_scale_of_its_owner() -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner", "none")
    nested = _owned(labels, owner, 3)
    labels.limit((nested,), "positive")
    kept, summed = labels.even((owner, nested), (1,))
    assert (_kinds(labels, kept), _kinds(labels, summed)) == ([["positive"]], [[]])
    assert _atom(labels.resolve(nested)).scale == _atom(labels.resolve(kept)).scale
    assert {labels.scales.unit(var) for var, _ in _atom(kept).scale} == {_unit(labels, owner)}


def test_parts_of_a_sum_have_the_scale_of_their_owner_in_common() -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner", "none")
    parts = [_owned(labels, owner, size) for size in (3, 4)]
    kept, _ = labels.even((owner, sum_of(parts)), (1,))
    scales = {labels.scales.reduce(_atom(labels.resolve(part)).scale) for part in parts}
    assert scales == {labels.scales.reduce(_atom(kept).scale)}
    assert _kinds(labels, kept) == [["free"]]


def test_other_units_at_every_index_have_no_scale_in_common() -> None:
    labels = Labels()
    index, inner = labels.stack([labels.fresh(3, "a"), labels.fresh(3, "b")])
    kept, _ = labels.even((index, inner), (1,))
    assert _kinds(labels, kept) == [[]]


@pytest.mark.parametrize("change", ["lift", "split owner", "split nested", "select"])
def test_what_could_not_be_said_any_more_is_given_up(change: str) -> None:
    labels = Labels()
    owner = labels.fresh(4, "owner", "none")
    nested = _owned(labels, owner, 6)
    kept, _ = labels.even((owner, nested), (1,))
    if change == "lift":
        labels.lift(_unit(labels, nested))
    elif change == "select":
        labels.select((owner, nested), 0, 1)
    else:
        labels.split(_atom(labels.resolve(owner if change == "split owner" else nested)), 2)
    assert not any(kinds for dim in (kept, nested) for kinds in _kinds(labels, dim))


# Choices


def test_every_index_of_a_stack_is_one_of_its_parts() -> None:
    labels = Labels()
    parts = [labels.fresh(3, "a", "positive"), labels.fresh(3, "b", "sign")]
    index, inner = labels.stack(parts)
    for k, part in enumerate(parts):
        assert [labels.resolve(dim) for dim in labels.select((index, inner), 0, k)] == [labels.resolve(part)]


def test_a_flattened_stack_is_a_sum() -> None:
    labels = Labels()
    parts = [labels.fresh(3, "a"), labels.fresh(3, "b")]
    index, inner = labels.stack(parts)
    assert labels.resolve((*index, *inner)) == sum_of([labels.resolve(part) for part in parts])


def test_an_index_with_a_scale_does_not_disappear_in_a_sum() -> None:
    labels = Labels()
    index, inner = labels.stack([labels.fresh(3, "a"), labels.fresh(3, "b")])
    assert len(labels.resolve((*labels.rescaled(index), *inner))) == 2
    assert labels.chooses((index, inner), 0) == 2
    assert labels.chooses((labels.rescaled(index), inner), 0) == 1


def test_selecting_makes_nested_units_others_at_every_index() -> None:
    labels = Labels()
    owner = labels.fresh(3, "owner")
    nested = _owned(labels, owner, 2)
    first, second = (labels.select((owner, nested), 0, k)[0] for k in (0, 1))
    assert _unit(labels, first) != _unit(labels, second)
    assert labels.is_choice(_unit(labels, nested))
    assert labels.is_pinned(owner)


def test_selecting_leaves_what_is_not_nested() -> None:
    labels = Labels()
    a, b = labels.fresh(3, "a"), labels.fresh(4, "b")
    assert labels.select((a, b), 0, 1) == (b,)


def test_a_choice_that_is_lifted_is_the_same_at_every_index() -> None:
    labels = Labels()
    parts = [labels.fresh(3, "a", "positive"), labels.fresh(3, "b", "sign")]
    _, inner = labels.stack(parts)
    labels.lift(_unit(labels, inner))
    assert labels.resolve(inner) == labels.resolve(parts[0]) == labels.resolve(parts[1])
    assert _kinds(labels, inner) == [[]]


def test_new_scales_of_a_choice_are_others_at_every_index() -> None:
    labels = Labels()
    index, inner = labels.stack([labels.fresh(3, "a"), labels.fresh(3, "b")])
    scaled = labels.rescaled(inner)
    first, second = (_atom(labels.resolve(labels.select((index, scaled), 0, k)[0])) for k in (0, 1))
    assert first.scale and second.scale and first.scale != second.scale
    for atom in (first, second):
        assert {labels.scales.unit(var) for var, _ in atom.scale} == {atom.unit}


def test_a_choice_that_is_cut_keeps_what_is_known_of_it() -> None:
    labels = Labels()
    x = labels.fresh_input(3)
    _, inner = labels.stack([sum_of([labels.fresh(1, "a"), x]), sum_of([x, labels.fresh(1, "b")])])
    parts = labels.cut(inner, [2, 4])
    assert all(labels.is_pinned(part) for part in (*parts, inner, x))
