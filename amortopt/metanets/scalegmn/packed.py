"""Batches of mixed architectures: the same operations on listed nodes and edges.

Networks that share a family's structure but not its widths do not fit into one tensor. Packed, the nodes of
all networks are rows [N, d], those of set 0 first, then those of set 1, ..., each set network by network; the
edges of a block are rows [E, C], network by network, each with the rows of its two ends. What is a batched
matrix product in a dense batch is a segment sum here, which costs several times as much per network on a CPU:
where many networks share their architecture, a dense batch of each is faster. For 64 networks of 64 widths, a
packed pass takes 0.7 to 1.1 times as long as 64 dense passes (benchmarks/cost/mixed_widths.py).

Legend: B networks, N nodes of all sets, n nodes of one set in all networks, E edges of one block, C edge
channels, k node channels per edge channel, H heads, e channels per head, R slots, F features of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from amortopt.metanets.scalegmn.layout import GraphBlock
from amortopt.metanets.scalegmn.units import Part
from amortopt.metanets.scalegmn.wiring import Slots, Wiring


class PackedWiring(Wiring):
    """Networks of one family's structure and any widths.

    Args:
        counts: Number of networks of every architecture; networks of one architecture follow each other.
        sizes: Nodes per set of every architecture.
        pairs: Node sets (written, read) of the edge blocks.
        device: Where the tensors are.

    Raises:
        ValueError: If there is no network, or counts and sizes do not fit.
    """

    def __init__(
        self,
        counts: Sequence[int],
        sizes: Sequence[tuple[int, ...]],
        pairs: Iterable[tuple[int, int]] = (),
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
        per_network = torch.tensor(sizes, device=device).repeat_interleave(
            torch.tensor(counts, device=device), 0
        )
        self._sizes = list(per_network.unbind(1))
        self._starts = [size.cumsum(0) - size for size in self._sizes]
        self.lengths = per_network.sum(0).tolist()
        networks = torch.arange(self.batch, device=device)
        self._network = [networks.repeat_interleave(size) for size in self._sizes]
        self._ends = {pair: self._listed(*pair) for pair in dict.fromkeys(pairs)}
        self._within: dict[int, tuple[Tensor, Tensor]] = {}

    def _listed(self, out: int, into: int) -> tuple[Tensor, Tensor]:
        """Rows of both ends of all edges [E], in the order network, o, i."""
        count = self._sizes[out] * self._sizes[into]
        network = torch.arange(self.batch, device=count.device).repeat_interleave(count)
        place = torch.arange(len(network), device=count.device) - (count.cumsum(0) - count)[network]
        width = self._sizes[into][network]
        o, i = place.div(width, rounding_mode="floor"), place % width
        return self._starts[out][network] + o, self._starts[into][network] + i

    def _pairs(self, node: int) -> tuple[Tensor, Tensor]:
        if node not in self._within:
            self._within[node] = self._listed(node, node)
        return self._within[node]

    def _root(self, node: int) -> Tensor:
        """Square root of the network's number of nodes in a set, for each network [B]."""
        return self._sizes[node].to(torch.float64).sqrt()

    def units(self, node: int, table: Tensor) -> Tensor:
        return table.repeat(self.batch, 1)

    def spread(self, node: int, per_network: Tensor) -> Tensor:
        return _rows(per_network, self._network[node])

    def mix(self, weight: Tensor, edges: Tensor) -> Tensor:
        return edges @ weight.mT

    def to_out(self, block: GraphBlock, edges: Tensor, x: Tensor) -> Tensor:
        out, into = self._ends[block.out, block.into]
        values = _weighted(edges, _rows(x, into))
        sums = segment_sum(values, out, self.lengths[block.out])
        return sums / self._root(block.into)[self._network[block.out], None].to(x)

    def to_in(self, block: GraphBlock, edges: Tensor, x: Tensor) -> Tensor:
        out, into = self._ends[block.out, block.into]
        sums = segment_sum(_weighted(edges, _rows(x, out)), into, self.lengths[block.into])
        return sums / self._root(block.out)[self._network[block.into], None].to(x)

    def outer(self, block: GraphBlock, a: Tensor, b: Tensor, channels: int) -> Tensor:
        out, into = self._ends[block.out, block.into]
        return (_rows(a, out) * _rows(b, into)).unflatten(1, (channels, -1)).sum(-1)

    def attend(self, node: int, qkv: Tensor, heads: int) -> Tensor:
        query, key, value = qkv.unflatten(1, (3, heads, -1)).unbind(1)
        to, of = self._pairs(node)
        logits = (_rows(query, to) * _rows(key, of)).sum(-1) / math.sqrt(query.shape[-1])
        weights = segment_softmax(logits, to, self.lengths[node])
        values = _weighted(weights, _rows(value, of).flatten(1))
        return segment_sum(values, to, self.lengths[node])

    def mean(self, node: int, x: Tensor) -> Tensor:
        network = self._network[node]
        sums = segment_sum(x, network, self.batch)
        return _rows(sums / self._sizes[node][:, None], network)

    def expand(self, part: Part, x: Tensor) -> Tensor:
        # Sets that are about others have as many nodes in all networks.
        by_network = x.view(self.batch, 1, -1, 1, x.shape[1])
        return by_network.expand(-1, part.before, -1, part.repeat, -1).flatten(0, 3)

    def pool(self, part: Part, x: Tensor) -> Tensor:
        by_network = x.view(self.batch, part.before, -1, part.repeat, x.shape[1])
        return by_network.mean((1, 3)).flatten(0, 1)

    def order(self, node: int, scores: Tensor, run: int | None = None) -> tuple[Tensor, Tensor]:
        if run is not None:
            by_run = scores.view(-1, run)
            ahead = (by_run[:, :, None] - by_run[:, None] - 1).relu().tanh()
            before, after = ahead.sum(2).view_as(scores), ahead.sum(1).view_as(scores)
            return before / run, 1 - after / run
        to, of = self._pairs(node)
        apart = _rows(scores, to) - _rows(scores, of)
        ahead = (torch.cat([apart, -apart], 1) - 1).relu().tanh()
        sums = segment_sum(ahead, to, self.lengths[node])
        shares = sums / self._sizes[node][self._network[node], None]
        return shares[:, :1], 1 - shares[:, 1:]

    def at_slots(self, node: int, slots: Slots, table: Tensor) -> Tensor:
        assigned, factor = slots
        if assigned is None:
            return factor * table.flatten(0, 1)
        return ((assigned * factor)[:, None] @ _rows(table, self._network[node]))[:, 0]

    def between(self, block: GraphBlock, out: Slots, table: Tensor, into: Slots) -> Tensor:
        rows = self.at_slots(block.out, out, table.flatten(2)).unflatten(1, table.shape[2:])
        to, of = self._ends[block.out, block.into]
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
        parts = rows.split([math.prod(shape) for shape in shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]

    def unpack_edges(self, block: GraphBlock, edges: Tensor) -> list[Tensor]:
        shapes = [
            (n, size[block.out], size[block.into]) for n, size in zip(self.counts, self.sizes, strict=True)
        ]
        parts = edges.split([math.prod(shape) for shape in shapes])
        return [
            part.unflatten(0, shape).permute(0, 3, 1, 2) for part, shape in zip(parts, shapes, strict=True)
        ]


def _weighted(edges: Tensor, x: Tensor) -> Tensor:
    """Multiply rows [E, C k] by a weight per channel [E, C]."""
    return (edges[..., None] * x.unflatten(1, (edges.shape[1], -1))).flatten(1)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    # Twice as fast as x[index] on CPU.
    return x.index_select(0, index)


def segment_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum rows [E, ...] by their segment ``index`` [E]: [size, ...], zero for a segment without rows."""
    rows = values.flatten(1) if values.ndim > 1 else values[:, None]
    # scatter_add is up to 3 times faster than index_add on CPU, where several rows go to one segment.
    sums = rows.new_zeros(size, rows.shape[1]).scatter_add(0, index[:, None].expand_as(rows), rows)
    return sums.reshape(size, *values.shape[1:])


def segment_softmax(logits: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax over the rows of every segment; arguments as for ``segment_sum``."""
    # The maximum only guards against overflow: it cancels, so no gradient needs to pass through it.
    rows = index[:, None].expand_as(logits)
    highest = logits.new_zeros(size, logits.shape[1]).scatter_reduce(
        0, rows, logits.detach(), "amax", include_self=False
    )
    weights = (logits - _rows(highest, index)).exp()
    return weights / _rows(segment_sum(weights, index, size), index)
