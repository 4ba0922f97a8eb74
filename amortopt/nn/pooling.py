"""What terms of a UNF layer read from tensors and write to them, shared by all pairs of tensors.

A **reading** takes a tensor's diagonals (its grouping) and averages all parts but the kept ones. Readings
whose kept
parts are of the same multiset of groups have one shape, whatever tensor they come from; writing is the
transpose
of reading. So a layer pools every tensor once, multiplies once per multiset, and adds small results
before they are broadcast.

Legend: b networks, C channels, K channels of all readings of a multiset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import TypeAlias

import torch
from torch import Tensor

from amortopt.nn.basis import Spec, groupings

Multiset: TypeAlias = tuple[int, ...]
"""Groups of the kept parts, in the order of the axes of everything that is read for it."""


@dataclass(frozen=True)
class Reading:
    """One way to read a tensor, or to write to it.

    Attributes:
        tensor: Position of the tensor.
        grouping: Part of every axis; axes of one part are a diagonal.
        kept: Parts that are not averaged, in the order of the multiset.
    """

    tensor: int
    grouping: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether it is the tensor itself, axes in order."""
        return self.kept == tuple(range(len(self.grouping))) == self.grouping


Readings: TypeAlias = dict[Multiset, tuple[Reading, ...]]


def all_readings(
    specs: Sequence[Spec], runs: Mapping[tuple[int, int], int], *, every_order: bool
) -> Readings:
    """The readings of all tensors, by multiset.

    Args:
        specs: Spec of every tensor.
        runs: (tensor, axis) -> axis of the same tensor without which it may not be kept.
        every_order: Whether kept parts of one group are read in every order. A layer reads in every order
            and writes in one, so that every term is one (reading, writing) pair.

    Returns:
        Multiset -> readings, those without diagonals first, then by tensor. The same keys for either order.
    """
    found: dict[Multiset, list[Reading]] = {}
    order: dict[Multiset, Multiset] = {}
    for whole in (True, False):  # whole tensors say in what order a multiset has its axes
        for tensor, spec in enumerate(specs):
            for grouping in groupings(spec):
                parts = max(grouping, default=-1) + 1
                group = [spec[grouping.index(part)] for part in range(parts)]
                for kept in _keepable(tensor, grouping, parts, runs):
                    if (len(kept) == parts == len(spec)) != whole:
                        continue
                    groups = tuple(group[part] for part in kept)
                    wanted = order.setdefault(tuple(sorted(groups)), groups)
                    orders = list(_orders(kept, group, wanted))
                    for each in orders if every_order else orders[:1]:
                        found.setdefault(wanted, []).append(Reading(tensor, grouping, each))
    by_size = sorted(found, key=lambda multiset: (len(multiset), multiset))
    return {
        multiset: tuple(
            sorted(found[multiset], key=lambda r: (len(set(r.grouping)) < len(r.grouping), r.tensor))
        )
        for multiset in by_size
    }


def _keepable(
    tensor: int, grouping: tuple[int, ...], parts: int, runs: Mapping[tuple[int, int], int]
) -> Iterator[tuple[int, ...]]:
    """Sets of parts that may be kept."""
    needs = {
        grouping[axis]: grouping[runs[tensor, axis]]
        for axis in range(len(grouping))
        if (tensor, axis) in runs
    }
    for size in range(parts + 1):
        for kept in combinations(range(parts), size):
            if all(owner in kept for part, owner in needs.items() if part in kept):
                yield kept


def _orders(kept: tuple[int, ...], group: list[int], wanted: Multiset) -> Iterator[tuple[int, ...]]:
    """Orders of kept parts whose groups are as wanted; the ascending one within every group first."""
    for order in permutations(kept):
        if tuple(group[part] for part in order) == wanted:
            yield order


