"""From the labels of parameters, all constraints being known, to the table of a `SymmetrySpec`.

A parameter is taken apart into pieces: slices with one product of atoms along every dimension. The atoms of
a piece become its axes, and what they are made of the groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TypeAlias

from amortopt.symmetry.axes import Axis, Block, NeuronGroup, Operation, ScaleKind, meet
from amortopt.symmetry.solve.dims import Atom, Dim, Dims, Monomial, Sum, atoms_of, fixed, size_of, times
from amortopt.symmetry.solve.labels import Labels
from amortopt.symmetry.spec import SymmetrySpec

_Slices: TypeAlias = tuple[tuple[int, int], ...]
_Piece: TypeAlias = tuple[_Slices, Dims]

_Units: TypeAlias = tuple[int, ...]
"""Unit variables of a group: one, or all along a flattened input."""


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
class _Run:
    """Neighbouring atoms that are one axis of a block: an owner and what is nested in it, or fixed ones."""

    atoms: list[Atom]

    @property
    def unit(self) -> int | None:
        return self.atoms[0].unit

    @property
    def scale(self) -> Monomial:
        return times(*(atom.scale for atom in self.atoms))


@dataclass
class _Group:
    """Facts about a group while the table is written."""

    size: int
    unit: int
    owner: _Units | None
    origin: str
    scale: int | None = None


def table_of(labels: Labels, parts: list[Labelled], operations: tuple[Operation, ...]) -> SymmetrySpec:
    """Name the groups along the parameters, in execution order, and write down the axes.

    Args:
        labels: All constraints.
        parts: Parameters in the order of their use, then moved buffers; together they cover each of them.
        operations: What the network computes.
    """
    pieces, table = _Pieces(labels), _Table(labels)
    # Lifting and pinning, in whichever parameter it happens, counts for all.
    table.drop_superfluous([pieces.runs(dims) for part in parts for _, dims in pieces.of(part)[1]])
    blocks: list[tuple[Labelled, _Slices, tuple[int, ...], list[_Run]]] = []
    for part in parts:
        views, inside = pieces.of(part)
        view, starts = [], []
        for lengths, start, size in zip(views, part.start, part.shape, strict=True):
            view += [size] if len(lengths) == 1 else lengths
            starts += [start] + [0] * (len(lengths) - 1)
        for slices, dims in inside:
            runs = pieces.runs(dims)
            placed = tuple((a + start, b + start) for (a, b), start in zip(slices, starts, strict=True))
            if placed == tuple((0, size) for size in view):
                blocks.append((part, (), (), runs))
            else:
                blocks.append((part, placed, tuple(view) if len(view) != len(part.shape) else (), runs))
    # A weight reads from its second axis: naming the axes from the end gives execution order.
    axes = [run for *_, runs in blocks for run in reversed(runs) if run.unit is not None]
    for run in axes:
        table.group(table.units(run))
        for var, _ in labels.scales.reduce(run.scale):
            table.scaled(var)
    for run in axes:
        # Groups without a scale have exponents too: what writes to them and what reads.
        for var, _ in table.formal(run):
            group = table.group(table.units(run))
            group.scale = var if group.scale is None else group.scale
    groups = table.neuron_groups()
    written = [
        Block(part.name, tuple(table.axis(run, groups) for run in runs), slices, part.buffer, view)
        for part, slices, view, runs in blocks
    ]
    still = {group.name for group in groups.values() if group.trivial and group.within is None}
    moved = {block.param for block in written if not still.issuperset(block.groups)}
    kept = tuple(block for block in written if not block.buffer or block.param in moved)
    return SymmetrySpec(tuple(groups.values()), kept, operations)


@dataclass(frozen=True)
class _Pieces:
    """Takes parameters apart."""

    labels: Labels

    def of(self, part: Labelled) -> tuple[list[tuple[int, ...]], list[_Piece]]:
        """The slices of a parameter that have one product of atoms along every dimension.

        Returns:
            How each dimension has to be viewed, and the slices with their labels, by dimension of that view.
        """
        # Only a whole parameter can be viewed with other dimensions.
        return self._pieces(part.dims, part.shape == tuple(size_of(dim) for dim in part.dims))

    def _pieces(self, dims: Dims, viewable: bool) -> tuple[list[tuple[int, ...]], list[_Piece]]:
        dims = tuple(self.labels.resolve(dim) for dim in dims)
        for axis in range(len(dims)):
            if (count := self.labels.chooses(dims, axis)) > 1:
                pieces: list[_Piece] = []
                for k in range(count):
                    views, inner = self._pieces(self.labels.select_at(dims, axis, k), viewable)
                    at = sum(map(len, views[:axis]))
                    pieces += [
                        ((*slices[:at], (k, k + 1), *slices[at + 1 :]), part) for slices, part in inner
                    ]
                return [*views[:axis], (count,), *views[axis + 1 :]], pieces
        views, choices = zip(*(self._parts(dim, viewable) for dim in dims), strict=True) if dims else ((), ())
        return list(views), [
            (tuple(b for bounds, _ in piece for b in bounds), tuple(d for _, inner in piece for d in inner))
            for piece in product(*choices)
        ]

    def _parts(self, dim: Dim, viewable: bool) -> tuple[tuple[int, ...], list[_Piece]]:
        """A dimension as a view with at most one sum, and the parts of that sum."""
        dim, size = _without_copies(dim), size_of(dim)
        place = next((k for k, item in enumerate(dim) if isinstance(item, Sum)), None)
        if place is None:
            return (size,), [(((0, size),), (dim,))]
        head, tail = dim[:place], dim[place:]
        parts = self._summands(tail)
        if parts is None or (head and not viewable):
            self.labels.pin((dim,), "mixed concatenation")
            return (size,), [(((0, size),), (fixed(size, "position"),))]
        pieces: list[_Piece] = []
        start = 0
        for part in parts:
            bounds = (start, start + size_of(part))
            pieces.append((((0, size_of(head)), bounds), (head, part)) if head else ((bounds,), (part,)))
            start = bounds[1]
        return ((size_of(head), start) if head else (start,)), pieces

    def _summands(self, dim: Dim) -> list[Dim] | None:
        """The summands of a sum times what follows it; None if there is another sum inside a product."""
        dim = _without_copies(dim)
        first, rest = dim[0], dim[1:]
        if not isinstance(first, Sum):
            return None if any(isinstance(item, Sum) for item in rest) else [dim]
        summands: list[Dim] = []
        for part in first.parts:
            inner = self._summands((*part, *rest))
            if inner is None:
                return None
            summands += inner
        return summands

    def runs(self, dims: Dims) -> list[_Run]:
        """The axes of a piece; nested units without their owner are lifted out of it."""
        labels = self.labels
        while True:
            labels.own_once(dims)
            axes: list[list[Atom]] = []
            for dim in map(labels.resolve, dims):
                if any(isinstance(item, Sum) for item in dim):
                    # It became a sum since its parameter was taken apart.
                    labels.pin((dim,), "mixed concatenation")
                    dim = fixed(size_of(dim), "position")
                # What no operation reads does not move.
                axes.append(
                    [
                        a
                        if a.unit is None or labels.units[a.unit].constrained
                        else Atom(a.size, role="unused")
                        for a in atoms_of(dim)
                    ]
                )
            self._settle(axes)
            runs = [run for atoms in axes for run in self._runs_along(atoms)]
            # The index of a choice is an axis of its own, and so is the owner of an axis.
            units = [atom.unit for run in runs for atom in run.atoms if atom.unit is not None]
            strays = [unit for unit in units if labels.is_choice(unit)]
            whole = {run.atoms[-1].unit for run in runs if labels.owner(run.unit) is None}
            owners = {owner for unit in whole for owner in labels.owners(unit)}
            for run in runs:
                owner = labels.owner(run.unit)
                if run.unit is not None and owner is not None and (len(run.atoms) > 1 or owner not in owners):
                    strays.append(run.unit)
            if not strays:
                return runs
            labels.lift(strays[0])

    def _settle(self, axes: list[list[Atom]]) -> None:
        """Turn nested units that have an order and only their owner's scale into positions."""
        labels = self.labels
        while True:
            atoms = [atom for axis in axes for atom in axis]
            units, owners = {a.unit for a in atoms}, {labels.owner(a.unit) for a in atoms}
            for atom in atoms:
                owner, live = labels.owner(atom.unit), labels.scales.reduce(atom.scale)
                if (
                    atom.unit is not None
                    and owner is not None
                    and owner in units
                    and atom.unit not in owners
                    and not labels.permutable(atom.unit)
                    and all(labels.scales.unit(var) != atom.unit for var, _ in live)
                ):
                    break
            else:
                return
            for axis in axes:
                for k, other in enumerate(axis):
                    if other is atom:
                        axis[k] = Atom(atom.size, role="position")
                    elif other.unit == owner:
                        axis[k] = Atom(other.size, other.unit, times(other.scale, atom.scale))

    def _runs_along(self, atoms: list[Atom]) -> list[_Run]:
        """The axes that a dimension is viewed as."""
        labels, runs = self.labels, list[_Run]()
        # A flattened input is one axis, unless factors of it are scaled, for example by a norm's gain.
        flat = len(atoms) > 1 and all(
            labels.is_input(atom) and not labels.scales.reduce(atom.scale) for atom in atoms
        )
        for atom in atoms:
            last = runs[-1].atoms[-1] if runs else None
            if last is not None and (
                flat
                or (atom.unit is None and last.unit is None)
                or (None not in (atom.unit, last.unit) and labels.owner(atom.unit) == last.unit)
            ):
                runs[-1].atoms.append(atom)
            elif atom.unit is not None or atom.size != 1 or len(atoms) == 1:
                runs.append(_Run([atom]))
        return runs


