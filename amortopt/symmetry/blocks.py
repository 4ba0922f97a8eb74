"""A parameter's block as a tensor with one whole group, or something fixed, along every axis.

Legend: B networks, W units of an owner, a / r units per run of two groups that it owns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import torch
from torch import Tensor

from amortopt.symmetry import Axis, Block, SymmetrySpec


@dataclass(frozen=True)
class Run:
    """An axis along one run of a group, and the axis that says whose run it is.

    Attributes:
        axis: Position of the run axis.
        along: Position of the other axis.
        owners: Units W of the owner.
        merged: Whether the other axis counts the owner's units: both together are the whole group then.
            Otherwise it is along another group of the owner, and the block is the diagonal of W blocks.
    """

    axis: int
    along: int
    owners: int
    merged: bool

    def spread(self, x: Tensor) -> Tensor:
        """[B, ..., W a, ..., r, ...] -> [..., W a, ..., W r, ...], zero beside the diagonal."""
        pair = (1 + self.along, 1 + self.axis)
        x = x.movedim(pair, (-2, -1))
        if self.merged:
            return x.flatten(-2)[..., None].movedim((-2, -1), pair)
        # [.., W, a, r] -> [.., a, r, W, W'] -> [.., W, a, W', r]
        x = torch.diag_embed(x.unflatten(-2, (self.owners, -1)).movedim(-3, -1))
        x = x.movedim((-2, -4, -1, -3), (-4, -3, -2, -1))
        return x.flatten(-4, -3).flatten(-2).movedim((-2, -1), pair)

    def collect(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`spread`; what is beside the diagonal is dropped."""
        pair = (1 + self.along, 1 + self.axis)
        x = x.movedim(pair, (-2, -1))
        if self.merged:
            return x[..., 0].unflatten(-1, (self.owners, -1)).movedim((-2, -1), pair)
        x = x.unflatten(-1, (self.owners, -1)).unflatten(-3, (self.owners, -1))
        # [.., a, r, W] -> [.., W a, r]
        x = x.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
        return x.flatten(-3, -2).movedim((-2, -1), pair)


@dataclass(frozen=True)
class BlockView:
    """How to read and write a block.

    Attributes:
        block: The block.
        axes: Its axes as read: run axes are made whole.
        runs: What makes them whole, in this order.
        whole: Shape that the parameter is sliced in, if the block is a slice of it.
    """

    block: Block
    axes: tuple[Axis, ...]
    runs: tuple[Run, ...]
    whole: tuple[int, ...]

    @classmethod
    def of(cls, spec: SymmetrySpec, block: Block) -> BlockView:
        """The view of a spec's block."""
        axes, runs = list(block.axes), []
        for position, axis in enumerate(block.axes):
            along = spec.owner_axis(block, position)
            if along is None or axis.group is None:
                continue
            group = spec.group(axis.group)
            owners = group.size // spec.run(group.name)
            merged = axes[along].size == owners
            runs.append(Run(position, along, owners, merged))
            if merged:
                both = (*axis.also, *axes[along].scales)
                axes[along] = Axis(group.name, axis.exponent, group.size, also=both)
                axes[position] = Axis(None, 0, 1, "run")
            else:
                axes[position] = replace(axis, size=group.size)
        ends = [[stop for _, stop in other.slices] for other in spec.blocks_of(block.param)]
        whole = tuple(map(max, zip(*ends, strict=True))) if block.slices else ()
        return cls(block, tuple(axes), tuple(runs), whole)

    @property
    def diagonal(self) -> int:
        """Number of blocks of a block-diagonal weight; 1 for one without zeros."""
        return math.prod(run.owners for run in self.runs if not run.merged)

    def sizes(self, value: Tensor) -> tuple[int, ...]:
        """Lengths of the axes as read, in these networks [B, ...]."""
        shape = self._shape(value)
        return tuple(axis.size for axis in self.axes) if self.runs else shape

    def read(self, value: Tensor) -> Tensor:
        """Parameter [B, ...] -> [B, *sizes]."""
        shape = self._shape(value)
        if self.block.slices:
            value = self._slice(value)
        x = value.reshape(value.shape[0], *shape)
        for run in self.runs:
            x = run.spread(x)
        return x

    def write(self, x: Tensor, own: Tensor, written: Tensor | None) -> Tensor:
        """The inverse of :meth:`read`.

        Args:
            x: [B, *sizes].
            own: The parameter [B, ...] that was read.
            written: The parameter as other blocks have written it, of which this one is a slice; is changed.

        Returns:
            The parameter with this block written.
        """
        for run in reversed(self.runs):
            x = run.collect(x)
        if not self.block.slices:
            return x.reshape(own.shape)
        if written is None:
            written = own.clone(memory_format=torch.contiguous_format)
        part = self._slice(written)
        part.copy_(x.reshape(part.shape))
        return written

    def _slice(self, value: Tensor) -> Tensor:
        if self.block.view:
            value = value.reshape(value.shape[0], *self.block.view)
        return value[(slice(None), *self.block.index)]

    def _shape(self, value: Tensor) -> tuple[int, ...]:
        """Shape of the block, whose plain group axes may be wider than the family's."""
        lengths = tuple(value.shape[1:])
        same = math.prod(lengths) == math.prod(self.whole) if self.block.view else lengths == self.whole
        if same if self.whole else _merges(self.block.shape, lengths):
            return self.block.shape
        for parts in () if self.whole else self._parts(len(lengths)):
            shape = [self._part_shape(part, length) for part, length in zip(parts, lengths, strict=True)]
            if None not in shape:
                return tuple(size for part in shape if part is not None for size in part)
        expected = "x".join(map(str, self.whole or self.block.shape))
        how = "" if self.whole else "one that can be viewed as "
        why = ", as its slices are the family's" if self.whole else " up to the number of units"
        raise ValueError(
            f"params: {self.block.label!r} has shape {lengths} per network, expected {how}{expected}{why}; "
            "give a network of the family"
        )

    def _parts(self, dimensions: int) -> Iterator[list[range]]:
        """Every way to spread the axes over the parameter's dimensions, each some neighbouring axes."""
        if dimensions == 0:
            return
        count = len(self.block.axes)
        for cuts in combinations(range(1, count), dimensions - 1):
            yield [range(start, stop) for start, stop in pairwise((0, *cuts, count))]

    def _part_shape(self, part: range, length: int) -> list[int] | None:
        """Sizes of the axes that share a dimension of this length; None if they cannot."""
        runs = [run.axis for run in self.runs]
        axes = [(self.block.axes[p].size, self.block.axes[p].group is None or p in runs) for p in part]
        fixed = math.prod(size for size, known in axes if known)
        free = sum(not known for _, known in axes)
        if free > 1:
            family = [size for size, _ in axes]
            return family if math.prod(family) == length else None
        if length % fixed or (free == 0 and length != fixed):
            return None
        return [size if known else length // fixed for size, known in axes]


def _merges(sizes: tuple[int, ...], lengths: tuple[int, ...]) -> bool:
    """Whether the lengths are the sizes with neighbours multiplied."""
    product, rest = 1, list(lengths)
    for size in sizes:
        product *= size
        if rest and product == rest[0]:
            product = 1
            rest.pop(0)
    return product == 1 and all(length == 1 for length in rest)
