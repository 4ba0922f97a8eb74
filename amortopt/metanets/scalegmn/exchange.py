"""Features between sets that are about the same units: owners, followers, derived sets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from amortopt.metanets.scalegmn.graph.sets import NodeSet, Part
from amortopt.metanets.scalegmn.wiring import Wiring


class Exchange(nn.Module):
    r"""Even features up to parts and down from them; odd features as products of those of the odd parts.

    A set of units that flip with several parts has the odd features :math:`\prod_j A_j v_j`, and gives to
    part j what its own are, times those of the other parts: every product has just the signs that it needs.

    Args:
        nodes: The sets.
        width: Node channels d.
    """

    def __init__(self, nodes: Sequence[NodeSet], width: int) -> None:
        super().__init__()
        counter = itertools.count()
        self.parts = [
            (p, [(next(counter), part) for part in node.parts]) for p, node in enumerate(nodes) if node.parts
        ]
        linear = lambda: nn.Linear(width, width, bias=False)  # noqa: E731
        links = [(str(k), part.odd) for _, parts in self.parts for k, part in parts]
        self.even_up = nn.ModuleDict({k: linear() for k, _ in links})
        self.even_down = nn.ModuleDict({k: linear() for k, _ in links})
        self.odd_up = nn.ModuleDict({k: linear() for k, odd in links if odd})
        self.odd_down = nn.ModuleDict({k: linear() for k, odd in links if odd})

    def up(self, wiring: Wiring, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What the parts are told: even and odd features [N, d], zero for sets that are no parts."""
        evens, odds = wiring.split(h), wiring.split(v)
        told: list[Tensor | None] = [None] * len(evens)
        carried = list(told)
        for p, parts in self.parts:
            factors = self._factors(wiring, parts, odds)
            for k, part in parts:
                add(told, part.node, wiring.pool(part, self.even_up[str(k)](evens[p])))
                if part.odd:
                    others = [factor for other, factor in factors.items() if other != k]
                    own = reduce(torch.mul, others, self.odd_up[str(k)](odds[p]))
                    add(carried, part.node, wiring.pool(part, own))
        return wiring.join(told, h), wiring.join(carried, v)

    def down(self, wiring: Wiring, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What the parts tell: even and odd features [N, d], zero for sets without parts."""
        evens, odds = wiring.split(h), wiring.split(v)
        told: list[Tensor | None] = [None] * len(evens)
        carried = list(told)
        for p, parts in self.parts:
            for k, part in parts:
                add(told, p, wiring.expand(part, self.even_down[str(k)](evens[part.node])))
            if factors := self._factors(wiring, parts, odds):
                carried[p] = reduce(torch.mul, factors.values())
        return wiring.join(told, h), wiring.join(carried, v)

    def _factors(
        self, wiring: Wiring, parts: list[tuple[int, Part]], odds: list[Tensor]
    ) -> dict[int, Tensor]:
        """Odd features of the odd parts, for the nodes of the set."""
        return {
            k: wiring.expand(part, self.odd_down[str(k)](odds[part.node])) for k, part in parts if part.odd
        }


def add(sums: list[Tensor | None], position: int, x: Tensor) -> None:
    """Add to one of several sums."""
    own = sums[position]
    sums[position] = x if own is None else own + x
