"""Parameters as pieces that a table can say something about: a product of units along every dimension."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

from amortopt.symmetry.solve.dims import Atom, Dim, Dims, Item, Monomial, Sum, fixed, size_of, times
from amortopt.symmetry.solve.labels import Labels

Slices: TypeAlias = tuple[tuple[int, int], ...]
Piece: TypeAlias = tuple[Slices, Dims]


@dataclass(frozen=True)
class Labelled:
    """A parameter or moved buffer, or a part of it, with its labels.

    Attributes:
        name: Qualified name.
        shape: Shape of the whole.
        dims: Labels of the part.
        start: Where the part starts along every dimension.
        buffer: Whether it is a buffer.
    """

    name: str
    shape: tuple[int, ...]
    dims: Dims
    start: tuple[int, ...]
    buffer: bool = False


@dataclass
class Run:
    """Neighbouring atoms of one axis: an owner and what is nested in it, or fixed ones."""

    atoms: list[Atom]

    @property
    def size(self) -> int:
        return size_of(tuple(self.atoms))

    @property
    def scale(self) -> Monomial:
        return times(*(atom.scale for atom in self.atoms))


@dataclass(frozen=True)
class Pieces:
    """Takes parameters apart, all constraints being known."""

    labels: Labels

    def of(self, part: Labelled) -> tuple[list[tuple[int, ...]], list[Piece]]:
        """The slices of a parameter that have one product of atoms along every dimension.

        Returns:
            How each dimension has to be viewed, and the slices with their labels, by dimension of that view.
        """
        # A view of a part is none of the whole.
        whole = part.shape == tuple(size_of(dim) for dim in part.dims)
        return self._pieces(part.dims, whole)

    def _pieces(self, dims: Dims, whole: bool) -> tuple[list[tuple[int, ...]], list[Piece]]:
        """See `of`; ``whole`` if it is a whole parameter."""
        dims = tuple(self.labels.resolve(dim) for dim in dims)
        for axis in range(len(dims)):
            if (count := self.labels.chooses(dims, axis)) > 1:
                found: list[Piece] = []
                for k in range(count):
                    views, inner = self._pieces(self.labels.select_at(dims, axis, k), whole)
                    place = sum(map(len, views[:axis]))
                    found += [
                        ((*slices[:place], (k, k + 1), *slices[place + 1 :]), part) for slices, part in inner
                    ]
                return [*views[:axis], (count,), *views[axis + 1 :]], found
        views, choices = zip(*(self._parts(dim, whole) for dim in dims), strict=True) if dims else ((), ())
        return list(views), [
            (tuple(b for bounds, _ in piece for b in bounds), tuple(d for _, inner in piece for d in inner))
            for piece in product(*choices)
        ]

    def _parts(self, dim: Dim, viewable: bool) -> tuple[tuple[int, ...], list[Piece]]:
        """A dimension as a view with at most one sum, and the parts of that sum."""
        items = [item for given in dim for item in _copies_as_product(given)]
        place = next((k for k, item in enumerate(items) if isinstance(item, Sum)), None)
        if place is None:
            return (size_of(dim),), [(((0, size_of(dim)),), (tuple(items),))]
        head, tail = tuple(items[:place]), tuple(items[place:])
        parts = self._summands(tail)
        if parts is None or (head and not viewable):
            self.labels.pin((dim,), "mixed concatenation")
            return (size_of(dim),), [(((0, size_of(dim)),), (fixed(size_of(dim), "position"),))]
        found: list[Piece] = []
        start = 0
        for part in parts:
            bounds = (start, start + size_of(part))
            found.append((((0, size_of(head)), bounds), (head, part)) if head else ((bounds,), (part,)))
            start = bounds[1]
        return ((size_of(head), start) if head else (start,)), found

    def _summands(self, dim: Dim) -> list[Dim] | None:
        """The summands of a sum times what follows it; None if there is another sum inside a product."""
        dim = tuple(item for given in dim for item in _copies_as_product(given))
        first, rest = dim[0], dim[1:]
        if not isinstance(first, Sum):
            return None if any(isinstance(item, Sum) for item in rest) else [dim]
        found: list[Dim] = []
        for part in first.parts:
            inner = self._summands((*part, *rest))
            if inner is None:
                return None
            found += inner
        return found

    def _used(self, dim: Dim) -> Dim:
        """What nothing reads does not move."""
        return tuple(
            item
            if not isinstance(item, Atom) or item.unit is None or self.labels.is_used(item.unit)
            else Atom(item.size, role="unused")
            for item in dim
        )

    def _settled(self, dims: list[Dim]) -> list[Dim]:
        """Nested units that have an order and only their owner's scale are positions."""
        while True:
            atoms = [item for dim in dims for item in dim if isinstance(item, Atom)]
            owners = {self._owner(atom) for atom in atoms}
            there = {atom.unit for atom in atoms}
            held = next(
                (
                    a
                    for a in atoms
                    if self._is_position(a) and self._owner(a) in there and a.unit not in owners
                ),
                None,
            )
            if held is None:
                return dims
            owner = self._owner(held)
            for axis, dim in enumerate(dims):
                items: list[Item] = []
                for item in dim:
                    assert isinstance(item, Atom)
                    if item is held:
                        items.append(Atom(item.size, role="position"))
                    elif item.unit == owner:
                        items.append(Atom(item.size, item.unit, times(item.scale, held.scale)))
                    else:
                        items.append(item)
                dims[axis] = tuple(items)

    def _is_position(self, atom: Atom) -> bool:
        if atom.unit is None or self._owner(atom) is None or self.labels.permutable(atom.unit):
            return False
        live = self.labels.scales.reduce(atom.scale)
        return all(self.labels.scales.unit(var) != atom.unit for var, _ in live)

    def runs(self, dims: Dims) -> list[Run]:
        """The axes of a piece; nested units without their owner are lifted out of it."""
        while True:
            self.labels.own_once(dims)
            used = [self._used(self._without_sums(dim)) for dim in dims]
            found = [run for dim in self._settled(used) for run in self._runs_of(dim)]
            if not self._lift_strays(found):
                return found

    def _without_sums(self, dim: Dim) -> Dim:
        """The dimension resolved; what became a sum since its parameter was taken apart has its order."""
        dim = self.labels.resolve(dim)
        if not any(isinstance(item, Sum) for item in dim):
            return dim
        self.labels.pin((dim,), "mixed concatenation")
        return fixed(size_of(dim), "position")

    def _runs_of(self, dim: Dim) -> list[Run]:
        runs: list[Run] = []
        # A flattened input is one axis, unless what is scaled along it (a norm's gain) tells its factors
        # apart.
        inputs = len(dim) > 1 and all(self._is_plain_input(item) for item in dim)
        for item in dim:
            assert isinstance(item, Atom)
            last = runs[-1].atoms[-1] if runs else None
            if last is not None and (
                inputs
                or (item.unit is None and last.unit is None)
                or (None not in (item.unit, last.unit) and self._owner(item) == last.unit)
            ):
                runs[-1].atoms.append(item)
            elif item.unit is not None or item.size != 1 or len(dim) == 1:
                runs.append(Run([item]))
        return runs

    def _is_plain_input(self, item: Item) -> bool:
        return (
            isinstance(item, Atom)
            and self.labels.is_input(item)
            and not self.labels.scales.reduce(item.scale)
        )

    def _owner(self, atom: Atom) -> int | None:
        return None if atom.unit is None else self.labels.owner(atom.unit)

    def _lift_strays(self, runs: list[Run]) -> bool:
        """Lift the first units whose owner is no whole axis of the piece; whether there were any."""
        whole = {run.atoms[-1].unit for run in runs if self._is_whole(run)}
        owners = {owner for unit in whole if unit is not None for owner in self.labels.owners(unit)}
        for atom in [atom for run in runs for atom in run.atoms]:
            if atom.unit is not None and self.labels.is_choice(atom.unit):
                # Its index is not where it could be read.
                self.labels.lift(atom.unit)
                return True
        for run in runs:
            unit, owner = run.atoms[0].unit, self._owner(run.atoms[0])
            if unit is not None and owner is not None and (len(run.atoms) > 1 or owner not in owners):
                self.labels.lift(unit)
                return True
        return False

    def _is_whole(self, run: Run) -> bool:
        return run.atoms[0].unit is not None and self._owner(run.atoms[0]) is None


def _copies_as_product(item: Item) -> Dim:
    """A sum of equal parts is a number of copies."""
    if isinstance(item, Sum) and all(part == item.parts[0] for part in item.parts):
        return (Atom(len(item.parts), role="position"), *item.parts[0])
    return (item,)
