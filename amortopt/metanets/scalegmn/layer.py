"""One layer of the metanet: messages along edges, attention among units, slots, updated edges.

Every node has an even feature vector h and an odd one v, which flips with the unit's sign; on sets whose
units keep their sign, v is an ordinary second stream that h may write to. An edge block has C channels that
flip with both of its ends.

Legend: N nodes of all sets and networks, d width, C edge channels, R slots.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.metanets.scalegmn.slots import SlotAssignment, assign
from amortopt.metanets.scalegmn.units import NodeSet, Part
from amortopt.metanets.scalegmn.wiring import Wiring


class GraphLayer(nn.Module):
    """Messages, attention, slots and edge update over one layout.

    Args:
        layout: The graph's structure.
        width: Node channels d, a multiple of ``channels`` and of ``heads``.
        channels: Edge channels C.
        heads: Attention heads.
        backward: Whether there are also messages against the edges, from what reads a node.
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
        self.slots = nn.ModuleDict()
        for p, node in enumerate(layout.nodes):
            if node.sided and not node.known:
                run, known = node.run if node.parts else None, not node.permutable
                self.slots[str(p)] = SlotAssignment(width, node.size, odd=node.odd, run=run, known=known)
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
            New h, v and edges, and the signed slots [n, R] of every node set that has slots.
        """
        nodes, blocks = self.layout.nodes, self.layout.edge_blocks
        # 1. Messages: sums over edges [N, d], or [N, 2 d] with those of both directions.
        odds = wiring.split(self.odd_norm(v))
        forward: list[Tensor | None] = [None] * len(nodes)
        backward: list[Tensor | None] = [None] * len(nodes)
        for b, block in enumerate(blocks):
            _add(forward, block.out, wiring.to_out(block, edges[b], self.from_in[b](odds[block.into])))
            if self.backward:
                _add(backward, block.into, wiring.to_in(block, edges[b], self.from_out[b](odds[block.out])))
        both = (forward, backward) if self.backward else (forward,)
        sums = torch.cat([wiring.join(messages, v) for messages in both], -1)
        v = v + self.message(self.message_norm(sums))
        # 2. What h gets from v: of a unit of unknown sign only |x| is invariant.
        x = self.invariant(self.odd_norm(v))
        parts = zip(nodes, wiring.split(x), strict=True)
        invariants = wiring.join([part.abs() if node.odd else part for node, part in parts], x)
        joined = torch.cat([self.even_norm(h), invariants], -1)
        h = h + self.down(nn.functional.gelu(self.up(joined)))
        if self.exchange.parts:
            even, odd = self.exchange.up(wiring, self.even_norm(h), self.odd_norm(v))
            h, v = h + even, v + odd
        # 3. Attention among the units of each set.
        queries = enumerate(zip(nodes, wiring.split(self.qkv(self.attention_norm(h))), strict=True))
        attended = [wiring.attend(p, x, self.heads) if node.has_units else None for p, (node, x) in queries]
        h = h + self.attended(wiring.join(attended, h))
        # 4. Slots: embeddings of those that the units take, [n, R] @ [R, d].
        assigned = assign(self.slots, nodes, wiring, wiring.split(h), wiring.split(v))
        evens: list[Tensor | None] = [None] * len(nodes)
        carried: list[Tensor | None] = [None] * len(nodes)
        for key, module in self.slots.items():
            assert isinstance(module, SlotAssignment)
            taken = assigned[int(key)]
            evens[int(key)], carried[int(key)] = taken.slots @ module.even, taken.signed @ module.carried
        h, v = h + wiring.join(evens, h), v + wiring.join(carried, v)
        if self.exchange.parts:
            even, odd = self.exchange.down(wiring, self.even_norm(h), self.odd_norm(v))
            h, v = h + even, v + odd
        # 5. What v gets from h: with its sign times a gate; written to, only where a unit keeps its sign.
        odd, even = self.odd_norm(v), self.even_norm(h)
        parts = zip(nodes, wiring.split(even), strict=True)
        written = wiring.join([None if node.odd else self.written(part) for node, part in parts], h)
        v = v + self.carried(odd) * self.gate(even) + written
        # 6. Edges, updated by outer products of the nodes at their ends.
        odds, k = wiring.split(self.odd_norm(v)), v.shape[1] // self.channels
        updated = []
        for b, block in enumerate(blocks):
            # The gain scales a weight, which is smaller than the nodes.
            gain = (self.edge_gain[b] / k**0.5)[:, None].expand(-1, k).reshape(-1, 1)
            a = nn.functional.linear(odds[block.out], gain * self.edge_out[b].weight)
            change = wiring.outer(block, a, self.edge_in[b](odds[block.into]), self.channels)
            updated.append(wiring.mix(self.edge_mix[b], edges[b]) + change)
        return h, v, updated, {p: taken.signed for p, taken in assigned.items()}


class Exchange(nn.Module):
    r"""Features between sets that are about the same units: those of owners, followers, derived sets.

    Even features go up to parts and down from them. A set of units that flip with several parts has the odd
    features :math:`\prod_j A_j v_j`, and sends to part j its odd features times those of the other parts:
    every product has just the signs that it needs.

    Args:
        nodes: The sets.
        width: Node channels d.
    """

    def __init__(self, nodes: Sequence[NodeSet], width: int) -> None:
        super().__init__()
        counter = itertools.count()
        self.parts = [
            (p, [(next(counter), part) for part in node.parts]) for p, node in enumerate(nodes) if node.parts
        ]
        linear = lambda: nn.Linear(width, width, bias=False)  # noqa: E731
        links = [(str(k), part.odd) for _, parts in self.parts for k, part in parts]
        self.even_up = nn.ModuleDict({k: linear() for k, _ in links})
        self.even_down = nn.ModuleDict({k: linear() for k, _ in links})
        self.odd_up = nn.ModuleDict({k: linear() for k, odd in links if odd})
        self.odd_down = nn.ModuleDict({k: linear() for k, odd in links if odd})

    def up(self, wiring: Wiring, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What parts get from the sets that are about them: even and odd features [N, d], zero for others."""
        evens, odds = wiring.split(h), wiring.split(v)
        even: list[Tensor | None] = [None] * len(evens)
        odd: list[Tensor | None] = [None] * len(evens)
        for p, parts in self.parts:
            factors = self._factors(wiring, parts, odds)
            for k, part in parts:
                _add(even, part.node, wiring.pool(part, self.even_up[str(k)](evens[p])))
                if part.odd:
                    others = [factor for other, factor in factors.items() if other != k]
                    product = reduce(torch.mul, others, self.odd_up[str(k)](odds[p]))
                    _add(odd, part.node, wiring.pool(part, product))
        return wiring.join(even, h), wiring.join(odd, v)

    def down(self, wiring: Wiring, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What sets get from their parts: even and odd features [N, d], zero for sets without parts."""
        evens, odds = wiring.split(h), wiring.split(v)
        even: list[Tensor | None] = [None] * len(evens)
        odd: list[Tensor | None] = [None] * len(evens)
        for p, parts in self.parts:
            for k, part in parts:
                _add(even, p, wiring.expand(part, self.even_down[str(k)](evens[part.node])))
            if factors := self._factors(wiring, parts, odds):
                odd[p] = reduce(torch.mul, factors.values())
        return wiring.join(even, h), wiring.join(odd, v)

    def _factors(
        self, wiring: Wiring, parts: list[tuple[int, Part]], odds: list[Tensor]
    ) -> dict[int, Tensor]:
        """Odd features of the odd parts, for the nodes of the set."""
        return {
            k: wiring.expand(part, self.odd_down[str(k)](odds[part.node])) for k, part in parts if part.odd
        }


def _add(sums: list[Tensor | None], position: int, x: Tensor) -> None:
    before = sums[position]
    sums[position] = x if before is None else before + x


class RMSNorm(nn.Module):
    """x / rms(x) with a learned gain and no offset: odd in x, zero at zero.

    Args:
        width: Channels d of x [.., d].
        eps: Added to the mean square; 1e-4 keeps the gradient at zero below 100.
    """

    def __init__(self, width: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x.to(self.gain.dtype), self.gain, self.eps)


class _RMSNorm(torch.autograd.Function):
    """What torch has only on GPUs: x and its norm are all that is kept for gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, scale)
        return (x * scale).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, scale = ctx.saved_tensors
        # y = x s w: dx = s g w - x s^3 mean(g w x)
        product = grad * x
        to_gain = scale.flatten() @ product.flatten(0, -2)
        along = (product @ gain)[..., None] * scale**3 / -x.shape[-1]
        return torch.mul(grad, gain, out=product).mul_(scale).addcmul_(x, along), to_gain, None
