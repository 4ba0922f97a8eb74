"""How nodes and edges are stored in a batch, and the few operations in which they meet.

A metanet is written once against [Wiring]. Nodes are rows [N, d], those of set 0
of all networks first, then those of set 1, ...; so what is done to every node alike is one matrix product,
and a node set is a slice. A batch of one architecture runs dense: edges [B, C, o, i], messages are batched
matrix products. A batch of mixed architectures runs packed (see packed.py): edges [E, C], messages are
segment sums.

Dense rows run over the nodes of a set and, for each, over the networks. Their [n, B C, k] is without any copy
what a batched matrix product over networks and channels takes; with the networks outermost it would not be.

Legend: B networks, N nodes of all sets, n nodes of one set, C edge channels, k node channels per edge
channel, H heads, e channels per head, R / S slots, F features of a block, o / i nodes of the written / read
set.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from amortopt.metanets.scalegmn.layout import GraphBlock
from amortopt.metanets.scalegmn.units import Part

Slots: TypeAlias = tuple[Tensor | None, Tensor]
"""Slots that the nodes of a set play, [n, R], or None where each plays that of its index; a factor [n, 1]."""


class Wiring(ABC):
    """The operations of a batch in which nodes meet edges, or nodes of one network meet each other.

    ``n``, ``o`` and ``i`` count the rows of a set in all networks.
    """

    batch: int
    """Number of networks B."""

    lengths: list[int]
    """Rows of every node set."""

    def split(self, x: Tensor) -> list[Tensor]:
        """Nodes [N, d] -> one tensor [n, d] per node set."""
        return list(x.split(self.lengths))

    def join(self, parts: list[Tensor | None], like: Tensor) -> Tensor:
        """One tensor [n, d] per node set, zeros where there is none -> nodes [N, d] as those of ``like``."""
        return torch.cat(
            [
                like.new_zeros(n, like.shape[1]) if x is None else x
                for n, x in zip(self.lengths, parts, strict=True)
            ]
        )

    @abstractmethod
    def pack_nodes(self, parts: Sequence[Tensor]) -> Tensor:
        """Features [B, units, F] of a node set, one tensor per architecture -> rows [n, F]."""

    @abstractmethod
    def unpack_nodes(self, node: int, rows: Tensor) -> list[Tensor]:
        """The inverse of ``pack_nodes``."""

    @abstractmethod
    def pack_edges(self, parts: Sequence[Tensor]) -> Tensor:
        """Features [B, F, o, i] of an edge block, one tensor per architecture -> edges with F channels."""

    @abstractmethod
    def unpack_edges(self, block: GraphBlock, edges: Tensor) -> list[Tensor]:
        """The inverse of ``pack_edges``."""

    @abstractmethod
    def units(self, node: int, table: Tensor) -> Tensor:
        """Rows of a table [units, d] for the units of a node set that are known by their index: [n, d]."""

    @abstractmethod
    def spread(self, node: int, per_network: Tensor) -> Tensor:
        """One vector per network [B, d] -> the same for each of its nodes in a set, [n, d]."""

    @abstractmethod
    def mix(self, weight: Tensor, edges: Tensor) -> Tensor:
        """Mix edge channels with weight [C', C]."""

    @abstractmethod
    def to_out(self, block: GraphBlock, edges: Tensor, x: Tensor) -> Tensor:
        """Forward message sum_i E_c[o, i] x[i, c] / sqrt(units): x [i, C k] -> [o, C k]."""

    @abstractmethod
    def to_in(self, block: GraphBlock, edges: Tensor, x: Tensor) -> Tensor:
        """Backward message sum_o E_c[o, i] x[o, c] / sqrt(units): x [o, C k] -> [i, C k]."""

    @abstractmethod
    def outer(self, block: GraphBlock, a: Tensor, b: Tensor, channels: int) -> Tensor:
        """Edges sum_k a[o, c, k] b[i, c, k] from a [o, C k] and b [i, C k]."""

    @abstractmethod
    def attend(self, node: int, qkv: Tensor, heads: int) -> Tensor:
        """Softmax attention among a set's nodes of each network: [n, 3 H e] -> [n, H e]."""

    @abstractmethod
    def mean(self, node: int, x: Tensor) -> Tensor:
        """Mean over a set's nodes of each network, for each of them: [n, d] -> [n, d]."""

    @abstractmethod
    def expand(self, part: Part, x: Tensor) -> Tensor:
        """What a set's nodes get from those of a part that they are about: [n of the part, d] -> [n, d]."""

    @abstractmethod
    def pool(self, part: Part, x: Tensor) -> Tensor:
        """Mean over a set's nodes that are about the same node of a part: [n, d] -> [n of the part, d]."""

    @abstractmethod
    def order(self, node: int, scores: Tensor, run: int | None = None) -> tuple[Tensor, Tensor]:
        """Where each node's part of [0, 1] starts and ends, a set's nodes of a network put in order of score.

        Args:
            node: Which node set.
            scores: [n, 1]; those that differ by at most 1 are equal and share their parts, those that differ
                by a few are wholly apart.
            run: Put the nodes of every run of this length in order; None for all nodes of the set.

        Returns:
            Both [n, 1]; among m nodes a part is 1/m long, that of k tied ones k/m.
        """

    @abstractmethod
    def at_slots(self, node: int, slots: Slots, table: Tensor) -> Tensor:
        """What a table per network holds at the slots of each node of a set: [B, R, k] -> [n, k]."""

    @abstractmethod
    def between(self, block: GraphBlock, out: Slots, table: Tensor, into: Slots) -> Tensor:
        """Edges sum_rs out[o, r] table[r, c, s] into[i, s] with a table per network [B, R, C, S]."""


class DenseWiring(Wiring):
    """Networks of one architecture.

    Args:
        batch: Number of networks B.
        sizes: Nodes per set.
    """

    def __init__(self, batch: int, sizes: tuple[int, ...]) -> None:
        self.batch = batch
        self.lengths = [batch * size for size in sizes]

    def _by_network(self, x: Tensor) -> Tensor:
        """Rows [n, d] -> [B, units, d]."""
        return x.unflatten(0, (-1, self.batch)).transpose(0, 1)

    def _by_channel(self, x: Tensor, channels: int) -> Tensor:
        """Rows [n, C k] -> [B C, units, k]."""
        return x.reshape(-1, self.batch * channels, x.shape[1] // channels).transpose(0, 1)

    def pack_nodes(self, parts: Sequence[Tensor]) -> Tensor:
        (x,) = parts
        return x.transpose(0, 1).flatten(0, 1)

    def unpack_nodes(self, node: int, rows: Tensor) -> list[Tensor]:
        return [self._by_network(rows)]

    def pack_edges(self, parts: Sequence[Tensor]) -> Tensor:
        (x,) = parts
        return x

    def unpack_edges(self, block: GraphBlock, edges: Tensor) -> list[Tensor]:
        return [edges]

    def units(self, node: int, table: Tensor) -> Tensor:
        return table[:, None].expand(-1, self.batch, -1).flatten(0, 1)

    def spread(self, node: int, per_network: Tensor) -> Tensor:
        return per_network.repeat(self.lengths[node] // self.batch, 1)

    def mix(self, weight: Tensor, edges: Tensor) -> Tensor:
        # As one batched product, which no axis has to be moved for.
        mixed = torch.bmm(weight.expand(self.batch, -1, -1), edges.flatten(2))
        return mixed.unflatten(2, edges.shape[2:])

    def to_out(self, block: GraphBlock, edges: Tensor, x: Tensor) -> Tensor:
        return self._message(edges, x)

    def to_in(self, block: GraphBlock, edges: Tensor, x: Tensor) -> Tensor:
        return self._message(edges.mT, x)

    def _message(self, edges: Tensor, x: Tensor) -> Tensor:
        # [B C, to, of] @ [B C, of, k] -> [to B, C k]
        sums = torch.bmm(edges.flatten(0, 1), self._by_channel(x, edges.shape[1]))
        return sums.transpose(0, 1).reshape(-1, x.shape[1]).div_(math.sqrt(edges.shape[3]))

    def outer(self, block: GraphBlock, a: Tensor, b: Tensor, channels: int) -> Tensor:
        edges = torch.bmm(self._by_channel(a, channels), self._by_channel(b, channels).mT)
        return edges.unflatten(0, (self.batch, channels))

    def attend(self, node: int, qkv: Tensor, heads: int) -> Tensor:
        # [units, B, 3, H, e] -> three [B, H, units, e]
        q, k, v = qkv.view(-1, self.batch, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 1, 3, 0, 4)
        return F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).reshape(len(qkv), -1)

    def mean(self, node: int, x: Tensor) -> Tensor:
        by_unit = x.view(-1, self.batch, x.shape[1])
        return by_unit.mean(0, keepdim=True).expand_as(by_unit).flatten(0, 1)

    def expand(self, part: Part, x: Tensor) -> Tensor:
        if part.before * part.repeat == 1:
            return x
        by_unit = x.view(1, -1, 1, self.batch, x.shape[1])
        return by_unit.expand(part.before, -1, part.repeat, -1, -1).flatten(0, 3)

    def pool(self, part: Part, x: Tensor) -> Tensor:
        if part.before * part.repeat == 1:
            return x
        by_unit = x.view(part.before, -1, part.repeat, self.batch, x.shape[1])
        return by_unit.mean((0, 2)).flatten(0, 1)

    def order(self, node: int, scores: Tensor, run: int | None = None) -> tuple[Tensor, Tensor]:
        count = len(scores) // self.batch if run is None else run
        by_unit = scores.view(-1, count, self.batch)
        ahead = (by_unit[:, :, None] - by_unit[:, None]).sub_(1).relu_().tanh_()
        before, after = ahead.sum(2).view_as(scores), ahead.sum(1).view_as(scores)
        return before / count, 1 - after / count

    def at_slots(self, node: int, slots: Slots, table: Tensor) -> Tensor:
        return self.pack_nodes([self._at_slots(slots, table)])

    def between(self, block: GraphBlock, out: Slots, table: Tensor, into: Slots) -> Tensor:
        count, channels = table.shape[1:3]
        # [B, S, R C] -> [B, i, R C] -> [B, R, C i] -> [B, o, C i]; in this order no axis has to be moved.
        read = self._at_slots(into, table.flatten(1, 2).mT).mT.reshape(self.batch, count, -1)
        return self._at_slots(out, read).unflatten(2, (channels, -1)).transpose(1, 2)

    def _at_slots(self, slots: Slots, table: Tensor) -> Tensor:
        """[B, R, k] -> [B, units, k]."""
        assigned, factor = slots
        if assigned is None:
            return self._by_network(factor) * table
        return torch.bmm(self._by_network(assigned * factor), table)
