"""Assignment of interchangeable units to roles: a network's own gauge, found by ordering its units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortopt.nn.wiring import Wiring

_TIE = 1e-6
"""Differences of this size, relative to the usual one, count as ties: far above rounding, far below usual."""


class RoleAssignment(nn.Module):
    r"""Assign the units of a group to R roles by the order of an invariant of each unit.

    The unit whose score :math:`s_i = k \cdot h_i` has rank k plays role k. With other numbers of units than
    roles, units and roles lie side by side on the unit interval in order, and :math:`P_{ir}` is the share of
    unit i's part that role r covers: the optimal transport between them on a line. Where units may flip their
    sign, the assignment carries it: :math:`S_{ir} = \mathrm{sgn}(u \cdot v_i) P_{ir}`. Under a permutation
    and sign flips g of the units, S moves as g S, so :math:`S_o M S_i^\top` moves as the weights between two
    groups, for any learned M.

    Equal units cannot be told apart by anything equivariant: they share their roles evenly, and a unit whose
    odd features are zero has sign zero.

    An assignment is constant almost everywhere, so it passes no gradient, and k and u stay as they are drawn;
    what is learned are the features that they look at. Soft assignments have gradients, but every bit of
    softness is noise in the weights that are read out, and costs more than it teaches.

    Args:
        width: Channels d of a unit's features.
        roles: Number of roles R; the group's size in the family.
        odd: Whether units may flip their sign.
    """

    score: Tensor
    sign: Tensor
    place: Tensor

    def __init__(self, width: int, roles: int, *, odd: bool) -> None:
        super().__init__()
        self.roles, self.odd = roles, odd
        self.register_buffer("score", torch.randn(width) / width**0.5)
        self.register_buffer("sign", torch.randn(width) / width**0.5)
        self.register_buffer("place", torch.arange(float(roles)), persistent=False)
        self.even = nn.Parameter(torch.randn(roles, width))
        self.carried = nn.Parameter(torch.randn(roles, width))

    @torch.no_grad()
    def forward(self, wiring: Wiring, node: int, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Assign.

        Args:
            wiring: The batch.
            node: Which node set.
            h: Even features [n, d].
            v: Odd features [n, d].

        Returns:
            P and S, both [n, R]; the same where units keep their sign.
        """
        # Only what tells units of one network apart may decide between them.
        h = h - wiring.mean(node, h)
        spread = wiring.mean(node, h.square().mean(-1, keepdim=True))
        start, end = wiring.order(node, (h @ self.score)[:, None] * torch.rsqrt(spread + 1e-12), _TIE)
        # In units of a role's length.
        start, end = start * self.roles, end * self.roles
        shared = torch.minimum(end, self.place + 1) - torch.maximum(start, self.place)
        assigned = shared.clamp_(min=0).div_(end - start)
        if not self.odd:
            return assigned, assigned
        side = (v @ self.sign)[:, None] * torch.rsqrt(v.square().mean(1, keepdim=True) + 1e-4)
        return assigned, assigned * (side * torch.rsqrt(side.square() + _TIE**2))
