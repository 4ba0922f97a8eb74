"""An update layer for one network without gradients.

Legend: as in :mod:`amortopt.updates.inference`; U units, K roles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amortopt.updates.layer import UpdateLayer
from amortopt.updates.layout import CLASSES, ROLES, Side, UpdateLayout
from amortopt.updates.tiles import Cut, Tile, read_rows, row_lengths, write_rows


class InferenceLayer:
    """An update layer's weights, transposed and joined, and what it has read.

    Args:
        layer: The layer.
        told: Its weights for what is known of blocks, [classes, told, D].
        layout: Of the base network.
    """

    def __init__(self, layer: UpdateLayer, told: Tensor, layout: UpdateLayout) -> None:
        self.layout, self.reach = layout, layer.reach
        self.means = layer.reach != "mlp"
        self.channels, self.width = layer.own.shape[1:]
        self.own = layer.own.transpose(1, 2).contiguous()
        c, device = self.channels, layout.device
        self.heard = torch.cat([layer.mean, told], 1) if self.means else told
        self.heard = self.heard.transpose(1, 2).contiguous()  # [classes, D, C + told]
        self.known = torch.zeros(self.heard.shape[2], layout.num_blocks, device=device)
        self.rows = torch.zeros(layout.num_rows, c, device=device)
        if layer.rows:
            self.row, self.unit = layer.row.transpose(1, 2).contiguous(), layer.unit.clone()
            slots = layout.slots
            self.order = torch.argsort(slots, stable=True)
            counts = torch.bincount(slots, minlength=layout.num_units * len(ROLES))
            self.offsets = counts.cumsum(0) - counts
            self.shares = counts.clamp(min=1).float().reciprocal().unsqueeze(1)
            self.per_row = row_lengths(layout).reciprocal()
        self.with_rows = layer.rows
        if layer.reach == "unf":
            self.everywhere = layer.everywhere.clone()
            self.transpose, self.kernel, self.pair = (
                w.t().contiguous() for w in (layer.transpose, layer.kernel, layer.pair)
            )
        self.said = torch.zeros(self.width, layout.num_blocks, device=device)
        self.said_rows = torch.zeros(self.width, layout.num_rows, device=device)
        self._bare = [b for b, bucket in enumerate(layout.buckets) if not _kept(bucket.sides)]

    def clear(self) -> None:
        """Forget what was read."""
        self.rows.zero_()
        if self.means:
            self.known[: self.channels].zero_()

    def read(self, tile: Tile, x: Tensor) -> None:
        """Take in the averages of a tile of [C, N]."""
        if not self.means:
            return
        for cut in tile.cuts:
            part = cut.view(x)
            if self.with_rows:
                read_rows(cut, part, self.rows)
            if not self.with_rows or cut.position in self._bare:
                mean = part.flatten(2).sum(2) if part.ndim > 2 else part
                size = (cut.bucket.elements[1] - cut.bucket.elements[0]) // cut.bucket.count
                self.known[: self.channels, cut.network_blocks].add_(mean, alpha=1 / size)

    def listen(self, told: Tensor) -> None:
        """Compute what is said of blocks and rows, once all tiles are read.

        Args:
            told: What is known of blocks, [told, B].
        """
        spans = {kind: slice(*blocks) for kind, (_, blocks) in self.layout.by_class.items()}
        if not self.means:
            for kind, span in spans.items():
                torch.mm(self.heard[kind], told[:, span], out=self.said[:, span])
            return
        c = self.channels
        self.known[c:] = told
        if self.with_rows:
            self.rows.mul_(self.per_row)
            for b, bucket in enumerate(self.layout.buckets):
                if b not in self._bare:
                    side = _kept(bucket.sides)[0]
                    rows = self.rows[slice(*side.rows)].view(bucket.count, -1, c)
                    torch.mean(rows, 1, out=self.known[:c, slice(*bucket.blocks)].t())
        heard = None
        if self.reach == "unf":
            averages = torch.zeros(len(CLASSES), c, device=told.device)
            for kind, span in spans.items():
                torch.mean(self.known[:c, span], 1, out=averages[kind])
            heard = (averages.view(1, -1) @ self.everywhere).view(len(CLASSES), self.width, 1)
        for kind, span in spans.items():
            part = self.said[:, span]
            torch.mm(self.heard[kind], self.known[:, span], out=part)
            if heard is not None:
                part.add_(heard[kind])
        if self.with_rows:
            self._listen_to_units()

    def _listen_to_units(self) -> None:
        for role, span in self.layout.rows_by_role.items():
            torch.mm(self.row[role], self.rows[slice(*span)].t(), out=self.said_rows[:, slice(*span)])
        # The mean of the rows in each slot; 0 is the mode "sum", which has a fast path.
        units = torch.embedding_bag(self.rows, self.order, self.offsets, False, 0)[0].mul_(self.shares)
        said = (units.view(self.layout.num_units, -1) @ self.unit).view(-1, self.width)
        self.said_rows.add_(said.index_select(0, self.layout.slots).t())

    def apply(self, tile: Tile, x: Tensor, out: Tensor) -> None:
        """What comes out of the layer and a ReLU, for the elements of a tile.

        Args:
            tile: The tile.
            x: All elements, [C, N].
            out: Those of the tile, overwritten, [D, m].
        """
        first = tile.elements[0]
        rows = self.said_rows if self.with_rows else None
        for cut in tile.cuts:
            target = out[:, cut.elements[0] - first : cut.elements[1] - first].unflatten(1, cut.shape)
            kernel = None
            if self.reach == "unf" and len(cut.bucket.shape) > 2:
                mean = cut.view(x).flatten(4).mean(4)
                kernel = (self.kernel @ mean.flatten(1)).view(-1, *mean.shape[1:])
            write_rows(cut, self.said, rows, kernel, target)
            if self.reach == "unf":
                if cut.bucket.square:
                    self._add_transposed(cut, x, target)
                self._add_pairs(cut, x, target)
        start, stop = tile.elements
        out.addmm_(self.own[tile.kind], x[:, start:stop])
        out.relu_()

    def _add_transposed(self, cut: Cut, x: Tensor, out: Tensor) -> None:
        start, stop = cut.bucket.elements
        blocks = x[:, start:stop].unflatten(1, (cut.bucket.count, *cut.bucket.shape))
        other = blocks[:, slice(*cut.blocks), :, slice(*cut.span)].transpose(2, 3)
        out.add_((self.transpose @ other.flatten(1)).view_as(out))

    def _add_pairs(self, cut: Cut, x: Tensor, out: Tensor) -> None:
        """What matrices between the same two groups say to those of the cut."""
        for places in self._pairs_of(cut):
            k, flip = places[0][1], places[0][2]
            mean = None
            for b, block, flipped in places[1]:
                matrix = self._matrix(x, b, block)
                matrix = (
                    matrix[:, :, slice(*cut.span)].transpose(1, 2)
                    if flipped != flip
                    else matrix[:, slice(*cut.span)]
                )
                if matrix.ndim > 3:
                    matrix = matrix.flatten(3).mean(3)
                mean = matrix if mean is None else mean + matrix
            assert mean is not None
            value = (self.pair @ mean.flatten(1)).view(-1, *mean.shape[1:])
            target = out[:, k - cut.blocks[0]]
            target.add_(value.view(*value.shape, *[1] * (target.ndim - 3)), alpha=1 / len(places[1]))

    def _pairs_of(self, cut: Cut) -> list[tuple[tuple[int, int, bool], tuple[tuple[int, int, bool], ...]]]:
        return [
            ((b, k, flip), places)
            for places in self.layout.pairs
            for b, k, flip in places
            if b == cut.position and cut.blocks[0] <= k < cut.blocks[1]
        ]

    def _matrix(self, x: Tensor, b: int, block: int) -> Tensor:
        bucket = self.layout.buckets[b]
        start, stop = bucket.elements
        return x[:, start:stop].unflatten(1, (bucket.count, *bucket.shape))[:, block]


def _kept(sides: tuple[Side, ...]) -> list[Side]:
    return [side for side in sides if side.axis is not None]
