"""What rules can ask and say about dimensions: owners, scales along an axis, choices."""

from __future__ import annotations

import pytest

from amortopt.symmetry.solve.dims import sum_of
from amortopt.symmetry.solve.labels import Labels
from tests.symmetry.solve.labels import atom_of, kinds, owned, unit_of_dim

# Owners


def test_only_what_nothing_is_known_of_is_nested() -> None:
    labels = Labels()
    a, b, c = (labels.fresh(4, name) for name in "abc")
    labels.freeze((c,))
    labels.nest((a, b, c))
    assert labels.owner(unit_of_dim(labels, b)) == unit_of_dim(labels, a)
    assert labels.owner(unit_of_dim(labels, c)) is None


def test_nesting_makes_no_circle() -> None:
    labels = Labels()
    a, b = labels.fresh(4, "a"), labels.fresh(4, "b")
    labels.nest((a, b))
    labels.nest((b, a))
    assert labels.owners(unit_of_dim(labels, b)) == [unit_of_dim(labels, b), unit_of_dim(labels, a)]


def test_units_of_different_owners_that_are_tied_are_nested_in_neither() -> None:
    labels = Labels()
    a, b = labels.fresh(2, "a"), labels.fresh(2, "b")
    inner, other = owned(labels, a, 3), owned(labels, b, 3)
    labels.tie(inner, other)
    assert labels.owner(unit_of_dim(labels, inner)) is None


def test_what_meets_at_other_places_of_an_owner_is_alike_for_all_of_it() -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner")
    nested = owned(labels, owner, 3)
    deeper = owned(labels, nested, 2)
    labels.mix((deeper,), (owner,))
    assert labels.owners(unit_of_dim(labels, deeper)) == [
        unit_of_dim(labels, deeper),
        unit_of_dim(labels, nested),
    ]
    assert labels.owner(unit_of_dim(labels, nested)) is None


def test_nothing_is_nested_in_units_that_are_there_twice() -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner")
    nested = owned(labels, owner, 3)
    labels.own_once((owner, nested))
    assert labels.owner(unit_of_dim(labels, nested)) == unit_of_dim(labels, owner)
    labels.own_once((owner, nested, owner))
    assert labels.owner(unit_of_dim(labels, nested)) is None


def test_nothing_is_nested_in_units_that_are_not_there() -> None:
    labels = Labels()
    nested = owned(labels, labels.fresh(2, "owner"), 3)
    labels.own_once((nested,))
    assert labels.owner(unit_of_dim(labels, nested)) is None


def test_parts_of_a_sum_may_have_the_same_owner() -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner")
    nested = owned(labels, owner, 3)
    labels.own_once((sum_of([owner, owner]), nested))
    assert labels.owner(unit_of_dim(labels, nested)) == unit_of_dim(labels, owner)


@pytest.mark.parametrize(("place", "stays"), [("rows", True), ("columns", False)])
def test_what_meets_has_its_owner_in_the_same_place(place: str, stays: bool) -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner")
    nested = owned(labels, owner, 3)
    labels.align({"rows": owner, "inner": nested}, {place: owner, "inner": nested})
    assert (labels.owner(unit_of_dim(labels, nested)) is not None) is stays


# Scales that are the same all along an axis


def test_what_is_summed_over_has_no_scale() -> None:
    labels = Labels()
    a, b = labels.fresh(2, "a"), labels.fresh(3, "b")
    kept, summed = labels.even((a, b), (1,))
    assert (kinds(labels, kept), kinds(labels, summed), kinds(labels, b)) == ([["free"]], [[]], [[]])


def test_what_is_nested_may_have_a_scale_of_its_owner() -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner", "none")
    nested = owned(labels, owner, 3)
    labels.limit((nested,), "positive")
    kept, summed = labels.even((owner, nested), (1,))
    assert (kinds(labels, kept), kinds(labels, summed)) == ([["positive"]], [[]])
    assert atom_of(labels.resolve(nested)).scale == atom_of(labels.resolve(kept)).scale
    assert {labels.scales.unit(var) for var, _ in atom_of(kept).scale} == {unit_of_dim(labels, owner)}


def test_parts_of_a_sum_have_the_scale_of_their_owner_in_common() -> None:
    labels = Labels()
    owner = labels.fresh(2, "owner", "none")
    parts = [owned(labels, owner, size) for size in (3, 4)]
    kept, _ = labels.even((owner, sum_of(parts)), (1,))
    scales = {labels.scales.reduce(atom_of(labels.resolve(part)).scale) for part in parts}
    assert scales == {labels.scales.reduce(atom_of(kept).scale)}
    assert kinds(labels, kept) == [["free"]]


def test_other_units_at_every_index_have_no_scale_in_common() -> None:
    labels = Labels()
    index, inner = labels.stack([labels.fresh(3, "a"), labels.fresh(3, "b")])
    kept, _ = labels.even((index, inner), (1,))
    assert kinds(labels, kept) == [[]]


@pytest.mark.parametrize("change", ["lift", "split owner", "split nested", "select"])
def test_what_could_not_be_said_any_more_is_given_up(change: str) -> None:
    labels = Labels()
    owner = labels.fresh(4, "owner", "none")
    nested = owned(labels, owner, 6)
    kept, _ = labels.even((owner, nested), (1,))
    if change == "lift":
        labels.lift(unit_of_dim(labels, nested))
    elif change == "select":
        labels.select((owner, nested), 0, 1)
    else:
        labels.split(atom_of(labels.resolve(owner if change == "split owner" else nested)), 2)
    assert not any(live for dim in (kept, nested) for live in kinds(labels, dim))


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
    nested = owned(labels, owner, 2)
    first, second = (labels.select((owner, nested), 0, k)[0] for k in (0, 1))
    assert unit_of_dim(labels, first) != unit_of_dim(labels, second)
    assert labels.is_choice(unit_of_dim(labels, nested))
    assert labels.is_pinned(owner)


def test_selecting_leaves_what_is_not_nested() -> None:
    labels = Labels()
    a, b = labels.fresh(3, "a"), labels.fresh(4, "b")
    assert labels.select((a, b), 0, 1) == (b,)


def test_a_choice_that_is_lifted_is_the_same_at_every_index() -> None:
    labels = Labels()
    parts = [labels.fresh(3, "a", "positive"), labels.fresh(3, "b", "sign")]
    _, inner = labels.stack(parts)
    labels.lift(unit_of_dim(labels, inner))
    assert labels.resolve(inner) == labels.resolve(parts[0]) == labels.resolve(parts[1])
    assert kinds(labels, inner) == [[]]


def test_new_scales_of_a_choice_are_others_at_every_index() -> None:
    labels = Labels()
    index, inner = labels.stack([labels.fresh(3, "a"), labels.fresh(3, "b")])
    scaled = labels.rescaled(inner)
    first, second = (atom_of(labels.resolve(labels.select((index, scaled), 0, k)[0])) for k in (0, 1))
    assert first.scale and second.scale and first.scale != second.scale
    for atom in (first, second):
        assert {labels.scales.unit(var) for var, _ in atom.scale} == {atom.unit}


def test_a_choice_that_is_cut_keeps_what_is_known_of_it() -> None:
    labels = Labels()
    x = labels.fresh_input(3)
    _, inner = labels.stack([sum_of([labels.fresh(1, "a"), x]), sum_of([x, labels.fresh(1, "b")])])
    parts = labels.cut(inner, [2, 4])
    assert all(labels.is_pinned(part) for part in (*parts, inner, x))
