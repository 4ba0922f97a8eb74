"""Blocks of a parameter, read and written: the one place that knows where in a tensor a block lies.

``cut`` and ``read`` take a block out of a parameter, ``join`` makes the parameter from all of its blocks, by
concatenation, which autograd and vmap follow. ``BlockView`` reads and writes one block of a spec in networks
of other widths, and with run axes made whole.

All take tensors with any number ``lead`` of leading axes: 1 for stacked networks [B, ...] (the default), 0
for the parameter itself. A gradient lies as its parameter does; only the exponents of its scales are opposite
(``act(..., dual=True)``).

Legend: B networks, W units of an owner, a / r units per run of two groups that it owns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry.axes import Axis, Block

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec


def cut(value: Tensor, block: Block, lead: int = 1) -> Tensor:
    """The slice of a parameter that a block is.

    Args:
        value: [*lead, *shape of the parameter].
        block: A block of it.
        lead: Number of leading axes.

    Returns:
        [*lead, *lengths of the slices]; ``value`` itself if the block is the whole parameter. A view of
        ``value`` unless the block is of a reshaped parameter that is not contiguous.
    """
    if block.view:
        value = value.reshape((*value.shape[:lead], *block.view))
    return value[(slice(None),) * lead + block.index] if block.slices else value


def read(value: Tensor, block: Block, lead: int = 1) -> Tensor:
    """A block with one dimension per axis: [*lead, *shape of the parameter] -> [*lead, *block.shape].

    Raises:
        ValueError: A parameter of this shape has no such block.
    """
    if not fits(block, tuple(value.shape[lead:])):
        stacked, advice = "", "pass batched=True for a leading network axis"
        if lead:
            stacked, advice = "stacked networks [B, ...] ", "stack networks along a first axis"
        raise ValueError(
            f"params[{block.param!r}]: got shape {tuple(value.shape)}, expected {stacked}with a block "
            f"{block.label} of shape {'x'.join(map(str, block.shape))}; {advice}"
        )
    return cut(value, block, lead).reshape((*value.shape[:lead], *block.shape))


def read_all(spec: SymmetrySpec, params: Params, lead: int = 1) -> Params:
    """All blocks of the spec's params: label of the block -> [*lead, *block.shape]."""
    return {b.label: read(params[b.param], b, lead) for b in spec.blocks if not b.buffer}


def join(blocks: Sequence[Block], tensors: Sequence[Tensor], shape: Sequence[int], lead: int = 1) -> Tensor:
    """A parameter from its blocks, the inverse of [read][amortopt.symmetry.blocks.read] for all of them.

    Args:
        blocks: All blocks of one parameter; together they cover it without gaps.
        tensors: Per block [*lead, *block.shape] or anything that can be viewed so.
        shape: Shape of the parameter.
        lead: Number of leading axes.

    Returns:
        [*lead, *shape].

    Raises:
        ValueError: The blocks do not cover the parameter, or not by straight cuts from side to side.
    """
    front = tensors[0].shape[:lead]
    if len(blocks) == 1 and not blocks[0].slices:
        return tensors[0].reshape((*front, *shape))
    parts = [
        (block.slices, tensor.reshape((*front, *(stop - start for start, stop in block.slices))))
        for block, tensor in zip(blocks, tensors, strict=True)
    ]
    joined = _joined(parts, lead)
    if joined is None or math.prod(joined.shape[lead:]) != math.prod(shape):
        raise ValueError(
            f"params[{blocks[0].param!r}]: got shape {tuple(shape)}, expected one that the spec's blocks "
            f"cover without gaps: {', '.join(block.label for block in blocks)}"
        )
    return joined.reshape((*front, *shape))


