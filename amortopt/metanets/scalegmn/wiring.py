"""How nodes and edges are stored in a batch, and the few operations in which they meet.

A metanet is written once against `Wiring`. Nodes are rows [N, d], those of set 0 of all networks first, then
those of set 1, ...; so what is done to every node alike is one matrix product, and a node set is a slice.
`DenseWiring` is for networks of one architecture, `PackedWiring` for mixed ones.

Legend: B networks, N nodes of all sets, n nodes of one set in all networks, E edges of one block, C edge
channels, k node channels per edge channel, H heads, e channels per head, R / S slots, F features of a block,
o / i nodes of the written / read set.
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
from amortopt.metanets.scalegmn.segments import segment_softmax, segment_sum
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
    def network_means(self, node: int, x: Tensor) -> Tensor:
        """Mean over a set's nodes of each network: [n, d] -> [B, d]."""

    @abstractmethod
    def edge_means(self, block: GraphBlock, edges: Tensor) -> Tensor:
        """Mean over a block's edges of each network: edges with C channels -> [B, C]."""

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
    def ranks(self, node: int, scores: Tensor, run: int | None = None) -> Tensor:
        """Each node's place, from 0, in the order of scores of a set's nodes of a network.

        Args:
            node: Which node set.
            scores: [n, 1]; of equal ones the first node comes first.
            run: As for ``order``.

        Returns:
            [n, 1].
        """

    @abstractmethod
    def at_slots(self, node: int, slots: Slots, table: Tensor) -> Tensor:
        """What a table per network holds at the slots of each node of a set: [B, R, k] -> [n, k]."""

    @abstractmethod
    def between(self, block: GraphBlock, out: Slots, table: Tensor, into: Slots) -> Tensor:
        """Edges sum_rs out[o, r] table[r, c, s] into[i, s] with a table per network [B, R, C, S]."""


