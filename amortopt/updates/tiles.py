"""Elements of all parameters in tiles that fit a cache, and what an update layer reads and writes of them.

Elements are channels first here, [C, N], so that every operation runs along neighbouring elements.

Legend: C channels, L blocks, R rows, B blocks of the network, D channels out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amortopt.updates.layout import Bucket, Side, UpdateLayout


@dataclass(frozen=True)
class Cut:
    """Whole blocks of a bucket, or some of one block's first axis.

    Attributes:
        position: Which bucket.
        bucket: The bucket.
        blocks: First block within the bucket and the one after the last.
        span: First index along the first axis and the one after the last.
        elements: First element of the flat vector and the one after the last.
    """

    position: int
    bucket: Bucket
    blocks: tuple[int, int]
    span: tuple[int, int]
    elements: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Blocks and axes."""
        return (self.blocks[1] - self.blocks[0], self.span[1] - self.span[0], *self.bucket.shape[1:])

    @property
    def whole(self) -> bool:
        """Whether it has all of the first axis."""
        return self.span == (0, self.bucket.shape[0])

    @property
    def network_blocks(self) -> slice:
        """Its blocks among those of the network."""
        first = self.bucket.blocks[0]
        return slice(first + self.blocks[0], first + self.blocks[1])

    def rows(self, side: Side) -> slice:
        """Its rows of a side among those of the network."""
        length = self.bucket.shape[side.axis or 0]
        first = side.rows[0] + self.blocks[0] * length
        if side.axis in (0, None) and not self.whole:
            return slice(first + self.span[0], first + self.span[1])
        return slice(first, first + self.shape[0] * length)

    def view(self, flat: Tensor) -> Tensor:
        """This part of [C, N], as [C, L, *axes]."""
        start, stop = self.elements
        return flat[:, start:stop].unflatten(1, self.shape)


@dataclass(frozen=True)
class Tile:
    """Neighbouring cuts of one class of blocks.

    Attributes:
        kind: The class, a position in ``CLASSES``.
        cuts: In the order of the flat vector.
    """

    kind: int
    cuts: tuple[Cut, ...]

    @property
    def elements(self) -> tuple[int, int]:
        """First element and the one after the last."""
        return self.cuts[0].elements[0], self.cuts[-1].elements[1]


def tiles(layout: UpdateLayout, size: int) -> list[Tile]:
    """Cut the flat vector.

    Args:
        layout: Of the base network.
        size: Elements of a tile, about.
    """
    found: list[Tile] = []
    for position, bucket in enumerate(layout.buckets):
        for cut in _cuts(position, bucket, size):
            last = found[-1] if found else None
            if last and last.kind == bucket.kind and cut.elements[1] - last.elements[0] <= size:
                found[-1] = Tile(last.kind, (*last.cuts, cut))
            else:
                found.append(Tile(bucket.kind, (cut,)))
    return found


def _cuts(position: int, bucket: Bucket, size: int) -> list[Cut]:
    block, length = math.prod(bucket.shape), bucket.shape[0]
    first, found = bucket.elements[0], []
    if block <= size:
        step = size // block
        for k in range(0, bucket.count, step):
            stop = min(k + step, bucket.count)
            found.append(
                Cut(position, bucket, (k, stop), (0, length), (first + k * block, first + stop * block))
            )
        return found
    step = max(1, size * length // block)
    each = block // length
    for k in range(bucket.count):
        for row in range(0, length, step):
            stop, start = min(row + step, length), first + k * block
            found.append(
                Cut(position, bucket, (k, k + 1), (row, stop), (start + row * each, start + stop * each))
            )
    return found


def read_rows(cut: Cut, part: Tensor, rows: Tensor) -> None:
    """Sum along all axes but one.

    Args:
        cut: What is read.
        part: Its elements, [C, L, *axes].
        rows: Sums of all rows of the network, written to; zero before the first cut, [R, C].
    """
    for side in cut.bucket.sides:
        channels, axes = part.shape[0], part.ndim - 2
        target = rows[cut.rows(side)].view(cut.shape[0], -1, channels).permute(2, 0, 1)
        if side.axis is None:
            start, stop = (0, part.shape[3]) if cut.whole else cut.span
            row = part[:, :, :, start:stop].diagonal(dim1=2, dim2=3).movedim(-1, 2)
            target.copy_(row.flatten(3).sum(3) if row.ndim > 3 else row)
            continue
        others = [2 + axis for axis in range(axes) if axis != side.axis]
        if not others:
            target.copy_(part)
        elif side.axis == 0 or cut.whole:
            torch.sum(part, others, out=target)
        else:
            target.add_(part.sum(others))


def row_lengths(layout: UpdateLayout) -> Tensor:
    """Elements in each row, float32 [R, 1]."""
    lengths = torch.zeros(layout.num_rows, 1)
    for bucket in layout.buckets:
        for side in bucket.sides:
            kept = bucket.shape[side.axis] if side.axis is not None else bucket.shape[0] ** 2
            lengths[slice(*side.rows)] = math.prod(bucket.shape) // kept
    return lengths.to(layout.device)


def write_rows(cut: Cut, said: Tensor, rows: Tensor | None, kernel: Tensor | None, out: Tensor) -> None:
    """What is said of blocks and rows, for every element.

    Args:
        cut: What is written.
        said: Of all blocks of the network, [D, B].
        rows: Of all rows of the network, [D, R].
        kernel: What is said of this cut's matrices, [D, L, *first two axes].
        out: Overwritten, [D, L, *axes].
    """
    axes = out.ndim - 2
    total = said[:, cut.network_blocks].view(*out.shape[:2], *[1] * axes)
    terms: list[Tensor] = []
    diagonal: tuple[Side, Tensor] | None = None
    for side in cut.bucket.sides if rows is not None else ():
        assert rows is not None
        part = rows[:, cut.rows(side)].unflatten(1, (cut.shape[0], -1))
        if side.axis is None:
            diagonal = side, part
        else:
            after = axes - 1 - side.axis
            terms.append(part.view(*part.shape[:2], *[1] * side.axis, part.shape[2], *[1] * after))
    if kernel is not None:
        terms.insert(min(2, len(terms)), kernel.view(*kernel.shape, *[1] * (axes - 2)))
    # The small ones first: only the last addition is as large as the elements.
    for term in terms[:-1]:
        total = total + term
    if terms:
        torch.add(total, terms[-1], out=out) if _full(total, terms[-1], out) else out.copy_(total + terms[-1])
    else:
        out.copy_(total.expand_as(out))
    if diagonal is not None:
        start, stop = (0, out.shape[3]) if cut.whole else cut.span
        part = diagonal[1].view(*diagonal[1].shape[:2], *[1] * (axes - 2), -1)
        out[:, :, :, start:stop].diagonal(dim1=2, dim2=3).add_(part)


def _full(a: Tensor, b: Tensor, out: Tensor) -> bool:
    """Whether two tensors broadcast to the shape of ``out``, and not only to what can be expanded to it."""
    return all(max(n, m) == size for n, m, size in zip(a.shape, b.shape, out.shape, strict=True))
