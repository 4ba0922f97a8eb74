"""Soft assignment of interchangeable units to learned roles: a network's own gauge, found by attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortopt.nn.wiring import Wiring


class RoleAssignment(nn.Module):
    r"""Assign the units of a group to R learned roles, each role to its share of the units.

    Logits between even features and learned keys are balanced by Sinkhorn's iteration, so that units compete
    for roles: :math:`P = \mathrm{Sinkhorn}(e^\tau h K^\top)`, rows summing to one. Where units may flip their
    sign, the assignment carries it: :math:`S = P \odot \tanh(v U^\top)` is odd in v. Under a permutation and
    sign flips g of the units, S moves as g S, so :math:`S_o M S_i^\top` moves as the weights between two groups,
    for any learned M (learned canonicalization, Kaba et al. 2023, in its soft form).

    The assignment has to be sharp: what is left of its softness is noise in the weights that are read out.

    Args:
        width: Channels d of a unit's features.
        roles: Number of roles R; the group's size in the family.
        odd: Whether units may flip their sign.
        steps: Sinkhorn iterations.
        sharpness: Standard deviation of the first logits.
    """

    def __init__(
        self, width: int, roles: int, *, odd: bool, steps: int = 20, sharpness: float = 20.0
    ) -> None:
        super().__init__()
        self.steps = steps
        self.odd = odd
        self.log_sharpness = nn.Parameter(torch.zeros(()))
        self.key = nn.Parameter(torch.randn(roles, width) * sharpness / width**0.5)
        self.even = nn.Parameter(torch.randn(roles, width))
        self.carried = nn.Parameter(torch.randn(roles, width))
        if odd:
            self.sign = nn.Parameter(torch.randn(roles, width) * 2 / width**0.5)

    def forward(self, wiring: Wiring, node: int, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Assign.

        Args:
            wiring: The batch.
            node: Which node set.
            h: Even features [.., n, d].
            v: Odd features [.., n, d], about unit scale.

        Returns:
            P and S, both [.., n, R]; the same where units keep their sign.
        """
        # Only what tells units of one network apart may decide between them.
        h = h - wiring.mean(node, h)
        spread = wiring.mean(node, h.square()).mean(-1, keepdim=True)
        logits = (h * torch.rsqrt(spread + 1e-6)) @ self.key.mT * self.log_sharpness.exp()
        for _ in range(self.steps):
            logits = (logits - wiring.log_mass(node, logits)).log_softmax(-1)
        assigned = logits.exp()
        return assigned, assigned * torch.tanh(v @ self.sign.mT) if self.odd else assigned
