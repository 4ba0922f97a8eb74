"""Which blocks tell the positive factors of a network's units, and in which order.

Rows of a block that a unit of factor q scales by q to the power e tell q as soon as everything else that
scales them is known: what writes to a unit (e > 0), or else what reads it (e < 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from amortopt.metanets.scalegmn.graph.blocks import End, Factor, Item, Scale, scales_of


@dataclass(frozen=True)
class Teller:
    """A block whose rows along a dimension of its features are scaled by a factor.

    Attributes:
        item: The block.
        dim: The dimension.
        scale: The factor's action there.
        others: What else scales the block, with its dimension.
        needs: Factors that have to be known before.
    """

    item: Item
    dim: int
    scale: Scale
    others: tuple[tuple[int, Scale], ...]
    needs: frozenset[str]


@dataclass(frozen=True)
class Told:
    """How a factor is found.

    Attributes:
        factor: Its name.
        first: What tells it, with factors told before this one; all of one exponent.
        otherwise: What tells the factors of units about which the first is zero, with all other factors.
    """

    factor: str
    first: tuple[Teller, ...]
    otherwise: tuple[Teller, ...]


def tellers(factors: Sequence[Factor], items: Sequence[Item]) -> tuple[Told, ...]:
    """How to find all factors from the blocks of a layout, one after the other.

    First those all of whose writers are told; where there are none (a residual stream and what it feeds wait
    for each other), the first one with a writer that tells; then one with a reader. A factor that nothing
    tells is last and has no tellers.
    """
    left = [factor.name for factor in factors]
    written, read = _tellers(items, 1), _tellers(items, -1)
    known: set[str] = set()
    told: list[Told] = []

    def ready(found: dict[str, list[Teller]], name: str) -> list[Teller]:
        return [teller for teller in found.get(name, ()) if teller.needs <= known]

    while left:
        whole = (n for n in left if n in written and len(ready(written, n)) == len(written[n]))
        some = (n for n in left if ready(written, n))
        choice = next(chain(whole, some, (n for n in left if ready(read, n)), left))
        first, otherwise = ready(written, choice), read.get(choice, [])
        if not first:
            first, otherwise = ready(read, choice), written.get(choice, [])
        told.append(Told(choice, _alike(first), _alike(otherwise)))
        left.remove(choice)
        known.add(choice)
    return tuple(told)


def _tellers(items: Sequence[Item], sign: int) -> dict[str, list[Teller]]:
    """By factor: the blocks that it scales once, with an exponent of that sign."""
    found: dict[str, list[Teller]] = {}
    for item in items:
        scales = scales_of(item)
        names = [scale.factor for _, scale in scales]
        for place, (dim, scale) in enumerate(scales):
            if names.count(scale.factor) == 1 and scale.exponent * sign > 0:
                others = (*scales[:place], *scales[place + 1 :])
                needs = frozenset(names) - {scale.factor}
                found.setdefault(scale.factor, []).append(Teller(item, dim, scale, others, needs))
    return found


def _alike(found: list[Teller]) -> tuple[Teller, ...]:
    """Those of the smallest exponent, nearly always one: their rows have a norm together."""
    least = min((abs(teller.scale.exponent) for teller in found), default=0)
    return tuple(teller for teller in found if abs(teller.scale.exponent) == least)


def joined(factors: Sequence[Factor], items: Sequence[Item]) -> tuple[tuple[Factor, ...], list[Item]]:
    """Give one factor to groups whose own factors nothing tells, if their scales are met only together.

    Weights [head, channel, ...] whose heads and channels may be rescaled are an example: the rows of a head's
    channel tell the product of both factors, and no weight tells more.

    Args:
        factors: A factor per group.
        items: The blocks.

    Returns:
        Factors and blocks with what was joined in place of its parts.
    """
    found, result = list(factors), list(items)
    for told in tellers(factors, items):
        if told.first or told.factor not in {factor.name for factor in found}:
            continue
        ends = [end for item in result for _, end in item.ends]
        together = _met_together(told.factor, ends)
        if len(together) < 2:
            continue
        name = " × ".join(sorted(together))
        node = next(end.node for end in ends if together & {scale.factor for scale in end.scales})
        found = [*(factor for factor in found if factor.name not in together), Factor(name, node)]
        result = [
            item.with_ends(*(_with_joined(end, together, name) for _, end in item.ends)) for item in result
        ]
    return tuple(found), result


def _met_together(factor: str, ends: Sequence[End]) -> set[str]:
    """The factor and those that scale just what it scales, in the same way; empty if that is not one way."""

    def places(name: str) -> list[int]:
        return [place for place, end in enumerate(ends) if name in {scale.factor for scale in end.scales}]

    own = places(factor)
    names = {scale.factor for place in own for scale in ends[place].scales}
    together = {name for name in names if places(name) == own}
    ways = set()
    for place in own:
        scales = [scale for scale in ends[place].scales if scale.factor in together]
        sign = _sign(scales)
        ways.add((ends[place].node, tuple(replace(s, exponent=s.exponent * sign) for s in scales)))
    return together if len(ways) == 1 else set()


def _sign(scales: Sequence[Scale]) -> int:
    return 1 if scales[0].exponent > 0 else -1


def _with_joined(end: End, together: set[str], name: str) -> End:
    parts = [scale for scale in end.scales if scale.factor in together]
    if not parts:
        return end
    rest = [scale for scale in end.scales if scale.factor not in together]
    return replace(end, scales=(*rest, Scale(name, _sign(parts), 1, 1)))
