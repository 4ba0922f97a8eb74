"""From the graph back to weights: what a metanet proposes for every parameter."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.metanets.scalegmn.wiring import Wiring


class Readout(nn.Module):
    r"""Proposed weights: a prototype, written at the units' slots, plus corrections by the units' features.

    .. math:: T_{oi} = t_o\,t_i\,S_o^\top M(b)\,S_i + E_{oi} \cdot e + (U v_o)^\top (W v_i), \qquad
        M(b) = \sum_k b_k M_k, \quad t = 1 + s(h)

    with the signed slots S (the identity where units are known by their index), a prototype M per block,
    blended for each network from several (see `Blend`), and corrections e, U, s that start at zero.
    Biases alike: t_o S_o^T m(b) + v_o u.

    Legend: B networks, N nodes of all sets, n nodes of one set, R slots, C edge channels, k features of a
        block.

    Args:
        layout: The graph's structure.
        width: Node channels d.
        channels: Edge channels C.
        blends: Prototypes K to blend from. The first is the one of a fresh readout.
    """

    def __init__(self, layout: GraphLayout, *, width: int, channels: int, blends: int = 1) -> None:
        super().__init__()
        self.layout = layout
        size = [node.size for node in layout.nodes]
        # Matrices [R_o, k R_i]: a row is all that a unit in that slot reads.
        self.prototype = nn.ParameterList(
            torch.zeros(blends, size[b.out], b.channels * size[b.into]) for b in layout.edge_blocks
        )
        for prototype in self.prototype:
            nn.init.normal_(prototype[0])
        self.node_prototype = nn.ParameterList(
            torch.zeros(blends, size[b.node], b.channels) for b in layout.node_blocks
        )
        ends = {end.node for b in layout.blocks for end in b.ends}
        self.strength = nn.ModuleDict({str(p): nn.Linear(width, 1) for p in sorted(ends)})
        rank = max(1, width // 4)
        linear = lambda channels: nn.Linear(width, channels, bias=False)  # noqa: E731
        self.from_out = nn.ModuleList(linear(rank * b.channels) for b in layout.edge_blocks)
        self.from_in = nn.ModuleList(linear(rank * b.channels) for b in layout.edge_blocks)
        self.from_edge = nn.ParameterList(torch.zeros(b.channels, channels) for b in layout.edge_blocks)
        self.from_node = nn.ModuleList(linear(b.channels) for b in layout.node_blocks)
        for zero in (*self.strength.values(), *self.from_out, *self.from_node):
            assert isinstance(zero, nn.Linear)
            nn.init.zeros_(zero.weight)
            if zero.bias is not None:
                nn.init.zeros_(zero.bias)

    def forward(
        self,
        wiring: Wiring,
        h: Tensor,
        v: Tensor,
        edges: list[Tensor],
        signed: dict[int, Tensor],
        blend: Tensor,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Propose.

        Args:
            wiring: The batch.
            h: Even node features [N, d], about unit scale.
            v: Odd node features [N, d], about unit scale.
            edges: C channels per edge block.
            signed: Signed slots [n, R] of every node set that has slots.
            blend: Weights of the prototypes per network [B, K].

        Returns:
            Rows [n, k] per node block, and edges with k channels per edge block.
        """
        odds = wiring.split(v)
        evens = wiring.split(h)
        slots = {int(p): (signed.get(int(p)), 1 + t(evens[int(p)])) for p, t in self.strength.items()}
        nodes = []
        for b, m, correct in zip(self.layout.node_blocks, self.node_prototype, self.from_node, strict=True):
            nodes.append(wiring.at_slots(b.node, slots[b.node], _blended(blend, m)) + correct(odds[b.node]))
        proposed = []
        for p, b in enumerate(self.layout.edge_blocks):
            table = _blended(blend, self.prototype[p]).unflatten(2, (b.channels, -1))
            ends = self.from_out[p](odds[b.out]), self.from_in[p](odds[b.into])
            proposed.append(
                wiring.between(b, slots[b.out], table, slots[b.into])
                + wiring.mix(self.from_edge[p], edges[p])
                + wiring.outer(b, *ends, b.channels)
            )
        return nodes, proposed


def _blended(blend: Tensor, m: Tensor) -> Tensor:
    """Sum of K prototypes [K, ..] by the weights of each network [B, K]: [B, ..]."""
    return (blend.to(m.dtype) @ m.flatten(1)).unflatten(1, m.shape[1:])


class Blend(nn.Module):
    """Weights by which prototypes are blended, as a function of the L1 strength.

    One prototype is common to all strengths, one belongs to strength zero, and ``knots`` of them are spread
    evenly over the logarithm of the range. Between two knots both count, linearly; beyond the ends the last
    one does. Good weights for strengths that lie far apart have little in common, hence many knots.

    Args:
        low: Strength of the first knot.
        high: Strength of the last knot.
        knots: Their number.

    Raises:
        ValueError: Unless 0 < low <= high < infinity, and low < high if there are several knots.
    """

    def __init__(self, low: float, high: float, knots: int) -> None:
        super().__init__()
        if not 0 < low <= high < math.inf or (knots > 1 and low == high):
            raise ValueError(
                f"l1_range: got [{low}, {high}] for {knots} knots, expected [low, high] with 0 < low < high"
            )
        self.low, self.high, self.knots = low, high, knots

    @property
    def count(self) -> int:
        """Number of prototypes."""
        return self.knots + 2

    def forward(self, l1: Tensor) -> Tensor:
        """Strengths [B] >= 0 -> weights [B, knots + 2]."""
        positive = l1 > 0
        scale = max(1, self.knots - 1) / max(math.log(self.high / self.low), 1e-12)
        position = torch.log(torch.where(positive, l1, self.low) / self.low) * scale
        knots = torch.arange(self.knots, dtype=l1.dtype, device=l1.device)
        distance = (position.clamp(0, self.knots - 1)[:, None] - knots).abs()
        near = (1 - distance).clamp(min=0) * positive[:, None]
        common, none = torch.ones_like(near[:, :1]), (~positive).to(near)[:, None]
        return torch.cat([common, none, near], 1)
