"""Reads all tensors at once for a UNF layer, and writes to all of them: a graph of sums.

A node holds all readings of one multiset side by side. What a reading does not keep is summed, not from its
tensor but from the smallest node that has it already, together with its neighbours there; writing goes the
same way back. Means are sums with their counts in the weights. Where a tensor has axes of its own, such as a
kernel's height and width, one node holds them all, and one product with a matrix of zeros and ones does what
a node for every subset of them would.

Legend: b networks, C channels, p elements of a tensor's private axes, S non-empty subsets of these axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import EllipsisType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from amortopt.metanets.unf.readings import Multiset, Reading, Readings

LARGEST_PATTERN = 8192
"""Elements of the largest matrix of zeros and ones; beyond it, subsets of private axes have nodes each."""


@dataclass(frozen=True)
class _Direct:
    """A slot that is a tensor with its diagonals taken, axes in the node's order, private ones flattened."""

    slot: int
    tensor: int
    grouping: tuple[int, ...]
    order: tuple[int, ...] | None
    back: tuple[int, ...] | None
    private: tuple[int, ...]
    diagonal: bool
    plain: bool
    """Whether it is just the tensor."""

    def read(self, x: Tensor) -> Tensor:
        """[b, *shape, C] -> [b, *sizes, (p,) C]."""
        if self.diagonal:
            x = diagonal(x, self.grouping)
        if self.order is not None:
            x = x.permute(self.order)
        return x.flatten(-1 - len(self.private), -2) if self.private else x

    def write(self, x: Tensor) -> Tensor:
        """[b, *sizes, (p,) C] -> [b, *parts, C], as a view."""
        if self.private:
            x = x.unflatten(-2, self.private)
        return x if self.back is None else x.permute(self.back)


@dataclass(frozen=True)
class _Run:
    """Neighbouring slots of a node, summed from neighbouring slots of a larger one."""

    start: int
    stop: int
    node: int
    low: int
    high: int
    dims: tuple[int, ...]
    order: tuple[int, ...] | None
    back: tuple[int, ...] | None


Part: TypeAlias = "tuple[EllipsisType, slice] | None"
"""Some channels of a node; None for all."""

_Order: TypeAlias = "tuple[int, ...] | None"
_Source: TypeAlias = "tuple[int, int, Part, tuple[int, ...], _Order, _Order, Part]"
"""Larger node, the tensor that its part is or -1, part, summed axes, order and back, part of this node."""

_Step: TypeAlias = "tuple[int, list[tuple[int, _Direct | None, Part]], list[_Source], list[int] | None]"
"""Number of a node, tensors that are slots of it, sums that are, and the order in which they are."""


@dataclass
class Node:
    """All readings of one multiset, or of those that differ in a tensor's private axes only.

    Attributes:
        first: Number of its first multiset.
        count: How many multisets it has: 1 or S.
        readings: Of its largest multiset, one per slot.
        axes: How many axes it has beside private ones.
        private: Sizes of private axes, which are one axis of length p; empty if there is none.
    """

    first: int
    count: int
    readings: tuple[Reading, ...]
    axes: int
    private: tuple[int, ...]
    size: int = 1
    direct: list[_Direct] = field(default_factory=list)
    runs: list[_Run] = field(default_factory=list)

    def dim(self, position: int) -> int:
        """The axis of its values [b, *sizes, p, C] that a reading's kept part is on."""
        return 1 + min(position, self.axes)


