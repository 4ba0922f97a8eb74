"""Slots: the place of a unit in the order of its group, by which interchangeable units get fixed weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from amortopt.metanets.scalegmn.units import NodeSet, Part
from amortopt.metanets.scalegmn.wiring import Wiring

_APART = 32.0
"""Scores that differ by this much are wholly apart."""
_TIE = 1e-6
"""Scores that differ by this much, relative to how much a network's units usually differ, are equal."""


def tie_width(usual: Tensor, size: Tensor | float) -> Tensor:
    """Differences of at most this much count as ties: tiny beside the usual ones, or left by rounding.

    Inside the width, units are exactly equal, so rounding cannot decide between them. Were they only nearly
    equal, each layer would multiply rounding by 1 / _TIE: a difference of 1e-16 between the scores of two
    equal units becomes one of 1e-10 between their slots, and in the next layer one of 1e-4.

    Args:
        usual: Usual size of the differences, which has the shape of the result.
        size: Usual size of the numbers whose difference it is.
    """
    info = torch.finfo(usual.dtype)
    # Float64 leaves room for what several layers multiply an error up to. Float32 does not: units of trained
    # networks differ by as little as 20 eps, so there only the last rounding counts.
    rounding = 64 * info.eps if usual.dtype == torch.float64 else info.eps / 2
    return _TIE * usual + rounding * size + info.tiny


class SlotAssignment(nn.Module):
    r"""Assign the units of a group to R slots by the order of an invariant of each unit.

    The unit whose score :math:`s_i = k \cdot h_i` has rank k takes slot k. With other numbers of units than
    slots, units and slots lie side by side on the unit interval in order, and :math:`P_{ir}` is the share of
    unit i's part that slot r covers: the optimal transport between them on a line. Where units may flip their
    sign, the assignment carries it: :math:`S_{ir} = \mathrm{sgn}(u \cdot v_i) P_{ir}`. Under a permutation
    and sign flips g of the units, S moves as g S, so :math:`S_o M S_i^\top` moves as the weights between two
    groups, for any learned M.

    Equal units cannot be told apart by anything equivariant: they share their slots evenly, and a unit whose
    odd features are zero has sign zero. Where only the function counts that comes out, ``hard`` gives every
    unit a whole slot and a sign nevertheless: by its index among equal ones, and 1.

    An assignment is constant almost everywhere, so it passes no gradient, and k and u stay as they are drawn;
    what is learned are the features that they look at. Soft assignments have gradients, but every bit of
    softness is noise in the weights that are read out, and costs more than it teaches.

    Args:
        width: Channels d of a unit's features.
        slots: Number of slots R; the group's size in the family.
        odd: Whether units may flip their sign.
        run: Length of the runs inside which units are put in order; None if all units are.
        known: Whether units are known by their index (in their run), and only their sign is to be found.

    Attributes:
        hard: See above; False unless it is set.
    """

    score: Tensor
    sign: Tensor
    place: Tensor

    def __init__(
        self, width: int, slots: int, *, odd: bool, run: int | None = None, known: bool = False
    ) -> None:
        super().__init__()
        self.odd, self.run, self.known, self.hard = odd, run, known, False
        self.register_buffer("score", torch.randn(width) / width**0.5)
        self.register_buffer("sign", torch.randn(width) / width**0.5)
        self.register_buffer("place", torch.arange(float(run or slots)), persistent=False)
        self.even = nn.Parameter(torch.randn(slots, width))
        self.carried = nn.Parameter(torch.randn(slots, width))

    @torch.no_grad()
    def forward(
        self, wiring: Wiring, node: int, h: Tensor, v: Tensor, owner: Part | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Assign.

        Args:
            wiring: The batch.
            node: Which node set.
            h: Even features [n, d].
            v: Odd features [n, d].
            owner: What the runs belong to, if there are runs.

        Returns:
            P [n, R], or [n, run] with runs, and the signs [n, 1]; None where units keep their sign.
        """
        if self.known or self.run == 1:
            assigned = by_index(wiring, node, len(self.place), h)
        else:
            # Only differences between units of one network (of one run) may decide.
            size = wiring.mean(node, h.square().mean(-1, keepdim=True)).sqrt()
            h = h - (wiring.mean(node, h) if owner is None else wiring.expand(owner, wiring.pool(owner, h)))
            spread = wiring.mean(node, h.square().mean(-1, keepdim=True)).sqrt()
            scores = (h @ self.score)[:, None] / tie_width(spread, size)
            if self.hard:
                scores = _APART * wiring.ranks(node, scores, self.run)
            start, end = wiring.order(node, scores, self.run)
            # In units of a slot's length.
            start, end = start * len(self.place), end * len(self.place)
            shared = torch.minimum(end, self.place + 1) - torch.maximum(start, self.place)
            assigned = shared.clamp_(min=0).div_(end - start)
        if not self.odd:
            return assigned, None
        side = (v @ self.sign)[:, None]
        if self.hard:
            return assigned, torch.where(side < 0, -1.0, 1.0).to(side)
        # v sums terms of about unit size, so this is what rounding leaves where they cancel.
        width = tie_width(v.square().mean(1, keepdim=True).sqrt(), 1.0)
        return assigned, torch.sign(side) * torch.tanh((side.abs() / width - 1).relu())


@dataclass(frozen=True)
class Assigned:
    """Slots of a set's units: P [n, R], signs [n, 1] where units may flip, and both, S [n, R]."""

    slots: Tensor
    sign: Tensor | None
    signed: Tensor


@torch.no_grad()
def assign(
    modules: nn.ModuleDict, nodes: Sequence[NodeSet], wiring: Wiring, evens: list[Tensor], odds: list[Tensor]
) -> dict[int, Assigned]:
    """Slots by position of a set, for all sets but those whose units are known by their index alone.

    A unit of a set that is about other sets takes their units' slots together: a head's k-th channel the k-th
    one of its head's slot, the further sign of a unit that unit's slot. So what belongs together stays
    together.

    Args:
        modules: Slot assignment of every set that needs one, by position.
        nodes: The sets; parts come before what they are parts of.
        wiring: The batch.
        evens: Even features [n, d] of every set.
        odds: Odd features [n, d] of every set.
    """
    assigned: dict[int, Assigned] = {}
    for p, (node, even, odd) in enumerate(zip(nodes, evens, odds, strict=True)):
        sources = [part for part in node.parts if part.slots]
        if str(p) not in modules and not any(part.node in assigned for part in sources):
            continue
        tables = []
        for part in sources:
            if part.node in assigned:
                slots = assigned[part.node].slots
            else:
                slots = by_index(wiring, part.node, nodes[part.node].size, odd)
            tables.append(wiring.expand(part, slots))
        sign = None
        if str(p) in modules:
            inside, sign = modules[str(p)](wiring, p, even, odd, sources[0] if sources else None)
            tables.append(inside)
        elif node.odd:
            signs = [(part, assigned[part.node].sign) for part in node.parts if part.odd]
            sign = reduce(torch.mul, [wiring.expand(part, s) for part, s in signs if s is not None])
        # Shares of two slots at once: [n, R], [n, S] -> [n, R S].
        slots = reduce(lambda a, b: (a[:, :, None] * b[:, None]).flatten(1), tables)
        assigned[p] = Assigned(slots, sign, slots if sign is None else slots * sign)
    return assigned


def by_index(wiring: Wiring, node: int, run: int, like: Tensor) -> Tensor:
    """Every unit takes the slot of its index in its run: [n, run]."""
    runs = wiring.lengths[node] // (wiring.batch * run)
    return wiring.units(node, torch.eye(run).to(like).repeat(runs, 1))