@dataclass(frozen=True)
class _Step:
    """One mean on the way from a tensor to its smallest readings: source [b, ...] -> target, ``dims``
    less."""

    target: tuple[int, ...]
    source: tuple[int, ...]
    dims: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor with its diagonals taken, and the means that its readings need, largest first."""

    tensor: int
    grouping: tuple[int, ...]
    parts: tuple[int, ...]
    steps: tuple[_Step, ...]


class Pooling:
    """Reads tensors of given shapes, and writes to such tensors.

    Args:
        readings: What to read.
        shapes: Shape of every tensor, without networks and channels.
    """

    def __init__(self, readings: Readings, shapes: Sequence[tuple[int, ...]]) -> None:
        self.shapes = tuple(shapes)
        kept: dict[tuple[int, tuple[int, ...]], set[tuple[int, ...]]] = {}
        for reading in (reading for many in readings.values() for reading in many):
            kept.setdefault((reading.tensor, reading.grouping), set()).add(tuple(sorted(reading.kept)))
        ordered = sorted(kept, key=lambda key: (key[0], len(set(key[1])) < len(key[1])))
        self._views = [
            _view(tensor, grouping, self.shapes[tensor], kept[tensor, grouping])
            for tensor, grouping in ordered
        ]
        number = {key: position for position, key in enumerate(ordered)}
        self._readings = [
            [(r, number[r.tensor, r.grouping], tuple(sorted(r.kept))) for r in many]
            for many in readings.values()
        ]

    def read(self, xs: Sequence[Tensor], *, mean: bool) -> list[Tensor]:
        """All readings.

        Args:
            xs: Per tensor [b, *shape, C].
            mean: Whether to average rather than sum.

        Returns:
            Per multiset [b, *sizes, K], readings behind each other.
        """
        pooled = [self._pool(view, xs[view.tensor], mean) for view in self._views]
        found = []
        for many in self._readings:
            parts = [_permuted(pooled[v][kept], reading.kept, kept) for reading, v, kept in many]
            found.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))
        return found

    @staticmethod
    def _pool(view: _View, x: Tensor, mean: bool) -> dict[tuple[int, ...], Tensor]:
        pooled = {view.parts: _diagonal(x, view.grouping)}
        for step in view.steps:
            source = pooled[step.source]
            pooled[step.target] = source.mean(step.dims) if mean else source.sum(step.dims)
        return pooled

    def write(
        self, factors: Sequence[tuple[Tensor, Tensor]], *, mean: bool, bias: Tensor | None = None
    ) -> list[Tensor]:
        """The transpose of :meth:`read`, applied to matrix products.

        Args:
            factors: Per multiset (u [b, *sizes, J], w [J, K]); what is written is their product, of K
            channels for
                all readings together.
            mean: Whether readings are averages.
            bias: Added to every tensor [tensors, C].

        Returns:
            Per tensor [b, *shape, C].
        """
        pieces: list[dict[tuple[int, ...], list[Tensor]]] = [{} for _ in self._views]
        late: dict[int, tuple[Tensor, Tensor]] = {}
        for many, (u, w) in zip(self._readings, factors, strict=True):
            first, v, kept = many[0]
            if len(many) == 1 and first.whole:
                late[v] = (u, w)
                continue
            y = _product(u, w)
            if bias is not None and not kept:  # the scalars of all tensors, those of diagonals after them
                y[:, : bias.numel()] += bias.flatten()
            split = (y,) if len(many) == 1 else y.chunk(len(many), dim=-1)
            for (reading, v, kept), piece in zip(many, split, strict=True):
                pieces[v].setdefault(kept, []).append(_permuted(piece, kept, reading.kept))
        ys: list[Tensor] = []
        for v, view in enumerate(self._views):
            y = self._spread(view, pieces[v], late.get(v), mean)
            if view.tensor == len(ys):
                ys.append(y)
            else:
                _diagonal(ys[view.tensor], view.grouping).add_(y)
        if bias is not None and () in [kept for v in late for kept in (self._views[v].parts,)]:
            ys = [y + bias[0] for y in ys]  # a lone number: nothing else was written
        return ys

    def _spread(
        self,
        view: _View,
        pieces: dict[tuple[int, ...], list[Tensor]],
        late: tuple[Tensor, Tensor] | None,
        mean: bool,
    ) -> Tensor:
        """What is written through one view: small pieces are added to larger ones, smallest first."""
        waiting: dict[tuple[int, ...], list[tuple[Tensor, float]]] = {
            kept: [(piece, 1.0) for piece in many] for kept, many in pieces.items()
        }
        for step in reversed(view.steps):
            if step.target in waiting:
                total = _total(waiting.pop(step.target))
                for dim in step.dims:
                    total = total.unsqueeze(dim)
                share = 1.0 / step.count if mean else 1.0
                waiting.setdefault(step.source, []).append((total, share))
        terms = waiting.get(view.parts, [])
        if late is None:
            total = _total(terms)
            return (
                total.contiguous() if len(terms) > 1 else total.clone(memory_format=torch.contiguous_format)
            )
        u, w = late
        if len(terms) < 2:
            return _total([(_product(u, w), 1.0), *terms])
        # The product is added to the broadcast sum of the rest while it is computed.
        total = _total(terms).contiguous()
        total.view(-1, w.shape[1]).addmm_(u.reshape(-1, u.shape[-1]), w)
        return total


def _view(
    tensor: int, grouping: tuple[int, ...], shape: tuple[int, ...], kept: set[tuple[int, ...]]
) -> _View:
    parts = tuple(range(max(grouping, default=-1) + 1))
    size = [shape[grouping.index(part)] for part in parts]
    have = [parts]
    steps = []
    for target in sorted(kept - {parts}, key=lambda each: (-len(each), each)):
        larger = [each for each in have if set(each) > set(target)]
        source = min(larger, key=lambda each: math.prod(size[part] for part in each))
        dims = tuple(position + 1 for position, part in enumerate(source) if part not in target)
        count = math.prod(size[part] for part in source if part not in target)
        steps.append(_Step(target, source, dims, count))
        have.append(target)
    return _View(tensor, grouping, parts, tuple(steps))


def _diagonal(x: Tensor, grouping: tuple[int, ...]) -> Tensor:
    """A view of [b, *shape, C] with one axis per part, in order."""
    parts = list(grouping)
    for part in range(max(parts, default=-1) + 1):
        while parts.count(part) > 1:
            first = parts.index(part)
            second = parts.index(part, first + 1)
            x = x.diagonal(dim1=first + 1, dim2=second + 1).movedim(-1, first + 1)
            del parts[second]
    return x


def _product(u: Tensor, w: Tensor) -> Tensor:
    """[b, *sizes, J] times [J, K]."""
    return u.mm(w) if u.ndim == 2 else u.reshape(-1, u.shape[-1]).mm(w).view(*u.shape[:-1], w.shape[1])


def _permuted(x: Tensor, to: tuple[int, ...], of: tuple[int, ...]) -> Tensor:
    """[b, *parts, C] with parts in the order ``of``, reordered as ``to``."""
    return x if to == of else x.permute(0, *(of.index(part) + 1 for part in to), x.ndim - 1)


def _total(terms: list[tuple[Tensor, float]]) -> Tensor:
    """Sum of tensors times factors, which broadcast; none of them is modified."""
    (total, share), *rest = terms
    if share != 1.0:
        total = total * share
    for position, (term, share) in enumerate(rest):
        fits = position > 0 and all(n in (1, m) for m, n in zip(total.shape, term.shape, strict=True))
        total = total.add_(term, alpha=share) if fits else torch.add(total, term, alpha=share)
    return total
