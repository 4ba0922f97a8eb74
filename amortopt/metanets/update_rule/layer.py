r"""A universal neural functional layer whose weights are shared by the roles of tensors and axes.

The layer of Zhou, Finn and Harrison (2024, arXiv 2402.05232, eq. 5) has one matrix for every pair of
tensors and every equivariant map between them, so it belongs to one architecture. Here maps that play the
same role share their matrix, so that one layer serves every architecture: for an element x of a block,

.. math:: y = A x + \sum_a \big(R_a\, \bar x_a + \sum_{r} D_{a r}\, u_{g(a), r}\big) + S\, \bar x
    + \sum_k G_k\, \bar x_k + T x^\top + K\, \bar x_{\text{kernel}} + P\, \bar x_{\text{pair}},

with, for every axis a, the mean :math:`\bar x_a` over all others, the mean :math:`u_{g, r}` of such rows over
all tensors that group g has role r in, the block's mean, the mean over all blocks of class k, and, where they
exist, the transpose, the mean over kernel positions, and the mean over all matrices between the same two
groups.

Legend: B networks, N elements, R rows, C channels in, D channels out.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from amortopt.metanets.update_rule.layout import CLASSES, ROLES, Bucket, Side, UpdateLayout

Reach: TypeAlias = Literal["unf", "nfn", "deepset", "mlp"]
"""What an element hears of: everything; its own and neighbouring layers; its tensor; nothing but itself."""
REACHES: tuple[Reach, ...] = get_args(Reach)
Parts: TypeAlias = list[Tensor]
"""Elements by bucket, [B, L, *shape, C] each."""


class UpdateLayer(nn.Module):
    """An equivariant linear layer over the elements of all parameters.

    Args:
        channels_in: Channels C.
        channels_out: Channels D.
        reach: Which of the maps it has: ``unf`` all; ``nfn`` those along units, within and between
            neighbouring layers (Zhou et al. 2023, arXiv 2302.14040); ``deepset`` the block's mean; ``mlp``
            none.
    """

    def __init__(self, channels_in: int, channels_out: int, reach: Reach) -> None:
        super().__init__()
        self.reach: Reach = reach
        self.rows = reach in ("unf", "nfn")
        c, d = channels_in, channels_out
        # What is read beside the element itself starts smaller: its parts add up.
        self.own = _matrix((len(CLASSES),), c, d)
        if reach != "mlp":
            self.mean = _matrix((len(CLASSES),), c, d, 0.5)
        if self.rows:
            roles = len(ROLES)
            self.row = _matrix((roles,), c, d, 0.5)
            self.unit = nn.Parameter(torch.randn(roles * c, roles * d) * (0.5 / math.sqrt(2 * c)))
        if reach == "unf":
            self.everywhere = nn.Parameter(
                torch.randn(len(CLASSES) * c, len(CLASSES) * d) * (0.5 / math.sqrt(2 * c))
            )
            self.transpose, self.kernel, self.pair = (_matrix((), c, d, 0.5) for _ in range(3))

    def forward(self, layout: UpdateLayout, parts: Parts, blocks: Tensor | None = None) -> Parts:
        """Apply the layer.

        Args:
            layout: Of the base network.
            parts: Elements by bucket, [B, L, *shape, C] each: ``layout.split(x)``.
            blocks: What is added to all elements of a block, [B, blocks, D].

        Returns:
            [B, L, *shape, D] for every bucket.
        """
        out = [part @ self.own[bucket.kind] for bucket, part in zip(layout.buckets, parts, strict=True)]
        if self.rows:
            out = self._with_rows(layout, parts, out, blocks)
        elif self.reach == "deepset":
            said = self._said(layout, [part.flatten(2, -2).mean(2) for part in parts])
            blocks = said if blocks is None else blocks + said
        if not self.rows and blocks is not None:
            out = [y + own for y, own in zip(out, layout.split_blocks(blocks), strict=True)]
        return self._with_matrices(layout, parts, out) if self.reach == "unf" else out

    def _said(self, layout: UpdateLayout, means: Parts) -> Tensor:
        """What the means of blocks [B, L, C] say to their own elements, and to all: [B, blocks, D]."""
        said = [mean @ self.mean[bucket.kind] for bucket, mean in zip(layout.buckets, means, strict=True)]
        if self.reach == "unf":
            classes = []
            for kind in range(len(CLASSES)):
                own = [
                    mean for bucket, mean in zip(layout.buckets, means, strict=True) if bucket.kind == kind
                ]
                classes.append(torch.cat(own, dim=1).mean(1) if own else torch.zeros_like(means[0][:, 0]))
            heard = (torch.cat(classes, dim=1) @ self.everywhere).unflatten(1, (len(CLASSES), -1))
            said = [
                own + heard[:, bucket.kind : bucket.kind + 1]
                for bucket, own in zip(layout.buckets, said, strict=True)
            ]
        return torch.cat(said, dim=1)

    def _with_rows(self, layout: UpdateLayout, parts: Parts, out: Parts, blocks: Tensor | None) -> Parts:
        """Add what rows, units and blocks say."""
        means = [
            _row(part, side, len(layout.buckets[b].shape)) for b, side in layout.sides for part in [parts[b]]
        ]
        whole: dict[int, Tensor] = {}
        for (b, side), mean in zip(layout.sides, means, strict=True):
            if b not in whole and side.axis is not None:
                whole[b] = mean.mean(2)
        said = self._said(
            layout, [whole[b] if b in whole else part.flatten(2, -2).mean(2) for b, part in enumerate(parts)]
        )
        own_blocks = layout.split_blocks(said if blocks is None else said + blocks)
        heard = self._heard(layout, torch.cat([mean.flatten(1, 2) for mean in means], dim=1))
        small: dict[int, Tensor] = dict(enumerate(own_blocks))
        large: dict[int, list[Tensor]] = {b: [] for b in small}
        sizes = [side.rows[1] - side.rows[0] for _, side in layout.sides]
        for (b, side), row in zip(layout.sides, heard.split(sizes, dim=1), strict=True):
            bucket = layout.buckets[b]
            row = row.unflatten(1, (bucket.count, -1))
            if side.axis is None:
                large[b].append(_diagonal(row, bucket))
            elif side.axis == 0:
                small[b] = small[b] + _spread(row, bucket, (0,))
            else:
                large[b].append(_spread(row, bucket, (side.axis,)))
        # The smallest first: everything that spreads over the whole tensor is added once.
        return [_sum([y, small[b], *large[b]]) for b, y in enumerate(out)]

    def _heard(self, layout: UpdateLayout, rows: Tensor) -> Tensor:
        """What the rows [B, R, C] of a block, and its units in all blocks, say: [B, R, D]."""
        spans = layout.rows_by_role
        by_role = rows.split([stop - start for start, stop in spans.values()], dim=1)
        own = [row @ self.row[role] for role, row in zip(spans, by_role, strict=True)]
        batch, _, channels = rows.shape
        units = rows.new_zeros(batch, layout.num_units * len(ROLES), channels)
        units = units.index_add(1, layout.slots, rows * layout.shares.to(rows.dtype))
        said = units.view(batch, layout.num_units, -1) @ self.unit
        said = said.view(batch, layout.num_units * len(ROLES), -1).index_select(1, layout.slots)
        return torch.cat(own, dim=1) + said

    def _with_matrices(self, layout: UpdateLayout, parts: Parts, out: Parts) -> Parts:
        """Add what transposes, means over kernel positions, and matrices between the same groups say."""
        out = list(out)
        for b, (bucket, part) in enumerate(zip(layout.buckets, parts, strict=True)):
            if bucket.square:
                out[b] = out[b] + (part @ self.transpose).transpose(2, 3)
            if len(bucket.shape) > 2:
                kernel = part.mean(tuple(range(4, 2 + len(bucket.shape)))) @ self.kernel
                out[b] = out[b] + _spread(kernel, bucket, (0, 1))
        for b, said in self._pairs(layout, parts).items():
            rows = [
                said[k] if k in said else torch.zeros_like(out[b][:, k])
                for k in range(layout.buckets[b].count)
            ]
            out[b] = out[b] + torch.stack([row.expand_as(out[b][:, 0]) for row in rows], dim=1)
        return out

    def _pairs(self, layout: UpdateLayout, parts: Parts) -> dict[int, dict[int, Tensor]]:
        """What matrices between the same two groups say: bucket -> block in it -> [B, *shape, D]."""
        found: dict[int, dict[int, Tensor]] = {}
        for places in layout.pairs:
            read = []
            for b, k, flip in places:
                matrix = parts[b].unbind(1)[k]
                if len(layout.buckets[b].shape) > 2:
                    matrix = matrix.mean(tuple(range(3, 1 + len(layout.buckets[b].shape))))
                read.append(matrix.transpose(1, 2) if flip else matrix)
            mean = torch.stack(read).mean(0) @ self.pair
            for b, k, flip in places:
                value = mean.transpose(1, 2) if flip else mean
                extra = len(layout.buckets[b].shape) - 2
                found.setdefault(b, {})[k] = value.reshape(*value.shape[:3], *[1] * extra, value.shape[-1])
        return found


def _matrix(count: tuple[int, ...], channels_in: int, channels_out: int, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(*count, channels_in, channels_out) * (gain / math.sqrt(channels_in)))


def _spread(rows: Tensor, bucket: Bucket, kept: tuple[int, ...]) -> Tensor:
    """Give [B, L, *kept axes, D] an axis of length 1 for every other axis of the bucket's shape."""
    sizes = [n if axis in kept else 1 for axis, n in enumerate(bucket.shape)]
    return rows.reshape(*rows.shape[:2], *sizes, rows.shape[-1])


def _row(part: Tensor, side: Side, rank: int) -> Tensor:
    """Mean over all axes but one, or the diagonal of the first two: [B, L, *shape, C] -> [B, L, n, C]."""
    if side.axis is None:
        row = part.diagonal(dim1=2, dim2=3).movedim(-1, 2)
        return row.flatten(3, -2).mean(3) if row.ndim > 4 else row
    others = [2 + axis for axis in range(rank) if axis != side.axis]
    return part.mean(others) if others else part


def _diagonal(row: Tensor, bucket: Bucket) -> Tensor:
    """Put [B, L, n, D] on the diagonal of the first two axes."""
    matrix = torch.diag_embed(row.movedim(2, -1), dim1=2, dim2=3)
    return matrix.reshape(*matrix.shape[:4], *[1] * (len(bucket.shape) - 2), matrix.shape[-1])


def _sum(terms: Parts) -> Tensor:
    total, *rest = terms
    for term in rest:
        total = total + term
    return total
