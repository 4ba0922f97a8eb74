"""ScaleGMN: weights to weights in one pass, equivariant to permutations and scalings of the units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Metanet, register
from amortopt.metanets.conditions import Conditions
from amortopt.metanets.scalegmn.encoding import Blend, l1_features, tame, unit_rms, usual_size
from amortopt.metanets.scalegmn.graph.layout import GraphLayout
from amortopt.metanets.scalegmn.graph.sets import NodeSet, Symmetry
from amortopt.metanets.scalegmn.message import GraphLayer
from amortopt.metanets.scalegmn.packed import PackedWiring
from amortopt.metanets.scalegmn.readout import Readout
from amortopt.metanets.scalegmn.scale import Factors, RMSNorm, canonical_factors, rescaled
from amortopt.metanets.scalegmn.wiring import DenseWiring, Wiring
from amortopt.symmetry import SymmetrySpec

_NONE = Conditions()
_Features = tuple[list[Tensor], list[Tensor]]


@dataclass(frozen=True)
class _Networks:
    """Networks of one architecture, read: params [B, ...], units per set, q and 1/q, block features."""

    count: int
    params: Params
    sizes: tuple[int, ...]
    factors: Factors
    inverse: Factors
    features: _Features


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
        direction: Whether units hear only from what they read (``"forward"``) or also from what reads them.
        conditions: What it reads beside the weights, of ``"batch"`` and ``"l1"``.
        l1_range: Lowest and highest L1 strength that prototypes are spread over, if it reads ``"l1"``.
        l1_knots: Prototypes per block between them, see [Blend][amortopt.metanets.scalegmn.encoding.Blend].

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
        respects: Symmetry = "scale",
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
        _check_counts(width=width, channels=channels, layers=layers, heads=heads, l1_knots=l1_knots)
        _check(width, channels, heads, respects, direction)
        self.layout = GraphLayout.from_spec(spec, respects)
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

        Meta-training goes many times faster from here. Where the proposal is added to what a network has,
        each network's own weights are noise to what is common to all, and noise flattens the loss until only
        its linear part is left.
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

        The same function of every network as :meth:`forward`. One architecture runs as a dense batch, several
        as a packed one (see [PackedWiring][amortopt.metanets.scalegmn.packed.PackedWiring]).

        Args:
            networks: Params [B, ...] of every architecture.
            conditions: Those of every architecture.

        Returns:
            New params, one for one.

        Raises:
            ValueError: There is no network, or what :meth:`forward` raises.
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

    def _propose(self, reads: list[_Networks], l1: Tensor | None) -> list[_Features]:
        """Proposals for one or several architectures, in canonical scaling and usual units."""
        nodes, edges = self.layout.node_blocks, self.layout.edge_blocks
        counts, sizes = [read.count for read in reads], [read.sizes for read in reads]
        wiring: Wiring = DenseWiring(counts[0], sizes[0])
        if len(reads) > 1:
            pairs = [(b.out, b.into) for b in edges]
            wiring = PackedWiring(counts, sizes, pairs, self.set_embedding.device)
        by_node, by_edge = self._run(
            wiring,
            [wiring.pack_nodes(x) for x in zip(*(read.features[0] for read in reads), strict=True)],
            [wiring.pack_edges(x) for x in zip(*(read.features[1] for read in reads), strict=True)],
            l1,
        )
        by_node = [wiring.unpack_nodes(b.node, x) for b, x in zip(nodes, by_node, strict=True)]
        by_edge = [wiring.unpack_edges(b, x) for b, x in zip(edges, by_edge, strict=True)]
        return [([x[k] for x in by_node], [x[k] for x in by_edge]) for k in range(len(reads))]

    def _read(self, params: Params, conditions: Conditions) -> _Networks:
        sizes = self.layout.sizes(params)
        self._check_sizes(sizes)
        first = next(iter(params.values()))
        conditions.check(self.conditions, len(first))
        grads = conditions.gradient_at(params)
        factors, inverse = canonical_factors(self.layout, params)
        own = self._canonical(params, inverse, factors)
        features = self._features(
            own, None if grads is None else self._canonical(grads, factors, inverse), sizes
        )
        return _Networks(len(first), params, sizes, factors, inverse, features)

    def _canonical(self, params: Params, to: Factors, back: Factors) -> _Features:
        return (
            [rescaled(b, self.layout.read_node(b, params), to, back) for b in self.layout.node_blocks],
            [rescaled(b, self.layout.read_edge(b, params), to, back) for b in self.layout.edge_blocks],
        )

    def _features(self, own: _Features, grads: _Features | None, sizes: tuple[int, ...]) -> _Features:
        """Weights in units of their usual size, and gradients relative to each block's RMS."""
        nodes = [tame(x) for x in own[0]]
        edges = [tame(e / usual_size(b, sizes)) for e, b in zip(own[1], self.layout.edge_blocks, strict=True)]
        if grads is not None:
            nodes = [torch.cat([w, unit_rms(g)], 2) for w, g in zip(nodes, grads[0], strict=True)]
            edges = [torch.cat([w, unit_rms(g)], 1) for w, g in zip(edges, grads[1], strict=True)]
        return nodes, edges

    def _run(self, wiring: Wiring, nodes: list[Tensor], edges: list[Tensor], l1: Tensor | None) -> _Features:
        """The layers and the readout, on rows."""
        told = None if l1 is None else self.read_l1(l1_features(l1))
        evens: list[Tensor | None] = []
        odds: list[Tensor | None] = []
        for p, node in enumerate(self.layout.nodes):
            even, odd = self.set_embedding[p].expand(wiring.lengths[p], -1), None
            if str(p) in self.even_index:
                even = even + wiring.units(p, _in_runs(node, self.even_index[str(p)]))
            if str(p) in self.odd_index:
                odd = wiring.units(p, _in_runs(node, self.odd_index[str(p)]))
            if told is not None:
                even = even + wiring.spread(p, told)
            for b, read, value in zip(self.layout.node_blocks, self.read_node, nodes, strict=True):
                if b.node == p:
                    odd = read(value) if odd is None else odd + read(value)
            evens.append(even)
            odds.append(odd)
        h, v = wiring.join(evens, self.set_embedding), wiring.join(odds, self.set_embedding)
        edges = [wiring.mix(mix, e) for mix, e in zip(self.read_edge, edges, strict=True)]
        assigned: dict[int, Tensor] = {}
        for layer in self.layers:
            h, v, edges, assigned = layer(wiring, h, v, edges)
        blend = h.new_ones(wiring.batch, 1) if l1 is None or self.blend is None else self.blend(l1)
        return self.readout(wiring, self.even_norm(h), self.odd_norm(v), edges, assigned, blend)

    def _write(self, read: _Networks, proposed: _Features) -> Params:
        params, factors, inverse = read.params, read.factors, read.inverse
        nodes, edges = [], []
        for p, (b, value) in enumerate(zip(self.layout.node_blocks, proposed[0], strict=True)):
            own = self.layout.read_node(b, params)
            target = rescaled(b, value.to(own.dtype), factors, inverse)
            nodes.append(torch.lerp(own, target, self.node_gate[p]))
        for p, (b, value) in enumerate(zip(self.layout.edge_blocks, proposed[1], strict=True)):
            own = self.layout.read_edge(b, params)
            target = rescaled(b, value.to(own.dtype) * usual_size(b, read.sizes), factors, inverse)
            edges.append(torch.lerp(own, target, self.edge_gate[p]))
        return self.layout.write(params, nodes, edges)

    def _check_sizes(self, sizes: tuple[int, ...]) -> None:
        nodes = self.layout.nodes
        shared = {part.node for node in nodes for part in node.parts}
        for p, (node, size) in enumerate(zip(nodes, sizes, strict=True)):
            if node.size != size and (node.parts or p in shared or not node.permutable):
                why = "its units are known by their index"
                if node.permutable:
                    why = "other groups or blocks are about the same units"
                raise ValueError(
                    f"params: got {size} units in group {node.group!r}, expected {node.size}; {why}, "
                    "so their number cannot change"
                )


def _in_runs(node: NodeSet, table: Tensor) -> Tensor:
    """What is known of a run's units, for all runs."""
    return table if node.run == node.size else table.repeat(node.size // node.run, 1)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")


def _check(
    width: int,
    channels: int,
    heads: int,
    respects: str,
    direction: str,
) -> None:
    for name, value in (("channels", channels), ("heads", heads)):
        if width % value:
            raise ValueError(f"{name}: got {value}, expected a divisor of width={width}")
    if respects not in ("scale", "permutation"):
        raise ValueError(f"respects: got {respects!r}, expected 'scale' or 'permutation'")
    if direction not in ("forward", "bidirectional"):
        raise ValueError(f"direction: got {direction!r}, expected 'forward' or 'bidirectional'")
