"""Unit and scale variables: what the units along a dimension are, and what may still be done to them.

A unit variable stands for itself or is bound to a dimension of other variables (a union-find with products
and sums). Units of an owner come in runs of equal length, one run for each of the owner's units. Where runs
are taken apart one by one, the owner becomes an index and its units a choice: one variable per index.
Constraints on a choice or on its scales then apply to these variables.

Everything here either asks or takes freedom away; what makes dimensions equal is in `labels`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from amortopt.symmetry.axes import ScaleKind
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


@dataclass
class Unit:
    """Facts about a unit variable.

    Attributes:
        size: Number of units; with an owner, in each run.
        owner: The variable whose every unit owns a run of these.
        permutable: Whether permutations are still allowed.
        origin: Where it comes from: a parameter, a module path, "input", "output" or "constant".
        constrained: Whether a constraint has met it, so that it may not be given an owner any more.
    """

    size: int
    owner: int | None
    permutable: bool
    origin: str
    constrained: bool = False


class Variables:
    """Unit variables by number, and their scales."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.scales = Scales()
        self._bound: dict[int, Dim] = {}
        # A choice -> its index, and a variable for each of the index' units.
        self._choices: dict[int, tuple[int, tuple[int, ...]]] = {}
        # Owners with a scale that all units of a run share (see `Labels.even`).
        self._sharing: set[int] = set()

    # New variables

    def new_unit(self, size: int, origin: str, owner: int | None = None, permutable: bool = True) -> int:
        """A unit variable that stands for itself, without a scale."""
        self.units.append(Unit(size, owner, permutable, origin))
        return len(self.units) - 1

    def fresh(self, size: int, origin: str, kind: ScaleKind = "free", owner: int | None = None) -> Dim:
        """A dimension of new units, which may be permuted and have scales of ``kind``."""
        unit = self.new_unit(size, origin, owner)
        return self.dim_of(unit, () if kind == "none" else ((self.scales.fresh(unit, kind), 1),))

    def fresh_input(self, size: int) -> Dim:
        """A dimension along the network's input, with nothing allowed."""
        dim = self.fresh(size, "input")
        self.pin((dim,))
        return dim

    def dim_of(self, unit: int, scale: Monomial = ()) -> Dim:
        """The dimension of one variable's units."""
        return (Atom(self.units[unit].size, unit, scale),)

    def rescaled(self, dim: Dim, kind: ScaleKind = "free") -> Dim:
        """The same units with new scales."""
        dim = self.resolve(dim)
        atoms = list(atoms_of(dim))
        # A scale of a run's units makes one of its owner superfluous.
        owners = {owner for atom in atoms for owner in self.owners(atom.unit)[1:]}
        scales: list[Monomial] = []
        for atom in atoms:
            unit = atom.unit if atom.unit not in owners else None
            scales.append(() if unit is None else ((self._fresh_scale(unit, kind), 1),))
        return with_scales(dim, iter(scales))

    def _fresh_scale(self, unit: int, kind: ScaleKind) -> int:
        """A new scale variable over a unit variable or its target; over a choice, for every index."""
        target = self.target(unit)
        if target is not None and (same := unit_of(target)) is not None:
            return self._fresh_scale(same, kind)
        var = self.scales.fresh(unit, kind if target is None or not is_fixed(target) else "none")
        if target is not None:
            self.scales.share(var, [atom.scale for atom in atoms_of(self.rescaled(target, kind))])
        if choices := self.choices(unit):
            self.scales.choose(var, [self._fresh_scale(choice, kind) for choice in choices])
        return var

    # Facts

    def size(self, unit: int) -> int:
        """Number of units; with an owner, in each run."""
        return self.units[unit].size

    def origin(self, unit: int) -> str:
        """Where the variable comes from."""
        return self.units[unit].origin

    def permutable(self, unit: int) -> bool:
        """Whether permutations are still allowed."""
        return self.units[unit].permutable

    def is_input(self, item: Item) -> bool:
        """Whether an item is an atom along the network's input."""
        return isinstance(item, Atom) and item.unit is not None and self.origin(item.unit) == "input"

    def target(self, unit: int) -> Dim | None:
        """What a variable is bound to; None if it stands for itself."""
        return self._bound.get(unit)

    def owner(self, unit: int | None) -> int | None:
        """The variable that owns runs of this one; None if none does, or not any more."""
        owner = None if unit is None else self.units[unit].owner
        while owner is not None and owner in self._bound:
            # A variable that became a chain of nested units is the last of them.
            above: int | None = None
            for item in self._bound[owner]:
                inner = item.unit if isinstance(item, Atom) else None
                if inner is None or (above is not None and self.units[inner].owner != above):
                    return None
                above = inner
            owner = above
        return owner

    def owners(self, unit: int | None) -> list[int]:
        """The variable, its owner, the owner's owner and so on; nothing for a fixed atom."""
        chain: list[int] = []
        while unit is not None:
            chain.append(unit)
            unit = self.owner(unit)
        return chain

    def choices(self, unit: int | None) -> tuple[int, ...]:
        """The variables for every index; none if the units are no choice."""
        return self._choices[unit][1] if unit in self._choices else ()

    def is_choice(self, unit: int) -> bool:
        """Whether these are other units for every index of an owner."""
        return unit in self._choices

    def index(self, unit: int | None) -> int | None:
        """The owner whose units choose; None if the units are no choice."""
        index = self._choices[unit][0] if unit in self._choices else None
        while index is not None and index in self._bound:
            (target,) = self._bound[index]
            index = target.unit if isinstance(target, Atom) else None
        return index

    def chosen_by(self, index: int) -> list[int]:
        """All variables that are a choice over an index."""
        return [unit for unit in self._choices if self.index(unit) == index]

    def is_chosen(self, item: Item, index: int) -> bool:
        """Whether an index chooses units of an item."""
        return any(self.index(atom.unit) == index for atom in atoms_of((item,)))

    # Dimensions in terms of variables

    def resolve(self, dim: Dim) -> Dim:
        """The dimension in terms of variables that stand for themselves."""
        items: list[Item] = []
        for item in dim:
            if isinstance(item, Sum):
                items.extend(sum_of([self.resolve(part) for part in item.parts]))
            elif item.unit is None:
                items.append(item)
            elif (target := self.target(item.unit)) is None:
                items.append(replace(item, scale=self.scales.formal(item.scale)))
            else:
                # Scales of the bound variable become scales along its target.
                if len(target) == 1 and isinstance(target[0], Atom):
                    scales = [item.scale if target[0].unit is not None else ()]
                else:
                    scales = self.scales.shares(item.scale, len(list(atoms_of(target))))
                items.extend(self.resolve(with_scales(target, iter(scales))))
        return essential(self._with_choices_summed(tuple(items)))

    def _with_choices_summed(self, dim: Dim) -> Dim:
        """An index without a scale directly before what it chooses is a sum."""
        for start, item in enumerate(dim):
            # A sum has no scale over all of its parts.
            scaled = isinstance(item, Atom) and self.scales.reduce(item.scale)
            index = item.unit if isinstance(item, Atom) and not scaled else None
            stop = start + 1
            while index is not None and stop < len(dim) and self.is_chosen(dim[stop], index):
                stop += 1
            if index is not None and stop > start + 1:
                parts = [self.resolve(self.at(dim[start + 1 : stop], index, k)) for k in range(item.size)]
                return self._with_choices_summed((*dim[:start], *sum_of(parts), *dim[stop:]))
        return dim

    def at(self, dim: Dim, index: int | None, k: int) -> Dim:
        """A dimension with the units that are chosen at one place of an index."""
        items: list[Item] = []
        for item in dim:
            if isinstance(item, Sum):
                items.append(Sum(tuple(self.at(part, index, k) for part in item.parts)))
            elif item.unit is not None and self.index(item.unit) == index:
                items.append(Atom(item.size, self.choices(item.unit)[k], self.scales.at(item.scale, k)))
            else:
                items.append(item)
        return tuple(items)

    def leaves(self, *dims: Dim) -> list[Atom]:
        """Atoms of units along the dimensions, of all choices."""
        atoms: list[Atom] = []
        for dim in dims:
            for atom in atoms_of(self.resolve(dim)):
                if atom.unit is not None:
                    atoms.append(atom)
                for k, choice in enumerate(self.choices(atom.unit)):
                    atoms += self.leaves((Atom(atom.size, choice, self.scales.at(atom.scale, k)),))
        return atoms

    def unit_of(self, dim: Dim) -> int | None:
        """The unit variable of a dimension that is nothing else."""
        return unit_of(self.resolve(dim))

    def variables(self, *dims: Dim) -> list[int]:
        """Unit variables along the dimensions, owners and choices too, each once, in order."""
        return list(dict.fromkeys(unit for atom in self.leaves(*dims) for unit in self.owners(atom.unit)))

    def is_pinned(self, dim: Dim) -> bool:
        """Whether nothing is allowed any more along a dimension."""
        return not any(self.permutable(unit) for unit in self.variables(dim)) and not any(
            self.scales.reduce(atom.scale) for atom in self.leaves(dim) if not self.choices(atom.unit)
        )

    # Less freedom

    def constrain(self, unit: int) -> Unit:
        """Mark a variable as met by a constraint; returns its facts, to be changed."""
        self.units[unit].constrained = True
        return self.units[unit]

    def use(self, dims: Dims) -> None:
        """Note that an operation reads these: their units may not be given an owner any more."""
        for atom in self.leaves(*dims):
            assert atom.unit is not None
            self.constrain(atom.unit)

    def limit(self, dims: Dims, kind: ScaleKind, reason: str = "") -> None:
        """Let what a value is multiplied by be of ``kind`` at most; permutations stay."""
        for atom in self.leaves(*dims):
            if not self.choices(atom.unit):
                self.scales.limit(atom.scale, kind, reason, self.owners(atom.unit))

    def freeze(self, dims: Dims) -> None:
        """Allow no permutation along the dimensions; scales stay."""
        for atom in self.leaves(*dims):
            assert atom.unit is not None
            self.constrain(atom.unit).permutable = False

    def pin(self, dims: Dims, reason: str = "") -> None:
        """Allow nothing along the dimensions."""
        self.limit(dims, "none", reason)
        self.freeze(dims)

    def choose(self, unit: int, index: int) -> None:
        """Make units nested in an index a choice, and what owns them in between first."""
        between = self.owner(unit)
        owners = [self.owner(index)] * self.size(index)
        if between is not None and between != index:
            if not self.choices(between):
                self.choose(between, index)
            owners = list(self.choices(between))
            assert self.index(between) == index, "an owner in between is a choice over another index"
        for nested in (unit, index):
            self.give_up_shared_scale(nested)
        facts = self.constrain(unit)
        choices = [self.new_unit(facts.size, facts.origin, owner, facts.permutable) for owner in owners]
        self._choices[unit] = index, tuple(choices)
        for var in self.scales.over(unit):
            kind, reason = self.scales.kind(var), self.scales.reason(var)
            self.scales.choose(var, [self.scales.fresh(choice, kind, reason) for choice in choices])

    def give_up_shared_scale(self, unit: int) -> None:
        """Let no scale be shared over runs of the units, or of those that they are nested in.

        Called before units are taken apart or nested in others: the labels could not express it afterwards.
        """
        for owner in self._sharing.intersection(self.owners(unit)):
            for var in self.scales.over(owner):
                self.scales.limit(((var, 1),), "none", "")
