"""Reads all tensors at once for a UNF layer, and writes to all of them: a graph of sums.

A node holds all readings of one multiset side by side. What a reading does not keep is summed, not from its
tensor but from the smallest node that has it already, together with its neighbours there; writing goes the
same way back. Means are sums with their counts in the weights. Where a tensor has axes of its own, such as a
kernel's height and width, one node holds them all, and one product with a matrix of zeros and ones does what
a node for every subset of them would.

Legend: b networks, C channels, p elements of a tensor's own axes, S non-empty subsets of these axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from amortopt.nn.readings import Multiset, Reading, Readings

LARGEST_PATTERN = 8192
"""Elements of the largest matrix of zeros and ones; beyond it, subsets of own axes have nodes each."""


@dataclass(frozen=True)
class _Direct:
    """A slot that is a tensor with its diagonals taken, axes in the node's order, own ones flattened."""

    slot: int
    tensor: int
    grouping: tuple[int, ...]
    order: tuple[int, ...] | None
    back: tuple[int, ...] | None
    own: tuple[int, ...]

    @property
    def diagonal(self) -> bool:
        return len(set(self.grouping)) < len(self.grouping)

    def read(self, x: Tensor) -> Tensor:
        """[b, *shape, C] -> [b, *sizes, (p,) C]."""
        if self.diagonal:
            x = diagonal(x, self.grouping)
        if self.order is not None:
            x = x.permute(self.order)
        return x.flatten(-1 - len(self.own), -2) if self.own else x

    def write(self, x: Tensor) -> Tensor:
        """[b, *sizes, (p,) C] -> [b, *parts, C], as a view."""
        if self.own:
            x = x.unflatten(-2, self.own)
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


@dataclass
class Node:
    """All readings of one multiset, or of those that differ in a tensor's own axes only.

    Attributes:
        first: Number of its first multiset.
        count: How many multisets it has: 1 or S.
        readings: Of its largest multiset, one per slot.
        axes: How many axes it has beside own ones.
        own: Sizes of own axes, which are one axis of length p; empty if there is none.
    """

    first: int
    count: int
    readings: tuple[Reading, ...]
    axes: int
    own: tuple[int, ...]
    size: int = 1
    direct: list[_Direct] = field(default_factory=list)
    runs: list[_Run] = field(default_factory=list)

    def dim(self, position: int) -> int:
        """The axis of its values [b, *sizes, p, C] that a reading's kept part is on."""
        return 1 + min(position, self.axes)


def make_nodes(readings: Readings, own: Sequence[Multiset], shapes: Sequence[tuple[int, ...]]) -> list[Node]:
    """The nodes of some readings, by number of their first multisets; equal for readings of equal keys.

    Args:
        readings: By multiset, as :func:`amortopt.nn.readings.all_readings` has them.
        own: Per tensor the groups that it alone has.
        shapes: Shape of every tensor.
    """
    folded: dict[int, tuple[Multiset, tuple[int, ...]]] = {}
    for groups, shape in zip(own, shapes, strict=True):
        for length in range(len(groups), 1, -1):
            sizes = shape[len(shape) - length :]
            if math.prod(sizes) ** 2 * (2**length - 1) <= LARGEST_PATTERN:
                folded |= dict.fromkeys(groups[-length:], (groups[-length:], sizes))
                break
    found: dict[tuple[Multiset, Multiset], Node] = {}
    for number, (multiset, many) in enumerate(readings.items()):
        last = tuple(group for group in multiset if group in folded)
        groups, sizes = folded[last[0]] if last else ((), ())
        rest = multiset[: len(multiset) - len(last)]
        node = found.setdefault((rest, groups), Node(number, 0, many, len(rest), sizes))
        node.count, node.readings = node.count + 1, many  # the last subset is that of all own axes
    for node in found.values():
        one = node.readings[0]
        size = dict(zip(one.grouping, shapes[one.tensor], strict=True))
        node.size = math.prod(size[part] for part in one.kept)
    return list(found.values())


