"""Weight matching: the element that brings the weights of one network closest to those of another."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.symmetry.action import Element, act_on_some, compose, identity
from amortopt.symmetry.alignment.scales import without_units
from amortopt.symmetry.alignment.solve import Scores, best_element
from amortopt.symmetry.axes import Block
from amortopt.symmetry.blocks import read

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec

_SWEEPS = 100


class WeightMatching:
    r"""Permutations and signs that make :math:`\langle a, g\,b \rangle` large, by coordinate descent.

    One tree of groups (units, and the runs that they own) is solved at a time, with all others as they are:
    an assignment problem, as in the weight matching of Ainsworth et al. (2023). A weight between two axes of
    one tree makes it quadratic; the assignment is then that of its linear part, taken if it improves.

    Args:
        spec: Symmetry of both.
        a: Parameters, float64.
        b: Parameters, float64, with scales as in ``a``: see
            [balancing][amortopt.symmetry.alignment.scales.balancing].
        known: Roots of trees that are left as they are.
    """

    def __init__(self, spec: SymmetrySpec, a: Params, b: Params, known: Collection[str] = ()) -> None:
        self.spec, self.a, self.b = spec, a, b
        self.blocks = [block for block in spec.blocks if not block.buffer]
        self.trees: dict[str, list[Block]] = {}
        for block in self.blocks:
            for root in {self.root(group) for group in block.groups}:
                self.trees.setdefault(root, []).append(block)
        order = [group.name for group in spec.groups]
        movable = {self.root(g.name) for g in spec.groups if g.permutable or g.kind in ("sign", "free")}
        self.order = sorted(movable & self.trees.keys() - set(known), key=order.index)

    def root(self, group: str) -> str:
        """The group that owns a group and is owned by none."""
        return self.spec.owners(group)[-1]

    def best(self, restarts: int, generator: torch.Generator) -> Element:
        """The best of several descents, each to where no tree improves.

        The first two settle groups one after the other, from the inputs and from the outputs, comparing only
        weights whose other groups are settled; the others start from all weights, in random orders.
        """
        starts = [(self.order, True), (self.order[::-1], True), (self.order, False)]
        for _ in range(restarts):
            order = [self.order[k] for k in torch.randperm(len(self.order), generator=generator)]
            starts.append((order, len(starts) % 2 == 0))
        found = [self.descend(order, settle) for order, settle in starts]
        return max(found, key=lambda result: result[0])[1]

    def descend(self, order: list[str], settle: bool) -> tuple[float, Element]:
        """The likeness that coordinate descent ends with, and its element."""
        g, b = identity(self.spec), dict(self.b)
        if settle:
            unsettled = set(order)
            for root in order:
                unsettled.discard(root)
                blocks = [
                    block for block in self.trees[root]
                    if unsettled.isdisjoint(map(self.root, block.groups))
                ]  # fmt: skip
                step = best_element(self.spec, scores_of(self.spec, blocks, self.a, b, root))
                b |= self._moved(step, b, root)
                g = compose(step, g)
        return self.improve(order, b, g)

    def from_settled(self) -> Element:
        """The element of a descent that does not depend on the order and signs that b's units have.

        Trees are settled one after the other, in the order of the spec, by the weights to trees that are
        settled: those that nothing moves, and those that were settled before. Units whose weights to these
        are zero stay open: their other weights do not count until all trees are settled, and decide then.
        Trees without any such weights are left to the descent.
        """
        g, b, waiting, opened = identity(self.spec), dict(self.b), list(self.order), {}
        while waiting:
            for root in waiting:
                blocks = [
                    block for block in self.trees[root]
                    if {self.root(name) for name in block.groups}.isdisjoint({*waiting} - {root})
                ]  # fmt: skip
                step, zero = self._settle(root, blocks, b, opened)
                if step is not None:
                    break
            else:
                break
            b |= self._moved(step, b, root)
            g, opened = compose(step, g), opened | zero
            waiting.remove(root)
        for root in self.order:
            others = {name: units for name, units in opened.items() if self.root(name) != root}
            if len(others) < len(opened):
                masked = self._without(b, others)
                scores = scores_of(self.spec, self.trees[root], self.a, masked, root)
                step = best_element(self.spec, scores)
                b |= self._moved(step, b, root)
                g, opened = compose(step, g), others
        return self.improve(self.order, b, g)[1]

    def _settle(
        self, root: str, blocks: list[Block], b: Params, opened: dict[str, Tensor]
    ) -> tuple[Element | None, dict[str, Tensor]]:
        """The step of one tree, group after group; None if nothing decides it. And which units stay open.

        A block along two groups of the tree compares one of them only when the other one is settled.
        """
        b, total = self._without(b, opened), identity(self.spec)
        settled: set[str] = set()
        while True:
            scores = scores_of(self.spec, blocks, self.a, b, root, settled=settled)
            scores = {k: v for k, v in scores.items() if any(bool(s.any()) for s in v.values())}
            if scores.keys() <= settled:
                break
            step = best_element(self.spec, scores)
            b |= self._moved(step, b, root)
            total, settled = compose(step, total), settled | scores.keys()
        zero = {}
        for name in {self.spec.units_of(group.name) for group in self.spec.groups}:
            if self.root(name) != root:
                continue
            known = [score.any(0) for score in scores.get(name, {}).values()]
            units = ~torch.stack(known).any(0) if known else torch.ones(self.spec.group(name).size).bool()
            if bool(units.any()):
                zero[name] = units
        return (total if settled else None), zero

    def _without(self, b: Params, opened: dict[str, Tensor]) -> Params:
        """b with zeros at the weights of open units."""
        every = {
            group.name: opened[self.spec.units_of(group.name)]
            for group in self.spec.groups
            if self.spec.units_of(group.name) in opened
        }
        return without_units(self.spec, b, every) if every else dict(b)

    def improve(self, order: list[str], b: Params, g: Element) -> tuple[float, Element]:
        """Coordinate descent over groups, from b, which g has moved; the likeness and the whole element."""
        for _ in range(_SWEEPS):
            improved = False
            for root in order:
                step = best_element(self.spec, scores_of(self.spec, self.trees[root], self.a, b, root))
                moved = self._moved(step, b, root)
                before, after = self.likeness(b, moved), self.likeness(moved, moved)
                if after > before + 1e-9 * abs(before):
                    b |= moved
                    g, improved = compose(step, g), True
            if not improved:
                break
        return self.likeness(b, self.a), g

    def likeness(self, b: Params, names: Iterable[str]) -> float:
        """Inner product with ``a`` over some parameters."""
        return sum(float((self.a[name] * b[name]).sum()) for name in names)

    def _moved(self, step: Element, b: Params, root: str) -> Params:
        touched = {block.param for block in self.trees[root]}
        return act_on_some(self.spec, step, {name: b[name] for name in sorted(touched)})


def scores_of(
    spec: SymmetrySpec,
    blocks: Iterable[Block],
    a: Params,
    b: Params,
    root: str,
    *,
    settled: Collection[str] | None = None,
) -> Scores:
    """Inner products of the weights of every unit of a with those of every unit of b, in one tree of groups.

    Args:
        spec: The symmetry.
        blocks: What to compare.
        a: Parameters.
        b: Parameters.
        root: The group that owns the tree.
        settled: Groups of units whose order may be relied on: a block compares a group of the tree only if
            all others of the tree that it has are among them. None: all may.

    Returns:
        Scores of the groups of units in it.
    """
    scores: Scores = {}
    for block in blocks:
        x, y = (read(params[block.param], block, 0) for params in (a, b))
        owners = [spec.owner_axis(block, position) for position in range(len(block.axes))]
        # An axis along owners whose runs have an axis too: that one says the same, and more.
        merged = {other for p, other in enumerate(owners) if _merged(spec, block, p)}
        along = {
            position: spec.units_of(axis.group)
            for position, axis in enumerate(block.axes)
            if axis.group and spec.owners(axis.group)[-1] == root and position not in merged
        }
        for position, group in along.items():
            axis, owner = block.axes[position], owners[position]
            others = [other for p, other in along.items() if p != position]
            if settled is not None and any(other not in settled for other in others):
                continue
            odd = frozenset(
                name for name, exponent in axis.scales
                if exponent % 2 and spec.group(name).kind in ("sign", "free") and spec.units_of(name) == group
            )  # fmt: skip
            score = _products(spec, block, position, owner, x, y)
            of_group = scores.setdefault(group, {})
            of_group[odd] = of_group[odd] + score if odd in of_group else score
    return scores


def _merged(spec: SymmetrySpec, block: Block, position: int) -> bool:
    """Whether an axis is along a run, and another one along the units that own the runs."""
    owner, axis = spec.owner_axis(block, position), block.axes[position]
    if owner is None or axis.group is None:
        return False
    return block.axes[owner].size == spec.group(str(spec.group(axis.group).within)).size


def _products(
    spec: SymmetrySpec, block: Block, position: int, owner: int | None, x: Tensor, y: Tensor
) -> Tensor:
    """[n, n]: inner products of the slices of two blocks along an axis."""
    if owner is None:
        x, y = (t.movedim(position, 0).reshape(t.shape[position], -1) for t in (x, y))
        return x @ y.mT
    # Entry (w a, c) is about unit c of run w: [W a, r, ...] -> [W, r, a ...]
    owners = spec.group(str(spec.group(str(block.axes[position].group)).within)).size
    x, y = (
        t.movedim((owner, position), (0, 1))
        .unflatten(0, (owners, -1))
        .transpose(1, 2)
        .flatten(0, 1)
        .flatten(1)
        for t in (x, y)
    )
    return x @ y.mT
