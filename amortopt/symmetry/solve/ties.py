"""Making dimensions equal: which variable gives way, and what that means for owners, choices and scales.

Two dimensions are equal if they are made of the same units in the same order, with the same scales. They are
brought there segment by segment: a variable is united with another one, or bound to a dimension of several;
sums are cut until their parts agree. What cannot be brought there is pinned.
"""

from __future__ import annotations

from amortopt.symmetry.solve.dims import (
    Atom,
    Dim,
    Item,
    Sum,
    as_sum,
    atoms_of,
    ends_of,
    essential,
    fixed,
    is_fixed,
    power,
    size_of,
    sum_of,
    times,
    units_only,
    unscaled,
    with_scales,
)
from amortopt.symmetry.solve.variables import Variables


def tie(variables: Variables, follower: Dim, leader: Dim, reason: str) -> None:
    """Make two dimensions of equal size move alike; where there is a choice, ``follower`` gives way."""
    left, right = (_without_ones(variables, variables.resolve(dim)) for dim in (follower, leader))
    assert size_of(tuple(left)) == size_of(tuple(right)), "tied dimensions must have equal sizes"
    if not left or not right:
        variables.pin((tuple(left), tuple(right)), reason)
    while left and right:
        first, second = _segments(left, right)
        # An earlier segment may have replaced a variable of this one.
        _tie_segments(variables, variables.resolve(first), variables.resolve(second), reason)


def _without_ones(variables: Variables, dim: Dim) -> list[Item]:
    """The items longer than one position, if there are any; single units beside them may not move."""
    items = essential(dim)
    if size_of(items) == 1:
        return list(items)
    for item in items:
        if isinstance(item, Atom) and item.size == 1 and item.unit is not None:
            variables.pin(((item,),), "")
    return [item for item in items if item.size != 1]


def product(variables: Variables, left: Dim, right: Dim, reason: str) -> Dim:
    """The dimension of an elementwise product: units tied, scales multiplied."""
    tie(variables, unscaled(left), unscaled(right), reason)
    x, y = (tuple(_without_ones(variables, variables.resolve(dim))) for dim in (left, right))
    if units_only(x) != units_only(y):
        variables.pin((x, y), reason)
        return x if not is_fixed(x) else y
    scales = [times(a.scale, b.scale) for a, b in zip(atoms_of(x), atoms_of(y), strict=True)]
    return with_scales(x, iter(scales))


# Segments and items


def _segments(left: list[Item], right: list[Item]) -> tuple[Dim, Dim]:
    """Take the shortest prefixes of equal size off both lists; what remains at the end has size one."""
    first, second = left[:1], right[:1]
    del left[:1], right[:1]
    while (have := size_of(tuple(first))) != (want := size_of(tuple(second))):
        source, taken = (left, first) if have < want else (right, second)
        taken.append(source.pop(0))
    if not left or not right:
        first.extend(left)
        second.extend(right)
        left.clear()
        right.clear()
    return tuple(first), tuple(second)


def _tie_segments(variables: Variables, first: Dim, second: Dim, reason: str) -> None:
    if len(first) == 1 and len(second) == 1:
        _tie_items(variables, first[0], second[0], reason)
    elif len(first) == 1 and isinstance(first[0], Atom) and first[0].unit is not None:
        bind(variables, first[0], second, reason)
    elif len(second) == 1 and isinstance(second[0], Atom) and second[0].unit is not None:
        bind(variables, second[0], first, reason)
    elif (left := as_sum(first)) is not None and (right := as_sum(second)) is not None:
        _tie_sums(variables, left, right, reason)
    else:
        variables.pin((first, second), reason)


def _tie_items(variables: Variables, first: Item, second: Item, reason: str) -> None:
    if isinstance(first, Atom) and isinstance(second, Atom) and None not in (first.unit, second.unit):
        _tie_atoms(variables, first, second, reason)
    elif isinstance(first, Atom) and first.unit is not None:
        bind(variables, first, (second,), reason)
    elif isinstance(second, Atom) and second.unit is not None:
        bind(variables, second, (first,), reason)
    elif isinstance(first, Sum) and isinstance(second, Sum):
        _tie_sums(variables, first, second, reason)
    else:
        # A fixed atom on at least one side.
        variables.pin(((first,), (second,)), reason)


