"""ScaleGMN: weights to weights in one pass, equivariant to permutations and scalings of the units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Metanet, register
from amortopt.metanets.conditions import Conditions
from amortopt.metanets.scalegmn.factors import CanonicalScaling, Factors, rescaled
from amortopt.metanets.scalegmn.layer import GraphLayer, RMSNorm
from amortopt.metanets.scalegmn.layout import GraphBlock, GraphLayout
from amortopt.metanets.scalegmn.packed import PackedWiring
from amortopt.metanets.scalegmn.readout import Blend, Readout
from amortopt.metanets.scalegmn.units import Respects
from amortopt.metanets.scalegmn.wiring import DenseWiring, Wiring
from amortopt.symmetry import SymmetrySpec

_NONE = Conditions()


@dataclass(frozen=True)
class _Networks:
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
        counts = {
            "width": width,
            "channels": channels,
            "layers": layers,
            "heads": heads,
            "l1_knots": l1_knots,
        }
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")
            if name in ("channels", "heads") and width % value:
                raise ValueError(f"{name}: got {value}, expected a divisor of width={width}")
        if respects not in ("scale", "permutation"):
            raise ValueError(f"respects: got {respects!r}, expected 'scale' or 'permutation'")
        if direction not in ("forward", "bidirectional"):
            raise ValueError(f"direction: got {direction!r}, expected 'forward' or 'bidirectional'")
        self.layout = GraphLayout.from_spec(spec, respects)
        self.scaling = CanonicalScaling(self.layout)
        self._make_readers(width, channels)
        self.layers = nn.ModuleList(
            GraphLayer(
                self.layout,
                width=width,
                channels=channels,
                heads=heads,
                backward=direction == "bidirectional",
            )
            for _ in range(layers)
        )
        self.odd_norm, self.even_norm = RMSNorm(width), RMSNorm(width)
        self.blend = Blend(*l1_range, l1_knots) if "l1" in conditions else None
        blends = 1 if self.blend is None else self.blend.count
        self.readout = Readout(self.layout, width=width, channels=channels, blends=blends)
        self.node_gate = nn.Parameter(torch.zeros(len(self.layout.node_blocks)))
        self.edge_gate = nn.Parameter(torch.zeros(len(self.layout.edge_blocks)))

    def _make_readers(self, width: int, channels: int) -> None:
        """What turns sets, blocks and the L1 strength into features."""
        features = 2 if "batch" in self.conditions else 1
        nodes, edges = self.layout.nodes, self.layout.edge_blocks
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
        if "l1" in self.conditions:
            self.read_l1 = nn.Sequential(nn.Linear(2, width), nn.GELU(), nn.Linear(width, width))

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
        linear = {id(m.weight) for m in self.layers.modules() if isinstance(m, nn.Linear)}
        common = {id(p) for p in (*self.readout.prototype, *self.readout.node_prototype)}
        return {
            "matrix": [
                p
                for name, p in self.layers.named_parameters()
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
        read = [self._read(*pair) for pair in zip(networks, conditions, strict=True)]
        strengths = [each.l1 for each in conditions if each.l1 is not None]
        proposed = self._propose(read, torch.cat(strengths) if strengths else None)
        return [self._write(*pair) for pair in zip(read, proposed, strict=True)]

    def _read(self, params: Params, conditions: Conditions) -> _Networks:
        """Weights in canonical scaling and usual units, and gradients relative to each block's RMS."""
        sizes = self.layout.sizes(params)
        conditions.check(self.conditions, len(next(iter(params.values()))))
        gradient = conditions.gradient_at(params)
        q, inverse = self.scaling.solve(params, sizes)
        weights = zip(self.scaling.blocks, self.scaling.read(params, inverse, q), strict=True)
        features = [_tame(w / _usual_size(block, sizes)) for block, w in weights]
        if gradient is not None:
            # Its exponents are the opposite ones.
            pairs = zip(features, self.scaling.read(gradient, q, inverse), strict=True)
            features = [torch.cat([w, _unit_rms(g)], 1) for w, g in pairs]
        return _Networks(params, sizes, q, inverse, features)

    def _propose(self, read: list[_Networks], l1: Tensor | None) -> list[list[Tensor]]:
        """Proposals for one or several architectures, in canonical scaling and usual units."""
        node_blocks, edge_blocks = self.layout.node_blocks, self.layout.edge_blocks
        counts = [len(each.features[0]) for each in read]
        wiring: Wiring = DenseWiring(counts[0], read[0].sizes)
        if len(read) > 1:
            pairs = [(b.out, b.into) for b in edge_blocks]
            wiring = PackedWiring(counts, [each.sizes for each in read], pairs, self.set_embedding.device)
        # For every block the features in all architectures.
        features = list(zip(*(each.features for each in read), strict=True))
        split = len(node_blocks)
        nodes, edges = self._run(
            wiring,
            [wiring.pack_nodes([x.mT for x in parts]) for parts in features[:split]],
            [wiring.pack_edges(parts) for parts in features[split:]],
            l1,
        )
        proposed = [
            *(
                [x.mT for x in wiring.unpack_nodes(b.node, y)]
                for b, y in zip(node_blocks, nodes, strict=True)
            ),
            *(wiring.unpack_edges(b, y) for b, y in zip(edge_blocks, edges, strict=True)),
        ]
        return [list(parts) for parts in zip(*proposed, strict=True)]

    def _run(
        self, wiring: Wiring, nodes: list[Tensor], edges: list[Tensor], l1: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The layers and the readout, on rows."""
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
            for b, read, value in zip(self.layout.node_blocks, self.read_node, nodes, strict=True):
                if b.node == p:
                    odd = read(value) if odd is None else odd + read(value)
            evens.append(even)
            odds.append(odd)
        h, v = wiring.join(evens, self.set_embedding), wiring.join(odds, self.set_embedding)
        edges = [wiring.mix(mix, e) for mix, e in zip(self.read_edge, edges, strict=True)]
        signed: dict[int, Tensor] = {}
        for layer in self.layers:
            h, v, edges, signed = layer(wiring, h, v, edges)
        blend = h.new_ones(wiring.batch, 1) if l1 is None or self.blend is None else self.blend(l1)
        return self.readout(wiring, self.even_norm(h), self.odd_norm(v), edges, signed, blend)

    def _write(self, read: _Networks, proposed: list[Tensor]) -> Params:
        gates = [*self.node_gate, *self.edge_gate]
        new = []
        for block, value, gate in zip(self.scaling.blocks, proposed, gates, strict=True):
            old = block.read(read.params)
            value = value.to(old.dtype) * _usual_size(block, read.sizes)
            new.append(torch.lerp(old, rescaled(block, value, read.factors, read.inverse), gate))
        return self.layout.write(read.params, new)


def _usual_size(block: GraphBlock, sizes: tuple[int, ...]) -> float:
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
