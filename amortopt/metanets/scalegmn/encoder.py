"""From the params of networks to features of their units and weights, and to the slots of their units.

Legend: B networks, N nodes of all sets, n nodes of one set, F features of a block, o / i nodes of the written
and the read set, R slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.scalegmn.factors import CanonicalScaling, Factors, rescaled
from amortopt.metanets.scalegmn.layer import GraphLayer
from amortopt.metanets.scalegmn.layout import GraphBlock, GraphLayout
from amortopt.metanets.scalegmn.units import Respects
from amortopt.metanets.scalegmn.wiring import DenseWiring, PackedWiring, Wiring
from amortopt.symmetry import SymmetrySpec


@dataclass(frozen=True)
class Networks:
    """Networks of one architecture, read.

    Attributes:
        params: [B, ...].
        sizes: Units per node set.
        factors: Canonical factors q.
        inverse: 1/q.
        features: For every block, [B, F, n] or [B, F, o, i].
    """

    params: Params
    sizes: tuple[int, ...]
    factors: Factors
    inverse: Factors
    features: list[Tensor]


@dataclass(frozen=True)
class Encoded:
    """A batch of networks after the layers.

    Attributes:
        wiring: The batch.
        even: Features of the units that do not flip with them [N, d].
        odd: Features that do.
        edges: Features of every edge block.
        signed: Signed slots [n, R] of every node set that has slots.
    """

    wiring: Wiring
    even: Tensor
    odd: Tensor
    edges: list[Tensor]
    signed: dict[int, Tensor]


class GraphEncoder(nn.Module):
    """Reads networks as graphs and passes messages along their weights.

    Args:
        spec: Symmetry of the family.
        width: Node channels d.
        channels: Edge channels.
        layers: Rounds of messages.
        heads: Attention heads.
        respects: Which symmetry is respected.
        backward: Whether messages go against the edges too.
        gradients: Whether gradients are read beside the weights.
        l1: Whether an L1 strength is read.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        *,
        width: int,
        channels: int,
        layers: int,
        heads: int,
        respects: Respects,
        backward: bool,
        gradients: bool = False,
        l1: bool = False,
    ) -> None:
        super().__init__()
        self.layout = GraphLayout.from_spec(spec, respects)
        self.scaling = CanonicalScaling(self.layout)
        nodes, edges = self.layout.nodes, self.layout.edge_blocks
        features = 2 if gradients else 1
        self.set_embedding = nn.Parameter(torch.randn(len(nodes), width))
        # Sets whose units are known by their index, in their run.
        known = {str(p): node for p, node in enumerate(nodes) if not node.permutable}
        self.even_index = nn.ParameterDict(
            {p: nn.Parameter(torch.randn(node.run, width)) for p, node in known.items()}
        )
        self.odd_index = nn.ParameterDict(
            {p: nn.Parameter(torch.randn(node.run, width)) for p, node in known.items() if not node.odd}
        )
        self.read_node = nn.ModuleList(
            nn.Linear(features * b.channels, width, bias=False) for b in self.layout.node_blocks
        )
        self.read_edge = nn.ParameterList(
            torch.randn(channels, features * b.channels) / b.channels**0.5 for b in edges
        )
        if l1:
            self.read_l1 = nn.Sequential(nn.Linear(2, width), nn.GELU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(
            GraphLayer(self.layout, width=width, channels=channels, heads=heads, backward=backward)
            for _ in range(layers)
        )

    def read(self, params: Params, gradient: Params | None = None) -> Networks:
        """Weights in canonical scaling and usual units, and gradients relative to each block's RMS.

        Args:
            params: Networks of one architecture, [B, ...].
            gradient: Of the same names and shapes, if gradients are read.
        """
        sizes = self.layout.sizes(params)
        q, inverse = self.scaling.solve(params, sizes)
        weights = zip(self.scaling.blocks, self.scaling.read(params, inverse, q), strict=True)
        features = [_tame(w / usual_size(block, sizes)) for block, w in weights]
        if gradient is not None:
            # Its exponents are the opposite ones.
            pairs = zip(features, self.scaling.read(gradient, q, inverse), strict=True)
            features = [torch.cat([w, _unit_rms(g)], 1) for w, g in pairs]
        return Networks(params, sizes, q, inverse, features)

    def forward(self, read: Sequence[Networks], l1: Tensor | None = None) -> Encoded:
        """Pass messages in networks of one architecture, or of several.

        Args:
            read: The networks of every architecture.
            l1: L1 strengths of all networks, if they are read.
        """
        counts = [len(each.features[0]) for each in read]
        wiring: Wiring = DenseWiring(counts[0], read[0].sizes)
        if len(read) > 1:
            wiring = PackedWiring(counts, [each.sizes for each in read], self.set_embedding.device)
        # For every block the features in all architectures.
        features = list(zip(*(each.features for each in read), strict=True))
        split = len(self.layout.node_blocks)
        nodes = [wiring.pack_nodes([x.mT for x in parts]) for parts in features[:split]]
        edges = [wiring.pack_edges(parts) for parts in features[split:]]
        l1_even = None if l1 is None else self.read_l1(_l1_features(l1))
        evens: list[Tensor | None] = []
        odds: list[Tensor | None] = []
        for p, node in enumerate(self.layout.nodes):
            even, odd = self.set_embedding[p].expand(wiring.lengths[p], -1), None
            runs = node.size // node.run
            if str(p) in self.even_index:
                even = even + wiring.units(p, self.even_index[str(p)].repeat(runs, 1))
            if str(p) in self.odd_index:
                odd = wiring.units(p, self.odd_index[str(p)].repeat(runs, 1))
            if l1_even is not None:
                even = even + wiring.spread(p, l1_even)
            for b, linear, value in zip(self.layout.node_blocks, self.read_node, nodes, strict=True):
                if b.node == p:
                    odd = linear(value) if odd is None else odd + linear(value)
            evens.append(even)
            odds.append(odd)
        h, v = wiring.join(evens, self.set_embedding), wiring.join(odds, self.set_embedding)
        edges = [wiring.mix(mix, e) for mix, e in zip(self.read_edge, edges, strict=True)]
        signed: dict[int, Tensor] = {}
        for layer in self.layers:
            h, v, edges, signed = layer(wiring, h, v, edges)
        return Encoded(wiring, h, v, edges, signed)

    def split(self, wiring: Wiring, nodes: Sequence[Tensor], edges: Sequence[Tensor]) -> list[list[Tensor]]:
        """Values of all blocks as rows and edges of a batch -> for every architecture, values as read."""
        by_block = [
            [x.mT for x in wiring.unpack_nodes(b.node, y)]
            for b, y in zip(self.layout.node_blocks, nodes, strict=True)
        ]
        by_block += [wiring.unpack_edges(b, y) for b, y in zip(self.layout.edge_blocks, edges, strict=True)]
        return [list(parts) for parts in zip(*by_block, strict=True)]

    def write(self, read: Networks, values: Sequence[Tensor], gates: Sequence[Tensor | float]) -> Params:
        """Values of all blocks in canonical scaling -> params, in the networks' scaling.

        Args:
            read: The networks.
            values: For every block, as ``read.features``, with the block's channels for F.
            gates: How far each block moves from its weights to its value.
        """
        new = []
        for block, value, gate in zip(self.scaling.blocks, values, gates, strict=True):
            old = block.read(read.params)
            moved = rescaled(block, value.to(old.dtype), read.factors, read.inverse)
            new.append(torch.lerp(old, moved, gate) if isinstance(gate, Tensor) or gate != 1 else moved)
        return self.layout.write(read.params, new)


def usual_size(block: GraphBlock, sizes: tuple[int, ...]) -> float:
    """Usual size of a block's values: 1 / sqrt(fan in) for weights, 1 for node features such as biases."""
    if len(block.ends) == 1:
        return 1.0
    return 1 / math.sqrt(sizes[block.into] * block.channels / block.view.diagonal)


def _tame(x: Tensor, limit: float = 1024.0) -> Tensor:
    """Features of a block, scaled down in networks where they reach far beyond any that works.

    Squares of such features leave float32's range, and what is added to them rounds to nothing.
    """
    peak = x.abs().amax(tuple(range(1, x.ndim)), keepdim=True)
    # The limit is a power of two: no rounding where nothing is done. Divided first for finite gradients.
    return x / peak.clamp(min=limit) * limit


def _unit_rms(x: Tensor) -> Tensor:
    """x / its RMS per network; zero stays zero."""
    axes = tuple(range(1, x.ndim))
    peak = x.abs().amax(axes, keepdim=True)
    safe = torch.where(peak > 0, peak, 1)
    x = x / safe
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + 1e-12)


def _l1_features(l1: Tensor) -> Tensor:
    """[B] -> [B, 2]: position on a log scale around 1e-3, and whether there is any penalty."""
    positive = l1 > 0
    log = torch.log10(torch.where(positive, l1, 1)) + 3
    return torch.stack([torch.where(positive, log, 0), positive.to(l1)], -1)