def make_nodes(
    readings: Readings, private: Sequence[Multiset], shapes: Sequence[tuple[int, ...]]
) -> list[Node]:
    """The nodes of some readings, by number of their first multisets; equal for readings of equal keys.

    Args:
        readings: By multiset, from ``all_readings``.
        private: Per tensor the groups that it alone has.
        shapes: Shape of every tensor.
    """
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
    """Reads tensors of given shapes, and writes to such tensors.

    Args:
        nodes: From ``make_nodes``; changed by the pooling.
        tensors: Number of tensors.
        channels: C of the tensors.
    """

    def __init__(self, nodes: list[Node], tensors: int, channels: int) -> None:
        self.nodes, self.tensors, self.channels = nodes, tensors, channels
        self._up = sorted(range(len(nodes)), key=lambda n: len(nodes[n].readings[0].kept))
        places: dict[tuple[int, tuple[int, ...]], list[tuple[int, int, Reading]]] = {}
        for number in reversed(self._up):
            self._connect(number, places)
            for slot, reading in enumerate(nodes[number].readings):
                places.setdefault((reading.tensor, reading.grouping), []).append((number, slot, reading))
        self._steps = [self._step(number) for number in self._up]

    def _step(self, number: int) -> _Step:
        """A node, ready to be run through in as little time as possible."""
        node = self.nodes[number]
        directs = [
            (d.tensor, None if d.plain else d, self._part(node, d.slot, d.slot + 1)) for d in node.direct
        ]
        runs: list[_Source] = []
        for run in node.runs:
            larger = self.nodes[run.node]
            alone = {d.slot: d.tensor for d in larger.direct if d.plain} if run.high == run.low + 1 else {}
            whole = self._part(larger, run.low, run.high)
            part = self._part(node, run.start, run.stop)
            runs.append((run.node, alone.get(run.low, -1), whole, run.dims, run.order, run.back, part))
        slots = [d.slot for d in node.direct] + [run.start for run in node.runs]
        order = None if slots == sorted(slots) else sorted(range(len(slots)), key=slots.__getitem__)
        return number, directs, runs, order

    def _part(self, node: Node, start: int, stop: int) -> Part:
        """Some slots of a node as an index; None for all of them."""
        if stop - start == len(node.readings):
            return None
        return (Ellipsis, slice(start * self.channels, stop * self.channels))

    def _connect(
        self, number: int, places: dict[tuple[int, tuple[int, ...]], list[tuple[int, int, Reading]]]
    ) -> None:
        """Where the slots of a node come from."""
        node = self.nodes[number]
        runs: list[_Run] = []
        for slot, reading in enumerate(node.readings):
            if reading.direct:
                node.direct.append(_direct(node, slot, reading))
                continue
            larger = [
                (n, low, other)
                for n, low, other in places[reading.tensor, reading.grouping]
                if set(other.kept) > set(reading.kept)
            ]
            least = min(self.nodes[n].size for n, _, _ in larger)
            made = [self._run(node, slot, *each) for each in larger if self.nodes[each[0]].size == least]
            best = min(made, key=lambda run: (run.order is not None, not (runs and _follows(runs[-1], run))))
            if runs and _follows(runs[-1], best):
                past = runs.pop()
                best = _Run(past.start, slot + 1, past.node, past.low, best.high, *_how(best))
            runs.append(best)
        node.runs = runs

    def _run(self, node: Node, slot: int, number: int, low: int, larger: Reading) -> _Run:
        source, kept = self.nodes[number], node.readings[slot].kept
        dims = [source.dim(k) for k, part in enumerate(larger.kept) if part not in kept]
        left = tuple(part for part in larger.kept if part in kept)
        order, back = _orders(left[: node.axes], kept[: node.axes], bool(node.private))
        return _Run(slot, slot + 1, number, low, low + 1, tuple(dict.fromkeys(dims)), order, back)

    def read(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """All readings, with sums for means.

        Args:
            xs: Per tensor [b, *shape, C].

        Returns:
            Per node [b, *sizes, (p,) slots * C].
        """
        values: list[Any] = [None] * len(self.nodes)
        for number, directs, runs, order in reversed(self._steps):
            pieces = [xs[t] if direct is None else direct.read(xs[t]) for t, direct, _ in directs]
            for source, tensor, whole, dims, permuted, _, _ in runs:
                if tensor >= 0:
                    x = xs[tensor].sum(dims)
                else:
                    x = (values[source] if whole is None else values[source][whole]).sum(dims)
                pieces.append(x if permuted is None else x.permute(permuted))
            if len(pieces) > 1:
                values[number] = torch.cat(pieces if order is None else [pieces[k] for k in order], -1)
            else:
                values[number] = pieces[0]
        return values

    def write(self, add: Callable[[int, Tensor | None, bool], Tensor]) -> list[Tensor]:
        """The transpose of ``read``.

        Args:
            add: Node and None, or what is broadcast and added, and whether that is a tensor of
                the full shape that may be overwritten -> what is written there [b, *sizes, (p,) slots * C],
                a new tensor.

        Returns:
            Per tensor [b, *shape, C].
        """
        wide: list[list[Tensor]] = [[] for _ in self.nodes]
        narrow: list[list[tuple[Part, Tensor]]] = [[] for _ in self.nodes]
        written: list[list[tuple[_Direct | None, Tensor]]] = [[] for _ in range(self.tensors)]
        for number, directs, runs, _ in self._steps:
            y = self._broadcast(number, wide[number], add)
            for part, x in narrow[number]:
                y[part].add_(x)
            for source, _, whole, dims, _, back, part in runs:
                x = y if part is None else y[part]
                if back is not None:
                    x = x.permute(back)
                for dim in dims:
                    x = x.unsqueeze(dim)
                if whole is None:
                    wide[source].append(x)
                else:
                    narrow[source].append((whole, x))
            for tensor, direct, part in directs:
                written[tensor].append((direct, y if part is None else y[part].clone()))
        return [many[0][1] if len(many) == 1 and many[0][0] is None else _summed(many) for many in written]

    def _broadcast(
        self, number: int, wide: list[Tensor], add: Callable[[int, Tensor | None, bool], Tensor]
    ) -> Tensor:
        """What is written to a node, with what smaller nodes write to all of its slots."""
        if len(wide) < 2:
            return add(number, wide[0] if wide else None, False)
        total = torch.add(wide[0], wide[1])  # broadcast to more than either
        for x in wide[2:]:
            total = total + x
        full = total.shape[1:-1].numel() == self.nodes[number].size
        return add(number, total.contiguous() if full else total, full)


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


def _follows(run: _Run, other: _Run) -> bool:
    return (run.stop, run.node, run.high, *_how(run)) == (other.start, other.node, other.low, *_how(other))


def _how(run: _Run) -> tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int, ...] | None]:
    return run.dims, run.order, run.back


