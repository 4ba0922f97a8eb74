"""The parameters of a base network as one flat vector, blocks of equal shape side by side.

A **bucket** is all blocks of one shape; an update rule treats it in one operation. A **row** is the mean of a
block over all axes but one, so a row belongs to one unit of the network. Its **axis role** is what that axis
is to the block. A weight [out, in] has a row of role "out" for every output unit and one of role "in" for
every input unit.

Legend: N elements of all parameters, L blocks of a bucket, R rows, ``*batch`` networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry import Axis, Block, SymmetrySpec
from amortopt.symmetry.blocks import cut, fits, join

AXIS_ROLES = ("vector", "out", "in", "kernel")
"""The only axis of a vector; the first, second or a later axis of a matrix."""
CLASSES = ("vector", "table", "matrix")
"""A block with one axis longer than 1; one with more; such a block that writes hidden units and reads others,
so neither an embedding nor a head."""
_ADVICE = "extract the symmetry of this model"


@dataclass(frozen=True)
class Side:
    """The rows along one axis of all blocks of a bucket.

    Attributes:
        role: Position in ``AXIS_ROLES``.
        axis: Position in the bucket's shape.
        rows: First row and the one after the last: L blocks times n units.
        units: Network-wide number of each row's unit.
    """

    role: int
    axis: int
    rows: tuple[int, int]
    units: tuple[int, ...] = field(repr=False)

    def means(self, part: Tensor, axes: int) -> Tensor:
        """The rows, from the elements of a bucket of so many axes: [*lead, L, *shape] -> [*lead, L, n]."""
        others = [axis - axes for axis in range(axes) if axis != self.axis]
        return part.mean(others) if others else part

    def spread(self, row: Tensor, axes: int) -> Tensor:
        """What is added to the elements of every row: [*lead, L, n] -> [*lead, L, 1, .., n, .., 1]."""
        return row.unflatten(-1, [-1 if axis == self.axis else 1 for axis in range(axes)])


@dataclass(frozen=True)
class Bucket:
    """Blocks of one shape, behind each other in the flat vector.

    Attributes:
        shape: Shape of one block; neighbouring fixed axes are one axis, axes of length 1 are left out.
        kind: Position in ``CLASSES``.
        blocks: First block and the one after the last, in the order of the flat vector.
        elements: First element and the one after the last.
        sides: Axes along which the bucket has rows.
    """

    shape: tuple[int, ...]
    kind: int
    blocks: tuple[int, int]
    elements: tuple[int, int]
    sides: tuple[Side, ...]

    @property
    def count(self) -> int:
        """Number of blocks L."""
        return self.blocks[1] - self.blocks[0]


@dataclass(frozen=True)
class Place:
    """Where a block lies in the flat vector: elements ``start`` to ``stop``, in the block's own order."""

    block: Block
    start: int
    stop: int


class _Piece(NamedTuple):
    """A block in the shape of its bucket; ``units`` names what each axis counts, None if it has no rows."""

    block: Block
    kind: int
    shape: tuple[int, ...]
    units: tuple[str | None, ...]

    @classmethod
    def of(cls, spec: SymmetrySpec, block: Block) -> _Piece:
        """Without axes of length 1, neighbouring fixed axes merged."""
        shape: list[int] = []
        units: list[str | None] = []
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
            if axis.group is None:
                units.append(f"\0{block.label}\0{position}")
            else:  # along one run of a group, indices of different runs are different units: no rows
                name = spec.units_of(axis.group)
                units.append(name if spec.group(name).size == axis.size else None)
        first, *others = block.axes or (None,)
        owners = () if first is None or first.group is None else spec.owners(first.group)
        writes_hidden = any(not spec.group(name).trivial for name in owners)
        reads = any(axis is not None and axis.group is not None for axis in others)
        kind = "vector" if len(shape) < 2 else "matrix" if writes_hidden and reads else "table"
        names = tuple(units) if shape else (f"\0{block.label}",)
        return cls(block, CLASSES.index(kind), tuple(shape) or (1,), names)

    @property
    def key(self) -> tuple[int, tuple[int, ...], tuple[bool, ...]]:
        """Equal within a bucket: class, shape, axes without rows."""
        return self.kind, self.shape, tuple(name is None for name in self.units)


