"""Unit variables and scale variables together: dimensions in terms of them, and what may still move.

Everything here either asks or takes freedom away; making two dimensions equal is in
`ties`.
"""

from __future__ import annotations

from dataclasses import replace

from amortopt.symmetry.axes import ScaleKind, meet
from amortopt.symmetry.solve.dims import (
    Atom,
    Dim,
    Dims,
    Item,
    Monomial,
    Sum,
    atoms_of,
    essential,
    is_fixed,
    sum_of,
    unit_of,
    with_scales,
)
from amortopt.symmetry.solve.scales import Scales
from amortopt.symmetry.solve.units import Units


class Variables:
    """Variables of both kinds, and what they stand for."""

    def __init__(self) -> None:
        self.units = Units()
        self.scales = Scales()
        # Owners with a scale that all units of a run have in common.
        self._common: set[int] = set()

    # Dimensions of variables

    def fresh(self, size: int, origin: str, kind: ScaleKind = "free", owner: int | None = None) -> Dim:
        """A dimension of new units, which may be permuted and have scales of ``kind``."""
        unit = self.units.new(size, origin, owner)
        return self.dim_of(unit, () if kind == "none" else ((self.scales.fresh(unit, kind), 1),))

    def fresh_input(self, size: int) -> Dim:
        """A dimension along the network's input, with nothing allowed."""
        dim = self.fresh(size, "input")
        self.pin((dim,), "")
        return dim

    def dim_of(self, unit: int, scale: Monomial = ()) -> Dim:
        """The dimension of one variable's units."""
        return (Atom(self.units[unit].size, unit, scale),)

    def fresh_scale(self, unit: int, kind: ScaleKind) -> int:
        """A new scale variable over a unit variable or what it stands for; over a choice, for every index."""
        target = self.units.target(unit)
        if target is not None and (same := unit_of(target)) is not None:
            return self.fresh_scale(same, kind)
        var = self.scales.fresh(unit, kind if target is None or not is_fixed(target) else "none")
        if target is not None:
            self.scales.share(var, [atom.scale for atom in atoms_of(self.rescaled(target, kind))])
        if choices := self.units.choices(unit):
            self.scales.choose(var, [self.fresh_scale(choice, kind) for choice in choices])
        return var

    def rescaled(self, dim: Dim, kind: ScaleKind) -> Dim:
        """The same units with new scales of their own."""
        dim = self.resolve(dim)
        atoms = list(atoms_of(dim))
        # What a run's units have makes a scale of its owner superfluous.
        owners = {owner for atom in atoms for owner in self.units.owners(atom.unit)[1:]}
        scales: list[Monomial] = []
        for atom in atoms:
            own = atom.unit if atom.unit not in owners else None
            scales.append(() if own is None else ((self.fresh_scale(own, kind), 1),))
        return with_scales(dim, iter(scales))

    def common_scale(self, unit: int, scale: Monomial, owner: int) -> Monomial:
        """Let what units have be the same for all of a run: a new scale of their owner."""
        kinds: list[ScaleKind] = [self.scales.kind(var) for var, _ in self.scales.reduce(scale)]
        common = ((self.scales.fresh(owner, meet(*kinds)), 1),)
        self.scales.tie(scale, common, "", self.units.owners(unit))
        self._common.add(owner)
        return common

    def no_common_scale(self, unit: int) -> None:
        """Give up what the units, or those that they are nested in, have in common over a run.

        Once they are taken apart, or are nested in other units, it could not be said any more.
        """
        for owner in self._common.intersection(self.units.owners(unit)):
            for var in self.scales.over(owner):
                self.scales.limit(((var, 1),), "none", "")

    def move_scales(self, old: int, new: int) -> None:
        """Say that the units of a variable are those of another one."""
        self.scales.move(old, new)
        if old in self._common:
            self._common.add(new)

    def resolve(self, dim: Dim) -> Dim:
        """The dimension in terms of variables that stand for themselves."""
        items: list[Item] = []
        for item in dim:
            if isinstance(item, Sum):
                items.extend(sum_of([self.resolve(part) for part in item.parts]))
            elif item.unit is None:
                items.append(item)
            elif (target := self.units.target(item.unit)) is None:
                items.append(replace(item, scale=self.scales.formal(item.scale)))
            else:
                items.extend(self.resolve(self._moved(target, item.scale)))
        return essential(self._with_choices_summed(tuple(items)))

    def _moved(self, target: Dim, scale: Monomial) -> Dim:
        """What a variable is bound to, with what the variable's scales are along it."""
        if len(target) == 1 and isinstance(target[0], Atom):
            return (replace(target[0], scale=scale if target[0].unit is not None else ()),)
        return with_scales(target, iter(self.scales.shares(scale, len(list(atoms_of(target))))))

    def _with_choices_summed(self, dim: Dim) -> Dim:
        """An index without a scale directly before what it chooses is a sum."""
        for start, item in enumerate(dim):
            # Its own scale could not be said of a sum.
            scaled = isinstance(item, Atom) and self.scales.reduce(item.scale)
            index = item.unit if isinstance(item, Atom) and not scaled else None
            stop = start + 1
            while index is not None and stop < len(dim) and self.is_chosen(dim[stop], index):
                stop += 1
            if index is not None and stop > start + 1:
                parts = [self.resolve(self.at(dim[start + 1 : stop], index, k)) for k in range(item.size)]
                return self._with_choices_summed((*dim[:start], *sum_of(parts), *dim[stop:]))
        return dim

    # Choices

    def is_chosen(self, item: Item, index: int) -> bool:
        """Whether an index chooses units of an item."""
        return any(self.units.index(atom.unit) == index for atom in atoms_of((item,)))

    def at(self, dim: Dim, index: int | None, k: int) -> Dim:
        """A dimension with the units that are chosen at one place of an index."""
        items: list[Item] = []
        for item in dim:
            if isinstance(item, Sum):
                items.append(Sum(tuple(self.at(part, index, k) for part in item.parts)))
            elif item.unit is not None and self.units.index(item.unit) == index:
                items.append(Atom(item.size, self.units.choices(item.unit)[k], self.scales.at(item.scale, k)))
            else:
                items.append(item)
        return tuple(items)

    def choose(self, unit: int, index: int) -> None:
        """Make units nested in an index a choice, and what owns them in between first."""
        between = self.units.owner(unit)
        owners = [self.units.owner(index)] * self.units[index].size
        if between is not None and between != index:
            if not self.units.choices(between):
                self.choose(between, index)
            owners = list(self.units.choices(between))
            assert self.units.index(between) == index, "an owner in between is a choice over another index"
        for shared in (unit, index):
            self.no_common_scale(shared)
        own = self.units.constrain(unit)
        choices = [self.units.new(own.size, own.origin, owner, own.permutable) for owner in owners]
        self.units.choose(unit, index, choices)
        for var in self.scales.over(unit):
            kind, reason = self.scales.kind(var), self.scales.reason(var)
            self.scales.choose(var, [self.scales.fresh(choice, kind, reason) for choice in choices])

    # What is along dimensions

    def leaves(self, *dims: Dim) -> list[Atom]:
        """Atoms of units along the dimensions, of all choices."""
        found: list[Atom] = []
        for dim in dims:
            for atom in atoms_of(self.resolve(dim)):
                if atom.unit is not None:
                    found.append(atom)
                for k, choice in enumerate(self.units.choices(atom.unit)):
                    found += self.leaves((Atom(atom.size, choice, self.scales.at(atom.scale, k)),))
        return found

    def units_along(self, *dims: Dim) -> list[int]:
        """Unit variables along the dimensions, owners and choices too, each once, in order."""
        leaves = self.leaves(*dims)
        return list(dict.fromkeys(unit for atom in leaves for unit in self.units.owners(atom.unit)))

    def units_at(self, dim: Dim) -> set[int]:
        """Unit variables along a dimension, choices too, without owners."""
        return {atom.unit for atom in self.leaves(dim) if atom.unit is not None}

    def is_pinned(self, dim: Dim) -> bool:
        """Whether nothing is allowed any more along a dimension."""
        return not any(self.units[unit].permutable for unit in self.units_along(dim)) and not any(
            self.scales.reduce(atom.scale) for atom in self.leaves(dim) if not self.units.choices(atom.unit)
        )

    # Less freedom

    def limit(self, dims: Dims, kind: ScaleKind, reason: str) -> None:
        """Let what a value is multiplied by be of ``kind`` at most; permutations stay."""
        for atom in self.leaves(*dims):
            if not self.units.choices(atom.unit):
                self.scales.limit(atom.scale, kind, reason, self.units.owners(atom.unit))

    def freeze(self, dims: Dims) -> None:
        """Allow no permutation along the dimensions; scales stay."""
        for atom in self.leaves(*dims):
            assert atom.unit is not None
            self.units.constrain(atom.unit).permutable = False

    def pin(self, dims: Dims, reason: str) -> None:
        """Allow nothing along the dimensions."""
        self.limit(dims, "none", reason)
        self.freeze(dims)
