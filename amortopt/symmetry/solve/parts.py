"""Taking a dimension apart into others, and one index out of a dimension."""

from __future__ import annotations

from amortopt.symmetry.solve.dims import Atom, Dim, Dims, atoms_of, fixed, size_of, unit_of
from amortopt.symmetry.solve.owners import mix
from amortopt.symmetry.solve.ties import bind, lift, tie
from amortopt.symmetry.solve.variables import Variables


def split(variables: Variables, atom: Atom, size: int) -> tuple[Dim, Dim]:
    """Take an atom apart into ``size`` runs of equal length: an owner and what is nested in it."""
    units, inner = variables.units, atom.size // size
    if atom.unit is None:
        role = atom.role or "position"
        return fixed(size, role), fixed(inner, role)
    if units.is_input(atom):
        variables.pin(((atom,),), "taken apart")
        return variables.fresh_input(size), variables.fresh_input(inner)
    if units.choices(atom.unit):
        index = units.index(atom.unit)
        if index is not None and not units.chosen_by(atom.unit):
            # Taken apart at every index, so that other indices stay other units.
            return _tied_product(variables, (atom,), size, index)
        lift(variables, atom.unit, units.owner_of_choices(atom.unit))
        if (known := variables.resolve((atom,))) != (atom,):
            return _tied_product(variables, known, size)
    own = units.constrain(atom.unit)
    if variables.is_pinned((atom,)):
        return fixed(size, "position"), fixed(inner, "position")
    owner = units.new(size, own.origin, units.owner(atom.unit), own.permutable)
    run = units.new(inner, own.origin, owner, own.permutable)
    bind(variables, Atom(atom.size, atom.unit), (*variables.dim_of(owner), *variables.dim_of(run)), "")
    outer, nested = variables.resolve((atom,))
    return (outer,), (nested,)


def _tied_product(variables: Variables, dim: Dim, size: int, index: int | None = None) -> tuple[Dim, Dim]:
    """An owner, which may be nested in an index, and what is nested in it, made equal to a dimension."""
    owner = variables.fresh(size, "", owner=index)
    (atom,) = atoms_of(owner)
    run = variables.fresh(size_of(dim) // size, "", owner=atom.unit)
    tie(variables, (*owner, *run), dim, "taken apart")
    return owner, run


def select(variables: Variables, dims: Dims, axis: int, index: int) -> Dims:
    """Labels of a value's slice at one index of an axis, which is left out.

    What is nested in that axis becomes a choice: other units at every index.
    """
    units = variables.units
    dim = variables.resolve(dims[axis])
    rest = (*dims[:axis], *dims[axis + 1 :])
    along = unit_of(dim)
    if along is None:
        mix(variables, rest, (dim,))
        variables.pin((dim,), "selected from")
        return rest
    variables.pin((dim,), "selected from")
    while (unit := _not_chosen(variables, rest, along)) is not None:
        if units.choices(unit):
            lift(variables, unit, units.owner(along))
        else:
            variables.choose(unit, along)
    return tuple(variables.at(variables.resolve(other), along, index) for other in rest)


def _not_chosen(variables: Variables, dims: Dims, index: int) -> int | None:
    """The first units nested in those of an index, owners first, that are no choice over it."""
    units = variables.units
    for leaf in variables.leaves(*dims):
        own = units.owners(leaf.unit)
        nested = own[: own.index(index)] if index in own else []
        for unit in reversed(nested):
            if units.index(unit) != index:
                return unit
    return None


def stack(variables: Variables, parts: list[Dim]) -> tuple[Dim, Dim]:
    """An index and units that are a choice over it, from dimensions of equal size."""
    units = variables.units
    origin = next((units[unit].origin for part in parts for unit in variables.units_along(part)), "")
    index = units.new(len(parts), origin)
    units.constrain(index).permutable = False
    inner = variables.fresh(size_of(parts[0]), origin, owner=index)
    (atom,) = atoms_of(inner)
    assert atom.unit is not None
    variables.choose(atom.unit, index)
    for k, part in enumerate(parts):
        tie(variables, variables.at(inner, index, k), part, "")
    return variables.dim_of(index), inner


def number_of_choices(variables: Variables, dims: Dims, axis: int) -> int:
    """Over how many indices of an axis the other dimensions' units are a choice; 1 if they are not."""
    along = unit_of(dims[axis])
    if along is not None and any(variables.scales.reduce(atom.scale) for atom in atoms_of(dims[axis])):
        # A scale of the index would be lost.
        return 1
    others = [item for other, dim in enumerate(dims) if other != axis for item in dim]
    if along is None or not any(variables.is_chosen(item, along) for item in others):
        return 1
    return size_of(dims[axis])


def at_choice(variables: Variables, dims: Dims, axis: int, index: int) -> Dims:
    """The labels at one index of an axis that chooses; the axis itself stays, with one position."""
    along = unit_of(dims[axis])
    assert along is not None, "the axis has to choose"
    chosen = [variables.at(variables.resolve(dim), along, index) for dim in dims]
    chosen[axis] = fixed(1, "position")
    return tuple(chosen)
