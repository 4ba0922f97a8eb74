"""Where the elements of all parameters of a base network lie in one flat vector, and what they are about.

Legend: N elements of all parameters, L blocks of a bucket, R rows, ``*batch`` networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.metanets.update_rule.pieces import CLASSES as CLASSES
from amortopt.metanets.update_rule.pieces import ROLES as ROLES
from amortopt.metanets.update_rule.pieces import Bucket as Bucket
from amortopt.metanets.update_rule.pieces import Piece, fits, piece_of, sides_of
from amortopt.metanets.update_rule.pieces import Side as Side
from amortopt.symmetry import Axis, Block, SymmetrySpec


class UpdateLayout:
    """The parameters of one base network as a flat vector, with the units that rows and columns belong to.

    Blocks of equal shape lie behind each other, vectors first, so that metanets for updates treat all of them
    in one operation. A fixed axis (kernel positions) counts as units of its own.

    Args:
        spec: Symmetry of the base network.
        shapes: Qualified name -> shape of every parameter; those that ``spec`` lacks are allowed, their axes
            are taken as fixed.

    Raises:
        ValueError: A parameter of ``spec`` is missing or has another shape.
    """

    def __init__(self, spec: SymmetrySpec, shapes: Mapping[str, Sequence[int]]) -> None:
        self.spec = spec
        self.shapes = {name: tuple(int(n) for n in shape) for name, shape in shapes.items()}
        if not self.shapes:
            raise ValueError("shapes: got no parameters, expected at least one")
        self._check()
        self._placed = self._place(
            [piece_of(spec, block) for name in self.shapes for block in self._blocks(name)]
        )
        self.device = torch.device("cpu")

    def _check(self) -> None:
        advice = "extract the symmetry of this model"
        if missing := [name for name in self.spec.params if name not in self.shapes]:
            raise ValueError(f"symmetry: it is about {', '.join(missing)}, which the model lacks; {advice}")
        for name, shape in self.shapes.items():
            covered = 0
            for block in self._blocks(name):
                if not fits(block, shape):
                    raise ValueError(
                        f"symmetry: block {block.label!r} has shape {block.shape}, but the model's parameter "
                        f"has shape {shape}; {advice}"
                    )
                covered += math.prod(block.shape)
            if covered != math.prod(shape):
                raise ValueError(
                    f"symmetry: the blocks of {name!r} cover {covered} of its {math.prod(shape)} elements; "
                    f"{advice}"
                )

    def _blocks(self, name: str) -> tuple[Block, ...]:
        if name in self.spec.params:
            return self.spec.blocks_of(name)
        return (Block(name, tuple(Axis(None, 0, n, "fixed") for n in self.shapes[name])),)

    def _place(self, pieces: list[Piece]) -> list[Piece]:
        buckets: dict[tuple[object, ...], list[Piece]] = {}
        for piece in pieces:
            buckets.setdefault(piece.key, []).append(piece)
        ordered = [buckets[key] for key in sorted(buckets, key=lambda key: key[0])]  # type: ignore[arg-type,return-value]
        first: dict[str, int] = {}
        units = 0
        for bucket in ordered:
            for piece in bucket:
                for size, group in zip(piece.shape, piece.groups, strict=True):
                    if group is not None and group not in first:
                        first[group] = units
                        units += size
        self.num_units = units
        self._lay_out(ordered, first)
        return [piece for bucket in ordered for piece in bucket]

    def _lay_out(self, ordered: list[list[Piece]], first: dict[str, int]) -> None:
        # Rows are ordered by role, so that all rows of a role are one matrix product.
        wanted = [(role, b, axis) for b, bucket in enumerate(ordered) for axis, role in sides_of(bucket[0])]
        wanted.sort(key=lambda side: (side[0], side[1]))
        sides: dict[int, list[Side]] = {b: [] for b in range(len(ordered))}
        row = 0
        for role, b, axis in wanted:
            index = [
                first[str(piece.groups[axis or 0])] + k
                for piece in ordered[b]
                for k in range(piece.shape[axis or 0])
            ]
            sides[b].append(Side(role, axis, (row, row + len(index)), tuple(index)))
            row += len(index)
        self.num_rows = row
        self.buckets: list[Bucket] = []
        block = element = 0
        for b, bucket in enumerate(ordered):
            shape = bucket[0].shape
            size = len(bucket) * math.prod(shape)
            self.buckets.append(
                Bucket(
                    shape,
                    bucket[0].kind,
                    (block, block + len(bucket)),
                    (element, element + size),
                    tuple(sides[b]),
                    bool(bucket[0].key[-1]),
                )
            )
            block, element = block + len(bucket), element + size
        self.num_blocks, self.size = block, element

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order given."""
        return tuple(self.shapes)

    @cached_property
    def rows_by_role(self) -> dict[int, tuple[int, int]]:
        """Role -> its first row and the one after its last; roles without rows are left out."""
        found: dict[int, tuple[int, int]] = {}
        for side in (side for bucket in self.buckets for side in bucket.sides):
            start, stop = found.get(side.role, side.rows)
            found[side.role] = (min(start, side.rows[0]), max(stop, side.rows[1]))
        return dict(sorted(found.items()))

    @cached_property
    def by_class(self) -> dict[int, tuple[tuple[int, int], tuple[int, int]]]:
        """Class -> its range of elements and its range of blocks; classes without blocks are left out."""
        found: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
        for kind in range(len(CLASSES)):
            own = [bucket for bucket in self.buckets if bucket.kind == kind]
            if own:
                found[kind] = (
                    (own[0].elements[0], own[-1].elements[1]),
                    (own[0].blocks[0], own[-1].blocks[1]),
                )
        return found

    @cached_property
    def slots(self) -> Tensor:
        """Row -> slot ``unit * len(ROLES) + role``, int64 [R]."""
        slots = torch.empty(self.num_rows, dtype=torch.int64)
        for side in (side for bucket in self.buckets for side in bucket.sides):
            slots[slice(*side.rows)] = torch.tensor(side.units) * len(ROLES) + side.role
        return slots.to(self.device)

    @cached_property
    def shares(self) -> Tensor:
        """Row -> one over the number of rows in its slot, float32 [R, 1]."""
        slots = self.slots.cpu()
        counts = torch.bincount(slots, minlength=self.num_units * len(ROLES))
        return (1.0 / counts[slots].float()).unsqueeze(1).to(self.device)

    @cached_property
    def pairs(self) -> tuple[tuple[tuple[int, int, bool], ...], ...]:
        """Matrices between the same two groups, two or more: bucket, block in it, whether transposed."""
        found: dict[tuple[str, str], list[tuple[int, int, bool]]] = {}
        for b, bucket in enumerate(self.buckets):
            for k, piece in enumerate(self._placed[slice(*bucket.blocks)]):
                if len(piece.shape) < 2:
                    continue
                first, second = piece.groups[:2]
                if first is None or second is None or "\0" in first + second:
                    continue
                flip = (second, first) in found and first != second
                key = (second, first) if flip else (first, second)
                found.setdefault(key, []).append((b, k, flip))
        return tuple(tuple(places) for places in found.values() if len(places) > 1)

    def split(self, flat: Tensor) -> list[Tensor]:
        """The elements by bucket: [B, N, *channels] -> [B, L, *shape, *channels] for every bucket."""
        sizes = [bucket.count * math.prod(bucket.shape) for bucket in self.buckets]
        # One split instead of a slice each: the backward of a slice fills a whole vector with zeros.
        return [
            part.unflatten(1, (bucket.count, *bucket.shape))
            for part, bucket in zip(flat.split(sizes, dim=1), self.buckets, strict=True)
        ]

    def split_blocks(self, blocks: Tensor) -> list[Tensor]:
        """What is said of blocks, by bucket: [B, blocks, C] -> [B, L, 1, ..., C]."""
        parts = blocks.split([bucket.count for bucket in self.buckets], dim=1)
        return [
            part.reshape(*part.shape[:2], *[1] * len(bucket.shape), part.shape[-1])
            for part, bucket in zip(parts, self.buckets, strict=True)
        ]

    @cached_property
    def sides(self) -> tuple[tuple[int, Side], ...]:
        """Every side with the position of its bucket, in the order of the rows."""
        found = [(b, side) for b, bucket in enumerate(self.buckets) for side in bucket.sides]
        return tuple(sorted(found, key=lambda pair: pair[1].rows))

    def to(self, device: torch.device | str) -> UpdateLayout:
        """Move its index tensors to a device; returns itself."""
        self.device = torch.device(device)
        for name in ("slots", "shares", "_order", "_homes"):
            if name in self.__dict__:
                self.__dict__[name] = (
                    self.__dict__[name].to(self.device)
                    if isinstance(self.__dict__[name], Tensor)
                    else {key: value.to(self.device) for key, value in self.__dict__[name].items()}
                )
        return self

    @cached_property
    def _homes(self) -> dict[str, Tensor]:
        """Name of a parameter in several blocks -> where in the flat vector its elements are, [numel]."""
        homes = {
            name: torch.empty(shape, dtype=torch.int64)
            for name, shape in self.shapes.items()
            if len(self._blocks(name)) > 1 or self._blocks(name)[0].slices
        }
        start = 0
        for piece in self._placed:
            size = math.prod(piece.shape)
            if piece.block.param in homes:
                whole = homes[piece.block.param].view(piece.block.view or self.shapes[piece.block.param])
                part = whole[piece.block.index]
                part.copy_(torch.arange(start, start + size).view(part.shape))
            start += size
        return {name: home.flatten().to(self.device) for name, home in homes.items()}

    def pack(self, params: Params) -> Tensor:
        """All parameters as one flat vector.

        Args:
            params: Qualified name -> [*batch, *shape].

        Returns:
            [*batch, N]; differentiable.

        Raises:
            ValueError: A name is missing, or a shape differs.
        """
        parts = []
        for piece in self._placed:
            name, shape = piece.block.param, self.shapes[piece.block.param]
            value = params.get(name)
            if value is None or tuple(value.shape[value.ndim - len(shape) :]) != shape:
                got = "none" if value is None else tuple(value.shape)
                raise ValueError(
                    f"params: got {got} for {name!r}, expected [*batch, {', '.join(map(str, shape))}]"
                )
            batch = value.shape[: value.ndim - len(shape)]
            if piece.block.view:
                value = value.reshape((*batch, *piece.block.view))
            parts.append(value[(..., *piece.block.index)].reshape((*batch, -1)))
        return torch.cat(parts, dim=-1)

    def unpack(self, flat: Tensor) -> Params:
        """The parameters in a flat vector.

        Args:
            flat: [*batch, N].

        Returns:
            Qualified name -> [*batch, *shape]: views, where the parameter is one block; differentiable.

        Raises:
            ValueError: The last axis has another length than N.
        """
        if flat.shape[-1] != self.size:
            raise ValueError(f"flat: got {flat.shape[-1]} elements, expected {self.size}")
        found: Params = {}
        start = 0
        for piece in self._placed:
            name, size = piece.block.param, math.prod(piece.shape)
            if name not in self._homes:
                found[name] = flat[..., start : start + size].reshape((*flat.shape[:-1], *self.shapes[name]))
            start += size
        for name, home in self._homes.items():
            found[name] = flat.index_select(-1, home).reshape((*flat.shape[:-1], *self.shapes[name]))
        return {name: found[name] for name in self.shapes}
