"""From the graph back to weights: what a metanet proposes for every parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortopt.graph import GraphLayout
from amortopt.nn.wiring import Wiring


class Readout(nn.Module):
    r"""Proposed weights: a prototype in the network's own gauge, plus corrections by its features.

    .. math:: T_{oi} = a_o^\top M a_i + E_{oi} \cdot e + (U v_o)^\top (W v_i), \qquad a = S \odot (1 + s(h))

    with the signed role assignment S (one-hot where units are known by their index), a prototype M per block,
    and corrections e, U, s that start at zero. Biases alike: a_o^T m + v_o u.

    Args:
        layout: The graph's structure.
        width: Node channels d.
        channels: Edge channels C.
    """

    def __init__(self, layout: GraphLayout, *, width: int, channels: int) -> None:
        super().__init__()
        self.layout = layout
        size = [node.size for node in layout.nodes]
        self.prototype = nn.ParameterList(
            torch.randn(b.channels, size[b.out], size[b.into]) for b in layout.edge_blocks
        )
        self.node_prototype = nn.ParameterList(
            torch.zeros(size[b.node], b.channels) for b in layout.node_blocks
        )
        self.strength = nn.ModuleList(nn.Linear(width, n) for n in size)
        rank = max(1, width // 4)
        self.from_out = nn.ModuleList(
            nn.Linear(width, rank * b.channels, bias=False) for b in layout.edge_blocks
        )
        self.from_in = nn.ModuleList(
            nn.Linear(width, rank * b.channels, bias=False) for b in layout.edge_blocks
        )
        self.from_edge = nn.ParameterList(torch.zeros(b.channels, channels) for b in layout.edge_blocks)
        self.from_node = nn.ModuleList(nn.Linear(width, b.channels, bias=False) for b in layout.node_blocks)
        for zero in (*self.strength, *self.from_out, *self.from_node):
            assert isinstance(zero, nn.Linear)
            nn.init.zeros_(zero.weight)
            if zero.bias is not None:
                nn.init.zeros_(zero.bias)

    def forward(
        self, wiring: Wiring, h: Tensor, v: Tensor, edges: list[Tensor], assigned: dict[int, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Propose.

        Args:
            wiring: The batch.
            h: Even node features [.., N, d], about unit scale.
            v: Odd node features [.., N, d], about unit scale.
            edges: C channels per edge block.
            assigned: Signed role assignment [.., n, R] of every permutable node set.

        Returns:
            One tensor [.., n, k] per node block and one with k channels per edge block.
        """
        evens, odds = wiring.split(h), wiring.split(v)
        roles = []
        for p, node in enumerate(self.layout.nodes):
            share = assigned[p] if p in assigned else wiring.units(p, torch.eye(node.size).to(h))
            roles.append(share * (1 + self.strength[p](evens[p])))
        nodes = [
            roles[b.node] @ m + told(odds[b.node])
            for b, m, told in zip(self.layout.node_blocks, self.node_prototype, self.from_node, strict=True)
        ]
        proposed = []
        for p, b in enumerate(self.layout.edge_blocks):
            # [.., o, R_o] @ [k, R_o, R_i] -> [.., o, k, R_i]
            rows = torch.einsum("...or,krs->...oks", roles[b.out], self.prototype[p])
            columns = roles[b.into].unsqueeze(-2).expand(*roles[b.into].shape[:-1], b.channels, -1)
            pair = wiring.outer(b, rows, columns)
            a, c = (
                end.unflatten(-1, (b.channels, -1))
                for end in (self.from_out[p](odds[b.out]), self.from_in[p](odds[b.into]))
            )
            proposed.append(pair + wiring.mix(self.from_edge[p], edges[p]) + wiring.outer(b, a, c))
        return nodes, proposed
