"""Soft assignment of interchangeable units to learned roles: a network's own gauge, found by attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortopt.nn.wiring import Wiring


class RoleAssignment(nn.Module):
    r"""Assign the units of a group to R learned roles, each role to its share of the units.

    Logits between even features and learned keys are balanced by Sinkhorn's iteration, so that units compete
    for roles: :math:`P = \mathrm{Sinkhorn}(\tau h K^\top)`, rows summing to one. Where units may flip their
    sign, the assignment carries it: :math:`S = P \odot \tanh(v U^\top)` is odd in v. Under a permutation and
    sign flips g of the units, S moves as g S, so :math:`S_o M S_i^\top` moves as the weights between two
    groups, for any learned M (learned canonicalization, Kaba et al. 2023, in its soft form).

    The assignment has to be sharp and balanced: what it leaves soft, or gives to two units, is noise in the
    weights that are read out. Sinkhorn's iteration balances sharp logits only after thousands of rounds, so
    its potentials are found by annealing, from flat logits to sharp ones, a few rounds each. They are
    constants to the gradient, but for the last rounds.

    Args:
        width: Channels d of a unit's features.
        roles: Number of roles R; the group's size in the family.
        odd: Whether units may flip their sign.
        sharpness: Standard deviation of the logits. Not learned: sharper is better until the annealing fails
            to balance, which no gradient tells.
        levels: Steps of annealing; sharper logits need more.
        rounds: Sinkhorn rounds per level, and last rounds.
    """

    def __init__(
        self, width: int, roles: int, *, odd: bool, sharpness: float = 20.0, levels: int = 16, rounds: int = 3
    ) -> None:
        super().__init__()
        self.odd, self.sharpness, self.levels, self.rounds = odd, sharpness, levels, rounds
        # Only directions of keys matter. They are long, so that one update of usual size turns them little.
        self.key = nn.Parameter(torch.randn(roles, width) * 8 / width**0.5)
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
        key = nn.functional.normalize(self.key, dim=-1) * self.sharpness
        logits = (h * torch.rsqrt(spread + 1e-6)) @ key.mT
        logits = (logits + self._potentials(wiring, node, logits)).log_softmax(-1)
        for _ in range(self.rounds):
            logits = (logits - wiring.log_mass(node, logits)).log_softmax(-1)
        assigned = logits.exp()
        return assigned, assigned * torch.tanh(v @ self.sign.mT) if self.odd else assigned

    @torch.no_grad()
    def _potentials(self, wiring: Wiring, node: int, logits: Tensor) -> Tensor:
        """What to add to the logits so that every role gets its share: [.., n, R], alike for all units."""
        flattest = 0.01
        ratio = flattest ** (-1 / max(1, self.levels - 1))
        potentials = torch.zeros_like(logits)
        for level in range(self.levels):
            share = (logits * (flattest * ratio**level) + potentials).softmax(-1)
            for _ in range(self.rounds):
                mass = (wiring.mean(node, share) * share.shape[-1]).clamp(min=1e-30)
                potentials = potentials - mass.log()
                share = share / mass
                share = share / share.sum(-1, keepdim=True)
            if level < self.levels - 1:
                potentials = potentials * ratio
        return potentials
