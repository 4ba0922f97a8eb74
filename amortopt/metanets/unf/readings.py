"""What terms of a UNF layer read from tensors and write to them, shared by all pairs of tensors.

A **reading** takes a tensor's diagonals (its grouping) and averages all parts but the kept ones. Readings
whose kept parts are of the same multiset of groups have one shape, whatever tensor they come from; writing is
the transpose of reading.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import TypeAlias

from amortopt.metanets.unf.basis import Spec, groupings

Multiset: TypeAlias = tuple[int, ...]
"""Groups of the kept parts, in the order of the axes of everything that is read for it."""

Runs: TypeAlias = Mapping[tuple[int, int], int]
"""(tensor, axis) -> axis of the same tensor without which it may not be kept."""


@dataclass(frozen=True)
class Reading:
    """One way to read a tensor, or to write to it.

    Attributes:
        tensor: Position of the tensor.
        grouping: Part of every axis; axes of one part are a diagonal.
        kept: Parts that are not averaged, in the order of the multiset.
    """

    tensor: int
    grouping: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def direct(self) -> bool:
        """Whether nothing is averaged."""
        return len(self.kept) == max(self.grouping, default=-1) + 1

    def averaged(self, shape: Sequence[int]) -> int:
        """How many elements of a tensor of some shape one mean is of."""
        sizes = dict(zip(self.grouping, shape, strict=True))
        return math.prod(size for part, size in sizes.items() if part not in self.kept)


Readings: TypeAlias = dict[Multiset, tuple[Reading, ...]]


def private_axes(specs: Sequence[Spec], runs: Runs) -> list[tuple[int, ...]]:
    """Per tensor the groups that it alone has, as its last axes: the height and width of a kernel.

    A lone such group is left out, and so are axes that may not be kept alone, and their owners.
    """
    often = Counter(group for spec in specs for group in spec)
    bound = {*runs, *((tensor, owner) for (tensor, _), owner in runs.items())}
    axes = []
    for tensor, spec in enumerate(specs):
        start = len(spec)
        while start and often[spec[start - 1]] == 1 and (tensor, start - 1) not in bound:
            start -= 1
        axes.append(spec[start:] if len(spec) - start > 1 else ())
    return axes


def all_readings(specs: Sequence[Spec], runs: Runs, *, every_order: bool) -> Readings:
    """The readings of all tensors, by multiset.

    Args:
        specs: Spec of every tensor.
        runs: Axes that may not be kept alone, and their owners.
        every_order: Whether kept parts of one group are read in every order. A layer reads in every order
            and writes in one, so that every term is one (reading, writing) pair.

    Returns:
        Multiset -> readings, those without diagonals first, then by tensor. The same keys for either order,
        by size; those that differ in one tensor's private axes only are behind each other, private axes last.
    """
    private = private_axes(specs, runs)
    every: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []  # tensor, grouping, kept parts
    for tensor, spec in enumerate(specs):
        for grouping in groupings(spec):
            owners = {grouping[axis]: grouping[owner] for (k, axis), owner in runs.items() if k == tensor}
            parts = range(max(grouping, default=-1) + 1)
            every += [
                (tensor, grouping, kept)
                for size in range(len(parts) + 1)
                for kept in combinations(parts, size)
                if all(owner in kept for part, owner in owners.items() if part in kept)
            ]
    # Whole tensors first: they decide in what order a multiset has its axes.
    every.sort(key=lambda one: len(one[2]) < len(specs[one[0]]))
    readings: dict[Multiset, list[Reading]] = {}
    order: dict[Multiset, Multiset] = {}
    rank: dict[Multiset, tuple[object, ...]] = {}
    for tensor, grouping, kept in every:
        group = dict(zip(grouping, specs[tensor], strict=True))  # of every part
        groups = tuple(group[part] for part in kept)
        rest = tuple(g for g in groups if g not in private[tensor])
        rest = order.setdefault(tuple(sorted(rest)), rest)
        last = tuple(g for g in private[tensor] if g in groups)
        multiset = rest + last
        bits = tuple(g in last for g in private[tensor]) if last else ()
        rank[multiset] = (len(rest), rest, tensor if last else -1, bits)
        # The ascending order within every group comes first.
        orders = [o for o in permutations(kept) if tuple(group[part] for part in o) == multiset]
        many = readings.setdefault(multiset, [])
        many += [Reading(tensor, grouping, o) for o in (orders if every_order else orders[:1])]
    return {
        m: tuple(sorted(readings[m], key=lambda r: (len(set(r.grouping)) < len(r.grouping), r.tensor)))
        for m in sorted(readings, key=rank.__getitem__)
    }
