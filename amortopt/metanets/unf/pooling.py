"""Sums over all tensors at once: what a UNF layer reads, and where it writes.

A node holds all readings of one multiset of groups, side by side as channels; a reading's channels are a
slot. A slot is a tensor with its diagonals taken, or the sum of a slot of a larger node. For a dense weight
[n1, n0] and bias [n1], specs ``[(1, 0), (1,)]``, with n1 < n0:

| node | slots | values |
|---|---|---|
| (1, 0) | the weight | [b, n1, n0, C] |
| (1,) | the weight summed over n0; the bias | [b, n1, 2 C] |
| (0,) | the weight summed over n1 | [b, n0, C] |
| () | both slots of (1,), the smallest node that has them, in one sum over n1 | [b, 2 C] |

``read`` goes from large nodes to small ones; ``write`` is its transpose and goes back, with broadcasts for
sums. Means are sums whose counts are in the layer's weights. Private axes (a kernel's height and width) would
need a node for each of their subsets; instead, one node keeps them all, and one product with a matrix of
zeros and ones takes the sums over the subsets.

Legend: b networks, C channels, p elements of a tensor's private axes, S non-empty subsets of these axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from types import EllipsisType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from amortopt.metanets.unf.readings import Multiset, Reading, Readings

LARGEST_PATTERN = 8192
"""Elements of the largest matrix of zeros and ones; beyond it, subsets of private axes have nodes each."""

Part: TypeAlias = "tuple[EllipsisType, slice] | None"
"""Channels of some slots of a node; None for all."""
_Order: TypeAlias = "tuple[int, ...] | None"


@dataclass(frozen=True)
class _Direct:
    """A slot that is a tensor with its diagonals taken, axes in the node's order, private ones flattened."""

    part: Part
    tensor: int
    grouping: tuple[int, ...]
    diagonal: bool
    order: _Order
    back: _Order
    private: tuple[int, ...]

    def read(self, xs: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """[b, *shape, C] -> [b, *sizes, (p,) C]."""
        x = diagonal(xs[self.tensor], self.grouping) if self.diagonal else xs[self.tensor]
        x = x if self.order is None else x.permute(self.order)
        return x.flatten(-1 - len(self.private), -2) if self.private else x

    def write(self, y: Tensor) -> Tensor:
        """[b, *sizes, (p,) C] -> [b, *parts, C], as a view."""
        y = y.unflatten(-2, self.private) if self.private else y
        return y if self.back is None else y.permute(self.back)


@dataclass(frozen=True)
class _Sum:
    """Slots ``start`` to ``start + count`` of a node, summed over ``dims`` from as many of a larger one."""

    node: int
    dims: tuple[int, ...]
    order: _Order
    back: _Order
    start: int
    low: int
    count: int = 1
    part: Part = None
    source: Part = None
    tensor: int = -1
    """The tensor that is the larger node's slot as it is; -1 if there is none."""

    def follows(self, other: _Sum) -> bool:
        """Whether one sum can do both."""
        return replace(other, start=other.start + other.count, low=other.low + other.count, count=1) == self

    def read(self, xs: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """[b, *larger sizes, C] -> [b, *sizes, count * C]."""
        # A slice of a node's channels is slow to sum; the tensor lies in one piece.
        x = xs[self.tensor] if self.tensor >= 0 else _channels(values[self.node], self.source)
        x = x.sum(self.dims)
        return x if self.order is None else x.permute(self.order)

    def write(self, y: Tensor) -> Tensor:
        """[b, *sizes, count * C] -> [b, *larger sizes or 1, count * C], as a view."""
        y = y if self.back is None else y.permute(self.back)
        for dim in self.dims:
            y = y.unsqueeze(dim)
        return y


@dataclass
class Node:
    """All readings of one multiset, or of those that differ in a tensor's private axes only.

    Attributes:
        first: Number of its first multiset.
        count: How many multisets it has: 1 or S.
        readings: Of its largest multiset, one per slot.
        axes: How many axes it has beside private ones.
        private: Sizes of private axes, which are one axis of length p; empty if there is none.
        size: Elements per slot.
        pieces: Where the slots come from, in their order.
        plain: Slot -> the tensor that it is as it is.
    """

    first: int
    count: int
    readings: tuple[Reading, ...]
    axes: int
    private: tuple[int, ...]
    size: int = 1
    pieces: list[_Direct | _Sum] = field(default_factory=list)
    plain: dict[int, int] = field(default_factory=dict)


def make_nodes(
    readings: Readings, private: Sequence[Multiset], shapes: Sequence[tuple[int, ...]]
) -> list[Node]:
    """The nodes without their pieces, by first multiset; alike for readings of equal keys."""
    folded: dict[int, tuple[Multiset, tuple[int, ...]]] = {}
    for groups, shape in zip(private, shapes, strict=True):
        for length in range(len(groups), 1, -1):
            sizes = shape[len(shape) - length :]
            if math.prod(sizes) ** 2 * (2**length - 1) <= LARGEST_PATTERN:
                folded |= dict.fromkeys(groups[-length:], (groups[-length:], sizes))
                break
    nodes: dict[tuple[Multiset, Multiset], Node] = {}
    for number, (multiset, many) in enumerate(readings.items()):
        last = tuple(group for group in multiset if group in folded)
        groups, sizes = folded[last[0]] if last else ((), ())
        rest = multiset[: len(multiset) - len(last)]
        node = nodes.setdefault((rest, groups), Node(number, 0, many, len(rest), sizes))
        node.count, node.readings = node.count + 1, many  # the last subset is that of all private axes
    for node in nodes.values():
        one = node.readings[0]
        size = dict(zip(one.grouping, shapes[one.tensor], strict=True))
        node.size = math.prod(size[part] for part in one.kept)
    return list(nodes.values())


class Pooling:
    """Reads tensors of fixed shapes, and writes to such tensors.

    Args:
        readings: By multiset, from ``all_readings``.
        private: Per tensor the groups that it alone has.
        shapes: Shape of every tensor.
        channels: C of the tensors.
    """

    def __init__(
        self,
        readings: Readings,
        private: Sequence[Multiset],
        shapes: Sequence[tuple[int, ...]],
        channels: int,
    ) -> None:
        self.nodes, self.channels, self.tensors = make_nodes(readings, private, shapes), channels, len(shapes)
        # From small nodes to large ones: what is summed has more kept parts than the sum.
        self._up = sorted(range(len(self.nodes)), key=lambda n: len(self.nodes[n].readings[0].kept))
        places: dict[tuple[int, tuple[int, ...]], list[tuple[int, int]]] = {}  # diagonals -> node, slot
        for number in reversed(self._up):
            node = self.nodes[number]
            for slot, reading in enumerate(node.readings):
                if reading.direct:
                    order, back = _orders(tuple(range(len(reading.kept))), reading.kept, private=False)
                    diagonals = len(set(reading.grouping)) < len(reading.grouping)
                    part, private_sizes = self._part(node, slot), node.private
                    node.pieces.append(
                        _Direct(part, reading.tensor, reading.grouping, diagonals, order, back, private_sizes)
                    )
                    if not (diagonals or order or private_sizes):
                        node.plain[slot] = reading.tensor
                else:
                    self._append_sum(node, slot, places[reading.tensor, reading.grouping])
            for slot, reading in enumerate(node.readings):
                places.setdefault((reading.tensor, reading.grouping), []).append((number, slot))
            for k, piece in enumerate(node.pieces):
                if isinstance(piece, _Sum):
                    larger, (low, count) = self.nodes[piece.node], (piece.low, piece.count)
                    part, source = self._part(node, piece.start, count), self._part(larger, low, count)
                    tensor = larger.plain.get(low, -1) if count == 1 else -1
                    node.pieces[k] = replace(piece, part=part, source=source, tensor=tensor)

    def _append_sum(self, node: Node, slot: int, places: list[tuple[int, int]]) -> None:
        """Sum a slot from the smallest node that has it; where it can be, together with the slot before.

        Args:
            node: Whose slot it is.
            slot: Position of the reading.
            places: Node and slot of readings of the same diagonals, from larger nodes.
        """
        kept = node.readings[slot].kept
        sums: list[_Sum] = []
        for number, low in places:
            source = self.nodes[number]
            larger = source.readings[low].kept
            if set(larger) > set(kept):
                dims = [1 + min(k, source.axes) for k, part in enumerate(larger) if part not in kept]
                left = tuple(part for part in larger if part in kept)
                orders = _orders(left[: node.axes], kept[: node.axes], private=bool(node.private))
                sums.append(_Sum(number, tuple(dict.fromkeys(dims)), *orders, slot, low))
        least = min(self.nodes[one.node].size for one in sums)
        before = node.pieces[-1] if node.pieces else None
        before = before if isinstance(before, _Sum) else None
        best = min(
            (one for one in sums if self.nodes[one.node].size == least),
            key=lambda one: (one.order is not None, before is None or not one.follows(before)),
        )
        if before is not None and best.follows(before):
            node.pieces[-1] = replace(before, count=before.count + 1)
        else:
            node.pieces.append(best)

    def _part(self, node: Node, start: int, count: int = 1) -> Part:
        if count == len(node.readings):
            return None
        return (Ellipsis, slice(start * self.channels, (start + count) * self.channels))

    def read(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """All readings, with sums for means.

        Args:
            xs: Per tensor [b, *shape, C].

        Returns:
            Per node [b, *sizes, (p,) slots * C].
        """
        values: list[Any] = [None] * len(self.nodes)
        for number in reversed(self._up):
            slots = [piece.read(xs, values) for piece in self.nodes[number].pieces]
            values[number] = torch.cat(slots, -1) if len(slots) > 1 else slots[0]
        return values

    def write(self, add: Callable[[int, Tensor | None, bool], Tensor]) -> list[Tensor]:
        """The transpose of ``read``.

        Args:
            add: Gives a node's values [b, *sizes, (p,) slots * C], a new tensor, from the node's number; what
                smaller nodes write to all of its slots, or None; and whether that has the full shape and may
                be overwritten.

        Returns:
            Per tensor [b, *shape, C].
        """
        wide: list[list[Tensor]] = [[] for _ in self.nodes]  # for all slots of a node
        narrow: list[list[tuple[Part, Tensor]]] = [[] for _ in self.nodes]  # for some
        written: list[list[tuple[_Direct, Tensor]]] = [[] for _ in range(self.tensors)]
        for number in self._up:
            node, total, full = self.nodes[number], next(iter(wide[number]), None), False
            if total is not None and len(wide[number]) > 1:
                for x in wide[number][1:]:
                    total = total + x  # broadcast to more than either
                if full := total.shape[1:-1].numel() == node.size:
                    total = total.contiguous()
            y = add(number, total, full)
            for part, x in narrow[number]:
                y[part].add_(x)
            for piece in node.pieces:
                x = _channels(y, piece.part)
                if isinstance(piece, _Direct):
                    written[piece.tensor].append((piece, x if piece.part is None else x.clone()))
                elif piece.source is None:
                    wide[piece.node].append(piece.write(x))
                else:
                    narrow[piece.node].append((piece.source, piece.write(x)))
        ys = []
        for many in written:
            whole = [piece.write(x) for piece, x in many if not piece.diagonal]
            y = whole[0] + whole[1] if len(whole) > 1 else whole[0].contiguous()
            for x in whole[2:]:
                y.add_(x)
            for piece, x in many:
                if piece.diagonal:
                    diagonal(y, piece.grouping).add_(piece.write(x))
            ys.append(y)
        return ys


def _channels(x: Tensor, part: Part) -> Tensor:
    return x if part is None else x[part]


def _orders(of: tuple[int, ...], to: tuple[int, ...], *, private: bool) -> tuple[_Order, _Order]:
    """How axes [b, *of, (p,) C] are permuted to [b, *to, (p,) C], and back; None if they need not be."""
    if of == to:
        return None, None
    rest = range(len(of) + 1, len(of) + 2 + private)
    order, back = (tuple(1 + a.index(part) for part in b) for a, b in ((of, to), (to, of)))
    return (0, *order, *rest), (0, *back, *rest)


def pattern(sizes: tuple[int, ...]) -> Tensor:
    """Which elements of private axes a sum is of: zeros and ones [p, p * S].

    Args:
        sizes: Sizes of the private axes.

    Returns:
        1 at [k, l * S + s] if the elements k and l agree in all axes of the subset s; subsets in the order of
        the multisets.
    """
    grid = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).view(-1, len(sizes))
    subsets = torch.tensor(list(product((False, True), repeat=len(sizes)))[1:])
    same = grid[:, None] == grid[None]
    return (same[:, :, None] | ~subsets).all(-1).flatten(1)


def diagonal(x: Tensor, grouping: tuple[int, ...]) -> Tensor:
    """A view of [b, *shape, C] with one axis per part, in order."""
    parts = list(grouping)
    for part in range(max(parts, default=-1) + 1):
        while parts.count(part) > 1:
            first = parts.index(part)
            second = parts.index(part, first + 1)
            x = x.diagonal(dim1=first + 1, dim2=second + 1).movedim(-1, first + 1)
            del parts[second]
    return x