def _orders(
    of: tuple[int, ...], to: tuple[int, ...], private: bool
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """How axes [b, *of, (p,) C] are permuted to [b, *to, (p,) C], and back; None if they need not be."""
    if of == to:
        return None, None
    rest = range(len(of) + 1, len(of) + 2 + private)
    return (
        (0, *(1 + of.index(part) for part in to), *rest),
        (0, *(1 + to.index(part) for part in of), *rest),
    )


def _direct(node: Node, slot: int, reading: Reading) -> _Direct:
    rank = len(reading.kept)
    order, back = _orders(tuple(range(rank)), reading.kept, private=False)
    diagonals = len(set(reading.grouping)) < len(reading.grouping)
    plain = not (diagonals or order or node.private)
    return _Direct(slot, reading.tensor, reading.grouping, order, back, node.private, diagonals, plain)


def _summed(many: list[tuple[_Direct | None, Tensor]]) -> Tensor:
    """All that is written to one tensor."""
    diagonals = [(d, x) for d, x in many if d is not None and d.diagonal]
    whole = [x if d is None else d.write(x) for d, x in many if d is None or not d.diagonal]
    y = whole[0] + whole[1] if len(whole) > 1 else whole[0].contiguous()
    for x in whole[2:]:
        y.add_(x)
    for direct, x in diagonals:
        diagonal(y, direct.grouping).add_(direct.write(x))
    return y


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
