"""Blocks of a base network's symmetry, as update rules see them.

Legend: L blocks of a bucket, n units of an axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from amortopt.symmetry import Block, SymmetrySpec

ROLES = ("vector", "out", "in", "kernel", "diagonal")
"""What a unit is to a block: its only axis; the first, second or a later axis of a matrix; or both axes."""
CLASSES = ("vector", "matrix")
"""What a block is: one axis that is longer than 1, or more."""


@dataclass(frozen=True)
class Side:
    """One axis of a bucket's blocks that is kept while the others are averaged.

    Attributes:
        role: Position in ``ROLES``.
        axis: Position of the axis in the bucket's shape; None for the diagonal of the first two.
        rows: First of its rows and the one after the last; L blocks times n units.
        units: Network-wide unit of each row.
    """

    role: int
    axis: int | None
    rows: tuple[int, int]
    units: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class Bucket:
    """Blocks of one shape that are treated alike, behind each other in the flat vector.

    Attributes:
        shape: Shape of a block's elements; neighbouring fixed axes are one axis.
        kind: Position in ``CLASSES``.
        blocks: First block and the one after the last, in the order of the flat vector.
        elements: First element and the one after the last.
        sides: Axes along which rows are averaged.
        square: Whether the first two axes are of one group, as in a recurrent layer.
    """

    shape: tuple[int, ...]
    kind: int
    blocks: tuple[int, int]
    elements: tuple[int, int]
    sides: tuple[Side, ...]
    square: bool

    @property
    def count(self) -> int:
        """Number of blocks L."""
        return self.blocks[1] - self.blocks[0]


@dataclass(frozen=True)
class Piece:
    """A block as a bucket wants it."""

    block: Block
    shape: tuple[int, ...]
    groups: tuple[str | None, ...]  # None: an axis that may not be kept
    kind: int

    @property
    def key(self) -> tuple[object, ...]:
        square = len(self.groups) > 1 and self.groups[0] is not None and self.groups[0] == self.groups[1]
        return self.kind, self.shape, tuple(group is None for group in self.groups), square


def piece_of(spec: SymmetrySpec, block: Block) -> Piece:
    """A block without its axes of length 1, neighbouring fixed axes merged."""
    shape: list[int] = []
    groups: list[str | None] = []
    fixed_before = False
    for position, axis in enumerate(block.axes):
        fixed = axis.group is None
        if axis.size == 1 and (fixed or len(block.axes) > 1):
            continue
        if fixed and fixed_before:
            shape[-1] *= axis.size
            continue
        fixed_before = fixed
        shape.append(axis.size)
        groups.append(_keepable(spec, block, position))
    if not shape:
        shape, groups = [1], [f"\0{block.label}"]
    return Piece(block, tuple(shape), tuple(groups), int(len(shape) > 1))


def _keepable(spec: SymmetrySpec, block: Block, position: int) -> str | None:
    """Units along an axis: a group's, or its own if it is fixed; None if rows of a run are no units."""
    axis = block.axes[position]
    if axis.group is None:
        return f"\0{block.label}\0{position}"
    group = spec.group(axis.group)
    if group.within is not None and spec.run(group.name) == 1:
        group = spec.group(group.within)  # a further scaling of the owner's own units
    return group.name if group.size == axis.size else None


def sides_of(piece: Piece) -> list[tuple[int | None, int]]:
    """Axis (None: the diagonal) and role of what is kept of a block."""
    if piece.kind == 0:
        return [(0, 0)] if piece.groups[0] is not None else []
    found: list[tuple[int | None, int]] = [
        (axis, min(axis, 2) + 1) for axis, group in enumerate(piece.groups) if group is not None
    ]
    if piece.key[-1]:
        found.append((None, ROLES.index("diagonal")))
    return found


def fits(block: Block, shape: tuple[int, ...]) -> bool:
    """Whether a block can be cut out of a parameter of this shape and viewed with its axes."""
    whole = block.view or shape
    slices = block.slices or tuple((0, size) for size in whole)
    if math.prod(whole) != math.prod(shape) or len(slices) != len(whole):
        return False
    if not all(0 <= start < stop <= size for (start, stop), size in zip(slices, whole, strict=True)):
        return False
    # Axes refine the dimensions: every dimension is a product of neighbouring axes.
    ends = {math.prod(block.shape[:k]) for k in range(len(block.shape) + 1)}
    cut = [stop - start for start, stop in slices]
    return math.prod(cut) == math.prod(block.shape) and all(
        math.prod(cut[:k]) in ends for k in range(len(cut) + 1)
    )
