"""Networks of graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.symmetry.library import Factory

NODES, EDGES = 12, 40


class TwoLayers(nn.Module):
    """Two graph layers and a dense one; a number per class and node, or per class and graph."""

    def __init__(
        self, layer: Callable[[int, int], nn.Module], width: int, wide: int | None = None, pool: bool = False
    ) -> None:
        super().__init__()
        self.first, self.second = layer(5, width), layer(wide or width, width)
        self.head, self.pool = nn.Linear(wide or width, 3), pool

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x, edges)), edges))
        return self.head(x.mean(0, keepdim=True) if self.pool else x)


class Dense(nn.Module):
    """Dense matrices of neighbours in a batch of graphs."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import DenseGCNConv, DenseSAGEConv

        self.first, self.second, self.head = DenseGCNConv(5, 16), DenseSAGEConv(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        x = F.relu(self.first(x, neighbours))
        return self.head(F.relu(self.second(x, neighbours)).mean(1))


class WithEdgeInputs(nn.Module):
    """Edges are weighted by numbers computed from what they carry."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.weight = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
        self.first, self.second = GCNConv(5, 16), GCNConv(16, 3)

    def forward(self, x: Tensor, edges: Tensor, features: Tensor) -> Tensor:
        weight = self.weight(features).squeeze(-1)
        return self.second(F.relu(self.first(x, edges, weight)), edges, weight)


def _graph() -> tuple[Tensor, Tensor]:
    return torch.randn(NODES, 5), torch.randint(NODES, (2, EDGES))


def _network(name: str, wide: int | None = None, **options: Any) -> tuple[nn.Module, Any]:
    from torch_geometric import nn as layers

    def layer(before: int, after: int) -> nn.Module:
        if name == "GINConv":
            return layers.GINConv(nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Linear(after, after)))
        return getattr(layers, name)(before, after, **options)

    return TwoLayers(layer, 16, wide), _graph()


def _edge_inputs() -> tuple[nn.Module, Any]:
    return WithEdgeInputs(), (*_graph(), torch.randn(EDGES, 2))


NETWORKS: dict[str, dict[str, Factory]] = {
    "torch-geometric": {
        "Cheb": partial(_network, "ChebConv", K=3),
        "DenseGCN": lambda: (Dense(), (torch.randn(2, 6, 5), torch.randint(2, (2, 6, 6)).float())),
        "GAT": partial(_network, "GATConv", wide=32, heads=2),
        "GATv2": partial(_network, "GATv2Conv", wide=32, heads=2),
        "GCN": partial(_network, "GCNConv"),
        "GCN_edgeinput": _edge_inputs,
        "GIN": partial(_network, "GINConv"),
        "PNA": partial(
            *(_network, "PNAConv"),
            aggregators=["mean", "max", "std"],
            scalers=["identity", "amplification"],
            deg=torch.tensor([1, 3, 4, 3, 1]),
        ),
        "SAGE": partial(_network, "SAGEConv"),
        "SAGEmax": partial(_network, "SAGEConv", aggr="max"),
        "Transformer": partial(_network, "TransformerConv", wide=32, heads=2),
    }
}
