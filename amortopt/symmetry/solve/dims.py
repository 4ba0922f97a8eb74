"""What a dimension of a value is made of: products and sums of atoms.

A dimension is a product of items, the last one fastest, as in a flattened array. An item is an atom, either
fixed (a kernel position, the batch) or units that a group element permutes and rescales, or a sum: parts one
after the other, as a concatenation makes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeAlias

Monomial: TypeAlias = tuple[tuple[int, int], ...]
"""A product of scales: (scale variable, exponent) in order of the variables, exponents other than 0."""


@dataclass(frozen=True)
class Atom:
    """One factor of a dimension.

    Attributes:
        size: Number of positions.
        unit: Unit variable along it; None if the atom is fixed.
        scale: What a moved value is multiplied by along it; empty for a fixed atom.
        role: What a fixed atom is: "batch", "kernel", "position", ...
    """

    size: int
    unit: int | None = None
    scale: Monomial = ()
    role: str = ""


@dataclass(frozen=True)
class Sum:
    """Parts one after the other along one dimension."""

    parts: tuple[Dim, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return sum(size_of(part) for part in self.parts)


Item: TypeAlias = Atom | Sum
Dim: TypeAlias = tuple[Item, ...]
Dims: TypeAlias = tuple[Dim, ...]


def fixed(size: int, role: str) -> Dim:
    """A dimension on which nothing acts."""
    return (Atom(size, role=role),)


def size_of(dim: Dim) -> int:
    """Number of positions along a dimension."""
    return math.prod(item.size for item in dim)


def unit_of(dim: Dim) -> int | None:
    """The unit variable of a dimension that is nothing else."""
    return dim[0].unit if len(dim) == 1 and isinstance(dim[0], Atom) else None


def atoms_of(dim: Dim) -> Iterator[Atom]:
    """All atoms, parts of sums too, in order."""
    for item in dim:
        if isinstance(item, Atom):
            yield item
        else:
            for part in item.parts:
                yield from atoms_of(part)


def with_scales(dim: Dim, scales: Iterator[Monomial]) -> Dim:
    """The same dimension with other scales, one for every atom in order."""
    items: list[Item] = []
    for item in dim:
        if isinstance(item, Atom):
            items.append(replace(item, scale=next(scales)))
        else:
            items.append(Sum(tuple(with_scales(part, scales) for part in item.parts)))
    return tuple(items)


def with_exponent(dim: Dim, factor: int) -> Dim:
    """The same dimension with exponents multiplied: -1 for what is contracted with it, 0 to follow only."""
    return with_scales(dim, iter([power(atom.scale, factor) for atom in atoms_of(dim)]))


def unscaled(dim: Dim) -> Dim:
    """The same units without scales."""
    return with_exponent(dim, 0)


def units_only(dim: Dim) -> Dim:
    """Sizes and units, without scales and roles: what two dimensions have to agree in to be tied."""
    return tuple(
        Sum(tuple(units_only(part) for part in item.parts))
        if isinstance(item, Sum)
        else Atom(item.size, item.unit)
        for item in dim
    )


def essential(dim: Dim) -> Dim:
    """The items without fixed ones of size one, on which nothing depends; at least one if there were any."""
    kept = tuple(item for item in dim if isinstance(item, Sum) or item.unit is not None or item.size != 1)
    return kept or dim[:1]


def is_fixed(dim: Dim) -> bool:
    """Whether nothing acts along a dimension."""
    return all(atom.unit is None for atom in atoms_of(dim))


def power(scale: Monomial, exponent: int) -> Monomial:
    """A monomial to a power."""
    return tuple((var, e * exponent) for var, e in scale) if exponent else ()


def times(*scales: Monomial) -> Monomial:
    """The product of monomials."""
    total: dict[int, int] = {}
    for scale in scales:
        for var, exponent in scale:
            total[var] = total.get(var, 0) + exponent
    return tuple((var, total[var]) for var in sorted(total) if total[var])


def sum_of(parts: list[Dim]) -> Dim:
    """Parts one after the other: sums within are opened, neighbouring fixed parts joined."""
    flat: list[Dim] = []
    for part in (part or fixed(1, "position") for part in parts):
        for piece in part[0].parts if len(part) == 1 and isinstance(part[0], Sum) else (part,):
            last = flat[-1] if flat else ()
            if last and is_fixed(last) and is_fixed(piece):
                role = next(atoms_of(last)).role
                flat[-1] = fixed(size_of(last) + size_of(piece), role)
            elif size_of(piece):
                flat.append(piece)
    return flat[0] if len(flat) == 1 else (Sum(tuple(flat)),)


def ends_of(total: Sum) -> list[int]:
    """Position after the last one of every part."""
    return list(accumulate(size_of(part) for part in total.parts))


def as_sum(dim: Dim) -> Sum | None:
    """The dimension as a sum, if it is one, a sum times something, or copies of something."""
    if len(dim) == 1:
        return dim[0] if isinstance(dim[0], Sum) else None
    first, rest = dim[0], dim[1:]
    if isinstance(first, Sum):
        return Sum(tuple((*part, *rest) for part in first.parts))
    return Sum((rest,) * first.size) if first.unit is None and not is_fixed(rest) else None