class DenseWiring(Wiring):
    """Networks of one architecture: edges [B, C, o, i], messages are batched matrix products.

    Rows run over the nodes of a set and, for each, over the networks. Their [n, B C, k] is without any copy
    what a batched matrix product over networks and channels takes; networks first, it would not be.

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

    def network_means(self, node: int, x: Tensor) -> Tensor:
        return x.view(-1, self.batch, x.shape[1]).mean(0)

    def edge_means(self, block: GraphBlock, edges: Tensor) -> Tensor:
        return edges.mean((2, 3))

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
        return _in_order(self._runs(scores, run))

    def ranks(self, node: int, scores: Tensor, run: int | None = None) -> Tensor:
        return _ranks(self._runs(scores, run))

    def _runs(self, scores: Tensor, run: int | None) -> Tensor:
        """[n, 1] -> [runs, nodes of a run, B]; all of a network's are one run by default."""
        return scores.view(-1, len(scores) // self.batch if run is None else run, self.batch)

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


class PackedWiring(Wiring):
    """Networks of one family's structure and any widths, which do not fit into one tensor.

    The rows of a set are network by network; the edges of a block are rows [E, C], network by network, each
    with the rows of its two ends. What is a batched matrix product in a dense batch is a segment sum here,
    which costs several times as much per network on a CPU: where many networks share their architecture, a
    dense batch of each is faster. For 64 networks of 64 widths, a packed pass takes 0.7 to 1.1 times as long
    as 64 dense passes (benchmarks/cost/mixed_widths.py).

    Args:
        counts: Number of networks of every architecture; networks of one architecture follow each other.
        sizes: Nodes per set of every architecture.
        device: Where the tensors are.

    Raises:
        ValueError: If there is no network, or counts and sizes do not fit.
    """

    def __init__(
        self,
        counts: Sequence[int],
        sizes: Sequence[tuple[int, ...]],
        device: torch.device | str = "cpu",
    ) -> None:
        if not counts or len(counts) != len(sizes) or min(counts) < 1:
            raise ValueError(
                f"counts, sizes: got {list(counts)} and {len(sizes)} tuples, expected at least one network "
                "of every architecture and one tuple of sizes for each"
            )
        self.counts, self.sizes = list(counts), list(sizes)
        self.batch = sum(counts)
        # [B, sets]
        repeats = torch.tensor(counts, device=device)
        per_network = torch.tensor(sizes, device=device).repeat_interleave(repeats, 0)
        self._sizes = list(per_network.unbind(1))
        self._starts = [size.cumsum(0) - size for size in self._sizes]
        self.lengths = per_network.sum(0).tolist()
        networks = torch.arange(self.batch, device=device)
        self._network = [networks.repeat_interleave(size) for size in self._sizes]
        self._listed: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def _ends(self, out: int, into: int) -> tuple[Tensor, Tensor]:
        """Rows of both ends of all edges between two sets [E], in the order network, o, i."""
        if (out, into) in self._listed:
            return self._listed[out, into]
        count = self._sizes[out] * self._sizes[into]
        network = torch.arange(self.batch, device=count.device).repeat_interleave(count)
        place = torch.arange(len(network), device=count.device) - (count.cumsum(0) - count)[network]
        width = self._sizes[into][network]
        o, i = place.div(width, rounding_mode="floor"), place % width
        self._listed[out, into] = self._starts[out][network] + o, self._starts[into][network] + i
        return self._listed[out, into]

    def units(self, node: int, table: Tensor) -> Tensor:
        return table.repeat(self.batch, 1)

    def spread(self, node: int, per_network: Tensor) -> Tensor:
        return _rows(per_network, self._network[node])

    def mix(self, weight: Tensor, edges: Tensor) -> Tensor:
        return edges @ weight.mT

    def to_out(self, block: GraphBlock, edges: Tensor, x: Tensor) -> Tensor:
        to, of = self._ends(block.out, block.into)
        return self._message(block.out, block.into, to, of, edges, x, ordered=True)

    def to_in(self, block: GraphBlock, edges: Tensor, x: Tensor) -> Tensor:
        of, to = self._ends(block.out, block.into)
        return self._message(block.into, block.out, to, of, edges, x, ordered=False)

    def _message(
        self, out: int, into: int, to: Tensor, of: Tensor, edges: Tensor, x: Tensor, *, ordered: bool
    ) -> Tensor:
        sums = segment_sum(_weighted(edges, _rows(x, of)), to, self.lengths[out], ordered=ordered)
        return sums / self._sizes[into].to(torch.float64).sqrt()[self._network[out], None].to(x)

    def outer(self, block: GraphBlock, a: Tensor, b: Tensor, channels: int) -> Tensor:
        out, into = self._ends(block.out, block.into)
        return (_rows(a, out) * _rows(b, into)).unflatten(1, (channels, -1)).sum(-1)

    def attend(self, node: int, qkv: Tensor, heads: int) -> Tensor:
        query, key, value = qkv.unflatten(1, (3, heads, -1)).unbind(1)
        to, of = self._ends(node, node)
        logits = (_rows(query, to) * _rows(key, of)).sum(-1) / math.sqrt(query.shape[-1])
        weights = segment_softmax(logits, to, self.lengths[node], ordered=True)
        values = _weighted(weights, _rows(value, of).flatten(1))
        return segment_sum(values, to, self.lengths[node], ordered=True)

    def mean(self, node: int, x: Tensor) -> Tensor:
        return _rows(self.network_means(node, x), self._network[node])

    def network_means(self, node: int, x: Tensor) -> Tensor:
        return segment_sum(x, self._network[node], self.batch, ordered=True) / self._sizes[node][:, None]

    def edge_means(self, block: GraphBlock, edges: Tensor) -> Tensor:
        count = self._sizes[block.out] * self._sizes[block.into]
        network = torch.arange(self.batch, device=count.device).repeat_interleave(count)
        return segment_sum(edges, network, self.batch, ordered=True) / count[:, None]

    def expand(self, part: Part, x: Tensor) -> Tensor:
        # Sets that are about others have as many nodes in all networks.
        by_network = x.view(self.batch, 1, -1, 1, x.shape[1])
        return by_network.expand(-1, part.before, -1, part.repeat, -1).flatten(0, 3)

    def pool(self, part: Part, x: Tensor) -> Tensor:
        by_network = x.view(self.batch, part.before, -1, part.repeat, x.shape[1])
        return by_network.mean((1, 3)).flatten(0, 1)

    def order(self, node: int, scores: Tensor, run: int | None = None) -> tuple[Tensor, Tensor]:
        if run is not None:
            return _in_order(scores.view(-1, run, 1))
        to, of = self._ends(node, node)
        apart = _rows(scores, to) - _rows(scores, of)
        ahead = (torch.cat([apart, -apart], 1) - 1).relu().tanh()
        sums = segment_sum(ahead, to, self.lengths[node], ordered=True)
        shares = sums / self._sizes[node][self._network[node], None]
        return shares[:, :1], 1 - shares[:, 1:]

    def ranks(self, node: int, scores: Tensor, run: int | None = None) -> Tensor:
        if run is not None:
            return _ranks(scores.view(-1, run, 1))
        to, of = self._ends(node, node)
        score, other = _rows(scores, to), _rows(scores, of)
        before = (other < score) | ((other == score) & (of < to)[:, None])
        return segment_sum(before.to(scores), to, self.lengths[node], ordered=True)

    def at_slots(self, node: int, slots: Slots, table: Tensor) -> Tensor:
        assigned, factor = slots
        if assigned is None:
            return factor * table.flatten(0, 1)
        return ((assigned * factor)[:, None] @ _rows(table, self._network[node]))[:, 0]

    def between(self, block: GraphBlock, out: Slots, table: Tensor, into: Slots) -> Tensor:
        rows = self.at_slots(block.out, out, table.flatten(2)).unflatten(1, table.shape[2:])
        to, of = self._ends(block.out, block.into)
        assigned, factor = into
        if assigned is None:
            first = self._starts[block.into][self._network[block.into]]
            place = (of - _rows(first, of))[:, None, None].expand(-1, rows.shape[1], 1)
            return _rows(rows, to).gather(2, place)[..., 0] * _rows(factor, of)
        return (_rows(rows, to) @ _rows(assigned * factor, of)[..., None])[..., 0]

    def pack_nodes(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.flatten(0, 1) for part in parts])

    def pack_edges(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.permute(0, 2, 3, 1).flatten(0, 2) for part in parts])

    def unpack_nodes(self, node: int, rows: Tensor) -> list[Tensor]:
        shapes = [(count, size[node]) for count, size in zip(self.counts, self.sizes, strict=True)]
        parts = zip(rows.split([math.prod(shape) for shape in shapes]), shapes, strict=True)
        return [part.unflatten(0, shape) for part, shape in parts]

    def unpack_edges(self, block: GraphBlock, edges: Tensor) -> list[Tensor]:
        shapes = [
            (n, size[block.out], size[block.into]) for n, size in zip(self.counts, self.sizes, strict=True)
        ]
        parts = zip(edges.split([math.prod(shape) for shape in shapes]), shapes, strict=True)
        return [part.unflatten(0, shape).permute(0, 3, 1, 2) for part, shape in parts]


def _ranks(scores: Tensor) -> Tensor:
    """Places [n, 1] of scores [runs, nodes, B] in their order along the nodes."""
    order = scores.argsort(dim=1, stable=True)
    return order.argsort(dim=1).to(scores).flatten()[:, None]


def _in_order(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Where parts start and end, [k m B, 1] both, for scores [k, m, B] of k runs of m nodes."""
    ahead = (scores[:, :, None] - scores[:, None]).sub_(1).relu_().tanh_()
    before, after = (ahead.sum(axis).view(-1, 1) / scores.shape[1] for axis in (2, 1))
    return before, 1 - after


def _weighted(edges: Tensor, x: Tensor) -> Tensor:
    """Multiply rows [E, C k] by a weight per channel [E, C]."""
    return (edges[..., None] * x.unflatten(1, (edges.shape[1], -1))).flatten(1)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    # Twice as fast as x[index] on CPU.
    return x.index_select(0, index)