def _joined(parts: Sequence[tuple[tuple[tuple[int, int], ...], Tensor]], lead: int) -> Tensor | None:
    """Slices of a tensor put together along the first dimension that separates them, and so on inside."""
    if len(parts) == 1:
        return parts[0][1]
    for dim in range(len(parts[0][0])):
        ordered = sorted(parts, key=lambda part: part[0][dim])
        runs, stop = [[ordered[0]]], ordered[0][0][dim][1]
        for part in ordered[1:]:
            if part[0][dim][0] >= stop:
                runs.append([])
            runs[-1].append(part)
            stop = max(stop, part[0][dim][1])
        if len(runs) > 1:
            whole = [tensor for run in runs if (tensor := _joined(run, lead)) is not None]
            return torch.cat(whole, dim=lead + dim) if len(whole) == len(runs) else None
    return None


def fits(block: Block, shape: Sequence[int]) -> bool:
    """Whether a parameter of this shape has the block, its slices being viewable with the block's axes."""
    whole = block.view or tuple(shape)
    slices = block.slices or tuple((0, size) for size in whole)
    if math.prod(whole) != math.prod(shape) or len(slices) != len(whole):
        return False
    if not all(0 <= start <= stop <= size for (start, stop), size in zip(slices, whole, strict=True)):
        return False
    lengths = [stop - start for start, stop in slices]
    # Dimensions of a view may be finer than the axes: heads, and units of each of them.
    return merges(block.shape, lengths) or (block.view != () and merges(lengths, block.shape))


def merges(sizes: Sequence[int], lengths: Sequence[int]) -> bool:
    """Whether ``lengths`` are ``sizes`` with neighbours multiplied, ones aside: (2, 3, 4) -> (6, 4)."""
    ends = {math.prod(sizes[:k]) for k in range(len(sizes) + 1)}
    return math.prod(sizes) == math.prod(lengths) and all(
        math.prod(lengths[:k]) in ends for k in range(len(lengths))
    )


@dataclass(frozen=True)
class Run:
    """An axis along one run of a group, and the axis along the run's owner.

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
        """The inverse of `spread`; what is beside the diagonal is dropped."""
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
    """A block of a family's spec, in stacked networks [B, ...] that may be wider than those of the spec.

    Attributes:
        block: The block.
        axes: Its axes as `read` returns them: run axes are made whole.
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
        """Lengths of the axes as `read` returns them, in these networks [B, ...]."""
        shape = self._shape(value)
        return tuple(axis.size for axis in self.axes) if self.runs else shape

    def view(self, value: Tensor) -> Tensor:
        """Parameter [B, ...] -> [B, one dimension per axis of the block], run axes as they are."""
        shape = self._shape(value)
        return cut(value, self.block).reshape(value.shape[0], *shape)

    def read(self, value: Tensor) -> Tensor:
        """Parameter [B, ...] -> [B, *sizes]: every axis is along a whole group or fixed."""
        x = self.view(value)
        for run in self.runs:
            x = run.spread(x)
        return x

    def write(self, x: Tensor, value: Tensor, written: Tensor | None) -> Tensor:
        """The inverse of `read`.

        Args:
            x: [B, *sizes].
            value: The parameter [B, ...] that was read.
            written: The parameter as other blocks have written it, of which this one is a slice; is changed.

        Returns:
            The parameter with this block written.
        """
        for run in reversed(self.runs):
            x = run.collect(x)
        if not self.block.slices:
            return x.reshape(value.shape)
        if written is None:
            written = value.clone(memory_format=torch.contiguous_format)
        part = cut(written, self.block)
        part.copy_(x.reshape(part.shape))
        return written

    def _shape(self, value: Tensor) -> tuple[int, ...]:
        """Shape of the block, whose plain group axes may be wider than the family's."""
        lengths = tuple(value.shape[1:])
        same = math.prod(lengths) == math.prod(self.whole) if self.block.view else lengths == self.whole
        if same if self.whole else merges(self.block.shape, lengths):
            return self.block.shape
        # Every way to spread the axes over the parameter's dimensions, each some neighbouring axes
        count = len(self.block.axes)
        ways = combinations(range(1, count), len(lengths) - 1) if lengths and not self.whole else ()
        for cuts in ways:
            parts = [range(start, stop) for start, stop in pairwise((0, *cuts, count))]
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
