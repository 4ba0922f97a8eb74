"""One layer of the metanet: messages along edges, attention among units, roles, updated edges.

Every node has an even feature vector h and an odd one v (see scale.py); on sets whose units keep their sign,
v is an ordinary second stream that h may write to. An edge block has C channels that flip with both of its
ends.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortopt.metanets.scalegmn.exchange import Exchange, add
from amortopt.metanets.scalegmn.graph.layout import GraphLayout
from amortopt.metanets.scalegmn.roles import RoleAssignment, assign
from amortopt.metanets.scalegmn.scale import RMSNorm
from amortopt.metanets.scalegmn.wiring import Wiring


class GraphLayer(nn.Module):
    """Messages, attention, role assignment and edge update over one layout.

    Args:
        layout: The graph's structure.
        width: Node channels d, a multiple of ``channels`` and of ``heads``.
        channels: Edge channels C.
        heads: Attention heads.
        backward: Whether nodes also hear from the nodes that they write to.
    """

    def __init__(self, layout: GraphLayout, *, width: int, channels: int, heads: int, backward: bool) -> None:
        super().__init__()
        self.layout = layout
        self.channels, self.heads, self.backward = channels, heads, backward
        blocks = range(len(layout.edge_blocks))
        linear = lambda: nn.Linear(width, width, bias=False)  # noqa: E731
        self.from_in = nn.ModuleList(linear() for _ in blocks)
        self.from_out = nn.ModuleList(linear() for _ in blocks if backward)
        directions = 2 if backward else 1
        self.message_norm = RMSNorm(directions * width)
        self.message = nn.Linear(directions * width, width, bias=False)
        self.odd_norm, self.even_norm, self.attention_norm = RMSNorm(width), RMSNorm(width), RMSNorm(width)
        self.invariant = linear()
        self.up, self.down = nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, width)
        self.qkv, self.attended = nn.Linear(width, 3 * width, bias=False), linear()
        self.slots = nn.ModuleDict(
            {
                str(p): RoleAssignment(
                    width,
                    node.size,
                    odd=node.odd,
                    run=node.run if node.parts else None,
                    known=not node.permutable,
                )
                for p, node in enumerate(layout.nodes)
                if node.sided and not node.known
            }
        )
        self.exchange = Exchange(layout.nodes, width)
        self.carried, self.gate, self.written = linear(), nn.Linear(width, width), linear()
        self.edge_out = nn.ModuleList(linear() for _ in blocks)
        self.edge_in = nn.ModuleList(linear() for _ in blocks)
        self.edge_mix = nn.ParameterList(torch.eye(channels) for _ in blocks)
        self.edge_gain = nn.ParameterList(torch.full((channels,), 0.3) for _ in blocks)

    def forward(
        self, wiring: Wiring, h: Tensor, v: Tensor, edges: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor], dict[int, Tensor]]:
        """Run the layer.

        Args:
            wiring: The batch.
            h: Even node features [N, d].
            v: Odd node features [N, d].
            edges: One tensor of C channels per edge block.

        Returns:
            New h, v and edges, and the signed role assignment [n, R] of every node set with roles.
        """
        v = v + self.message(self.message_norm(self._messages(wiring, self.odd_norm(v), edges)))
        h = h + self._even_update(wiring, h, self.invariant(self.odd_norm(v)))
        if self.exchange.parts:
            told, carried = self.exchange.up(wiring, self.even_norm(h), self.odd_norm(v))
            h, v = h + told, v + carried
        h = h + self.attended(self._attention(wiring, self.attention_norm(h)))
        h, v, assigned = self._assign(wiring, h, v)
        if self.exchange.parts:
            told, carried = self.exchange.down(wiring, self.even_norm(h), self.odd_norm(v))
            h, v = h + told, v + carried
        odd, even = self.odd_norm(v), self.even_norm(h)
        v = v + self.carried(odd) * self.gate(even) + self._written(wiring, even)
        return h, v, self._edge_update(wiring, self.odd_norm(v), edges), assigned

    def _messages(self, wiring: Wiring, v: Tensor, edges: list[Tensor]) -> Tensor:
        parts = wiring.split(v)
        heard: list[Tensor | None] = [None] * len(parts)
        replied = list(heard)
        for b, block in enumerate(self.layout.edge_blocks):
            add(heard, block.out, wiring.to_out(block, edges[b], self.from_in[b](parts[block.into])))
            if self.backward:
                add(replied, block.into, wiring.to_in(block, edges[b], self.from_out[b](parts[block.out])))
        both = (heard, replied) if self.backward else (heard,)
        return torch.cat([wiring.join(messages, v) for messages in both], -1)

    def _even_update(self, wiring: Wiring, h: Tensor, x: Tensor) -> Tensor:
        # |x| is what a unit of unknown sign may tell; others tell x itself.
        parts = zip(self.layout.nodes, wiring.split(x), strict=True)
        told = wiring.join([part.abs() if node.odd else part for node, part in parts], x)
        return self.down(nn.functional.gelu(self.up(torch.cat([self.even_norm(h), told], -1))))

    def _attention(self, wiring: Wiring, h: Tensor) -> Tensor:
        parts = wiring.split(self.qkv(h))
        attended = [
            wiring.attend(p, part, self.heads) if node.own_units else None
            for p, (node, part) in enumerate(zip(self.layout.nodes, parts, strict=True))
        ]
        return wiring.join(attended, h)

    def _assign(self, wiring: Wiring, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        assigned = assign(self.slots, self.layout.nodes, wiring, wiring.split(h), wiring.split(v))
        told: list[Tensor | None] = [None] * len(self.layout.nodes)
        carried = list(told)
        for key, own in self.slots.items():
            assert isinstance(own, RoleAssignment)
            roles = assigned[int(key)]
            told[int(key)], carried[int(key)] = roles.roles @ own.even, roles.signed @ own.carried
        signed = {p: roles.signed for p, roles in assigned.items()}
        return h + wiring.join(told, h), v + wiring.join(carried, v), signed

    def _written(self, wiring: Wiring, h: Tensor) -> Tensor:
        # A unit of unknown sign has no way to write to its odd features.
        parts = zip(self.layout.nodes, wiring.split(h), strict=True)
        return wiring.join([None if node.odd else self.written(part) for node, part in parts], h)

    def _edge_update(self, wiring: Wiring, v: Tensor, edges: list[Tensor]) -> list[Tensor]:
        parts = wiring.split(v)
        k = v.shape[1] // self.channels
        updated = []
        for b, block in enumerate(self.layout.edge_blocks):
            # The gain scales a weight, which is smaller than the nodes.
            gain = (self.edge_gain[b] / k**0.5)[:, None].expand(-1, k).reshape(-1, 1)
            a = nn.functional.linear(parts[block.out], gain * self.edge_out[b].weight)
            change = wiring.outer(block, a, self.edge_in[b](parts[block.into]), self.channels)
            updated.append(wiring.mix(self.edge_mix[b], edges[b]) + change)
        return updated
