r"""A universal neural functional layer whose weights are shared by axis roles.

The layer of Zhou, Finn and Harrison (2024, arXiv 2402.05232, eq. 5) has one matrix for every pair of tensors
and every equivariant map between them, so it belongs to one architecture:
[FixedUNFLayer][amortopt.metanets.unf.FixedUNFLayer]. Here all maps of the same axis roles share their
matrix, so one layer serves every architecture. For an element x of a block,

.. math:: y = A x + \sum_a \big(R_a\, \bar x_a + \sum_{r} D_{a r}\, u_{g(a), r}\big) + S\, \bar x
    + \sum_k G_k\, \bar x_k + T x^\top + K\, \bar x_{\text{kernel}} + P\, \bar x_{\text{pair}},

with, for every axis a, the row mean :math:`\bar x_a`; the unit mean :math:`u_{g, r}` of all rows of axis
role r that belong to this unit of group g, over all tensors; the block mean; the mean over all blocks of
class k; and, where they exist, the transpose, the mean over kernel positions, and the mean over all matrices
between the same two groups.

Legend: B networks, N elements, R rows, L blocks of a bucket, C channels in, D channels out.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from amortopt.metanets.update_rule.layout import AXIS_ROLES, CLASSES, UpdateLayout

Reach: TypeAlias = Literal["unf", "nfn", "deepset", "mlp"]
"""What an output element depends on: everything; neighbouring layers; its own tensor; the same element."""
REACHES: tuple[Reach, ...] = get_args(Reach)
Parts: TypeAlias = list[Tensor]
"""Elements by bucket, [B, L, *shape, C] each."""


class SharedUNFLayer(nn.Module):
    """An equivariant linear layer over the elements of all parameters of any base network.

    Args:
        channels_in: Channels C.
        channels_out: Channels D.
        reach: Which maps it has: ``unf`` all; ``nfn`` those along units, within and between neighbouring
            layers (Zhou et al. 2023, arXiv 2302.14040); ``deepset`` the block mean; ``mlp`` the element.

    Attributes:
        element: A of eq. above, per class of the block.
        block: S, per class.
        row: R, per axis role.
        unit: D, [roles * C, roles * D].
        classes: G, [classes * C, classes * D].
        transpose: T.
        kernel: K.
        pair: P.
    """

    def __init__(self, channels_in: int, channels_out: int, reach: Reach) -> None:
        super().__init__()
        self.reach: Reach = reach
        self.rows = reach in ("unf", "nfn")
        c, d, roles, classes = channels_in, channels_out, len(AXIS_ROLES), len(CLASSES)

        def matrix(*shape: int, gain: float = 0.5, fan_in: int = c) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape) * (gain / math.sqrt(fan_in)))

        # All but the element's own matrix start at half size: their outputs add up.
        self.element = matrix(classes, c, d, gain=1.0)
        if reach != "mlp":
            self.block = matrix(classes, c, d)
        if self.rows:
            self.row = matrix(roles, c, d)
            self.unit = matrix(roles * c, roles * d, fan_in=2 * c)
        if reach == "unf":
            self.classes = matrix(classes * c, classes * d, fan_in=2 * c)
            self.transpose, self.kernel, self.pair = matrix(c, d), matrix(c, d), matrix(c, d)

    def forward(self, layout: UpdateLayout, parts: Parts, blocks: Tensor | None = None) -> Parts:
        """Apply the layer.

        Args:
            layout: Of the base network.
            parts: Elements by bucket, [B, L, *shape, C] each: ``layout.split(x)``.
            blocks: Added to all elements of a block, [B, blocks, D].

        Returns:
            [B, L, *shape, D] for every bucket.
        """
        out = [part @ self.element[bucket.kind] for bucket, part in zip(layout.buckets, parts, strict=True)]
        rows = [side.means(parts[b]) for b, side in layout.sides] if self.rows else []
        if self.reach != "mlp":
            # A block's mean is the mean of its first rows, where it has any.
            first = {
                b: row
                for (b, side), row in reversed([*zip(layout.sides, rows, strict=False)])
                if side.axis is not None
            }
            means = [
                first[b].mean(2) if b in first else x.flatten(2, -2).mean(2) for b, x in enumerate(parts)
            ]
            terms = self._block_terms(layout, means)
            blocks = terms if blocks is None else blocks + terms
        if blocks is not None:
            # Smallest tensors first, so that only the last addition is as large as the elements.
            small = layout.split_blocks(blocks)
            large: list[list[Tensor]] = [[] for _ in parts]
            for (b, side), row in zip(layout.sides, self._row_terms(layout, rows), strict=False):
                term = side.spread(row, len(layout.buckets[b].shape))
                if side.axis == 0:
                    small[b] = small[b] + term
                else:
                    large[b].append(term)
            out = [sum(more, y + few) for y, few, more in zip(out, small, large, strict=True)]
        return self._add_matrix_terms(layout, parts, out) if self.reach == "unf" else out

    def _block_terms(self, layout: UpdateLayout, means: Parts) -> Tensor:
        r""":math:`S \bar x + \sum_k G_k \bar x_k` of every block, from block means: [B, blocks, D]."""
        terms = [mean @ self.block[bucket.kind] for bucket, mean in zip(layout.buckets, means, strict=True)]
        if self.reach == "unf":
            class_means = []
            for kind in range(len(CLASSES)):
                of_kind = [m for bucket, m in zip(layout.buckets, means, strict=True) if bucket.kind == kind]
                class_means.append(
                    torch.cat(of_kind, dim=1).mean(1) if of_kind else torch.zeros_like(means[0][:, 0])
                )
            to_class = (torch.cat(class_means, dim=1) @ self.classes).unflatten(1, (len(CLASSES), -1))
            terms = [
                term + to_class[:, bucket.kind : bucket.kind + 1]
                for bucket, term in zip(layout.buckets, terms, strict=True)
            ]
        return torch.cat(terms, dim=1)

    def _row_terms(self, layout: UpdateLayout, means: Parts) -> Parts:
        r""":math:`R_a \bar x_a + \sum_r D_{ar} u_{g(a), r}` of every row: [B, L, n, C] -> [B, L, n, D]."""
        if not means:
            return []
        rows = torch.cat([mean.flatten(1, 2) for mean in means], dim=1)  # [B, R, C]
        spans = layout.rows_by_role
        by_role = rows.split([stop - start for start, stop in spans.values()], dim=1)
        direct = torch.cat([row @ self.row[role] for role, row in zip(spans, by_role, strict=True)], dim=1)
        batch, _, channels = rows.shape
        units = rows.new_zeros(batch, layout.num_units * len(AXIS_ROLES), channels)
        units = units.index_add(1, layout.slots, rows * layout.shares.to(rows.dtype))
        # [B, units, roles * C] @ D -> [B, units * roles, D] -> [B, R, D]
        through = units.view(batch, layout.num_units, -1) @ self.unit
        through = through.view(batch, layout.num_units * len(AXIS_ROLES), -1).index_select(1, layout.slots)
        terms = (direct + through).split([side.rows[1] - side.rows[0] for _, side in layout.sides], dim=1)
        return [term.unflatten(1, mean.shape[1:3]) for term, mean in zip(terms, means, strict=True)]

    def _add_matrix_terms(self, layout: UpdateLayout, parts: Parts, out: Parts) -> Parts:
        """Add the terms of transposes, means over kernel positions, and matrices between the same groups."""
        out = list(out)
        matrices: Parts = []  # [B, L, n0, n1, C]: means over kernel positions
        for b, (bucket, part) in enumerate(zip(layout.buckets, parts, strict=True)):
            if bucket.square:
                out[b] = out[b] + (part @ self.transpose).transpose(2, 3)
            extra = [1] * (len(bucket.shape) - 2)
            matrices.append(part.mean(tuple(range(4, 4 + len(extra)))) if extra else part)
            if extra:
                kernel = matrices[b] @ self.kernel
                out[b] = out[b] + kernel.reshape(*kernel.shape[:4], *extra, -1)
        terms: dict[tuple[int, int], Tensor] = {}  # bucket, block in it -> [B, n0, n1, D]
        for places in layout.pairs:
            of_pair = [matrices[b].unbind(1)[k] for b, k, _ in places]
            of_pair = [
                m.transpose(1, 2) if flip else m for m, (_, _, flip) in zip(of_pair, places, strict=True)
            ]
            mean = torch.stack(of_pair).mean(0) @ self.pair
            terms |= {(b, k): mean.transpose(1, 2) if flip else mean for b, k, flip in places}
        for b in dict.fromkeys(b for b, _ in terms):
            zero = torch.zeros_like(next(term for (k, _), term in terms.items() if k == b))
            added = torch.stack([terms.get((b, k), zero) for k in range(layout.buckets[b].count)], dim=1)
            extra = [1] * (len(layout.buckets[b].shape) - 2)
            out[b] = out[b] + added.reshape(*added.shape[:4], *extra, -1)
        return out
