"""Node sets: the units that a metanet has features of, and which sets are about the same units.

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

Respects: TypeAlias = Literal["scale", "permutation"]
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
        slots: Whether the set's units take the part's slots, combined with those of other parts and of the
            set.
    """

    node: int
    before: int
    repeat: int
    odd: bool
    slots: bool


@dataclass(frozen=True)
class NodeSet:
    """The units of one neuron group, or what is derived from several.

    Attributes:
        group: Name of the group; several names for a derived set.
        size: Units in the family's networks.
        permutable: Whether units of one run may be exchanged; otherwise a unit is known by its index.
        odd: Whether a unit may change its sign.
        run: Number of units that are put in order among each other: those of one unit of the owner, or all; 1
            for a derived set.
        parts: The owner of a group; what a derived set is made of.
        derived: Whether it is no group's.
        sided: Whether the signs of its units come from their features. Those of a derived set are products of
            its parts' signs, unless these show nowhere but in the product.
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
    def has_units(self) -> bool:
        """Whether it has units that no other set has; false for further scalings of another set's units."""
        return not self.derived and (not self.parts or self.run > 1)

    @property
    def known(self) -> bool:
        """Whether its units are known by their index alone, and never change their sign."""
        return not (self.permutable or self.odd or self.parts)


class SetTable:
    """Collects the sets that a spec's blocks need.

    Args:
        spec: The spec.
        respects: Whether units may be rescaled.

    Attributes:
        nodes: The sets so far: those of groups, then derived ones.
        positive: Groups whose units may be rescaled by q > 0.
    """

    def __init__(self, spec: SymmetrySpec, respects: Respects) -> None:
        self.spec, self.respects = spec, respects
        self.nodes: list[NodeSet] = []
        self.positive: list[str] = []
        self._of_group: dict[str, int] = {}
        self._derived: dict[tuple[tuple[str, tuple[str, ...]], ...], int] = {}
        for group in spec.groups:
            if respects == "scale" and group.kind in ("positive", "free"):
                self.positive.append(group.name)
            if self.spec.units_of(group.name) != group.name and not _flips(group):
                # Scales that are never negative show in no feature: the set of its units is enough.
                self._of_group[group.name] = self._of_group[self.spec.units_of(group.name)]
            else:
                self._of_group[group.name] = len(self.nodes)
                run, odd = spec.run(group.name), respects == "scale" and _flips(group)
                permutable, owner = group.permutable, ()
                if group.within is not None:
                    permutable = permutable or run == 1
                    owner = (Part(self._of_group[group.within], 1, run, odd=False, slots=True),)
                self.nodes.append(NodeSet(group.name, group.size, permutable, odd, run, owner))

    def of_group(self, name: str) -> int:
        """The set of a group, or of its units."""
        return self._of_group[name]

    def of_axes(self, axes: Sequence[Axis]) -> int:
        """The set whose rows are units of all axes together, and flip with what scales them."""
        pairs: list[tuple[str, tuple[str, ...]]] = []
        for axis in axes:
            flips: set[str] = set()  # groups that flip the axis' units
            for name, exponent in axis.scales:
                if exponent % 2 and _flips(self.spec.group(name)):
                    flips ^= {name}
            pairs.append((self.spec.units_of(axis.group or ""), tuple(sorted(flips))))
        if len(pairs) == 1:
            units, signs = pairs[0]
            if not signs and not _flips(self.spec.group(units)):
                return self._of_group[units]
            if len(signs) == 1 and self.spec.units_of(signs[0]) == units:
                return self._of_group[signs[0]]
        key = tuple(pairs)
        if key in self._derived:
            return self._derived[key]
        parts: list[Part] = []
        for axis, (units, signs), (before, after) in zip(axes, key, strides(axes), strict=True):
            whole = next((name for name in signs if self.spec.units_of(name) == units), None)
            if whole is None:
                parts.append(Part(self._of_group[units], before, after, odd=False, slots=True))
            for name in signs:
                repeat = after * axis.size // self.spec.group(name).size
                parts.append(Part(self._of_group[name], before, repeat, odd=True, slots=name == whole))
        size = math.prod(axis.size for axis in axes)
        names = [" ".join((axis.group or "", *signs)) for axis, (_, signs) in zip(axes, key, strict=True)]
        odd = self.respects == "scale" and any(signs for _, signs in key)
        self._derived[key] = len(self.nodes)
        self.nodes.append(
            NodeSet(" × ".join(names), size, True, odd, 1, tuple(parts), derived=True, sided=False)
        )
        return self._derived[key]

    def sided(self, used: set[int]) -> tuple[NodeSet, ...]:
        """All sets, given which of them are ends of blocks."""
        sided = {p for p in used if not self.nodes[p].derived}
        derived = {p: [part.node for part in self.nodes[p].parts if part.odd] for p in self._derived.values()}
        # The sign of one part is that of the product times those of all other parts.
        for _ in derived:
            for parts in derived.values():
                missing = [p for p in parts if p not in sided]
                sided.update(missing if len(missing) == 1 else ())
        unknown = {p for p, parts in derived.items() if not sided.issuperset(parts)}
        return tuple(replace(node, sided=True) if p in unknown else node for p, node in enumerate(self.nodes))


def strides(axes: Sequence[Axis]) -> list[tuple[int, int]]:
    """For every axis the product of the sizes before it, and of those after it."""
    sizes = [axis.size for axis in axes]
    return [(math.prod(sizes[:place]), math.prod(sizes[place + 1 :])) for place in range(len(sizes))]


def _flips(group: NeuronGroup) -> bool:
    return group.kind in ("sign", "free")
