"""From the labels of parameters, all constraints being known, to the table that a person reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from amortopt.symmetry.axes import Axis, Block, NeuronGroup, Operation, ScaleKind, meet
from amortopt.symmetry.solve.dims import Monomial, times
from amortopt.symmetry.solve.labels import Labels
from amortopt.symmetry.solve.pieces import Labelled, Pieces, Run, Slices
from amortopt.symmetry.spec import SymmetrySpec

_Key: TypeAlias = tuple[int, ...]
"""Unit variables of a group: one, or all along a flattened input."""


@dataclass
class _Group:
    """Facts about a group while the table is written."""

    size: int
    unit: int
    owner: _Key | int | None
    origin: str
    scale: int | None = None


@dataclass
class _Table:
    """The groups that are met along the parameters."""

    labels: Labels
    # Units, or the scale variable of a follower, -> group, in execution order.
    groups: dict[_Key | int, _Group] = field(default_factory=dict)

    def drop_superfluous(self, pieces: list[list[Run]]) -> None:
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
            for other in nested:
                if any(
                    all(total.get(var, 0) == sign * total.get(other, 0) for total in totals)
                    for sign in (1, -1)
                ):
                    scales.limit(((var, 1),), "none", "")
                    break

    def see(self, run: Run) -> None:
        """Note the groups along an axis, owners first, with their scales."""
        if run.atoms[0].unit is None:
            return
        self._group(self._key(run))
        for var, _ in self.labels.scales.reduce(run.scale):
            self._scaled(var)

    def see_formal(self, run: Run) -> None:
        """Groups without a scale tell by an exponent what writes to them and what reads."""
        for var, _ in self._formal(run):
            key = self._key(run)
            if self.groups[key].scale is None:
                self.groups[key].scale = var

    def _formal(self, run: Run) -> Monomial:
        if run.atoms[0].unit is None:
            return ()
        last = run.atoms[0] if self._key(run) != (run.atoms[-1].unit,) else run.atoms[-1]
        return tuple(pair for pair in last.scale if self.labels.scales.kind(pair[0]) == "none")

    def _key(self, run: Run) -> _Key:
        units = tuple(atom.unit for atom in run.atoms if atom.unit is not None)
        return units if all(self.labels.is_input(atom) for atom in run.atoms) else units[-1:]

    def _group(self, key: _Key) -> _Group:
        if key not in self.groups:
            owner = self.labels.owner(key[-1]) if len(key) == 1 else None
            size = 1 if owner is None else self._group((owner,)).size
            for unit in key:
                size *= self.labels.size(unit)
            origin = self.labels.origin(key[0])
            self.groups[key] = _Group(size, key[-1], None if owner is None else (owner,), origin)
        return self.groups[key]

    def _scaled(self, var: int) -> _Key | int:
        """The group that has a scale variable: that of its units, or another one for the same units."""
        key = (self.labels.scales.unit(var),)
        own = self._group(key)
        if own.scale is None:
            own.scale = var
        elif own.scale != var and var not in self.groups:
            self.groups[var] = _Group(own.size, own.unit, key, own.origin, var)
        return key if own.scale == var else var

    def neuron_groups(self) -> dict[_Key | int, NeuronGroup]:
        names = _names({key: group.origin for key, group in self.groups.items()})
        found: dict[_Key | int, NeuronGroup] = {}
        for key, group in self.groups.items():
            kind: ScaleKind = "none" if group.scale is None else self.labels.scales.kind(group.scale)
            reasons = [group.origin, "" if group.scale is None else self.labels.scales.reason(group.scale)]
            own = isinstance(key, tuple)
            found[key] = NeuronGroup(
                names[key],
                group.size,
                kind,
                own and self.labels.permutable(group.unit) and (group.owner is None or self.run(group) > 1),
                ", ".join(filter(None, reasons)),
                None if group.owner is None else names[group.owner],
            )
        return found

    def run(self, group: _Group) -> int:
        """Units in each run."""
        return self.labels.size(group.unit)

    def axis(self, run: Run, names: dict[_Key | int, NeuronGroup]) -> Axis:
        if run.atoms[0].unit is None:
            return Axis(None, 0, run.size, run.atoms[0].role)
        own = self._key(run)
        live = self.labels.scales.reduce(run.scale)
        scales = {names[self._scaled(var)].name: exponent for var, exponent in live}
        formal = sum(e for var, e in self._formal(run) if self.groups[own].scale == var)
        exponent = scales.pop(names[own].name, formal)
        return Axis(names[own].name, exponent, run.size, also=tuple(scales.items()))


def table_of(labels: Labels, parts: list[Labelled], operations: tuple[Operation, ...]) -> SymmetrySpec:
    """Name the groups along the parameters, in execution order, and write down the axes.

    Args:
        labels: All constraints.
        parts: Parameters in the order of their use, then moved buffers; together they cover each of them.
        operations: What the network computes.
    """
    pieces, table = Pieces(labels), _Table(labels)
    # Lifting and pinning, in whichever parameter it happens, counts for all.
    table.drop_superfluous([pieces.runs(dims) for part in parts for _, dims in pieces.of(part)[1]])
    blocks: list[tuple[Labelled, Slices, tuple[int, ...], list[Run]]] = []
    for part in parts:
        views, found = pieces.of(part)
        for slices, dims in found:
            blocks.append((part, *_placed(slices, views, part), pieces.runs(dims)))
    # A weight reads from its second axis: naming the axes from the end gives execution order.
    for see in (table.see, table.see_formal):
        for *_, runs in blocks:
            for run in reversed(runs):
                see(run)
    groups = table.neuron_groups()
    written = [
        Block(part.name, tuple(table.axis(run, groups) for run in runs), slices, part.buffer, view)
        for part, slices, view, runs in blocks
    ]
    still = {group.name for group in groups.values() if group.trivial and group.within is None}
    moved = {block.param for block in written if not still.issuperset(block.groups)}
    kept = tuple(block for block in written if not block.buffer or block.param in moved)
    return SymmetrySpec(tuple(groups.values()), kept, operations)


def _placed(slices: Slices, views: list[tuple[int, ...]], part: Labelled) -> tuple[Slices, tuple[int, ...]]:
    """Slices of a part as slices of the whole, none for the whole itself, and the view that they are of."""
    view, starts = [], []
    for parts, start, whole in zip(views, part.start, part.shape, strict=True):
        view += [whole] if len(parts) == 1 else parts
        starts += [start] + [0] * (len(parts) - 1)
    placed = tuple((first + at, last + at) for (first, last), at in zip(slices, starts, strict=True))
    if placed == tuple((0, size) for size in view):
        return (), ()
    return placed, (tuple(view) if len(view) != len(part.shape) else ())


def _names(origins: dict[_Key | int, str]) -> dict[_Key | int, str]:
    """ "in", "h1", "h2", ..., "out"; further inputs and outputs are numbered."""
    names: dict[_Key | int, str] = {}
    count = {"in": 0, "h": 0, "out": 0}
    for key, origin in origins.items():
        stem = {"input": "in", "output": "out"}.get(origin, "h")
        count[stem] += 1
        names[key] = stem if stem != "h" and count[stem] == 1 else f"{stem}{count[stem]}"
    return names
