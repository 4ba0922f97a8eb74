"""What every dimension of every intermediate value is made of, and the constraints found so far.

The invariant that every rule keeps: when the parameters are moved by an element, an intermediate value moves
by exactly what its labels say, permuted by its units and multiplied by its scales.

Units may be nested: each unit of an owner has its own run of them (the channels of a head), permuted by a
permutation of its own. A dimension of nested units is only ever met beside its owner's. Where runs are taken
apart one by one (queries, keys and values out of one product), the owner becomes an index and the nested
units a choice: other units for every index.

Variables begin with everything allowed and only ever lose freedom, so too many constraints make the answer
smaller, never wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.solve import owners, parts, ties
from amortopt.symmetry.solve.dims import Atom, Dim, Dims, Item, unit_of, unscaled
from amortopt.symmetry.solve.scales import Scales
from amortopt.symmetry.solve.variables import Variables


class Labels:
    """All that a rule can ask and say about dimensions."""

    def __init__(self) -> None:
        self._variables = Variables()
        self._units = self._variables.units

    @property
    def scales(self) -> Scales:
        """The scale variables."""
        return self._variables.scales

    # New dimensions

    def fresh(self, size: int, origin: str, kind: ScaleKind = "free", owner: int | None = None) -> Dim:
        """A dimension of new units, which may be permuted and have scales of ``kind``."""
        return self._variables.fresh(size, origin, kind, owner)

    def fresh_input(self, size: int) -> Dim:
        """A dimension along the network's input, with nothing allowed."""
        return self._variables.fresh_input(size)

    def rescaled(self, dim: Dim, kind: ScaleKind = "free") -> Dim:
        """The same units with new scales of their own."""
        return self._variables.rescaled(dim, kind)

    def unscaled(self, dim: Dim) -> Dim:
        """The same units without scales."""
        return unscaled(dim)

    def stack(self, dims: list[Dim]) -> tuple[Dim, Dim]:
        """An index and units that are a choice over it, from dimensions of equal size."""
        return parts.stack(self._variables, dims)

    # What is known

    def resolve(self, dim: Dim) -> Dim:
        """The dimension in terms of variables that stand for themselves."""
        return self._variables.resolve(dim)

    def variables(self, *dims: Dim) -> list[int]:
        """Unit variables along the dimensions, owners and choices too, each once, in order."""
        return self._variables.units_along(*dims)

    def unit_of(self, dim: Dim) -> int | None:
        """The unit variable of a dimension that is nothing else."""
        return unit_of(self.resolve(dim))

    def size(self, unit: int) -> int:
        """Number of units; with an owner, in each run."""
        return self._units[unit].size

    def origin(self, unit: int) -> str:
        """Where the variable comes from."""
        return self._units[unit].origin

    def permutable(self, unit: int) -> bool:
        """Whether permutations are still allowed."""
        return self._units[unit].permutable

    def owner(self, unit: int) -> int | None:
        """The unit variable that owns runs of this one, if it still does."""
        return self._units.owner(unit)

    def owners(self, unit: int) -> list[int]:
        """The variable, its owner, the owner's owner and so on."""
        return self._units.owners(unit)

    def is_input(self, item: Item) -> bool:
        """Whether an item is an atom along the network's input."""
        return self._units.is_input(item)

    def is_pinned(self, dim: Dim) -> bool:
        """Whether nothing is allowed any more along a dimension."""
        return self._variables.is_pinned(dim)

    def is_choice(self, unit: int) -> bool:
        """Whether these are other units for every index of an owner."""
        return bool(self._units.choices(unit))

    def is_used(self, unit: int) -> bool:
        """Whether a constraint has met these units; a part of a parameter that nothing reads is not used."""
        return self._units[unit].constrained

    def use(self, dims: Dims) -> None:
        """Say that these are read: their units may not be given an owner any more."""
        for atom in self._variables.leaves(*dims):
            if atom.unit is not None:
                self._units.constrain(atom.unit)

    def chooses(self, dims: Dims, axis: int) -> int:
        """Over how many indices of an axis the other dimensions' units are a choice; 1 if they are not."""
        return parts.number_of_choices(self._variables, dims, axis)

    def select_at(self, dims: Dims, axis: int, index: int) -> Dims:
        """The labels at one index of an axis that chooses; the axis itself stays, with one position."""
        return parts.at_choice(self._variables, dims, axis, index)

    # Less freedom

    def limit(self, dims: Dims, kind: ScaleKind, reason: str = "") -> None:
        """Let what a value is multiplied by be of ``kind`` at most; permutations stay."""
        self._variables.limit(dims, kind, reason)

    def freeze(self, dims: Dims) -> None:
        """Allow no permutation along the dimensions; scales stay."""
        self._variables.freeze(dims)

    def pin(self, dims: Dims, reason: str = "") -> None:
        """Allow nothing along the dimensions."""
        self._variables.pin(dims, reason)

    def mark_output(self, dims: Dims) -> None:
        """Name what the network returns, with nothing allowed; inputs that are passed on keep their name."""
        self.pin(dims)
        for unit in self.variables(*dims):
            if self.origin(unit) != "input":
                self._units[unit].origin = "output"

    def even(self, dims: Dims, axes: tuple[int, ...]) -> Dims:
        """Let what a value is multiplied by be the same all along some of its axes; the labels then.

        Nested units may still have a scale in common, that of their owner.
        """
        return owners.even(self._variables, dims, axes)

    # Owners

    def nest(self, dims: Dims) -> None:
        """Let units of which nothing is known yet be nested in those of the first dimension."""
        first, *rest = (dim[0] if len(dim) == 1 else None for dim in dims)
        if not isinstance(first, Atom) or first.unit is None or self._units.target(first.unit) is not None:
            return
        for item in rest:
            unit = item.unit if isinstance(item, Atom) else None
            if unit is not None and unit not in self.owners(first.unit):
                facts = self._units[unit]
                if not facts.constrained and facts.owner is None:
                    facts.owner = first.unit

    def lift(self, unit: int) -> None:
        """Let units be the same for all units of their owner."""
        owners.lift_by_one(self._variables, unit)

    def mix(self, others: Dims, along: Dims) -> None:
        """Say that values at different places of ``along`` meet: nothing in ``others`` is nested in it."""
        owners.mix(self._variables, others, along)

    def own_once(self, dims: Dims) -> None:
        """Let nothing along a value's dimensions be nested in units that are not there, or twice."""
        owners.own_once(self._variables, dims)

    def align(self, *values: Mapping[Any, Dim]) -> None:
        """Say that dimensions with the same key in several values meet: the same units own them."""
        owners.align(self._variables, values)

    # Equal dimensions

    def tie(self, follower: Dim, leader: Dim, reason: str = "") -> None:
        """Make two dimensions of equal size move alike; where there is a choice, ``follower`` gives way."""
        ties.tie(self._variables, follower, leader, reason)

    def tie_units(self, left: Dim, right: Dim, reason: str = "") -> None:
        """Make two dimensions' units be permuted alike; scales stay apart."""
        self.tie(unscaled(left), unscaled(right), reason)

    def product(self, left: Dim, right: Dim, reason: str = "") -> Dim:
        """The dimension of an elementwise product: units tied, scales multiplied."""
        return ties.product(self._variables, left, right, reason)

    # Parts

    def cut(self, dim: Dim, cuts: list[int]) -> list[Dim]:
        """Take a dimension apart after the given numbers of positions, the last one being its size."""
        return ties.cut(self._variables, dim, cuts)

    def split(self, atom: Atom, size: int) -> tuple[Dim, Dim]:
        """Take an atom apart into ``size`` runs of equal length: an owner and what is nested in it."""
        return parts.split(self._variables, atom, size)

    def select(self, dims: Dims, axis: int, index: int) -> Dims:
        """Labels of a value's slice at one index of an axis, which is left out.

        What is nested in that axis becomes a choice: other units at every index.
        """
        return parts.select(self._variables, dims, axis, index)