class UpdateLayout:
    """Order of all elements in the flat vector, and the units that rows belong to.

    Vectors come first, then tables, then matrices. A fixed axis (kernel positions) counts as units that no
    other block has.

    Args:
        spec: Symmetry of the base network.
        shapes: Qualified name -> shape of every parameter. Parameters that ``spec`` lacks are allowed; their
            axes are taken as fixed. Those without elements are left out.

    Attributes:
        buckets: In the order of the flat vector.
        sides: Position of the bucket, and side, in the order of the rows: sorted by axis role.
        places: Every block and its elements, in the order of the flat vector.
        slots: Row -> ``unit * len(AXIS_ROLES) + role``, int64 [R].
        shares: Row -> one over the number of rows in its slot, float32 [R, 1].
        fans: Block -> weights per entry of its first axis, inputs times kernel positions, float32 [blocks];
            0 for blocks of a single axis.

    Raises:
        ValueError: A parameter of ``spec`` is missing or has another shape.
    """

    def __init__(self, spec: SymmetrySpec, shapes: Mapping[str, Sequence[int]]) -> None:
        self.spec = spec
        every = {name: tuple(int(n) for n in shape) for name, shape in shapes.items()}
        self.shapes = {name: shape for name, shape in every.items() if math.prod(shape)}
        if not self.shapes:
            raise ValueError("shapes: got no parameters with elements, expected at least one")
        if missing := [name for name in spec.params if name not in every]:
            raise ValueError(f"spec: it is about {', '.join(missing)}, which the model lacks; {_ADVICE}")
        self.device = torch.device("cpu")
        self.blocks: dict[str, tuple[Block, ...]] = {
            name: spec.blocks_of(name)
            if name in spec.params
            else (Block(name, tuple(Axis(None, 0, n, "fixed") for n in shape)),)
            for name, shape in self.shapes.items()
        }
        by_key: dict[Any, list[_Piece]] = {}
        for name, shape in self.shapes.items():
            for block in self.blocks[name]:
                if not fits(block, shape):
                    raise ValueError(
                        f"spec: block {block.label!r} has shape {block.shape}, but the model's parameter has "
                        f"shape {shape}; {_ADVICE}"
                    )
                piece = _Piece.of(spec, block)
                by_key.setdefault(piece.key, []).append(piece)
            covered = sum(math.prod(block.shape) for block in self.blocks[name])
            if covered != math.prod(shape):
                raise ValueError(
                    f"spec: the blocks of {name!r} cover {covered} of its {math.prod(shape)} elements; "
                    f"{_ADVICE}"
                )
        keys = sorted(by_key, key=lambda key: key[0])  # by class
        pieces = [by_key[key] for key in keys]
        # Units are numbered over the whole network.
        first_unit: dict[str | None, int] = {}
        self.num_units = 0
        for piece in chain.from_iterable(pieces):
            for size, unit in zip(piece.shape, piece.units, strict=True):
                if unit is not None and unit not in first_unit:
                    first_unit[unit] = self.num_units
                    self.num_units += size
        # Rows are sorted by axis role: all rows of one role are one matrix product.
        axes: list[tuple[int, int, int]] = []  # axis role, bucket, axis
        for b, (kind, _, without) in enumerate(keys):
            axes += [(min(axis, 2) + 1 if kind else 0, b, axis) for axis, no in enumerate(without) if not no]
        self.sides: list[tuple[int, Side]] = []
        self.num_rows = 0
        for role, b, axis in sorted(axes, key=lambda side: side[:2]):
            n = pieces[b][0].shape[axis]
            units = tuple(first_unit[piece.units[axis]] + k for piece in pieces[b] for k in range(n))
            self.sides.append((b, Side(role, axis, (self.num_rows, self.num_rows + len(units)), units)))
            self.num_rows += len(units)
        # Blocks of a bucket lie behind each other.
        self.buckets: list[Bucket] = []
        self.places: list[Place] = []
        self.num_blocks = self.size = 0
        for b, (kind, shape, _) in enumerate(keys):
            first, sides = self.size, tuple(side for k, side in self.sides if k == b)
            for piece in pieces[b]:
                self.places.append(Place(piece.block, self.size, self.size + math.prod(shape)))
                self.size += math.prod(shape)
            blocks = (self.num_blocks, self.num_blocks + len(pieces[b]))
            self.buckets.append(Bucket(shape, kind, blocks, (first, self.size), sides))
            self.num_blocks = blocks[1]
        self.fans = torch.tensor([float(_fan(place.block)) for place in self.places])
        self.slots = torch.empty(self.num_rows, dtype=torch.int64)
        for _, side in self.sides:
            self.slots[slice(*side.rows)] = torch.tensor(side.units) * len(AXIS_ROLES) + side.role
        counts = torch.bincount(self.slots, minlength=self.num_units * len(AXIS_ROLES))
        self.shares = (1.0 / counts[self.slots].float()).unsqueeze(1)

    @cached_property
    def rows_by_role(self) -> dict[int, tuple[int, int]]:
        """Axis role -> its first row and the one after its last; roles without rows are left out."""
        return _joined((side.role, side.rows) for _, side in self.sides)

    @cached_property
    def blocks_by_class(self) -> dict[int, tuple[int, int]]:
        """Class -> its first block and the one after its last; classes without blocks are left out."""
        return _joined((bucket.kind, bucket.blocks) for bucket in self.buckets)

    def split(self, flat: Tensor) -> list[Tensor]:
        """The elements by bucket: [*lead, N] -> [*lead, L, *shape] for every bucket."""
        sizes = [bucket.count * math.prod(bucket.shape) for bucket in self.buckets]
        # One split instead of a slice each: the backward of a slice fills a whole vector with zeros.
        return [
            part.unflatten(-1, (bucket.count, *bucket.shape))
            for part, bucket in zip(flat.split(sizes, dim=-1), self.buckets, strict=True)
        ]

    def split_blocks(self, blocks: Tensor) -> list[Tensor]:
        """Numbers of blocks by bucket, to go with elements: [*lead, blocks] -> [*lead, L, 1, ..., 1]."""
        parts = blocks.split([bucket.count for bucket in self.buckets], dim=-1)
        return [
            part.unflatten(-1, (-1, *[1] * len(bucket.shape)))
            for part, bucket in zip(parts, self.buckets, strict=True)
        ]

    def to(self, device: torch.device | str) -> UpdateLayout:
        """Move its index tensors to a device; returns itself."""
        self.device = torch.device(device)
        for name in ("slots", "shares", "fans"):
            setattr(self, name, getattr(self, name).to(self.device))
        return self

    def pack(self, params: Params, out: Tensor | None = None) -> Tensor:
        """All parameters [*batch, *shape] as one flat vector [*batch, N]; differentiable without ``out``.

        Raises:
            ValueError: A name is missing, or a shape differs.
        """
        leads = {}
        for name, shape in self.shapes.items():
            value = params.get(name)
            lead = 0 if value is None else value.ndim - len(shape)
            if value is None or tuple(value.shape[lead:]) != shape:
                got = "none" if value is None else tuple(value.shape)
                raise ValueError(
                    f"params: got {got} for {name!r}, expected [*batch, {', '.join(map(str, shape))}]"
                )
            leads[name] = lead
        parts = []
        for place in self.places:
            value, lead = params[place.block.param], leads[place.block.param]
            parts.append(cut(value, place.block, lead).reshape(*value.shape[:lead], -1))
        return torch.cat(parts, dim=-1, out=out)

    def unpack(self, flat: Tensor) -> Params:
        """The parameters in a flat vector: [*batch, N] -> qualified name -> [*batch, *shape].

        Those of one block are views. Differentiable.

        Raises:
            ValueError: The last axis has another length than N.
        """
        if flat.shape[-1] != self.size:
            raise ValueError(f"flat: got {flat.shape[-1]} elements, expected {self.size}")
        parts = flat.split([place.stop - place.start for place in self.places], dim=-1)
        by_name: dict[str, list[tuple[Block, Tensor]]] = {name: [] for name in self.shapes}
        for place, part in zip(self.places, parts, strict=True):
            by_name[place.block.param].append((place.block, part))
        lead = flat.ndim - 1
        return {
            name: join([block for block, _ in many], [part for _, part in many], self.shapes[name], lead)
            for name, many in by_name.items()
        }


def _fan(block: Block) -> int:
    """Weights per entry of a block's first axis; 0 if that is its only one."""
    return math.prod(axis.size for axis in block.axes[1:]) if len(block.axes) > 1 else 0


def _joined(spans: Iterable[tuple[int, tuple[int, int]]]) -> dict[int, tuple[int, int]]:
    """One span per key, from neighbouring ones."""
    joined: dict[int, tuple[int, int]] = {}
    for key, span in spans:
        joined[key] = (joined.get(key, span)[0], span[1])
    return joined
