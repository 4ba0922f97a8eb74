"""How nodes and edges are stored in a batch, and the few operations in which they meet.

A metanet is written once against [Wiring][amortopt.nn.wiring.Wiring]. A batch of one architecture runs dense:
nodes [B, N, d], edges [B, C, o, i], messages are batched matrix products. A batch of mixed architectures
runs packed (see packed.py): nodes [N, d], edges [E, C], messages are segment sums. Node sets follow each
other along the node axis, which is the last but one in both.

Legend: B networks, N nodes of all sets, n nodes of one set, C edge channels, k node channels per edge
channel, H heads, R roles, o / i nodes of the written / read set.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from amortopt.graph import EdgeBlock


class Wiring(ABC):
    """The operations of a batch in which nodes meet edges, or nodes of one network meet each other."""

    batch: int
    """Number of networks B."""

    lengths: list[int]
    """Rows of every node set along the node axis."""

    def split(self, x: Tensor) -> list[Tensor]:
        """Nodes [.., N, d] -> one tensor [.., n, d] per node set."""
        return list(x.split(self.lengths, -2))

    def join(self, parts: list[Tensor]) -> Tensor:
        """One tensor [.., n, d] per node set -> nodes [.., N, d]."""
        return torch.cat(parts, -2)

    @abstractmethod
    def zeros(self, node: int, like: Tensor, width: int) -> Tensor:
        """Zeros [.., n, width] for a node set."""

    @abstractmethod
    def units(self, node: int, table: Tensor) -> Tensor:
        """Rows of a table [n, d] for the units of a node set that are known by their index: [.., n, d]."""

    @abstractmethod
    def spread(self, node: int, per_network: Tensor) -> Tensor:
        """One vector per network [B, d] -> the same for each of its nodes in a set, [.., n, d]."""

    @abstractmethod
    def mix(self, weight: Tensor, edges: Tensor) -> Tensor:
        """Mix edge channels with weight [C', C]."""

    @abstractmethod
    def to_out(self, block: EdgeBlock, edges: Tensor, x: Tensor) -> Tensor:
        """Forward message sum_i E_c[o, i] x[i, c] / sqrt(n_i): x [.., i, C, k] -> [.., o, C k]."""

    @abstractmethod
    def to_in(self, block: EdgeBlock, edges: Tensor, x: Tensor) -> Tensor:
        """Backward message sum_o E_c[o, i] x[o, c] / sqrt(n_o): x [.., o, C, k] -> [.., i, C k]."""

    @abstractmethod
    def outer(self, block: EdgeBlock, a: Tensor, b: Tensor) -> Tensor:
        """Edges sum_k a[o, c, k] b[i, c, k] from a [.., o, C, k] and b [.., i, C, k]."""

    @abstractmethod
    def attend(self, node: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Softmax attention among a set's nodes of each network: three [.., n, H, e] -> [.., n, H e]."""

    @abstractmethod
    def mean(self, node: int, x: Tensor) -> Tensor:
        """Mean over a set's nodes of each network, given back to each of them: [.., n, d] -> [.., n, d]."""

    @abstractmethod
    def order(self, node: int, scores: Tensor, tie: float) -> tuple[Tensor, Tensor]:
        """Where each node's part of [0, 1] starts and ends, a set's nodes of a network put in order of score.

        Args:
            node: Which node set.
            scores: [.., n, 1].
            tie: Scores that differ by much less than this share their parts.

        Returns:
            Both [.., n, 1]; a node's part is 1/n long, that of k tied nodes k/n.
        """

    @abstractmethod
    def listed(self, node: int, tables: Tensor) -> Tensor:
        """Rows of a table per network [B, n, k] for the units of a set known by their index: [.., n, k]."""

    @abstractmethod
    def columns(self, block: EdgeBlock, rows: Tensor, assigned: Tensor | None, factor: Tensor) -> Tensor:
        """Edges sum_r rows[o, c, r] assigned[i, r] factor[i]; without an assignment, i is r.

        Args:
            block: The edge block.
            rows: [.., o, C, R].
            assigned: Roles of the nodes that are read, [.., i, R].
            factor: Factor of each of them, [.., i, 1].
        """

    @abstractmethod
    def project(self, node: int, x: Tensor, weight: Tensor) -> Tensor:
        """Product with a matrix per network: x [.., n, R], weight [B, R, k] -> [.., n, k]."""


class DenseWiring(Wiring):
    """Networks of one architecture.

    Args:
        batch: Number of networks B.
        sizes: Nodes per set.
    """

    def __init__(self, batch: int, sizes: tuple[int, ...]) -> None:
        self.batch = batch
        self.lengths = list(sizes)

    def zeros(self, node: int, like: Tensor, width: int) -> Tensor:
        return like.new_zeros(self.batch, self.lengths[node], width)

    def units(self, node: int, table: Tensor) -> Tensor:
        return table.expand(self.batch, *table.shape)

    def spread(self, node: int, per_network: Tensor) -> Tensor:
        return per_network[:, None].expand(-1, self.lengths[node], -1)

    def mix(self, weight: Tensor, edges: Tensor) -> Tensor:
        return torch.einsum("cf,bfoi->bcoi", weight, edges)

    def to_out(self, block: EdgeBlock, edges: Tensor, x: Tensor) -> Tensor:
        return _message(edges, x)

    def to_in(self, block: EdgeBlock, edges: Tensor, x: Tensor) -> Tensor:
        return _message(edges.transpose(2, 3), x)

    def outer(self, block: EdgeBlock, a: Tensor, b: Tensor) -> Tensor:
        return a.transpose(1, 2) @ b.permute(0, 2, 3, 1)

    def attend(self, node: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def mean(self, node: int, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True).expand_as(x)

    def order(self, node: int, scores: Tensor, tie: float) -> tuple[Tensor, Tensor]:
        below, tied = compare(scores, scores.mT, tie)
        return part(below.sum(2, keepdim=True), tied.sum(2, keepdim=True), self.lengths[node])

    def listed(self, node: int, tables: Tensor) -> Tensor:
        return tables

    def columns(self, block: EdgeBlock, rows: Tensor, assigned: Tensor | None, factor: Tensor) -> Tensor:
        edges = rows.transpose(1, 2)
        if assigned is not None:
            edges = edges @ assigned.mT[:, None]
        return edges * factor.mT[:, None]

    def project(self, node: int, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight


def _message(edges: Tensor, x: Tensor) -> Tensor:
    # [B, C, to, from] @ [B, C, from, k] -> [B, to, C k]
    sums = edges @ x.transpose(1, 2)
    return sums.transpose(1, 2).flatten(2) / math.sqrt(edges.shape[3])


def compare(scores: Tensor, others: Tensor, tie: float) -> tuple[Tensor, Tensor]:
    """Whether others are below scores, and whether both are tied: 0, 1 or, around ties, between."""
    below = torch.sigmoid((scores - others) / tie)
    return below, 1 - (2 * below - 1).abs()


def part(below: Tensor, tied: Tensor, count: Tensor | int) -> tuple[Tensor, Tensor]:
    """Start and end of nodes in [0, 1] by their sums of ``compare`` over all nodes, themselves included."""
    start = below - tied / 2
    return start / count, (start + tied) / count
