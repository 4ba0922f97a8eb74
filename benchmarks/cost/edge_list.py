"""The reference that throughput.py measures against: a metanet in edge-list form, with an MLP on every edge.

Scale-equivariant message passing as it is usually published (Kalogeropoulos et al. 2024, the bidirectional
variant, for signs), written with care but in the usual form: the units and weights of all networks of a batch
are rows of two tables, messages are MLPs on rows of edges, sums run by ``index_add``.

Legend: V units and E weights of all networks, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.scalegmn.layout import GraphLayout
from amortopt.symmetry import SymmetrySpec


class SignEquivariant(nn.Module):
    r"""Several odd inputs to one odd output: :math:`(\sum_k \Gamma_k x_k) \odot \mathrm{MLP}(|z_1|, \ldots)`.

    Args:
        odd: Number of inputs x that carry the output's sign.
        invariant: Number of inputs z whose signs do not matter.
        width: Features d of each.
    """

    def __init__(self, odd: int, invariant: int, width: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(odd * width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(invariant * width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, odd: list[Tensor], invariant: list[Tensor]) -> Tensor:
        return self.gamma(torch.cat(odd, -1)) * self.mlp(torch.cat(invariant, -1).abs())


class EdgeListLayer(nn.Module):
    """Messages along and against every edge, new nodes, new edges."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.forward_message = SignEquivariant(1, 3, width)
        self.backward_message = SignEquivariant(1, 3, width)
        self.node_update = SignEquivariant(3, 3, width)
        self.edge_update = SignEquivariant(2, 3, width)

    def forward(self, x: Tensor, e: Tensor, into: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """New nodes [V, d] and edges [E, d]; edges read the nodes ``into`` [E] and write to ``out`` [E]."""
        x_in, x_out = x[into], x[out]
        ends = [x_in, x_out, e]
        # e has the signs of both of its ends, so a product with one end has the sign of the other.
        forwarded = torch.zeros_like(x).index_add(0, out, self.forward_message([e * x_in], ends))
        returned = torch.zeros_like(x).index_add(0, into, self.backward_message([e * x_out], ends))
        x = x + self.node_update([x, forwarded, returned], [x, forwarded, returned])
        x_in, x_out = x[into], x[out]
        return x, e + self.edge_update([e, x_in * x_out], [e, x_in, x_out])


class EdgeListGMN(nn.Module):
    """Weights to weights for networks whose hidden units may be permuted and change their sign.

    Args:
        spec: Symmetry of the family.
        width: Features d per unit and per weight.
        layers: Rounds of messages, in both directions.
    """

    def __init__(self, spec: SymmetrySpec, *, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.layout = GraphLayout.from_spec(spec)
        nodes, edges = self.layout.node_blocks, self.layout.edge_blocks
        # Unlike hidden units, those of inputs and outputs are known by their index.
        self.index = nn.ParameterDict(
            {
                str(p): nn.Parameter(torch.randn(node.size, width))
                for p, node in enumerate(self.layout.nodes)
                if not node.permutable
            }
        )
        self.read_node = nn.ModuleList(nn.Linear(b.channels, width, bias=False) for b in nodes)
        self.read_edge = nn.ModuleList(nn.Linear(b.channels, width, bias=False) for b in edges)
        self.layers = nn.ModuleList(EdgeListLayer(width) for _ in range(layers))
        self.write_node = nn.ModuleList(nn.Linear(width, b.channels, bias=False) for b in nodes)
        self.write_edge = nn.ModuleList(nn.Linear(width, b.channels, bias=False) for b in edges)
        self.step = nn.Parameter(torch.tensor(0.01))

    def forward(self, params: Params) -> Params:
        """New params [B, ...] of B networks of one architecture."""
        layout, sizes = self.layout, self.layout.sizes(params)
        old_nodes = [b.read(params).mT for b in layout.node_blocks]
        old_edges = [b.read(params) for b in layout.edge_blocks]
        count, width = len(old_edges[0]), self.read_edge[0].weight.shape[0]
        offsets = [sum(sizes[:p]) for p in range(len(sizes))]
        parts = [old_edges[0].new_zeros(count, n, width) for n in sizes]
        for p, table in self.index.items():
            parts[int(p)] = parts[int(p)] + table
        for b, read, old in zip(layout.node_blocks, self.read_node, old_nodes, strict=True):
            parts[b.node] = parts[b.node] + read(old)
        x = torch.cat(parts, 1).flatten(0, 1)
        # [B, k, o, i] -> [B o i, k]
        rows = [old.permute(0, 2, 3, 1).flatten(0, 2) for old in old_edges]
        e = torch.cat([read(row) for read, row in zip(self.read_edge, rows, strict=True)])
        into, out = self._ends(count, sizes, offsets, e.device)
        for layer in self.layers:
            x, e = layer(x, e, into, out)
        x = x.unflatten(0, (count, -1))
        nodes = [
            old + self.step * write(x[:, offsets[b.node] : offsets[b.node] + sizes[b.node]])
            for b, write, old in zip(layout.node_blocks, self.write_node, old_nodes, strict=True)
        ]
        edges = []
        for write, old, new in zip(
            self.write_edge, old_edges, e.split([len(row) for row in rows]), strict=True
        ):
            change = write(new).unflatten(0, (count, *old.shape[2:])).permute(0, 3, 1, 2)
            edges.append(old + self.step * change)
        return layout.write(params, [*(node.mT for node in nodes), *edges])

    def _ends(
        self, count: int, sizes: tuple[int, ...], offsets: list[int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Rows of the node table that every edge reads and writes, int64 [E] each."""
        start = torch.arange(count, device=device).view(-1, 1, 1) * sum(sizes)
        into, out = [], []
        for b in self.layout.edge_blocks:
            shape = (count, sizes[b.out], sizes[b.into])
            o = offsets[b.out] + torch.arange(sizes[b.out], device=device).view(1, -1, 1)
            i = offsets[b.into] + torch.arange(sizes[b.into], device=device).view(1, 1, -1)
            out.append((start + o).expand(shape).flatten())
            into.append((start + i).expand(shape).flatten())
        return torch.cat(into), torch.cat(out)