class Pooling:
    """Reads tensors of given shapes, and writes to such tensors.

    Args:
        nodes: From :func:`make_nodes`; the pooling's own from now on.
        tensors: Number of tensors.
    """

    def __init__(self, nodes: list[Node], tensors: int) -> None:
        self.nodes, self.tensors = nodes, tensors
        self._up = sorted(range(len(nodes)), key=lambda n: len(nodes[n].readings[0].kept))
        places: dict[tuple[int, tuple[int, ...]], list[tuple[int, int, Reading]]] = {}
        for number in reversed(self._up):
            self._connect(number, places)
            for slot, reading in enumerate(nodes[number].readings):
                places.setdefault((reading.tensor, reading.grouping), []).append((number, slot, reading))

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
        order, back = _orders(left[: node.axes], kept[: node.axes], bool(node.own))
        return _Run(slot, slot + 1, number, low, low + 1, tuple(dict.fromkeys(dims)), order, back)

    def read(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """All readings, with sums for means.

        Args:
            xs: Per tensor [b, *shape, C].

        Returns:
            Per node [b, *sizes, (p,) slots * C].
        """
        channels = xs[0].shape[-1]
        values: dict[int, Tensor] = {}
        tensors: dict[tuple[int, int], Tensor] = {}
        for number in reversed(self._up):
            node = self.nodes[number]
            pieces: list[tuple[int, Tensor]] = []
            for direct in node.direct:
                x = tensors[number, direct.slot] = direct.read(xs[direct.tensor])
                pieces.append((direct.slot, x))
            for run in node.runs:
                x = tensors.get((run.node, run.low)) if run.high == run.low + 1 else None
                if x is None:
                    x = _channels(values[run.node], run.low * channels, run.high * channels)
                x = x.sum(run.dims)
                pieces.append((run.start, x if run.order is None else x.permute(run.order)))
            if len(pieces) > 1:
                pieces.sort(key=_slot)
                values[number] = torch.cat([x for _, x in pieces], dim=-1)
            else:
                values[number] = pieces[0][1]
        return [values[number] for number in range(len(self.nodes))]

    def write(self, channels: int, add: Callable[[int, Tensor | None], Tensor]) -> list[Tensor]:
        """The transpose of :meth:`read`.

        Args:
            channels: C.
            add: Node and None -> what is written there [b, *sizes, (p,) slots * C], a new tensor; node and a
                tensor of that shape -> the same added to it, in place.

        Returns:
            Per tensor [b, *shape, C].
        """
        waiting: list[list[tuple[int, int, Tensor]]] = [[] for _ in self.nodes]
        found: list[list[tuple[_Direct, Tensor]]] = [[] for _ in range(self.tensors)]
        for number in self._up:
            node = self.nodes[number]
            y = self._collect(number, waiting[number], channels, add)
            for run in node.runs:
                x = _channels(y, run.start * channels, run.stop * channels)
                if run.back is not None:
                    x = x.permute(run.back)
                for dim in run.dims:
                    x = x.unsqueeze(dim)
                waiting[run.node].append((run.low, run.high, x))
            for direct in node.direct:
                x = _channels(y, direct.slot * channels, (direct.slot + 1) * channels)
                found[direct.tensor].append((direct, x))
        return [_summed(many) for many in found]

    def _collect(
        self,
        number: int,
        pieces: list[tuple[int, int, Tensor]],
        channels: int,
        add: Callable[[int, Tensor | None], Tensor],
    ) -> Tensor:
        """What is written to a node, with what smaller nodes write there."""
        slots = len(self.nodes[number].readings)
        wide = [x for low, high, x in pieces if high - low == slots]
        total = None
        if len(wide) > 1:
            total = torch.add(wide[0], wide[1])  # broadcast to more than either
            for x in wide[2:]:
                total = total + x
            wide = []
            if total.shape[1:-1].numel() != self.nodes[number].size:
                wide, total = [total], None
        y = add(number, None if total is None else total.contiguous())
        for x in wide:
            y.add_(x)
        for low, high, x in pieces:
            if high - low < slots:
                y[..., low * channels : high * channels].add_(x)
        return y


def pattern(sizes: tuple[int, ...]) -> Tensor:
    """Which elements of own axes a sum is of: zeros and ones [p, p * S].

    Args:
        sizes: Sizes of the own axes.

    Returns:
        1 at [k, l * S + s] if the elements k and l agree in all axes of the subset s; subsets in the order of
        the multisets.
    """
    grid = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).view(-1, len(sizes))
    subsets = torch.tensor(list(product((False, True), repeat=len(sizes)))[1:])
    same = grid[:, None] == grid[None]
    return (same[:, :, None] | ~subsets).all(-1).flatten(1)


def _slot(piece: tuple[int, Tensor]) -> int:
    return piece[0]


def _follows(run: _Run, other: _Run) -> bool:
    return (run.stop, run.node, run.high, *_how(run)) == (other.start, other.node, other.low, *_how(other))


def _how(run: _Run) -> tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int, ...] | None]:
    return run.dims, run.order, run.back


def _orders(
    of: tuple[int, ...], to: tuple[int, ...], own: bool
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """How axes [b, *of, (p,) C] are permuted to [b, *to, (p,) C], and back; None if they need not be."""
    if of == to:
        return None, None
    rest = range(len(of) + 1, len(of) + 2 + own)
    return (
        (0, *(1 + of.index(part) for part in to), *rest),
        (0, *(1 + to.index(part) for part in of), *rest),
    )


def _direct(node: Node, slot: int, reading: Reading) -> _Direct:
    rank = len(reading.kept)
    order, back = _orders(tuple(range(rank)), reading.kept, own=False)
    return _Direct(slot, reading.tensor, reading.grouping, order, back, node.own)


def _summed(many: list[tuple[_Direct, Tensor]]) -> Tensor:
    """All that is written to one tensor, as a tensor that shares memory with no other."""
    plain = [direct.write(x) for direct, x in many if not direct.diagonal]
    y = plain[0] + plain[1] if len(plain) > 1 else plain[0].contiguous()
    if y.data_ptr() == many[-1][1].data_ptr() and y.numel() != y.untyped_storage().size() // y.element_size():
        y = y.clone()
    for x in plain[2:]:
        y.add_(x)
    for direct, x in many:
        if direct.diagonal:
            diagonal(y, direct.grouping).add_(direct.write(x))
    return y


def _channels(x: Tensor, start: int, stop: int) -> Tensor:
    return x if stop - start == x.shape[-1] else x[..., start:stop]


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
