r"""Sweeps: messages go through a network in its own order, and back, as activations and gradients do.

Every block's message is sent after those of the blocks before it have arrived, so one sweep reaches from
the inputs to the outputs. With odd features v and one sine per message,

.. math:: v_o \leftarrow v_o + \sum_i E_{oi}\,A_b \sin(\omega \odot v_i)

has a network's own forward pass at learned inputs as a special case (a channel an input), which a reader
can start from. The backward sweep sends :math:`\sum_o E_{oi} B_b \sin(\omega' \odot v_o)`, times an even
gate :math:`\cos(\omega v_i)`, as backpropagation does. Edges and v flip with the signs of units, so all of
it does.

Legend: N nodes of all sets and networks, n nodes of one set, d width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amortopt.metanets.scalegmn.layer import Exchange, RMSNorm
from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.metanets.scalegmn.wiring import Wiring


class Sweep(nn.Module):
    """One sweep forward, one back if wanted, and an update of every unit by its own features.

    Args:
        layout: The graph's structure.
        width: Node channels d, a multiple of the edge channels.
        backward: Whether there is a sweep back.
        frequency: Highest frequency of the sines at the start; the lowest is 1.
    """

    def __init__(self, layout: GraphLayout, *, width: int, backward: bool, frequency: float) -> None:
        super().__init__()
        self.layout, self.backward = layout, backward
        sets, blocks = len(layout.nodes), len(layout.edge_blocks)
        # From 1 to the highest frequency, one a channel.
        spread = torch.logspace(0, math.log10(frequency), width).expand(sets, -1)
        self.omega = nn.Parameter(spread.clone())
        self.from_in = nn.ParameterList(torch.eye(width) for _ in range(blocks))
        if backward:
            self.omega_back = nn.Parameter(spread.clone())
            self.from_out = nn.ParameterList(torch.eye(width) for _ in range(blocks))
            self.arrived = nn.Linear(width, width, bias=False)
        self.even_norm, self.odd_norm = RMSNorm(width), RMSNorm(width)
        self.invariant = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(3 * width, 2 * width), nn.Linear(2 * width, width)
        self.gate = nn.Linear(width, width)
        self.exchange = Exchange(layout.nodes, width)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, wiring: Wiring, h: Tensor, v: Tensor, edges: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Even and odd features [N, d], and edges of every block, to new features."""
        nodes, blocks = self.layout.nodes, self.layout.edge_blocks
        # 1. Forward, set by set in the order of the blocks.
        odds = wiring.split(v)
        for b, block in enumerate(blocks):
            sent = torch.sin(odds[block.into] * self.omega[block.into]) @ self.from_in[b].mT
            odds[block.out] = odds[block.out] + wiring.to_out(block, edges[b], sent)
        v = wiring.join([*odds], v)
        parts = [torch.cos(odd * self.omega[p]) for p, odd in enumerate(odds)]
        # 2. Back: what reads a unit, through the slope of its sine.
        of_edges = torch.zeros_like(v)
        if self.backward:
            backs = [torch.sin(odd * self.omega_back[p]) for p, odd in enumerate(odds)]
            arrived: list[Tensor | None] = [None] * len(nodes)
            for b, block in reversed(list(enumerate(blocks))):
                sent = backs[block.out] @ self.from_out[b].mT
                message = wiring.to_in(block, edges[b], sent) * parts[block.into]
                before = arrived[block.into]
                arrived[block.into] = message if before is None else before + message
                backs[block.into] = backs[block.into] + message
            back = wiring.join(arrived, v)
            of_edges = self.odd_norm(back) * self.odd_norm(v)
            v = v + self.arrived(back)
        # 3. Units by themselves: even features from invariants, and a gate on the odd ones.
        x = self.invariant(self.odd_norm(v))
        slices = zip(nodes, wiring.split(x), strict=True)
        invariants = wiring.join([part.abs() if node.odd else part for node, part in slices], x)
        h = h + self.down(
            nn.functional.gelu(self.up(torch.cat([self.even_norm(h), invariants, of_edges], -1)))
        )
        v = v * (1 + self.gate(self.even_norm(h)))
        # 4. Between sets that are about the same units.
        if self.exchange.parts:
            for move in (self.exchange.up, self.exchange.down):
                even, odd = move(wiring, self.even_norm(h), self.odd_norm(v))
                h, v = h + even, v + odd
        return h, v