def _tie_sums(variables: Variables, first: Sum, second: Sum, reason: str) -> None:
    cuts = sorted({*ends_of(first), *ends_of(second)})
    left, right = (cut(variables, (total,), cuts) for total in (first, second))
    for a, b in zip(left, right, strict=True):
        tie(variables, a, b, reason)


def _tie_atoms(variables: Variables, first: Atom, second: Atom, reason: str) -> None:
    u, v = first.unit, second.unit
    assert u is not None and v is not None
    for unit in (u, v):
        variables.units.constrain(unit)
    if u != v:
        if variables.units.choices(u) or variables.units.choices(v):
            _tie_choices(variables, first, second, reason)
            return
        _unite(variables, u, v)
    _tie_scales(variables, (first,), (second,), reason)


def _tie_scales(variables: Variables, first: Dim, second: Dim, reason: str) -> None:
    x, y = variables.resolve(first), variables.resolve(second)
    if units_only(x) != units_only(y):
        variables.pin((x, y), reason)
        return
    for a, b in zip(atoms_of(x), atoms_of(y), strict=True):
        if choices := variables.units.choices(a.unit):
            _tie_at_every_index(variables, a, b, len(choices), reason)
        else:
            variables.scales.tie(a.scale, b.scale, reason, variables.units.owners(a.unit))


def _tie_at_every_index(variables: Variables, first: Atom, second: Atom, count: int, reason: str) -> None:
    """Tie the scales of two atoms of a choice; what stands for all of them is left as it is."""
    index = variables.units.index(first.unit)
    for k in range(count):
        one, other = (variables.at((atom,), index, k) for atom in (first, second))
        _tie_scales(variables, one, other, reason)


# Variables


def _unite(variables: Variables, u: int, v: int) -> None:
    """Make u stand for v, nested in what both are nested in; inputs keep their name."""
    units = variables.units
    if units[u].origin == "input":
        u, v = v, u
    mine, theirs = units.owner(u), units.owner(v)
    if mine != theirs:
        common = next((owner for owner in units.owners(mine) if owner in units.owners(theirs)), None)
        for unit in (u, v):
            if units.owner(unit) != common:
                lift(variables, unit, common)
    units[v].permutable &= units[u].permutable
    if units[v].origin == "constant":
        units[v].origin = units[u].origin
    units.bind(u, variables.dim_of(v))
    variables.move_scales(u, v)


def bind(variables: Variables, atom: Atom, target: Dim, reason: str) -> None:
    """Replace a unit variable by a dimension of others."""
    units, unit = variables.units, atom.unit
    assert unit is not None
    units.constrain(unit)
    if unit in variables.units_along(target):
        variables.pin(((atom,), target), reason)
        return
    chosen = units.chosen_by(unit)
    if units.choices(unit) and not chosen and _chosen_alike(variables, unit, target):
        index = units.index(unit)
        for k in range(len(units.choices(unit))):
            tie(variables, variables.at((atom,), index, k), variables.at(target, index, k), reason)
        return
    if units.choices(unit) or chosen:
        if units.choices(unit):
            lift(variables, unit, units.owner_of_choices(unit))
        for other in chosen:
            lift(variables, other, units.owner(unit))
        # What is alike at every index may have replaced variables here.
        tie(variables, (atom,), target, reason)
        return
    if not units[unit].permutable:
        variables.freeze((target,))
    for other in variables.leaves(target):
        assert other.unit is not None
        units.constrain(other.unit)
    variables.no_common_scale(unit)
    units.bind(unit, unscaled(target))
    _share_scales(variables, atom, target, reason)
    _tie_scales(variables, (atom,), target, reason)


def _chosen_alike(variables: Variables, unit: int, target: Dim) -> bool:
    """Let the units of a dimension be a choice over the same index, if they are nested in it."""
    units, index = variables.units, variables.units.index(unit)
    atoms = list(atoms_of(target))
    if index is None or not all(
        a.unit is not None and (units.index(a.unit) == index or index in units.owners(a.unit)[1:])
        for a in atoms
    ):
        return False
    for atom in reversed(atoms):
        assert atom.unit is not None
        if not units.choices(atom.unit):
            variables.choose(atom.unit, index)
    return all(units.index(atom.unit) == index for atom in atoms)


