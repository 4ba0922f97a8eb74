"""Which dimension of a value owns which: nested units only mean something beside the one that owns them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from amortopt.symmetry.solve.dims import Atom, Dim, Dims, Monomial, atoms_of, times, unscaled, with_scales
from amortopt.symmetry.solve.ties import lift
from amortopt.symmetry.solve.variables import Variables


def lift_by_one(variables: Variables, unit: int) -> None:
    """Let units be the same for all units of their owner."""
    owner = variables.units.owner(unit)
    lift(variables, unit, None if owner is None else variables.units.owner(owner))


def mix(variables: Variables, others: Dims, along: Dims) -> None:
    """Say that values at different places of ``along`` meet: nothing in ``others`` is nested in it."""
    while (unit := _nested(variables, others, along)) is not None:
        lift_by_one(variables, unit)


def _nested(variables: Variables, others: Dims, along: Dims) -> int | None:
    """The first units along ``others``, or owners of such, that are nested in units of ``along``."""
    owners = {atom.unit for atom in variables.leaves(*along)}
    leaves = variables.leaves(*others) if owners else []
    pairs = (pair for leaf in leaves for pair in pairwise(variables.units.owners(leaf.unit)))
    return next((unit for unit, owner in pairs if owner in owners), None)


def own_once(variables: Variables, dims: Dims) -> None:
    """Let nothing along a value's dimensions be nested in units that are not there, or twice."""
    units = variables.units
    while True:
        nested = {leaf.unit for leaf in variables.leaves(*dims) if len(units.owners(leaf.unit)) > 1}
        if not nested:
            return
        count = sum((_occurrences(variables, variables.resolve(dim)) for dim in dims), Counter[int]())
        pairs = (pair for unit in nested for pair in pairwise(units.owners(unit)))
        stray = next((unit for unit, owner in pairs if count[owner] != 1), None)
        if stray is None:
            return
        lift_by_one(variables, stray)


def _occurrences(variables: Variables, dim: Dim) -> Counter[int]:
    """How often units, choices too, are factors of a dimension, at most in any part of a sum."""
    count = Counter[int]()
    for item in dim:
        if isinstance(item, Atom):
            count.update(() if item.unit is None else (item.unit, *variables.units.choices(item.unit)))
        else:
            parts = Counter[int]()
            for part in item.parts:
                parts |= _occurrences(variables, part)
            count += parts
    return count


def align(variables: Variables, values: Sequence[Mapping[Any, Dim]]) -> None:
    """Say that dimensions with the same key in several values meet: what owns the units of one has to be, in
    all of these values, along dimensions of the same key too.
    """
    units = variables.units
    along = [{key: variables.units_at(dim) for key, dim in value.items()} for value in values]
    for key in dict.fromkeys(key for value in along for key in value):
        for unit in dict.fromkeys(unit for value in along for unit in value.get(key, ())):
            meeting = [value for value in along if unit in value.get(key, ())]
            for inner, owner in pairwise(units.owners(unit)):
                places = [{other for other, there in value.items() if owner in there} for value in meeting]
                if any(there != places[0] for there in places):
                    lift_by_one(variables, inner)
                    # Owners are others now.
                    align(variables, values)
                    return


def even(variables: Variables, dims: Dims, axes: Sequence[int]) -> Dims:
    """Let what a value is multiplied by be the same all along some of its axes; the labels then.

    Nested units may still have a scale in common, that of their owner.
    """
    dims = tuple(variables.resolve(dim) for dim in dims)
    others = tuple(dim for axis, dim in enumerate(dims) if axis not in axes)
    owners = {leaf.unit for leaf in variables.leaves(*others) if leaf.unit is not None}
    for leaf in variables.leaves(*(dims[axis] for axis in axes)):
        assert leaf.unit is not None
        variables.units.constrain(leaf.unit)
    moved: dict[int, Monomial] = {}
    for axis in axes:
        moved = _both(moved, _common(variables, dims[axis], owners))
    return tuple(unscaled(dim) if axis in axes else _multiplied(dim, moved) for axis, dim in enumerate(dims))


def _common(variables: Variables, dim: Dim, owners: set[int]) -> dict[int, Monomial]:
    """What is left of the scales along a dimension: owner -> what all units of a run are multiplied by."""
    found: dict[int, Monomial] = {}
    for item in dim:
        if isinstance(item, Atom):
            found = _both(found, _common_of_atom(variables, item, owners))
            continue
        first, *rest = [_common(variables, part, owners) for part in item.parts]
        for other in rest:
            for owner in first.keys() | other.keys():
                along = variables.units.owners(owner)
                variables.scales.tie(first.get(owner, ()), other.get(owner, ()), "sum", along)
        found = _both(found, first)
    return found


def _common_of_atom(variables: Variables, atom: Atom, owners: set[int]) -> dict[int, Monomial]:
    own = variables.units.owners(atom.unit)
    owner = next((unit for unit in own[1:] if unit in owners), None)
    # What is other units at every index has no scale of all of them.
    chosen = bool(variables.units.choices(atom.unit))
    if atom.unit is None or owner is None or chosen or not variables.scales.reduce(atom.scale):
        variables.limit(((atom,),), "none", "sum")
        return {}
    return {owner: variables.common_scale(atom.unit, atom.scale, owner)}


def _both(some: dict[int, Monomial], others: dict[int, Monomial]) -> dict[int, Monomial]:
    return {owner: times(some.get(owner, ()), others.get(owner, ())) for owner in {**some, **others}}


def _multiplied(dim: Dim, factors: dict[int, Monomial]) -> Dim:
    scales = [times(a.scale, () if a.unit is None else factors.get(a.unit, ())) for a in atoms_of(dim)]
    return with_scales(dim, iter(scales))
