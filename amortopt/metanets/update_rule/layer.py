r"""A universal neural functional layer whose weights are shared by axis roles.

The layer of Zhou, Finn and Harrison (2024, arXiv 2402.05232, eq. 5) has one matrix for every pair of tensors
and every equivariant map between them, so it belongs to one architecture:
[FixedUNFLayer][amortopt.metanets.unf.FixedUNFLayer]. Here all maps of the same axis roles share their
matrix, so one layer serves every architecture, and it acts on rows alone, of which a network has few. For the
row x of axis role a that belongs to a unit of group g,

.. math:: y = R_a\, x + \sum_r D_{a r}\, u_{g, r},

with the unit mean :math:`u_{g, r}` of all rows of axis role r that belong to this unit, over all tensors: its
incoming weights, its bias, its outgoing weights.

Legend: B networks, R rows, C channels in, D channels out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amortopt.metanets.update_rule.layout import AXIS_ROLES, UpdateLayout


class SharedUNFLayer(nn.Module):
    """An equivariant linear layer over the rows of all parameters of any base network.

    Args:
        channels_in: Channels C.
        channels_out: Channels D.

    Attributes:
        row: R of eq. above, per axis role.
        unit: D, [roles * C, roles * D].
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        c, d, roles = channels_in, channels_out, len(AXIS_ROLES)
        self.row = nn.Parameter(torch.randn(roles, c, d) * (0.7 / math.sqrt(c)))
        # A unit has rows of two or three roles; those of the others are zero.
        self.unit = nn.Parameter(torch.randn(roles * c, roles * d) * (0.7 / math.sqrt(2 * c)))

    def forward(self, layout: UpdateLayout, rows: Tensor) -> Tensor:
        """Apply the layer to rows in the layout's order, [B, R, C] -> [B, R, D]."""
        spans = layout.rows_by_role
        by_role = rows.split([stop - start for start, stop in spans.values()], dim=1)
        direct = torch.cat([row @ self.row[role] for role, row in zip(spans, by_role, strict=True)], dim=1)
        batch, _, channels = rows.shape
        units = rows.new_zeros(batch, layout.num_units * len(AXIS_ROLES), channels)
        units = units.index_add(1, layout.slots, rows * layout.shares.to(rows.dtype))
        # [B, units, roles * C] @ D -> [B, units * roles, D] -> [B, R, D]
        through = units.view(batch, layout.num_units, -1) @ self.unit
        through = through.view(batch, layout.num_units * len(AXIS_ROLES), -1)
        return direct + through.index_select(1, layout.slots)