def _share_scales(variables: Variables, atom: Atom, target: Dim, reason: str) -> None:
    """Say what the scales over a bound variable are along its target: the target's own, or new ones."""
    assert atom.unit is not None
    scales = variables.scales
    given = scales.reduce(atom.scale)
    for var in scales.over(atom.unit):
        if len(given) == 1 and given[0] in ((var, 1), (var, -1)):
            shares = [power(part.scale, given[0][1]) for part in atoms_of(target)]
        else:
            shares = [part.scale for part in atoms_of(variables.rescaled(target, scales.kind(var)))]
        scales.share(var, shares)
        if len(shares) == 1:
            assert is_fixed(target), "a variable is bound to another one by uniting them"
            scales.limit(((var, 1),), "none", reason)
        variables.limit((with_scales(target, iter(shares)),), scales.kind(var), scales.reason(var))


def lift(variables: Variables, unit: int, owner: int | None) -> None:
    """Let units be the same for all of their owners up to ``owner``, and so at every index."""
    units, scales = variables.units, variables.scales
    variables.no_common_scale(unit)
    choices = units.forget_choices(unit)
    units.constrain(unit).owner = owner
    for var in scales.over(unit):
        for choice, own in zip(choices, scales.forget_choices(var), strict=False):
            tie(variables, variables.dim_of(choice, ((own, 1),)), variables.dim_of(unit, ((var, 1),)), "")
    for choice in choices:
        tie(variables, variables.dim_of(choice), variables.dim_of(unit), "")


def _tie_choices(variables: Variables, first: Atom, second: Atom, reason: str) -> None:
    """Tie two atoms, one or both of them a choice, at every index."""
    units = variables.units
    u, v = (first.unit, second.unit) if units.choices(first.unit) else (second.unit, first.unit)
    assert u is not None and v is not None
    index = units.index(u)
    if not units.choices(v) and index is not None and index in units.owners(v)[1:]:
        variables.choose(v, index)
    for k in range(len(units.choices(u))):
        tie(variables, variables.at((first,), index, k), variables.at((second,), index, k), reason)


# Cutting


def cut(variables: Variables, dim: Dim, cuts: list[int]) -> list[Dim]:
    """Take a dimension apart after the given numbers of positions, the last one being its size.

    Units that are cut become several kinds of units.
    """
    dim = variables.resolve(dim)
    total = as_sum(dim)
    if total is not None:
        return _cut_sum(variables, total, cuts)
    sizes = [stop - start for start, stop in zip([0, *cuts], cuts, strict=False)]
    if len(sizes) == 1:
        return [dim]
    atom = dim[0]
    if len(dim) == 1 and isinstance(atom, Atom) and atom.unit is not None and not variables.is_pinned(dim):
        _partition(variables, atom.unit, sizes)
        return cut(variables, (atom,), cuts)
    inputs = any(variables.units.is_input(item) for item in dim)
    variables.pin((dim,), "taken apart")
    return [variables.fresh_input(size) if inputs else fixed(size, "position") for size in sizes]


def _cut_sum(variables: Variables, total: Sum, cuts: list[int]) -> list[Dim]:
    found: list[Dim] = []
    pieces: list[Dim] = []
    start = position = 0
    inner = sorted({*cuts, *ends_of(total)})
    for part in total.parts:
        stop = start + size_of(part)
        for piece in cut(variables, part, [at - start for at in inner if start < at <= stop]):
            pieces.append(piece)
            position += size_of(piece)
            if position in cuts:
                found.append(sum_of(pieces))
                pieces = []
        start = stop
    return found


def _partition(variables: Variables, unit: int, sizes: list[int]) -> None:
    """Let units be several kinds of units one after the other, unless they turn out to be something else."""
    units = variables.units
    if units.choices(unit):
        lift(variables, unit, units.owner_of_choices(unit))
        if units.target(unit) is not None:
            return
    own = units.constrain(unit)
    parts = [variables.dim_of(units.new(size, own.origin, own.owner, own.permutable)) for size in sizes]
    bind(variables, Atom(own.size, unit), (Sum(tuple(parts)),), "")
    for (atom,) in parts:
        # Whether each of them is used is not known yet.
        assert isinstance(atom, Atom) and atom.unit is not None
        units[atom.unit].constrained = False
