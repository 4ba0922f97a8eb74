"""What several rules do with the dimensions of a value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from amortopt.symmetry.solve.dims import Dim, Dims, fixed, with_exponent
from amortopt.symmetry.solve.labels import Labels


def axes_of(dim: Any, ndim: int) -> list[int]:
    """An argument ``dim`` (one axis, several, or None or [] for all ``ndim`` axes) as a list of axes."""
    if dim is None or dim == []:
        return list(range(ndim))
    return list(dim) if isinstance(dim, list | tuple) else [dim]


def without(dims: Sequence[Dim], *axes: int) -> Dims:
    """All dimensions but those at ``axes``, which count from the front."""
    return tuple(dim for axis, dim in enumerate(dims) if axis not in axes)


def replaced(dims: Dims, axis: int, *new: Dim) -> Dims:
    """The dimensions with ``new`` ones, any number of them, in place of the one at ``axis``."""
    return (*dims[:axis], *new, *dims[axis + 1 :])


def inverse(labels: Labels, dim: Dim) -> Dim:
    """The dimension that is contracted with ``dim``: the same units with inverse scales."""
    return with_exponent(labels.resolve(dim), -1)


def to_power(labels: Labels, dims: Dims, exponent: int) -> Dims:
    """The same units with their scales raised to ``exponent``; 0 for a value without scales."""
    return tuple(with_exponent(labels.resolve(dim), exponent) for dim in dims)


def places(sizes: Iterable[int]) -> Dims:
    """Dimensions of positions, which keep their order and have no scale."""
    return tuple(fixed(size, "position") for size in sizes)


def mix_along(labels: Labels, dims: Dims, *axes: int) -> None:
    """Nothing along the other dimensions is nested in units along ``axes``, where entries meet."""
    labels.mix(without(dims, *axes), tuple(dims[axis] for axis in axes))


def held(labels: Labels, dims: Dims, rank: int, reason: str) -> Dims:
    """Fix the order along the last ``rank`` dimensions, which a window mixes; the dimensions before them."""
    even = labels.even(dims, tuple(range(len(dims) - rank, len(dims))))
    labels.mix(even[:-rank], dims[-rank:])
    labels.freeze(dims[-rank:])
    labels.limit(even[-rank:], "none", reason)
    return even[:-rank]


def by_axis(dims: Dims) -> dict[int, Dim]:
    """Dimensions by their place counted from the end, as broadcasting aligns them."""
    return {axis - len(dims): dim for axis, dim in enumerate(dims)}


def per_axis(value: Any, count: int) -> str:
    """A setting per spatial axis as text: one number stands for all of them ("2" and [2, 2] give "2x2")."""
    if isinstance(value, str):
        return value
    values = list(value) if isinstance(value, list | tuple) else [value]
    return "x".join(str(v) for v in (values * count if len(values) == 1 else values))
