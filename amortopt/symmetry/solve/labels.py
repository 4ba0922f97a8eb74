"""What every dimension of every intermediate value is made of, and the constraints found so far.

The invariant that every rule keeps: when the parameters are moved by an element, an intermediate value moves
by exactly what its labels say, permuted by its units and multiplied by its scales.

Variables begin with everything allowed and only ever lose freedom, so too many constraints make the answer
smaller, never wrong.

Two dimensions are equal if they are made of the same units in the same order, with the same scales. `tie`
brings them there segment by segment: a variable is united with another one, or bound to a dimension of
several; sums are cut until their parts agree. What cannot be brought there is pinned.

Units may be nested: each unit of an owner has its own run of them (the channels of a head), with a
permutation per run. Labels of nested units are only defined beside those of their owner, in the same value.
Where runs are taken apart one by one (queries, keys and values out of one product), the owner becomes an
index and the nested units a choice: other units for every index.

Examples:
    ``W2 relu(W1 x)`` with 4 inputs, 3 hidden units and 2 outputs. All four dimensions of the weights begin as
    units of their own:

    >>> from amortopt.symmetry.solve.dims import with_exponent
    >>> labels = Labels()
    >>> x = labels.fresh_input(4)
    >>> hidden, columns1 = labels.fresh(3, "W1"), labels.fresh(4, "W1")
    >>> out, columns2 = labels.fresh(2, "W2"), labels.fresh(3, "W2")

    ``W1 x``: the columns of W1 meet the inputs, with the opposite scale. The result has the units of W1's
    rows, which relu lets have positive scales only:

    >>> labels.tie(columns1, with_exponent(x, -1))
    >>> labels.limit((hidden,), "positive")

    ``W2 h``: the columns of W2 become the hidden units, with exponent -1. The outputs are pinned:

    >>> labels.tie(columns2, with_exponent(hidden, -1))
    >>> labels.mark_output((out,))

    What is left is a permutation of 3 hidden units with positive scales q: rows of W1 times q, columns of
    W2 times 1 / q.

    >>> (unit,) = {labels.unit_of(hidden), labels.unit_of(columns2)}
    >>> labels.size(unit), labels.permutable(unit), [labels.is_pinned(dim) for dim in (columns1, out)]
    (3, True, [True, True])
    >>> (rows,), (columns,) = labels.resolve(hidden), labels.resolve(columns2)
    >>> times(rows.scale, columns.scale), labels.scales.kind(rows.scale[0][0])
    ((), 'positive')
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from amortopt.symmetry.axes import ScaleKind, meet
from amortopt.symmetry.solve.dims import (
    Atom,
    Dim,
    Dims,
    Item,
    Monomial,
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
    unit_of,
    units_only,
    unscaled,
    with_scales,
)
from amortopt.symmetry.solve.variables import Variables


class Labels(Variables):
    """Variables with all that a rule may state about dimensions: equal, nested, taken apart."""

    def unscaled(self, dim: Dim) -> Dim:
        """The same units without scales."""
        return unscaled(dim)

    def mark_output(self, dims: Dims) -> None:
        """Name what the network returns, with nothing allowed; inputs that are passed on keep their name."""
        self.pin(dims)
        for unit in self.variables(*dims):
            if self.origin(unit) != "input":
                self.units[unit].origin = "output"

    # Equal dimensions

    def tie(self, follower: Dim, leader: Dim, reason: str = "") -> None:
        """Make two dimensions of equal size move alike; where there is a choice, ``follower`` gives way."""
        left, right = (self._without_ones(self.resolve(dim)) for dim in (follower, leader))
        assert size_of(tuple(left)) == size_of(tuple(right)), "tied dimensions must have equal sizes"
        if not left or not right:
            self.pin((tuple(left), tuple(right)), reason)
        while left and right:
            # The shortest prefixes of equal size: (6, 4) and (2, 3, 4) -> (6) with (2, 3), then (4) with (4).
            first, second = [left.pop(0)], [right.pop(0)]
            while (size := size_of(tuple(first))) != (other := size_of(tuple(second))):
                source, taken = (left, first) if size < other else (right, second)
                taken.append(source.pop(0))
            if not left or not right:
                # What remains has size one.
                first, second = [*first, *left], [*second, *right]
                left, right = [], []
            # An earlier segment may have replaced a variable of this one.
            self._tie_segments(self.resolve(tuple(first)), self.resolve(tuple(second)), reason)

    def tie_units(self, left: Dim, right: Dim, reason: str = "") -> None:
        """Make two dimensions' units be permuted alike; scales stay apart."""
        self.tie(unscaled(left), unscaled(right), reason)

    def product(self, left: Dim, right: Dim, reason: str = "") -> Dim:
        """The dimension of an elementwise product: units tied, scales multiplied."""
        self.tie_units(left, right, reason)
        x, y = (tuple(self._without_ones(self.resolve(dim))) for dim in (left, right))
        if units_only(x) != units_only(y):
            self.pin((x, y), reason)
            return x if not is_fixed(x) else y
        scales = [times(a.scale, b.scale) for a, b in zip(atoms_of(x), atoms_of(y), strict=True)]
        return with_scales(x, iter(scales))

    def _without_ones(self, dim: Dim) -> list[Item]:
        """The items longer than one position, if there are any; single units beside them may not move."""
        items = essential(dim)
        if size_of(items) == 1:
            return list(items)
        for item in items:
            if isinstance(item, Atom) and item.size == 1 and item.unit is not None:
                self.pin(((item,),))
        return [item for item in items if item.size != 1]

    def _tie_segments(self, first: Dim, second: Dim, reason: str) -> None:
        u, v = unit_of(first), unit_of(second)
        if u is not None and v is not None:
            for unit in (u, v):
                self.constrain(unit)
            if u != v and (self.choices(u) or self.choices(v)):
                # At every index. A variable nested in the same index becomes a choice over it too.
                chosen, other = (u, v) if self.choices(u) else (v, u)
                index = self.index(chosen)
                if not self.choices(other) and index is not None and index in self.owners(other)[1:]:
                    self.choose(other, index)
                for k in range(len(self.choices(chosen))):
                    self.tie(self.at(first, index, k), self.at(second, index, k), reason)
                return
            if u != v:
                self._unite(u, v)
            self._tie_scales(first, second, reason)
        elif u is not None:
            self._bind(u, first, second, reason)
        elif v is not None:
            self._bind(v, second, first, reason)
        elif (left := as_sum(first)) is not None and (right := as_sum(second)) is not None:
            cuts = sorted({*ends_of(left), *ends_of(right)})
            parts, others = self.cut((left,), cuts), self.cut((right,), cuts)
            for part, other in zip(parts, others, strict=True):
                self.tie(part, other, reason)
        else:
            self.pin((first, second), reason)

    def _tie_scales(self, first: Dim, second: Dim, reason: str) -> None:
        x, y = self.resolve(first), self.resolve(second)
        if units_only(x) != units_only(y):
            self.pin((x, y), reason)
            return
        for a, b in zip(atoms_of(x), atoms_of(y), strict=True):
            if choices := self.choices(a.unit):
                # At every index; the scale that stands for all of them is left as it is.
                index = self.index(a.unit)
                for k in range(len(choices)):
                    self._tie_scales(self.at((a,), index, k), self.at((b,), index, k), reason)
            else:
                self.scales.tie(a.scale, b.scale, reason, self.owners(a.unit))

    def _unite(self, u: int, v: int) -> None:
        """Bind u to v, nested in what both are nested in; inputs keep their name."""
        if self.origin(u) == "input":
            u, v = v, u
        owner, other = self.owner(u), self.owner(v)
        if owner != other:
            common = next((above for above in self.owners(owner) if above in self.owners(other)), None)
            for unit in (u, v):
                if self.owner(unit) != common:
                    self._lift_to(unit, common)
        self.units[v].permutable &= self.units[u].permutable
        if self.origin(v) == "constant":
            self.units[v].origin = self.origin(u)
        self._bound[u] = self.dim_of(v)
        self.scales.move(u, v)
        if u in self._sharing:
            self._sharing.add(v)

    def _bind(self, unit: int, dim: Dim, target: Dim, reason: str) -> None:
        """Replace a unit variable by a dimension of others.

        Args:
            unit: The variable.
            dim: Its dimension, with scales.
            target: What it becomes, with the scales that ``dim`` is tied to.
            reason: What requires it.
        """
        self.constrain(unit)
        if unit in self.variables(target):
            self.pin((dim, target), reason)
            return
        chosen = self.chosen_by(unit)
        if self.choices(unit) and not chosen and self._chosen_alike(unit, target):
            index = self.index(unit)
            for k in range(len(self.choices(unit))):
                self.tie(self.at(dim, index, k), self.at(target, index, k), reason)
            return
        if self.choices(unit) or chosen:
            self._forget_choices(unit)
            for other in chosen:
                self._lift_to(other, self.owner(unit))
            # Making indices alike may have replaced variables here.
            self.tie(dim, target, reason)
            return
        if not self.permutable(unit):
            self.freeze((target,))
        self.use((target,))
        self.give_up_shared_scale(unit)
        self._bound[unit] = unscaled(target)
        # Along the target, a variable's scale is the target's, if it is tied to that alone, or new.
        (atom,) = atoms_of(dim)
        scale = self.scales.reduce(atom.scale)
        for var in self.scales.over(unit):
            if len(scale) == 1 and scale[0] in ((var, 1), (var, -1)):
                shares = [power(part.scale, scale[0][1]) for part in atoms_of(target)]
            else:
                shares = [part.scale for part in atoms_of(self.rescaled(target, self.scales.kind(var)))]
            self.scales.share(var, shares)
            if len(shares) == 1:
                assert is_fixed(target), "a variable is bound to another one by uniting them"
                self.scales.limit(((var, 1),), "none", reason)
            shared = with_scales(target, iter(shares))
            self.limit((shared,), self.scales.kind(var), self.scales.reason(var))
        self._tie_scales(dim, target, reason)

    def _chosen_alike(self, unit: int, target: Dim) -> bool:
        """Let the units of a dimension be a choice over the same index, if they are nested in it."""
        index, atoms = self.index(unit), list(atoms_of(target))
        if index is None or not all(
            atom.unit is not None and (self.index(atom.unit) == index or index in self.owners(atom.unit)[1:])
            for atom in atoms
        ):
            return False
        for atom in reversed(atoms):
            assert atom.unit is not None
            if not self.choices(atom.unit):
                self.choose(atom.unit, index)
        return all(self.index(atom.unit) == index for atom in atoms)

    # Nested units

    def nest(self, dims: Dims) -> None:
        """Nest units in those of the first dimension, as far as no constraint has met them yet."""
        first, *rest = (dim[0] if len(dim) == 1 else None for dim in dims)
        if not isinstance(first, Atom) or first.unit is None or self.target(first.unit) is not None:
            return
        for item in rest:
            unit = item.unit if isinstance(item, Atom) else None
            if unit is not None and unit not in self.owners(first.unit):
                facts = self.units[unit]
                if not facts.constrained and facts.owner is None:
                    facts.owner = first.unit

    def lift(self, unit: int) -> None:
        """Let units be the same for all units of their owner."""
        self._lift_to(unit, self.owner(self.owner(unit)))

    def _lift_to(self, unit: int, owner: int | None) -> None:
        """Let units be the same for all of their owners up to ``owner``, and so at every index."""
        self.give_up_shared_scale(unit)
        _, choices = self._choices.pop(unit, (None, ()))
        self.constrain(unit).owner = owner
        for var in self.scales.over(unit):
            for choice, scale in zip(choices, self.scales.forget_choices(var), strict=False):
                self.tie(self.dim_of(choice, ((scale, 1),)), self.dim_of(unit, ((var, 1),)))
        for choice in choices:
            self.tie(self.dim_of(choice), self.dim_of(unit))

    def _forget_choices(self, unit: int) -> None:
        """Let the units of a choice be the same at every index: nested in what owns the index."""
        if self.choices(unit):
            self._lift_to(unit, self.owner(self.index(unit)))

    def mix(self, others: Dims, along: Dims) -> None:
        """Let nothing in ``others`` be nested in ``along``, across whose places an operation mixes values."""
        while True:
            owners = {atom.unit for atom in self.leaves(*along)}
            leaves = self.leaves(*others) if owners else []
            pairs = (pair for leaf in leaves for pair in pairwise(self.owners(leaf.unit)))
            unit = next((unit for unit, owner in pairs if owner in owners), None)
            if unit is None:
                return
            self.lift(unit)

    def own_once(self, dims: Dims) -> None:
        """Lift units whose owner is not, or more than once, among a value's dimensions."""
        while True:
            nested = {leaf.unit for leaf in self.leaves(*dims) if len(self.owners(leaf.unit)) > 1}
            if not nested:
                return
            count = sum((self._occurrences(self.resolve(dim)) for dim in dims), Counter[int]())
            pairs = (pair for unit in nested for pair in pairwise(self.owners(unit)))
            stray = next((unit for unit, owner in pairs if count[owner] != 1), None)
            if stray is None:
                return
            self.lift(stray)

    def _occurrences(self, dim: Dim) -> Counter[int]:
        """How often units, choices too, are factors of a dimension, at most in any part of a sum."""
        count = Counter[int]()
        for item in dim:
            if isinstance(item, Atom):
                count.update(() if item.unit is None else (item.unit, *self.choices(item.unit)))
            else:
                parts = Counter[int]()
                for part in item.parts:
                    parts |= self._occurrences(part)
                count += parts
        return count

    def align(self, *values: Mapping[Any, Dim]) -> None:
        """Let dimensions with the same key in several values have the same owners.

        What owns the units of one has to be, in all of these values, along dimensions of the same key too.
        """
        along = [
            {key: {leaf.unit for leaf in self.leaves(dim)} for key, dim in value.items()} for value in values
        ]
        for key in dict.fromkeys(key for value in along for key in value):
            for unit in dict.fromkeys(unit for value in along for unit in value.get(key, ())):
                meeting = [value for value in along if unit in value.get(key, ())]
                for inner, owner in pairwise(self.owners(unit)):
                    keys = [{other for other, units in value.items() if owner in units} for value in meeting]
                    if any(other != keys[0] for other in keys):
                        self.lift(inner)
                        # Owners are others now.
                        self.align(*values)
                        return

    def even(self, dims: Dims, axes: Sequence[int]) -> Dims:
        """Let what a value is multiplied by be the same all along some of its axes.

        Units nested in those of another axis may keep a scale per run, which becomes one of their owner.

        Returns:
            The labels with the axes unscaled and the scales of runs moved to the owners.
        """
        dims = tuple(self.resolve(dim) for dim in dims)
        others = tuple(dim for axis, dim in enumerate(dims) if axis not in axes)
        owners = {leaf.unit for leaf in self.leaves(*others) if leaf.unit is not None}
        self.use(tuple(dims[axis] for axis in axes))
        moved: dict[int, Monomial] = {}
        for axis in axes:
            moved = _multiplied(moved, self._scales_of_runs(dims[axis], owners))
        result: list[Dim] = []
        for axis, dim in enumerate(dims):
            scales = [times(a.scale, () if a.unit is None else moved.get(a.unit, ())) for a in atoms_of(dim)]
            result.append(unscaled(dim) if axis in axes else with_scales(dim, iter(scales)))
        return tuple(result)

    def _scales_of_runs(self, dim: Dim, owners: set[int]) -> dict[int, Monomial]:
        """Make scales along a dimension constant: owner -> what all units of a run are multiplied by."""
        moved: dict[int, Monomial] = {}
        for item in dim:
            if isinstance(item, Sum):
                first, *rest = [self._scales_of_runs(part, owners) for part in item.parts]
                for other in rest:
                    for owner in first.keys() | other.keys():
                        scales = first.get(owner, ()), other.get(owner, ())
                        self.scales.tie(*scales, "sum", self.owners(owner))
                moved = _multiplied(moved, first)
                continue
            chain, live = self.owners(item.unit), self.scales.reduce(item.scale)
            owner = next((unit for unit in chain[1:] if unit in owners), None)
            # Units that are others at every index have no scale in common.
            if owner is None or self.choices(item.unit) or not live:
                self.limit(((item,),), "none", "sum")
                continue
            kinds: list[ScaleKind] = [self.scales.kind(var) for var, _ in live]
            shared = ((self.scales.fresh(owner, meet(*kinds)), 1),)
            self.scales.tie(item.scale, shared, "", chain)
            self._sharing.add(owner)
            moved = _multiplied(moved, {owner: shared})
        return moved

    # Parts

    def cut(self, dim: Dim, cuts: list[int]) -> list[Dim]:
        """Take a dimension apart after the given numbers of positions, the last one being its size.

        Units that are cut become several kinds of units.
        """
        dim = self.resolve(dim)
        if (total := as_sum(dim)) is not None:
            # Parts are cut at all ends, then joined again between the cuts.
            result: list[Dim] = []
            pieces: list[Dim] = []
            start = position = 0
            inner = sorted({*cuts, *ends_of(total)})
            for part in total.parts:
                stop = start + size_of(part)
                for piece in self.cut(part, [at - start for at in inner if start < at <= stop]):
                    pieces.append(piece)
                    position += size_of(piece)
                    if position in cuts:
                        result.append(sum_of(pieces))
                        pieces = []
                start = stop
            return result
        sizes = [stop - start for start, stop in zip([0, *cuts], cuts, strict=False)]
        if len(sizes) == 1:
            return [dim]
        if (unit := unit_of(dim)) is not None and not self.is_pinned(dim):
            self._forget_choices(unit)
            if self.target(unit) is None:
                facts = self.constrain(unit)
                kinds = [self.new_unit(n, facts.origin, facts.owner, facts.permutable) for n in sizes]
                self._bind(unit, self.dim_of(unit), (Sum(tuple(map(self.dim_of, kinds))),), "")
                for kind in kinds:
                    # Whether each of them is used is not known yet.
                    self.units[kind].constrained = False
            return self.cut(dim, cuts)
        inputs = any(self.is_input(item) for item in dim)
        self.pin((dim,), "taken apart")
        return [self.fresh_input(size) if inputs else fixed(size, "position") for size in sizes]

    def split(self, atom: Atom, size: int) -> tuple[Dim, Dim]:
        """Take an atom apart into ``size`` runs of equal length: an owner and what is nested in it."""
        inner = atom.size // size
        if atom.unit is None:
            role = atom.role or "position"
            return fixed(size, role), fixed(inner, role)
        if self.is_input(atom):
            self.pin(((atom,),), "taken apart")
            return self.fresh_input(size), self.fresh_input(inner)
        if self.choices(atom.unit):
            index = self.index(atom.unit)
            if index is not None and not self.chosen_by(atom.unit):
                # Taken apart at every index, so that other indices stay other units.
                return self._tied_product((atom,), size, index)
            self._forget_choices(atom.unit)
            if (resolved := self.resolve((atom,))) != (atom,):
                return self._tied_product(resolved, size)
        facts = self.constrain(atom.unit)
        if self.is_pinned((atom,)):
            return fixed(size, "position"), fixed(inner, "position")
        owner = self.new_unit(size, facts.origin, self.owner(atom.unit), facts.permutable)
        run = self.new_unit(inner, facts.origin, owner, facts.permutable)
        self._bind(atom.unit, self.dim_of(atom.unit), (*self.dim_of(owner), *self.dim_of(run)), "")
        outer, nested = self.resolve((atom,))
        return (outer,), (nested,)

    def _tied_product(self, dim: Dim, size: int, index: int | None = None) -> tuple[Dim, Dim]:
        """An owner, which may be nested in an index, and what is nested in it, made equal to a dimension."""
        owner = self.fresh(size, "", owner=index)
        run = self.fresh(size_of(dim) // size, "", owner=unit_of(owner))
        self.tie((*owner, *run), dim, "taken apart")
        return owner, run

    def select(self, dims: Dims, axis: int, index: int) -> Dims:
        """Labels of a value's slice at one index of an axis, which is left out.

        What is nested in that axis becomes a choice: other units at every index.
        """
        dim = self.resolve(dims[axis])
        rest = (*dims[:axis], *dims[axis + 1 :])
        along = unit_of(dim)
        if along is None:
            self.mix(rest, (dim,))
        self.pin((dim,), "selected from")
        if along is None:
            return rest
        while True:
            # The first units nested in those of the axis, owners first, that are no choice over it.
            chains = (self.owners(leaf.unit) for leaf in self.leaves(*rest))
            nested = (u for chain in chains if along in chain for u in reversed(chain[: chain.index(along)]))
            unit = next((u for u in nested if self.index(u) != along), None)
            if unit is None:
                return tuple(self.at(self.resolve(other), along, index) for other in rest)
            if self.choices(unit):
                self._lift_to(unit, self.owner(along))
            else:
                self.choose(unit, along)

    def stack(self, dims: list[Dim]) -> tuple[Dim, Dim]:
        """An index and units that are a choice over it, from dimensions of equal size."""
        origin = next((self.origin(unit) for dim in dims for unit in self.variables(dim)), "")
        index = self.new_unit(len(dims), origin)
        self.constrain(index).permutable = False
        inner = self.fresh(size_of(dims[0]), origin, owner=index)
        unit = unit_of(inner)
        assert unit is not None
        self.choose(unit, index)
        for k, dim in enumerate(dims):
            self.tie(self.at(inner, index, k), dim)
        return self.dim_of(index), inner

    def chooses(self, dims: Dims, axis: int) -> int:
        """Over how many indices of an axis the other dimensions' units are a choice; 1 if they are not."""
        along = unit_of(dims[axis])
        if along is None or any(self.scales.reduce(atom.scale) for atom in atoms_of(dims[axis])):
            return 1  # a scale of the index would be lost
        others = [item for other, dim in enumerate(dims) if other != axis for item in dim]
        return size_of(dims[axis]) if any(self.is_chosen(item, along) for item in others) else 1

    def select_at(self, dims: Dims, axis: int, index: int) -> Dims:
        """The labels at one index of an axis that chooses; the axis itself stays, with one position."""
        along = unit_of(dims[axis])
        assert along is not None, "the axis has to choose"
        chosen = [self.at(self.resolve(dim), along, index) for dim in dims]
        chosen[axis] = fixed(1, "position")
        return tuple(chosen)


def _multiplied(some: dict[int, Monomial], others: dict[int, Monomial]) -> dict[int, Monomial]:
    return {unit: times(some.get(unit, ()), others.get(unit, ())) for unit in {**some, **others}}
