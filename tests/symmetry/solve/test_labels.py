"""What rules can ask and say about dimensions: ties, limits, parts."""

from __future__ import annotations

import random

import pytest

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.solve.dims import Atom, Sum, fixed, size_of, sum_of, with_exponent
from amortopt.symmetry.solve.labels import Labels
from tests.symmetry.solve.labels import atom_of, kinds, owned, unit_of_dim

# Ties


def test_ties_are_symmetric() -> None:
    for turned in (False, True):
        labels = Labels()
        a, b = labels.fresh(4, "a", "positive"), labels.fresh(4, "b")
        labels.freeze((b,))
        labels.tie(*((b, a) if turned else (a, b)))
        assert labels.resolve(a) == labels.resolve(b)
        assert not labels.permutable(unit_of_dim(labels, a))
        assert kinds(labels, a) == [["positive"]]


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
    assert labels.origin(unit_of_dim(labels, constant)) == "a"


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
    assert unit_of_dim(labels, a) == unit_of_dim(labels, b)
    assert atom_of(labels.resolve(a)).scale != atom_of(labels.resolve(b)).scale


def test_scales_of_a_product_are_multiplied() -> None:
    labels = Labels()
    a, b = labels.fresh(4, "a"), labels.fresh(4, "b")
    scales = dict(atom_of(a).scale), dict(atom_of(b).scale)
    assert dict(atom_of(labels.product(a, b)).scale) == {**scales[0], **scales[1]}


# Limits


def test_a_limit_leaves_permutations_and_freezing_leaves_scales() -> None:
    labels = Labels()
    a, b, c = (labels.fresh(4, name) for name in "abc")
    labels.limit((a,), "none")
    labels.freeze((b,))
    labels.pin((c,))
    assert [labels.permutable(unit_of_dim(labels, dim)) for dim in (a, b, c)] == [True, False, False]
    assert [kinds(labels, dim) for dim in (a, b, c)] == [[[]], [["free"]], [[]]]
    assert [labels.is_pinned(dim) for dim in (a, b, c)] == [False, False, True]


def test_inputs_are_pinned_and_keep_their_name() -> None:
    labels = Labels()
    x, a = labels.fresh_input(4), labels.fresh(4, "a")
    labels.tie(x, a)
    labels.mark_output((a,))
    assert labels.is_pinned(a)
    assert labels.origin(unit_of_dim(labels, a)) == "input"


@pytest.mark.parametrize("seed", range(60))
def test_no_constraint_gives_freedom_back(seed: int) -> None:
    r, labels = random.Random(seed), Labels()
    dims = [labels.fresh(r.choice([4, 4, 6]), str(k)) for k in range(6)]
    dims += [(*dims[0], *owned(labels, dims[0], 2))]
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
    assert kinds(labels, a) == [["positive"]] * 3


def test_parts_of_what_is_frozen_are_frozen() -> None:
    labels = Labels()
    a = labels.fresh(6, "a")
    labels.freeze((a,))
    assert not any(labels.permutable(unit_of_dim(labels, part)) for part in labels.cut(a, [2, 6]))


def test_what_is_pinned_is_cut_into_positions() -> None:
    labels = Labels()
    a = labels.fresh(6, "a")
    labels.pin((a,))
    assert labels.cut(a, [2, 6]) == [fixed(2, "position"), fixed(4, "position")]


def test_what_is_split_is_an_owner_times_its_runs() -> None:
    labels = Labels()
    a = labels.fresh(6, "a")
    outer, inner = labels.split(atom_of(a), 2)
    assert labels.resolve(a) == (*outer, *inner)
    assert labels.owner(unit_of_dim(labels, inner)) == unit_of_dim(labels, outer)
    assert (labels.size(unit_of_dim(labels, outer)), labels.size(unit_of_dim(labels, inner))) == (2, 3)


def test_a_scaled_input_that_is_split_has_no_scale_any_more() -> None:
    labels = Labels()
    scaled = labels.rescaled(labels.fresh_input(6))
    labels.split(atom_of(scaled), 2)
    assert labels.is_pinned(scaled)


def test_a_dimension_of_one_position_is_a_part_of_a_sum() -> None:
    assert sum_of([(), ()]) == fixed(2, "position")
