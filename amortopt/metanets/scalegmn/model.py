"""ScaleGMN: weights to weights in one pass, equivariant to permutations and scalings of the units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from amortopt._types import Params
from amortopt.metanets.base import Metanet, register
from amortopt.metanets.conditions import Conditions
from amortopt.metanets.scalegmn.encoder import GraphEncoder, usual_size
from amortopt.metanets.scalegmn.layer import RMSNorm
from amortopt.metanets.scalegmn.readout import Blend, Readout
from amortopt.metanets.scalegmn.units import Respects
from amortopt.symmetry import SymmetrySpec
from amortopt.system.numbers import check_counts

_NONE = Conditions()


@register("scalegmn")
class ScaleGMN(Metanet):
    r"""Scale-equivariant graph metanetwork as a weights-to-weights operator.

    :math:`\theta' = \theta + g\,(T(\theta) - \theta)`, with proposed weights T from a graph network over
    units and weights, and a gate g per block that starts at zero: a fresh metanet is the identity. For every
    element of the spec's symmetry :math:`f(g \cdot \theta) = g \cdot f(\theta)` (Kalogeropoulos et al. 2024,
    sec. 4; graph, treatment of scalings and readout differ, see the modules beside this one).

    Args:
        spec: Symmetry of the family.
        width: Node channels d.
        channels: Edge channels C; divides ``width``.
        layers: Rounds of messages.
        heads: Attention heads; divides ``width``.
        respects: ``"scale"``: permutations and scalings; ``"permutation"``: only permutations (the ablation).
        direction: Whether messages go only along the edges (``"forward"``), or also against them.
        conditions: What it reads beside the weights, of ``"batch"`` and ``"l1"``.
        l1_range: Lowest and highest L1 strength that prototypes are spread over, if it reads ``"l1"``.
        l1_knots: Prototypes per block between them, see [Blend][amortopt.metanets.scalegmn.readout.Blend].

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        width: int = 64,
        channels: int = 8,
        layers: int = 2,
        heads: int = 4,
        respects: Respects = "scale",
        direction: Literal["forward", "bidirectional"] = "bidirectional",
        conditions: Sequence[Literal["batch", "l1"]] = (),
        l1_range: tuple[float, float] = (1e-4, 2e-2),
        l1_knots: int = 12,
    ) -> None:
        super().__init__(
            spec,
            width=width,
            channels=channels,
            layers=layers,
            heads=heads,
            respects=respects,
            direction=direction,
            conditions=sorted(conditions),
            l1_range=list(l1_range),
            l1_knots=l1_knots,
        )
        check_counts(width=width, channels=channels, layers=layers, heads=heads, l1_knots=l1_knots)
        for name, value in {"channels": channels, "heads": heads}.items():
            if width % value:
                raise ValueError(f"{name}: got {value}, expected a divisor of width={width}")
        if respects not in ("scale", "permutation"):
            raise ValueError(f"respects: got {respects!r}, expected 'scale' or 'permutation'")
        if direction not in ("forward", "bidirectional"):
            raise ValueError(f"direction: got {direction!r}, expected 'forward' or 'bidirectional'")
        self.encoder = GraphEncoder(
            spec,
            width=width,
            channels=channels,
            layers=layers,
            heads=heads,
            respects=respects,
            backward=direction == "bidirectional",
            gradients="batch" in conditions,
            l1="l1" in conditions,
        )
        self.layout = self.encoder.layout
        self.odd_norm, self.even_norm = RMSNorm(width), RMSNorm(width)
        self.blend = Blend(*l1_range, l1_knots) if "l1" in conditions else None
        blends = 1 if self.blend is None else self.blend.count
        self.readout = Readout(self.layout, width=width, channels=channels, blends=blends)
        self.node_gate = nn.Parameter(torch.zeros(len(self.layout.node_blocks)))
        self.edge_gate = nn.Parameter(torch.zeros(len(self.layout.edge_blocks)))

    @torch.no_grad()
    def open_gates(self) -> None:
        """Start from the proposed weights instead of the identity: every gate to one.

        Meta-training goes many times faster from here. Where the proposal is added to a network's weights,
        these are noise to what is common to all networks, and noise flattens the loss until only its linear
        part is left.
        """
        self.node_gate.fill_(1)
        self.edge_gate.fill_(1)

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        """Matrices of the layers, prototypes of the readout, and its corrections for each network.

        The corrections are no matrices for Muon: an orthogonalized update has the same size in every
        direction, and would write each network's features into the weights as noise.
        """
        linear = {id(m.weight) for m in self.encoder.layers.modules() if isinstance(m, nn.Linear)}
        common = {id(p) for p in (*self.readout.prototype, *self.readout.node_prototype)}
        return {
            "matrix": [
                p
                for name, p in self.encoder.layers.named_parameters()
                if id(p) in linear or (".slots." in name and p.ndim == 2)
            ],
            "prototype": [*self.readout.prototype],
            "correction": [p for p in self.readout.parameters() if id(p) not in common],
        }

    def forward(self, params: Params, conditions: Conditions = _NONE) -> Params:
        """Improve B networks of one architecture; see [Metanet][amortopt.metanets.Metanet].

        Raises:
            ValueError: A condition is missing or was not declared, or a shape does not fit.
        """
        return self.forward_mixed([params], [conditions])[0]

    def forward_mixed(self, networks: Sequence[Params], conditions: Sequence[Conditions]) -> list[Params]:
        """Improve networks of several architectures in one pass: the family's structure, any hidden widths.

        The same function of every network as ``forward``. One architecture runs as a dense batch, several
        as a packed one (see `PackedWiring`).

        Args:
            networks: Params [B, ...] of every architecture.
            conditions: Those of every architecture.

        Returns:
            New params, one for one.

        Raises:
            ValueError: There is no network, or what ``forward`` raises.
        """
        if not networks or len(networks) != len(conditions):
            raise ValueError(
                f"networks, conditions: got {len(networks)} and {len(conditions)}, expected at least one "
                "architecture, and conditions for each"
            )
        read, strengths = [], []
        for params, each in zip(networks, conditions, strict=True):
            each.check(self.conditions, len(next(iter(params.values()))))
            read.append(self.encoder.read(params, each.gradient_at(params)))
            strengths += [] if each.l1 is None else [each.l1]
        l1 = torch.cat(strengths) if strengths else None
        encoded = self.encoder(read, l1)
        h, v = self.even_norm(encoded.even), self.odd_norm(encoded.odd)
        blend = h.new_ones(encoded.wiring.batch, 1) if l1 is None or self.blend is None else self.blend(l1)
        nodes, edges = self.readout(encoded.wiring, h, v, encoded.edges, encoded.signed, blend)
        gates = [*self.node_gate, *self.edge_gate]
        better = []
        for each, values in zip(read, self.encoder.split(encoded.wiring, nodes, edges), strict=True):
            blocks = zip(self.layout.blocks, values, strict=True)
            values = [value * usual_size(block, each.sizes) for block, value in blocks]
            better.append(self.encoder.write(each, values, gates))
        return better
