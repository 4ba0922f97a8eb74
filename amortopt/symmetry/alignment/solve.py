"""From scores of pairs of units to the best element: permutations in runs of owners, and signs.

Legend: n units of a group, m units of its owner, r = n / m units in every run; i a unit's place in the first
network, k in the second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from amortopt.symmetry.action import Element, identity
from amortopt.symmetry.alignment.assignment import assignment

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec

Signs: TypeAlias = frozenset[str]
"""Groups whose signs multiply a score; a group's sign is one number per unit."""
Scores: TypeAlias = dict[str, dict[Signs, Tensor]]
"""Group -> signs that multiply the score -> [n, n]: how well unit k of b fits in the place i of a."""


def best_element(spec: SymmetrySpec, scores: Scores) -> Element:
    """The permutations and signs with the largest sum of scores.

    Exact for given scores: signs are chosen for every pair of units, runs are assigned inside of every pair
    of owners, then owners are assigned with what their runs are worth.

    Args:
        spec: The symmetry.
        scores: Of groups of units, that is of names that ``spec.units_of`` returns. Others stay as they are.

    Returns:
        The element that moves b; its scales are signs.
    """
    g = identity(spec)
    units = list(dict.fromkeys(spec.units_of(group.name) for group in spec.groups))
    roots = [name for name in units if spec.group(name).within is None]
    for root in roots:
        if any(name in scores and root in spec.owners(name) for name in units):
            _place(spec, g, _Pairs(spec, root, scores))
    for group in spec.groups:  # further scalings of the same units
        g.permutations[group.name] = g.permutations[spec.units_of(group.name)]
    return g


class _Pairs:
    """What it is worth to put unit k of b in the place i of a, with all that it owns, for all pairs.

    Attributes:
        group: Name of the group.
        value: [n, n].
        signs: Group of signs -> [n, n] of +-1.
        parts: For every group of runs its pairs, and for pairs of owners (i, k) the order inside the run.
    """

    def __init__(self, spec: SymmetrySpec, group: str, scores: Scores) -> None:
        self.group, n = group, spec.group(group).size
        self.value, self.signs = best_signs(scores.get(group, {}))
        self.value = self.value.expand(n, n).clone()
        self.parts: list[tuple[_Pairs, Tensor]] = []
        for child in spec.groups:
            within = child.within
            if within is None or spec.run(child.name) == 1 or spec.units_of(within) != group:
                continue
            pairs, r = _Pairs(spec, child.name, scores), spec.run(child.name)
            tiles = pairs.value.unflatten(0, (n, r)).unflatten(2, (n, r)).transpose(1, 2)  # [i, k, r, r]
            orders = torch.arange(r).expand(n, n, r).clone()
            if child.permutable and r > 1:
                orders = torch.stack([torch.stack([_assigned(tile) for tile in row]) for row in tiles])
            self.value += tiles.gather(3, orders[..., None])[..., 0].sum(2)
            self.parts.append((pairs, orders))


def _place(spec: SymmetrySpec, g: Element, pairs: _Pairs, order: Tensor | None = None) -> None:
    """Write the best order of a group, and of the runs that it owns, into an element."""
    n = spec.group(pairs.group).size
    if order is None:
        order = _assigned(pairs.value) if spec.group(pairs.group).permutable else torch.arange(n)
    g.permutations[pairs.group] = order
    for name, signs in pairs.signs.items():
        g.scales[name] = signs[torch.arange(n), order].to(torch.float64)
    for child, orders in pairs.parts:
        inside = orders[torch.arange(n), order]  # [n, r]
        _place(spec, g, child, (order[:, None] * inside.shape[1] + inside).flatten())


def _assigned(score: Tensor) -> Tensor:
    return torch.from_numpy(assignment(score.double().numpy()))


def best_signs(scores: Mapping[Signs, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The signs that make a sum of scores largest, for every entry on its own.

    Maximises :math:`\sum_S \big(\prod_{s \in S} \sigma_s\big) \text{score}_S`. One sign is tried both ways,
    the most frequent one first; what no longer shares a sign is solved apart.

    Args:
        scores: Signs that multiply the score -> any shape, the same for all.

    Returns:
        The sum and, for every sign, +-1 in that shape.

    Examples:
        >>> a, b = frozenset({"s"}), frozenset()
        >>> total, signs = best_signs({a: torch.tensor([2.0, -3.0]), b: torch.tensor([1.0, 1.0])})
        >>> total.tolist(), signs["s"].tolist()
        ([3.0, 4.0], [1.0, -1.0])
    """
    total = scores.get(frozenset(), torch.zeros((), dtype=torch.float64))
    chosen: dict[str, Tensor] = {}
    left = {names: score for names, score in scores.items() if names}
    while left:
        together = set(next(iter(left)))
        while more := {s for names in left if names & together for s in names} - together:
            together |= more
        part = {names: left.pop(names) for names in list(left) if names & together}
        sign = Counter(s for names in part for s in sorted(names)).most_common(1)[0][0]
        tried = []
        for value in (1.0, -1.0):
            folded: dict[Signs, Tensor] = {}
            for names, score in part.items():
                signed = score * value if sign in names else score
                folded[names - {sign}] = folded.get(names - {sign}, 0) + signed
            tried.append(best_signs(folded))
        (up, ups), (down, downs) = tried
        plus = up >= down
        total = total + torch.where(plus, up, down)
        chosen[sign] = torch.where(plus, 1.0, -1.0)
        chosen |= {s: torch.where(plus, ups[s], downs[s]) for s in ups}
    return total, chosen
