"""ScaleGMN as an editor: small changes of a network's weights that change its function in a wanted way.

Legend: B networks, N nodes of all sets, n nodes of one set, d width, C edge channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Metanet, register
from amortopt.metanets.conditions import Conditions
from amortopt.metanets.scalegmn.encoder import Encoded, Networks, usual_size
from amortopt.metanets.scalegmn.layer import RMSNorm
from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.metanets.scalegmn.swept import Direction, Start, Swept
from amortopt.metanets.scalegmn.units import Respects
from amortopt.symmetry import SymmetrySpec

_NONE = Conditions()


class Changes(nn.Module):
    r"""What is added to every block: :math:`\Delta_{oi} = s\,((U v_o) \cdot (W v_i) + e \cdot E_{oi})`.

    To node features such as biases :math:`s\,u \cdot v_o` is added. U, e and u are zero at first.

    Args:
        layout: The graph's structure.
        width: Node channels d, the rank of the changes.
        channels: Edge channels C.
        strength: s at the start; learned for each block.
    """

    def __init__(self, layout: GraphLayout, *, width: int, channels: int, strength: float) -> None:
        super().__init__()
        self.layout = layout
        linear = lambda out: nn.Linear(width, out, bias=False)  # noqa: E731
        self.from_out = nn.ModuleList(linear(width * b.channels) for b in layout.edge_blocks)
        self.from_in = nn.ModuleList(linear(width * b.channels) for b in layout.edge_blocks)
        self.from_edge = nn.ParameterList(torch.zeros(b.channels, channels) for b in layout.edge_blocks)
        self.from_node = nn.ModuleList(linear(b.channels) for b in layout.node_blocks)
        self.strength = nn.Parameter(torch.full((len(layout.blocks),), strength))
        for zero in (*self.from_out, *self.from_node):
            assert isinstance(zero, nn.Linear)
            nn.init.zeros_(zero.weight)

    def forward(self, encoded: Encoded, odds: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Odd features [n, d] of every set to rows [n, k] per node block, and edges per edge block."""
        wiring, split = encoded.wiring, len(self.layout.node_blocks)
        nodes = [
            s * change(odds[b.node])
            for b, change, s in zip(
                self.layout.node_blocks, self.from_node, self.strength[:split], strict=True
            )
        ]
        edges = []
        for p, b in enumerate(self.layout.edge_blocks):
            outer = wiring.outer(b, self.from_out[p](odds[b.out]), self.from_in[p](odds[b.into]), b.channels)
            edges.append(self.strength[split + p] * (outer + wiring.mix(self.from_edge[p], encoded.edges[p])))
        return nodes, edges


@register("scalegmn_editor")
class ScaleGMNEditor(Swept, Metanet):
    r"""Weights to weights by small equivariant changes: :math:`\theta' = \theta + \Delta(\theta)`.

    Sweeps (see `Sweep`) read a network; a change of low rank is added to every block. It starts as the
    identity. With several proposals, as many changes are read out of the same features; the mean of the
    answers of the networks that they make is better than that of one.

    Where a sine follows, biases are first brought within a quarter of a period of zero, which changes no
    function; the result is in this form.

    Args:
        spec: Symmetry of the family.
        width: Node channels d.
        channels: Edge channels C; divides ``width``.
        sweeps: Sweeps through the network.
        frequency: Highest frequency of the sweeps' sines at the start.
        respects: ``"scale"``, or ``"permutation"`` for the symmetry-broken twin.
        direction: Whether sweeps go only along the edges (``"forward"``) or also back (``"bidirectional"``).
        start: What the first sweep computes before training: features of chance, or, for chains of sines such
            as SIRENs, what the network answers at ``width`` inputs, which are learned (``"pass"``).
        proposals: Changes k that are read out.
        strength: Size of a change, relative to the weights, at the start.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        width: int = 64,
        channels: int = 1,
        sweeps: int = 2,
        frequency: float = 12.0,
        respects: Respects = "scale",
        direction: Direction = "bidirectional",
        start: Start = "random",
        proposals: int = 1,
        strength: float = 0.1,
    ) -> None:
        super().__init__(
            spec,
            width=width,
            channels=channels,
            sweeps=sweeps,
            frequency=frequency,
            respects=respects,
            direction=direction,
            start=start,
            proposals=proposals,
            strength=strength,
            counts=("proposals",),
            positive=("strength",),
        )
        self.odd_norm = RMSNorm(width)
        self.changes = nn.ModuleList(
            Changes(self.layout, width=width, channels=channels, strength=strength) for _ in range(proposals)
        )

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        return {}

    def forward(self, params: Params, conditions: Conditions = _NONE) -> Params:
        """Edit B networks of one architecture: the first proposal.

        Raises:
            ValueError: A condition was given, or a shape does not fit.
        """
        conditions.check(self.conditions, len(next(iter(params.values()))))
        return self.propose(params)[0]

    def propose(self, params: Params) -> list[Params]:
        """Edit B networks of one architecture in k ways."""
        raw = self.read(params)
        networks = self.standardized(raw)
        encoded = self.sweep([networks])
        odds = encoded.wiring.split(self.odd_norm(encoded.odd))
        return [
            self._written(raw, networks.features, encoded, *change(encoded, odds)) for change in self.changes
        ]

    def _written(
        self,
        raw: Networks,
        features: Sequence[Tensor],
        encoded: Encoded,
        nodes: Sequence[Tensor],
        edges: Sequence[Tensor],
    ) -> Params:
        (changes,) = self.encoder.split(encoded.wiring, nodes, edges)
        values = [
            (x + change) * scale * usual_size(block, raw.sizes)
            for block, x, change, scale in zip(self.layout.blocks, features, changes, self.scale, strict=True)
        ]
        return self.encoder.write(raw, values, [1.0] * len(values))
