"""ScaleGMN: weights to weights in one pass, equivariant to permutations and scalings of the units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.base import Metanet, register_metanet
from amortopt.metanets.scalegmn.encoding import Blend, l1_features, tame, unit_rms, usual_size
from amortopt.metanets.scalegmn.graph.layout import GraphLayout
from amortopt.metanets.scalegmn.graph.sets import NodeSet, Symmetry
from amortopt.metanets.scalegmn.message import GraphLayer
from amortopt.metanets.scalegmn.packed import PackedWiring
from amortopt.metanets.scalegmn.readout import Readout
from amortopt.metanets.scalegmn.scale import Factors, RMSNorm, canonical_factors, rescaled
from amortopt.metanets.scalegmn.wiring import DenseWiring, Wiring
from amortopt.symmetry import SymmetrySpec

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


@register_metanet("scalegmn")
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
        symmetry: ``"scale"`` respects permutations and scalings, ``"permutation"`` only permutations (the
            ablation).
        direction: Whether units hear only from what they read (``"forward"``) or also from what reads them.
        reads: Inputs beside the weights: ``"grads"``, ``"l1"``.
        l1_range: Lowest and highest L1 strength that prototypes are spread over; for ``"l1"`` in ``reads``.
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
        symmetry: Symmetry = "scale",
        direction: Literal["forward", "bidirectional"] = "bidirectional",
        reads: Sequence[Literal["grads", "l1"]] = (),
        l1_range: tuple[float, float] = (1e-4, 2e-2),
        l1_knots: int = 12,
    ) -> None:
        super().__init__(
            spec,
            width=width,
            channels=channels,
            layers=layers,
            heads=heads,
            symmetry=symmetry,
            direction=direction,
            reads=sorted(reads),
            l1_range=list(l1_range),
            l1_knots=l1_knots,
        )
        _check_counts(width=width, channels=channels, layers=layers, heads=heads, l1_knots=l1_knots)
        _check(width, channels, heads, symmetry, direction, reads)
        self.layout = GraphLayout.from_spec(spec, symmetry)
        self._inputs = frozenset(reads)
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
        self.blend = Blend(*l1_range, l1_knots) if "l1" in reads else None
        blends = 1 if self.blend is None else self.blend.count
        self.readout = Readout(self.layout, width=width, channels=channels, blends=blends)
        self.node_gate = nn.Parameter(torch.zeros(len(self.layout.node_blocks)))
        self.edge_gate = nn.Parameter(torch.zeros(len(self.layout.edge_blocks)))

    def _make_readers(self, width: int, channels: int) -> None:
        """What turns sets, blocks and the L1 strength into features."""
        features = 2 if "grads" in self.inputs else 1
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
        if "l1" in self.inputs:
            self.read_l1 = nn.Sequential(nn.Linear(2, width), nn.GELU(), nn.Linear(width, width))

    @property
    def inputs(self) -> frozenset[str]:
        """What ``forward`` reads beside the weights."""
        return self._inputs

    @torch.no_grad()
    def open_gates(self) -> None:
        """Start from the proposed weights instead of the identity: every gate to one.

        Meta-training goes many times faster from here. Where the proposal is added to what a network has,
        each network's own weights are noise to what is common to all, and noise flattens the loss until only
        its linear part is left.
        """
        self.node_gate.fill_(1)
        self.edge_gate.fill_(1)

    def matrix_parameters(self) -> list[Tensor]:
        """Weights of the layers, and the readout's prototypes.

        The readout's corrections are not among them: an orthogonalized update has the same size in every
        direction, and would write each network's own features into the weights as noise.
        """
        linear = [
            p
            for module in self.layers.modules()
            if isinstance(module, nn.Linear)
            for name, p in module.named_parameters()
            if name == "weight"
        ]
        roles = [p for name, p in self.layers.named_parameters() if ".roles." in name and p.ndim == 2]
        return [*linear, *roles, *self.readout.prototype]

    def forward(self, params: Params, *, grads: Params | None = None, l1: Tensor | None = None) -> Params:
        """Improve B networks of one architecture; see [Metanet][amortopt.metanets.Metanet].

        Args:
            params: The family's parameter names -> [B, ...].
            grads: Gradients with the same names and shapes, if this metanet reads them.
            l1: L1 strengths [B], if this metanet reads them.

        Returns:
            New params.

        Raises:
            ValueError: If an input is missing or was not asked for, or a shape does not fit.
        """
        self._check_inputs(grads, l1)
        read = self._read(params, grads)
        _check_l1(l1, read.count)
        return self._write(read, self._propose([read], l1)[0])

    def forward_mixed(
        self,
        networks: Sequence[Params],
        *,
        grads: Sequence[Params] | None = None,
        l1: Tensor | None = None,
    ) -> list[Params]:
        """Improve networks of the family's structure and any hidden widths in one pass.

        The same function of every network as :meth:`forward`, on a packed batch (see
        `packed.PackedWiring`) unless all networks have the same shapes.

        Args:
            networks: One network each, without a batch axis: the family's parameter names -> [...].
            grads: Gradients of each network, if this metanet reads them.
            l1: L1 strengths [number of networks], if this metanet reads them.

        Returns:
            New params, one for one.

        Raises:
            ValueError: If there is no network, an input is missing or was not asked for, or a shape does not
                fit.
        """
        self._check_inputs(grads, l1)
        if not networks:
            raise ValueError("networks: got none, expected at least one")
        if grads is not None and len(grads) != len(networks):
            raise ValueError(f"grads: got {len(grads)}, expected one per network ({len(networks)})")
        _check_l1(l1, len(networks))
        buckets: dict[tuple[tuple[str, torch.Size], ...], list[int]] = {}
        for position, network in enumerate(networks):
            shapes = tuple((name, network[name].shape) for name in sorted(network))
            buckets.setdefault(shapes, []).append(position)
        reads = []
        for members in buckets.values():
            own = _stacked([networks[position] for position in members])
            gradient = None if grads is None else _stacked([grads[position] for position in members])
            reads.append(self._read(own, gradient))
        order = [position for members in buckets.values() for position in members]
        proposed = self._propose(reads, None if l1 is None else l1[order])
        better: list[Params] = [{} for _ in networks]
        for members, read, proposal in zip(buckets.values(), reads, proposed, strict=True):
            written = self._write(read, proposal)
            for row, position in enumerate(members):
                better[position] = {name: written[name][row] for name in networks[position]}
        return better

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

    def _read(self, params: Params, grads: Params | None) -> _Networks:
        sizes = self.layout.sizes(params)
        self._check_sizes(sizes)
        if grads is not None:
            _check_like(grads, params)
        factors, inverse = canonical_factors(self.layout, params)
        own = self._canonical(params, inverse, factors)
        features = self._features(
            own, None if grads is None else self._canonical(grads, factors, inverse), sizes
        )
        first = next(iter(params.values()))
        return _Networks(first.shape[0], params, sizes, factors, inverse, features)

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

    def _check_inputs(self, grads: Params | Sequence[Params] | None, l1: Tensor | None) -> None:
        for name, given in (("grads", grads), ("l1", l1)):
            if (given is not None) != (name in self.inputs):
                wanted = "needs it" if name in self.inputs else f"was made with reads={sorted(self.inputs)}"
                raise ValueError(
                    f"{name}: got {'none' if given is None else 'one'}, but this metanet {wanted}"
                )

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


def _stacked(networks: list[Params]) -> Params:
    if len({tuple(sorted((name, p.shape) for name, p in network.items())) for network in networks}) > 1:
        raise ValueError("grads: got other names or shapes than the networks have, expected the same")
    return {name: torch.stack([network[name] for network in networks]) for name in networks[0]}


def _check_like(grads: Params, params: Params) -> None:
    for name, p in params.items():
        got = tuple(grads[name].shape) if name in grads else "none"
        if got != tuple(p.shape):
            raise ValueError(
                f"grads: got {got} for {name!r}, expected a gradient of the parameter's shape "
                f"{tuple(p.shape)}"
            )


def _check_l1(l1: Tensor | None, count: int) -> None:
    if l1 is not None and l1.shape != (count,):
        raise ValueError(
            f"l1: got shape {tuple(l1.shape)}, expected ({count},), one strength per network; expand it"
        )


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")


def _check(
    width: int,
    channels: int,
    heads: int,
    symmetry: str,
    direction: str,
    reads: Sequence[str],
) -> None:
    for name, value in (("channels", channels), ("heads", heads)):
        if width % value:
            raise ValueError(f"{name}: got {value}, expected a divisor of width={width}")
    if symmetry not in ("scale", "permutation"):
        raise ValueError(f"symmetry: got {symmetry!r}, expected 'scale' or 'permutation'")
    if direction not in ("forward", "bidirectional"):
        raise ValueError(f"direction: got {direction!r}, expected 'forward' or 'bidirectional'")
    unknown = sorted(set(reads) - {"grads", "l1"})
    if unknown:
        raise ValueError(f"reads: got {unknown}, expected a subset of ['grads', 'l1']")
