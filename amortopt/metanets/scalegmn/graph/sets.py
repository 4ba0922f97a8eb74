"""Node sets: whose units a metanet has features of, and which sets are about the same units.

Every group has a set, whose odd features flip with that group. A block's end may be about other things: units
that follow a permutation but not its sign, units that flip with two groups, pairs of units. Such ends get
*derived* sets, whose rows are made of other sets' rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from amortopt.symmetry import Axis, NeuronGroup, SymmetrySpec

Symmetry: TypeAlias = Literal["scale", "permutation"]
"""Whether the scalings of a spec are respected, or only its permutations (the ablation)."""


@dataclass(frozen=True)
class Part:
    """Another set that a set's units are about.

    Unit (b, n, r) of the set, in that order of significance, is about unit n of the part.

    Attributes:
        node: The other set.
        before: Number of b.
        repeat: Number of r.
        odd: Whether the set flips with the part's units.
        plays: Whether the set's units play the part's roles, beside those of other parts and their own.
    """

    node: int
    before: int
    repeat: int
    odd: bool
    plays: bool


@dataclass(frozen=True)
class NodeSet:
    """The units of one neuron group, or what is derived from several.

    Attributes:
        group: Name of the group; several names for a derived set.
        size: Units in the family's own networks.
        permutable: Whether units of one run have no identity of their own; otherwise a unit is known by its
            index.
        odd: Whether a unit may change its sign.
        run: Units that are put in order among each other: those of one owner's unit, or all; 1 for a derived
            set.
        parts: The owner of a group; what a derived set is made of.
        derived: Whether it is no group's.
        sided: Whether its units' signs are found from their own features; those of a derived set are products
            of its parts' signs, unless these show nowhere but in the product.
    """

    group: str
    size: int
    permutable: bool
    odd: bool
    run: int
    parts: tuple[Part, ...] = ()
    derived: bool = False
    sided: bool = True

    @property
    def own_units(self) -> bool:
        """Whether it has units that no other set has; false for the further scalings of a set's units."""
        return not self.derived and (not self.parts or self.run > 1)

    @property
    def known(self) -> bool:
        """Whether its units are told apart by their index alone, and never change their sign."""
        return not (self.permutable or self.odd or self.parts)


class SetTable:
    """Collects the sets that a spec's blocks need.

    Args:
        spec: The spec.
        symmetry: Whether units may be rescaled.

    Attributes:
        nodes: The sets so far: those of groups, then derived ones.
        positive: Groups whose units may be rescaled by q > 0.
    """

    def __init__(self, spec: SymmetrySpec, symmetry: Symmetry) -> None:
        self.spec, self.symmetry = spec, symmetry
        self.nodes: list[NodeSet] = []
        self.positive: list[str] = []
        self._of_group: dict[str, int] = {}
        self._derived: dict[tuple[tuple[str, tuple[str, ...]], ...], int] = {}
        for group in spec.groups:
            if symmetry == "scale" and group.kind in ("positive", "free"):
                self.positive.append(group.name)
            if self.units(group.name) != group.name and not _flips(group):
                # Scales that are never negative leave nothing to tell: its units' own set is enough.
                self._of_group[group.name] = self._of_group[self.units(group.name)]
            else:
                self._of_group[group.name] = len(self.nodes)
                self.nodes.append(self._node_set(group))

    def _node_set(self, group: NeuronGroup) -> NodeSet:
        run = self.spec.run(group.name)
        odd = self.symmetry == "scale" and _flips(group)
        if group.within is None:
            return NodeSet(group.name, group.size, group.permutable, odd, run)
        owner = Part(self._of_group[group.within], 1, run, odd=False, plays=True)
        return NodeSet(group.name, group.size, group.permutable or run == 1, odd, run, (owner,))

    def units(self, name: str) -> str:
        """The group whose units a group scales: its own, or those of its owner."""
        group = self.spec.group(name)
        return name if group.within is None or self.spec.run(name) > 1 else self.units(group.within)

    def of_group(self, name: str) -> int:
        """The set of a group, or of its units."""
        return self._of_group[name]

    def of_axes(self, axes: Sequence[Axis]) -> int:
        """The set whose rows are units of all axes together, and flip with what scales them."""
        key = tuple((self.units(axis.group or ""), self._signs(axis)) for axis in axes)
        if len(key) == 1:
            units, signs = key[0]
            if not signs and not _flips(self.spec.group(units)):
                return self._of_group[units]
            if len(signs) == 1 and self.units(signs[0]) == units:
                return self._of_group[signs[0]]
        if key not in self._derived:
            self._derived[key] = len(self.nodes)
            self.nodes.append(self._derived_set(axes, [signs for _, signs in key]))
        return self._derived[key]

    def _signs(self, axis: Axis) -> tuple[str, ...]:
        """Groups that flip an axis' units."""
        signs: set[str] = set()
        for name, exponent in axis.scales:
            if exponent % 2 and _flips(self.spec.group(name)):
                signs ^= {name}
        return tuple(sorted(signs))

    def _derived_set(self, axes: Sequence[Axis], signs: Sequence[tuple[str, ...]]) -> NodeSet:
        parts: list[Part] = []
        for axis, names, (before, after) in zip(axes, signs, strides(axes), strict=True):
            units = self.units(axis.group or "")
            whole = next((name for name in names if self.units(name) == units), None)
            if whole is None:
                parts.append(Part(self._of_group[units], before, after, odd=False, plays=True))
            for name in names:
                repeat = after * axis.size // self.spec.group(name).size
                parts.append(Part(self._of_group[name], before, repeat, odd=True, plays=name == whole))
        size = math.prod(axis.size for axis in axes)
        names = [" ".join((axis.group or "", *flips)) for axis, flips in zip(axes, signs, strict=True)]
        odd = self.symmetry == "scale" and any(signs)
        return NodeSet(" × ".join(names), size, True, odd, 1, tuple(parts), derived=True, sided=False)

    def sided(self, used: set[int]) -> tuple[NodeSet, ...]:
        """All sets, given which of them are ends of blocks."""
        found = {p for p in used if not self.nodes[p].derived}
        derived = [
            (p, [part.node for part in self.nodes[p].parts if part.odd]) for p in self._derived.values()
        ]
        # The sign of one part is that of the product times those of all other parts.
        for _ in derived:
            for _, parts in derived:
                missing = [p for p in parts if p not in found]
                found.update(missing if len(missing) == 1 else ())
        unknown = {p for p, parts in derived if not found.issuperset(parts)}
        return tuple(replace(node, sided=True) if p in unknown else node for p, node in enumerate(self.nodes))


def strides(axes: Sequence[Axis]) -> list[tuple[int, int]]:
    """For every axis the product of the sizes before it, and of those after it."""
    sizes = [axis.size for axis in axes]
    return [(math.prod(sizes[:place]), math.prod(sizes[place + 1 :])) for place in range(len(sizes))]


def _flips(group: NeuronGroup) -> bool:
    return group.kind in ("sign", "free")