def _without_copies(dim: Dim) -> Dim:
    """The dimension with sums of equal parts as a number of copies times the part."""
    return tuple(
        factor
        for item in dim
        for factor in (
            (Atom(len(item.parts), role="position"), *item.parts[0])
            if isinstance(item, Sum) and all(part == item.parts[0] for part in item.parts)
            else (item,)
        )
    )


@dataclass
class _Table:
    """The groups that are met along the parameters."""

    labels: Labels
    # Units, or the scale variable of a further group of the same units -> group, in execution order.
    groups: dict[_Units | int, _Group] = field(default_factory=dict)

    def drop_superfluous(self, pieces: list[list[_Run]]) -> None:
        """Give up owners' scales that are always met together with one of the units nested in them."""
        scales = self.labels.scales
        totals = [dict(scales.reduce(times(*(run.scale for run in runs)))) for runs in pieces]
        every = {var for total in totals for var in total}
        for var in sorted(every):
            nested = [
                other
                for other in every
                if scales.unit(var) in self.labels.owners(scales.unit(other))[1:]
                and meet(scales.kind(var), scales.kind(other)) == scales.kind(var)
            ]
            if any(
                all(total.get(var, 0) == sign * total.get(other, 0) for total in totals)
                for other in nested
                for sign in (1, -1)
            ):
                scales.limit(((var, 1),), "none", "")

    def units(self, run: _Run) -> _Units:
        """The unit variables of the group along an axis."""
        units = tuple(atom.unit for atom in run.atoms if atom.unit is not None)
        return units if all(self.labels.is_input(atom) for atom in run.atoms) else units[-1:]

    def group(self, units: _Units) -> _Group:
        """The group of units, noted with its owners before it."""
        if units not in self.groups:
            owner = self.labels.owner(units[-1]) if len(units) == 1 else None
            size = 1 if owner is None else self.group((owner,)).size
            for unit in units:
                size *= self.labels.size(unit)
            owners, origin = None if owner is None else (owner,), self.labels.origin(units[0])
            self.groups[units] = _Group(size, units[-1], owners, origin)
        return self.groups[units]

    def scaled(self, var: int) -> _Units | int:
        """The group that has a scale variable: that of its units, or another one for the same units."""
        units = (self.labels.scales.unit(var),)
        group = self.group(units)
        if group.scale is None:
            group.scale = var
        elif group.scale != var and var not in self.groups:
            self.groups[var] = _Group(group.size, group.unit, units, group.origin, var)
        return units if group.scale == var else var

    def formal(self, run: _Run) -> Monomial:
        """Scale variables of an axis that are always 1, with their exponents."""
        last = run.atoms[0] if self.units(run) != (run.atoms[-1].unit,) else run.atoms[-1]
        return tuple(pair for pair in last.scale if self.labels.scales.kind(pair[0]) == "none")

    def neuron_groups(self) -> dict[_Units | int, NeuronGroup]:
        """The groups, named "in", "h1", "h2", ..., "out"; further inputs and outputs are numbered."""
        names: dict[_Units | int, str] = {}
        count = {"in": 0, "h": 0, "out": 0}
        for key, group in self.groups.items():
            stem = {"input": "in", "output": "out"}.get(group.origin, "h")
            count[stem] += 1
            names[key] = stem if stem != "h" and count[stem] == 1 else f"{stem}{count[stem]}"
        written: dict[_Units | int, NeuronGroup] = {}
        for key, group in self.groups.items():
            scales = self.labels.scales
            kind: ScaleKind = "none" if group.scale is None else scales.kind(group.scale)
            reasons = [group.origin, "" if group.scale is None else scales.reason(group.scale)]
            several = group.owner is None or self.labels.size(group.unit) > 1
            written[key] = NeuronGroup(
                names[key],
                group.size,
                kind,
                isinstance(key, tuple) and self.labels.permutable(group.unit) and several,
                ", ".join(filter(None, reasons)),
                None if group.owner is None else names[group.owner],
            )
        return written

    def axis(self, run: _Run, groups: dict[_Units | int, NeuronGroup]) -> Axis:
        """The axis of a block."""
        size = size_of(tuple(run.atoms))
        if run.unit is None:
            return Axis(None, 0, size, run.atoms[0].role)
        units = self.units(run)
        name, live = groups[units].name, self.labels.scales.reduce(run.scale)
        scales = {groups[self.scaled(var)].name: exponent for var, exponent in live}
        formal = sum(e for var, e in self.formal(run) if self.groups[units].scale == var)
        exponent = scales.pop(name, formal)
        return Axis(name, exponent, size, also=tuple(scales.items()))
