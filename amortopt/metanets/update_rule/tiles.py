"""Elements of all parameters in tiles that fit a cache.

Elements are channels first here, so that every operation runs along neighbouring elements.

Legend: N elements, C channels, L blocks of a cut, m elements of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amortopt.metanets.update_rule.layout import Bucket, Side, UpdateLayout


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

    @property
    def sizes(self) -> list[int]:
        """Elements of every cut."""
        return [cut.elements[1] - cut.elements[0] for cut in self.cuts]


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


class Elements:
    """Channels of all elements, one piece of memory per tile: what is read together lies together.

    Args:
        channels: Channels C.
        tiles: All tiles.
        device: Where they lie.
        shared: Whether all tiles have the same memory, for what is not needed any more after a tile.

    Attributes:
        tiles: [C, m] of every tile.
        cuts: [C, L, *axes] of every cut of every tile; views of ``tiles``.
    """

    def __init__(
        self, channels: int, tiles: Sequence[Tile], device: torch.device, *, shared: bool = False
    ) -> None:
        sizes = [tile.elements[1] - tile.elements[0] for tile in tiles]
        memory = torch.zeros(
            channels * (max(sizes) if shared else sum(sizes)), dtype=torch.float32, device=device
        )
        pieces = (
            [memory[: channels * m] for m in sizes] if shared else memory.split([channels * m for m in sizes])
        )
        self.tiles = [piece.view(channels, -1) for piece in pieces]
        self.cuts = [
            [
                part.unflatten(1, cut.shape)
                for cut, part in zip(tile.cuts, x.split(tile.sizes, 1), strict=True)
            ]
            for tile, x in zip(tiles, self.tiles, strict=True)
        ]
        self._homes: dict[tuple[int, int], list[tuple[Cut, Tensor]]] = {}
        for tile, views in zip(tiles, self.cuts, strict=True):
            for cut, view in zip(tile.cuts, views, strict=True):
                for k in range(*cut.blocks):
                    self._homes.setdefault((cut.position, k), []).append((cut, view[:, k - cut.blocks[0]]))

    def matrix(self, position: int, block: int, axis: int, span: tuple[int, int]) -> Tensor:
        """A range along one of the first two axes of a block: [C, *axes]; a copy where it is in several cuts.

        Args:
            position: Which bucket.
            block: Which of its blocks.
            axis: 0 or 1.
            span: First index along the axis and the one after the last.
        """
        found = []
        for cut, view in self._homes[position, block]:
            if axis == 1:
                found.append(view[:, :, slice(*span)])
                continue
            start, stop = max(span[0], cut.span[0]), min(span[1], cut.span[1])
            if start < stop:
                found.append(view[:, start - cut.span[0] : stop - cut.span[0]])
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)
