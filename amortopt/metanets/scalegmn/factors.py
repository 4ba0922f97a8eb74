"""Positive factors q of units: removed before the metanet runs, and put back afterwards.

A unit's scaling is a positive number times a sign. The positive part is removed by bringing every network to
a canonical scaling, in which the weights that write to a unit have norm one. Signs are carried: a unit has an
odd feature vector v, which flips with it, beside an even one h, which does not (see layer.py).

Example, for a ReLU network x -> a -> b -> y: q_a is the norm of each row of W_ax (and its bias), q_b that of
each row of W_ba diag(q_a). The canonical weights W_ba[o, i] q_a[i] / q_b[o] are the same for all rescalings
of the network.

Legend: B networks, n units of a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.metanets.scalegmn.layout import GraphBlock, GraphLayout, Scale

Factors: TypeAlias = dict[str, Tensor]
"""Name of a factor -> [B, n]."""


@dataclass(frozen=True)
class Rows:
    """A block whose rows along a dimension of its features are scaled by a factor, so their norms are too.

    Attributes:
        block: The block.
        dim: The dimension.
        scale: The factor's action there.
        others: What else scales the block, with its dimension; to be solved before the norms show the factor.
    """

    block: GraphBlock
    dim: int
    scale: Scale
    others: tuple[tuple[int, Scale], ...]


@dataclass(frozen=True)
class Step:
    """How a factor is computed.

    Attributes:
        factor: Its name.
        first: Rows whose norms are a power of it, with factors of earlier steps removed; all of one exponent.
        fallback: Rows for units whose first ones are zero, with all other factors removed.
    """

    factor: str
    first: tuple[Rows, ...]
    fallback: tuple[Rows, ...]


class CanonicalScaling:
    """Which blocks determine the positive factors of networks of a layout, and in which order.

    Args:
        layout: The layout.

    Attributes:
        blocks: Those of the layout, with these factors at their ends.
        factors: Name -> set that has its units. A factor per group that may be rescaled, but one factor for
            groups whose scales are met only together, such as heads and channels of weights [head, channel,
            ...]: a row of a head's channel shows the product of both, and no weight shows more.
        steps: In the order in which factors are solved.
    """

    def __init__(self, layout: GraphLayout) -> None:
        self.factors = dict(layout.positive)
        self.blocks = list(layout.blocks)
        for step in self._order():
            if not step.first and step.factor in self.factors:
                self._join(step.factor)
        self.steps = self._order()

    def solve(self, params: Params, sizes: Sequence[int]) -> tuple[Factors, Factors]:
        r"""Factors q that scale every unit's incoming weights to norm one, and 1/q.

        In the order of the groups, q_o is the norm of everything that writes to unit o, with the factors of
        what it reads already removed: :math:`q_o = \| (W_{oi} q_i)_i, b_o \|`. So q moves like the unit
        itself under :math:`W' = S_a W S_b^{-1}`, and W_oi q_i / q_o is invariant.

        A dead unit that nothing writes to (its incoming weights are exactly zero, or come from dead units)
        takes its factor from what reads it, one over the norm. A unit without any weight, or whose only
        neighbours have no scale either, has none: both q and 1/q are zero. Its canonical weights are zero
        then, and a metanet proposes zero for them, which every scaling leaves as it is.

        Args:
            params: Tensors [B, ...].
            sizes: Units of every node set.
        """
        first = next(iter(params.values()))
        q = {name: first.new_zeros(len(first), sizes[node]) for name, node in self.factors.items()}
        inverse = dict(q)
        for step in self.steps:
            norms = _norms(step.first, params, q, inverse)
            if norms is not None:
                q[step.factor], inverse[step.factor] = _root(step.first, norms, norms > 0)
        for step in reversed(self.steps):
            norms = _norms(step.fallback, params, q, inverse)
            if norms is not None:
                dead = q[step.factor] == 0
                pair = _root(step.fallback, norms, dead & (norms > 0))
                q[step.factor] = torch.where(dead, pair[0], q[step.factor])
                inverse[step.factor] = torch.where(dead, pair[1], inverse[step.factor])
        return q, inverse

    def read(self, params: Params, factors: Factors, inverse: Factors) -> list[Tensor]:
        """Features of all blocks, multiplied by the factors of their ends to the power of their exponents."""
        return [rescaled(block, block.read(params), factors, inverse) for block in self.blocks]

    def _order(self) -> list[Step]:
        """The steps for the factors as they are.

        First those all of whose writers are solved; where there are none (a residual stream and what it feeds
        wait for each other), the first one with a writer whose others are solved; then one with such a
        reader. A factor that no rows show is last and has none.
        """
        left = list(self.factors)
        written, read = (_rows(self.blocks, sign) for sign in (1, -1))
        solved: set[str] = set()
        steps: list[Step] = []

        def ready(rows: dict[str, list[Rows]], name: str) -> list[Rows]:
            return [r for r in rows.get(name, ()) if {other.factor for _, other in r.others} <= solved]

        while left:
            whole = (n for n in left if n in written and len(ready(written, n)) == len(written[n]))
            some = (n for n in left if ready(written, n))
            choice = next(chain(whole, some, (n for n in left if ready(read, n)), left))
            first, fallback = ready(written, choice), read.get(choice, [])
            if not first:
                first, fallback = ready(read, choice), written.get(choice, [])
            steps.append(Step(choice, _alike(first), _alike(fallback)))
            left.remove(choice)
            solved.add(choice)
        return steps

    def _join(self, factor: str) -> None:
        """Make one factor of this one and those that scale just what it scales, if it does so in one way."""
        ends = [end for block in self.blocks for end in block.ends]
        names_at = [{scale.factor for scale in end.scales} for end in ends]
        scaled = [place for place, names in enumerate(names_at) if factor in names]
        together = {
            name
            for place in scaled
            for name in names_at[place]
            if scaled == [other for other, names in enumerate(names_at) if name in names]
        }
        ways = set()
        for place in scaled:
            scales = [scale for scale in ends[place].scales if scale.factor in together]
            sign = _sign(scales)
            ways.add((ends[place].node, tuple(replace(s, exponent=s.exponent * sign) for s in scales)))
        if len(together) < 2 or len(ways) != 1:
            return
        name = " × ".join(sorted(together))
        self.factors = {key: node for key, node in self.factors.items() if key not in together}
        self.factors[name] = ends[scaled[0]].node
        for place in scaled:
            parts = [scale for scale in ends[place].scales if scale.factor in together]
            rest = tuple(scale for scale in ends[place].scales if scale.factor not in together)
            ends[place] = replace(ends[place], scales=(*rest, Scale(name, _sign(parts), 1, 1)))
        new_ends = iter(ends)
        self.blocks = [replace(b, ends=tuple(next(new_ends) for _ in b.ends)) for b in self.blocks]


def _rows(blocks: Sequence[GraphBlock], sign: int) -> dict[str, list[Rows]]:
    """By factor: the blocks that it scales once, with an exponent of that sign."""
    rows: dict[str, list[Rows]] = {}
    for block in blocks:
        names = [scale.factor for _, scale in block.scales]
        for place, (dim, scale) in enumerate(block.scales):
            if names.count(scale.factor) == 1 and scale.exponent * sign > 0:
                others = (*block.scales[:place], *block.scales[place + 1 :])
                rows.setdefault(scale.factor, []).append(Rows(block, dim, scale, others))
    return rows


def _alike(rows: list[Rows]) -> tuple[Rows, ...]:
    """Those of the smallest exponent, nearly always one: they have a norm together."""
    least = min((abs(each.scale.exponent) for each in rows), default=0)
    return tuple(each for each in rows if abs(each.scale.exponent) == least)


def _sign(scales: Sequence[Scale]) -> int:
    return 1 if scales[0].exponent > 0 else -1


def _norms(rows: Sequence[Rows], params: Params, q: Factors, inverse: Factors) -> Tensor | None:
    """Norms of all rows of each unit [B, n], all other factors removed."""
    parts = []
    for each in rows:
        value = each.block.read(params)
        for dim, scale in each.others:
            value = value * _along(scale, dim, value.ndim, inverse, q)
        # [B, .., N, ..] -> [B, before, n, repeat, ..] -> [B, n, *]
        value = value.movedim(each.dim, 1).unflatten(1, (each.scale.before, -1, each.scale.repeat))
        parts.append(value.movedim(2, 1).flatten(2))
    if not parts:
        return None
    x = torch.cat(parts, -1)
    # What several layers of large or tiny weights multiply up to has squares outside float32's range. A power
    # of two brings them back without rounding.
    peak = x.detach().abs().amax(-1, keepdim=True)
    exponent = torch.frexp(peak).exponent.clamp(-100, 100)
    # Factors of their own: in torch 2.11 the gradient of ldexp is wrong for negative exponents.
    down, up = (torch.ldexp(torch.ones_like(peak), e) for e in (-exponent, exponent))
    return torch.linalg.vector_norm(x * down, dim=-1) * up[..., 0]


def _root(rows: Sequence[Rows], norms: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """q and 1/q from norms that go as a power of q; zero elsewhere, with finite gradients."""
    exponent = rows[0].scale.exponent
    norms = torch.where(where, norms, 1)
    if abs(exponent) > 1:
        norms = norms ** (1 / abs(exponent))
    root, inverse = torch.where(where, norms, 0), torch.where(where, 1 / norms, 0)
    return (root, inverse) if exponent > 0 else (inverse, root)


def rescaled(block: GraphBlock, value: Tensor, factors: Factors, inverse: Factors) -> Tensor:
    """Multiply a block's features by the q of their ends to the power of their exponents."""
    for dim, scale in block.scales:
        value = value * _along(scale, dim, value.ndim, factors, inverse)
    return value


def _along(scale: Scale, dim: int, ndim: int, factors: Factors, inverse: Factors) -> Tensor:
    """q to the power of its exponent for all units along a dimension of features [B, ...]."""
    q = (factors if scale.exponent > 0 else inverse)[scale.factor]
    if abs(scale.exponent) > 1:
        q = q ** abs(scale.exponent)
    if scale.before * scale.repeat > 1:
        q = q[:, None, :, None].expand(-1, scale.before, -1, scale.repeat).flatten(1)
    return q.view(q.shape[0], *(1,) * (dim - 1), -1, *(1,) * (ndim - 1 - dim))
