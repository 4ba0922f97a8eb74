"""An update layer for one network without gradients.

Legend: as in :mod:`amortopt.metanets.update_rule.inference`; U units, K roles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amortopt.metanets.update_rule.layer import UpdateLayer
from amortopt.metanets.update_rule.layout import CLASSES, ROLES, UpdateLayout
from amortopt.metanets.update_rule.tile_rows import RowReader, RowWriter, kept_axes, row_lengths
from amortopt.metanets.update_rule.tiles import Cut, Elements, Tile


@dataclass(frozen=True)
class _Pair:
    """A matrix of a cut that others between the same two groups speak to.

    Attributes:
        block: Which block of the cut.
        others: Bucket, block in it, and whether it is transposed against this one, of all of them.
    """

    block: int
    others: tuple[tuple[int, int, bool], ...]


class InferenceLayer:
    """An update layer's weights, transposed and joined, and what it has read.

    Args:
        layer: The layer.
        told: Its weights for what is known of blocks, [classes, told, D].
        layout: Of the base network.
        tiles: All tiles.
    """

    def __init__(self, layer: UpdateLayer, told: Tensor, layout: UpdateLayout, tiles: Sequence[Tile]) -> None:
        self.layout, self.tiles, self.reach = layout, tiles, layer.reach
        self.means = layer.reach != "mlp"
        self.channels, self.width = layer.own.shape[1:]
        self.own = layer.own.transpose(1, 2).contiguous()
        c, device = self.channels, layout.device
        self.heard = torch.cat([layer.mean, told], 1) if self.means else told
        self.heard = self.heard.transpose(1, 2).contiguous()  # [classes, D, C + told]
        self.known = torch.zeros(self.heard.shape[2], layout.num_blocks, dtype=torch.float32, device=device)
        self.rows = torch.zeros(layout.num_rows, c, dtype=torch.float32, device=device)
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
        self.said = torch.zeros(self.width, layout.num_blocks, dtype=torch.float32, device=device)
        self.said_rows = torch.zeros(self.width, layout.num_rows, dtype=torch.float32, device=device)
        self._bare = [b for b, bucket in enumerate(layout.buckets) if not kept_axes(bucket.sides)]
        self._prepare_cuts()

    def _prepare_cuts(self) -> None:
        """Readers, writers and partners of all cuts."""
        rows = self.said_rows if self.with_rows else None
        unf, device = self.reach == "unf", self.layout.device
        self._kernels: list[list[Tensor | None]] = [
            [
                torch.zeros(self.width, *cut.shape[:3], dtype=torch.float32, device=device)
                if unf and len(cut.shape) > 3
                else None
                for cut in tile.cuts
            ]
            for tile in self.tiles
        ]
        self._readers = [[RowReader(cut, self.rows) for cut in tile.cuts] for tile in self.tiles]
        self._writers = [
            [RowWriter(cut, self.said, rows, kernel) for cut, kernel in zip(tile.cuts, kernels, strict=True)]
            for tile, kernels in zip(self.tiles, self._kernels, strict=True)
        ]
        self._pairs = [[self._pairs_of(cut) if unf else [] for cut in tile.cuts] for tile in self.tiles]

    def _pairs_of(self, cut: Cut) -> list[_Pair]:
        return [
            _Pair(k - cut.blocks[0], tuple((b, block, flipped != flip) for b, block, flipped in places))
            for places in self.layout.pairs
            for position, k, flip in places
            if position == cut.position and cut.blocks[0] <= k < cut.blocks[1]
        ]

    def clear(self) -> None:
        """Forget what was read."""
        self.rows.zero_()
        if self.means:
            self.known[: self.channels].zero_()

    def read(self, t: int, x: Elements) -> None:
        """Take in the averages of a tile."""
        if not self.means:
            return
        for cut, part, reader in zip(self.tiles[t].cuts, x.cuts[t], self._readers[t], strict=True):
            if self.with_rows:
                reader(part)
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
                    side = kept_axes(bucket.sides)[0]
                    rows = self.rows[slice(*side.rows)].view(bucket.count, -1, c)
                    torch.mean(rows, 1, out=self.known[:c, slice(*bucket.blocks)].t())
        heard = None
        if self.reach == "unf":
            averages = torch.zeros(len(CLASSES), c, dtype=torch.float32, device=told.device)
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

    def apply(self, t: int, x: Elements, out: Elements) -> None:
        """What comes out of the layer and a ReLU, for the elements of a tile.

        Args:
            t: Which tile.
            x: What is read, C channels.
            out: That tile of it is overwritten, D channels.
        """
        tile, target = self.tiles[t], out.tiles[t]
        for i, writer in enumerate(self._writers[t]):
            kernel = self._kernels[t][i]
            if kernel is not None:
                mean = x.cuts[t][i].flatten(4).mean(4)
                torch.mm(self.kernel, mean.flatten(1), out=kernel.flatten(1))
            writer(out.cuts[t][i])
        if self.reach == "unf":
            for i, cut in enumerate(tile.cuts):
                if cut.bucket.square:
                    self._add_transposed(cut, x, out.cuts[t][i])
                if self._pairs[t][i]:
                    self._add_pairs(cut, self._pairs[t][i], x, out.cuts[t][i])
        target.addmm_(self.own[tile.kind], x.tiles[t]).relu_()

    def _add_transposed(self, cut: Cut, x: Elements, out: Tensor) -> None:
        for i, k in enumerate(range(*cut.blocks)):
            other = x.matrix(cut.position, k, 1, cut.span).transpose(1, 2)
            out[:, i].add_((self.transpose @ other.flatten(1)).view_as(out[:, i]))

    def _add_pairs(self, cut: Cut, pairs: Sequence[_Pair], x: Elements, out: Tensor) -> None:
        """What matrices between the same two groups say to those of the cut."""
        for pair in pairs:
            mean = None
            for b, block, flip in pair.others:
                matrix = x.matrix(b, block, int(flip), cut.span)
                matrix = matrix.flatten(3).mean(3) if matrix.ndim > 3 else matrix
                matrix = matrix.transpose(1, 2) if flip else matrix
                mean = matrix if mean is None else mean + matrix
            assert mean is not None
            value = (self.pair @ mean.flatten(1)).view(-1, *mean.shape[1:])
            target = out[:, pair.block]
            target.add_(value.view(*value.shape, *[1] * (target.ndim - 3)), alpha=1 / len(pair.others))
