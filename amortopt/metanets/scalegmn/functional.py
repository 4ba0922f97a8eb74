"""ScaleGMN as a functional: what a network's weights say, whatever the order, signs and scales of its units.

Legend: B networks, N nodes of all sets, n nodes of one set, d width, C edge channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Functional, register
from amortopt.metanets.scalegmn.encoder import Encoded
from amortopt.metanets.scalegmn.layer import RMSNorm
from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.metanets.scalegmn.swept import Direction, Start, Swept
from amortopt.metanets.scalegmn.units import Respects
from amortopt.symmetry import SymmetrySpec


class UnitInvariants(nn.Module):
    r"""Numbers of every unit that no rescaling changes: of its own features, and of the edges at it.

    A unit has even features h and odd ones v. Edges :math:`E_{oi}` flip with both of their ends, so
    :math:`(\sum_i E_{oi} B v_i) \odot A v_o` flips with none: the edge invariants of unit o; those of unit i
    are alike. With the odd features alone, :math:`|\Gamma v|`.

    Args:
        layout: The graph's structure.
        width: Node channels d.
    """

    def __init__(self, layout: GraphLayout, *, width: int) -> None:
        super().__init__()
        self.layout = layout
        self.even_norm, self.odd_norm = RMSNorm(width), RMSNorm(width)
        linear = lambda: nn.Linear(width, width, bias=False)  # noqa: E731
        self.of_node, self.at_end = linear(), linear()
        self.from_out = nn.ModuleList(linear() for _ in layout.edge_blocks)
        self.from_in = nn.ModuleList(linear() for _ in layout.edge_blocks)
        self.edge_norm = RMSNorm(width)
        self.mixed = nn.Linear(3 * width, width)

    def forward(self, encoded: Encoded) -> Tensor:
        """Encoded networks to invariants [N, d]."""
        wiring, nodes = encoded.wiring, self.layout.nodes
        odd = self.odd_norm(encoded.odd)
        odds = wiring.split(odd)
        sums: list[Tensor | None] = [None] * len(nodes)
        for b, (block, edges) in enumerate(zip(self.layout.edge_blocks, encoded.edges, strict=True)):
            to_out = wiring.to_out(block, edges, self.from_in[b](odds[block.into]))
            to_in = wiring.to_in(block, edges, self.from_out[b](odds[block.out]))
            for node, message in ((block.out, to_out), (block.into, to_in)):
                before = sums[node]
                sums[node] = message if before is None else before + message
        of_edges = self.edge_norm(wiring.join(sums, odd)) * self.at_end(odd)
        parts = zip(nodes, wiring.split(self.of_node(odd)), strict=True)
        of_nodes = wiring.join([part.abs() if node.odd else part for node, part in parts], odd)
        invariants = torch.cat([self.even_norm(encoded.even), of_nodes, of_edges], -1)
        return nn.functional.gelu(self.mixed(invariants))


@register("scalegmn_functional")
class ScaleGMNFunctional(Swept, Functional):
    """Sweeps through a network and an invariant readout over units and edges.

    The invariants of units (see `UnitInvariants`) are averaged over each node set, the squares of edge
    features over each block; an MLP turns the averages into the head's numbers. For a head about units, a
    linear map reads each unit's invariants beside what the MLP says of the network. Where a sine follows,
    biases are first brought within a quarter of a period of zero.

    Args:
        spec: Symmetry of the family.
        head: What the numbers mean, see [Functional][amortopt.metanets.Functional].
        width: Node channels d.
        channels: Edge channels C; divides ``width``. One is enough for blocks without fixed positions.
        sweeps: Sweeps through the network (see `Sweep`).
        frequency: Highest frequency of the sweeps' sines at the start.
        respects: ``"scale"``: permutations, scalings and phases; ``"permutation"``: permutations only, the
            symmetry-broken twin.
        direction: Whether sweeps go only along the edges (``"forward"``) or also back (``"bidirectional"``,
            ScaleGMN-B of Kalogeropoulos et al. 2024).
        start: What the first sweep computes before training: features of chance, or, for chains of sines such
            as SIRENs, what the network answers at ``width`` inputs, which are learned (``"pass"``). Networks
            that are read for what they show are read far better so.
        hidden: Units of the hidden layer of the MLP.
        dropout: Share of the averages and hidden units that training drops.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        head: Mapping[str, Any],
        width: int = 64,
        channels: int = 8,
        sweeps: int = 1,
        frequency: float = 12.0,
        respects: Respects = "scale",
        direction: Direction = "bidirectional",
        start: Start = "random",
        hidden: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            spec,
            head=head,
            width=width,
            channels=channels,
            sweeps=sweeps,
            frequency=frequency,
            respects=respects,
            direction=direction,
            start=start,
            hidden=hidden,
            dropout=dropout,
            counts=("hidden",),
            shares=("dropout",),
        )
        self.invariants = UnitInvariants(self.layout, width=width)
        averages = len(self.layout.nodes) * width + len(self.layout.edge_blocks) * channels
        self.trunk = nn.Sequential(
            *(nn.LayerNorm(averages), nn.Dropout(dropout), nn.Linear(averages, hidden), nn.GELU()),
            nn.Dropout(dropout),
        )
        units = self.head.units
        self.node = None if units is None else _set_of(self.layout, spec, units)
        self.last = nn.Linear(hidden + (0 if units is None else width), self.head.raw)

    def raw(self, networks: Sequence[Params]) -> list[Tensor]:
        encoded = self.sweep([self.standardized(self.read(params)) for params in networks])
        wiring, units = encoded.wiring, self.invariants(encoded)
        parts = wiring.split(units)
        averages = [wiring.network_means(p, part) for p, part in enumerate(parts)]
        averages += [
            wiring.edge_means(block, edges.square())
            for block, edges in zip(self.layout.edge_blocks, encoded.edges, strict=True)
        ]
        hidden = self.trunk(torch.cat(averages, -1))  # [B, hidden]
        if self.node is None:
            return list(self.last(hidden).split([len(next(iter(p.values()))) for p in networks]))
        rows = torch.cat([wiring.spread(self.node, hidden), parts[self.node]], -1)
        return wiring.unpack_nodes(self.node, self.last(rows))


def _set_of(layout: GraphLayout, spec: SymmetrySpec, group: str) -> int:
    """The node set with the units of a group."""
    units = spec.units_of(group)
    return next(p for p, node in enumerate(layout.nodes) if node.group == units)
