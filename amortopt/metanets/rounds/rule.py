"""The maths of rounds: gradients at a proposal, turned into the next proposal by learned maps.

Legend: B networks, K prototypes, o x i matrices of params, R rounds, C channels of H x H numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gradient: TypeAlias = Callable[[list[Tensor]], list[Tensor]]
"""From proposals [B, o, i] to the gradient of each network's objective there."""

_USUAL, _MOST = 400, 1000
"""Numbers of examples at which step sizes are as learned, and beyond which they change no more.

A gradient's noise falls with the number N of examples, so steps may grow with log N. In meta-training N goes
up to about ``_MOST``; extrapolated beyond it, the dependence did harm.
"""


class RoundRule(nn.Module):
    r"""From a learned prototype, in R rounds of one gradient each.

    .. math::
        \theta_0 &= M, \qquad m_r = \sigma(\mu_r)\, m_{r-1} + \nabla(\theta_{r-1}) \\
        h_r &= \mathrm{GELU}\big(b_r + \sum_l A_{rl}\, m_{rl}\, B_{rl}\big) \\
        \theta_{rl} &= \theta_{r-1,l} - s_{rl} (1 + e_{rl}) \odot (L_{rl}\, m_{rl}\, R_{rl})
                        - c_{rl} \sum_k F_{rlk}\, h_{rk}\, G_{rlk}

    for every matrix l of the params. The second term is each matrix by its own gradient. The last one lets
    all matrices see all gradients through C channels h, nonlinearly: without the GELU the update would be
    linear in the gradients of its round.

    Args:
        first: Matrices [o, i] that the prototype starts from.
        rounds: R.
        channels: C.
        hidden: H.
        blends: K.
    """

    def __init__(
        self, first: Sequence[Tensor], *, rounds: int, channels: int, hidden: int, blends: int = 1
    ) -> None:
        super().__init__()
        self.rounds, self.channels = rounds, channels
        sizes = [(m.shape[0], m.shape[1]) for m in first]
        # [K, o, i]: the first of the K is common to all networks, the others are added to it.
        self.prototype = nn.ParameterList(
            torch.cat([m[None], torch.zeros(blends - 1, *m.shape)]) for m in first
        )
        self.left = nn.ParameterList(torch.eye(o).repeat(rounds, 1, 1) for o, _ in sizes)
        self.right = nn.ParameterList(torch.eye(i).repeat(rounds, 1, 1) for _, i in sizes)
        self.gate = nn.ParameterList(torch.zeros(rounds, o, i) for o, i in sizes)
        # Logarithms of a matrix' step and of the scale before the channels, and their slopes over log N.
        self.step, self.step_slope, self.unit, self.unit_slope = (
            nn.Parameter(torch.zeros(rounds, len(sizes))) for _ in range(4)
        )
        self.momentum = nn.Parameter(torch.full((rounds, len(sizes)), -1.0))
        count = rounds * channels
        self.mix_left = nn.ParameterList(_orthogonal(count, hidden, o) for o, _ in sizes)
        self.mix_right = nn.ParameterList(_orthogonal(count, i, hidden) for _, i in sizes)
        self.mix_bias = nn.Parameter(torch.zeros(blends * count, hidden, hidden))
        self.back_left = nn.ParameterList(_orthogonal(count, o, hidden) for o, _ in sizes)
        self.back_right = nn.ParameterList(_orthogonal(count, hidden, i) for _, i in sizes)
        # Small at the start: the linear part learns first.
        self.back_scale = nn.Parameter(torch.full((rounds, len(sizes)), 0.003))

    def start(self, blend: Tensor) -> list[Tensor]:
        """The proposal before any round: prototypes blended for each network, [B, K] -> [B, o, i]."""
        return [(blend @ p.flatten(1)).unflatten(1, p.shape[1:]) for p in self.prototype]

    def forward(
        self, gradient: Gradient, examples: Tensor, blend: Tensor, rounds: int | None = None
    ) -> list[list[Tensor]]:
        """Proposals after 0, 1, ... rounds.

        Args:
            gradient: Of each network's objective.
            examples: Number of examples that it is the mean over, [B].
            blend: Weights of the prototypes [B, K].
            rounds: Rounds to go, at most R; by default all.

        Returns:
            Matrices [B, o, i] after every round, the first ones being the blended prototypes.
        """
        proposals = [self.start(blend)]
        velocity = [torch.zeros_like(m) for m in proposals[0]]
        logs = torch.log(examples.clamp(1, _MOST) / _USUAL).to(blend)[:, None]
        for r in range(self.rounds if rounds is None else rounds):
            now = slice(r * self.channels, (r + 1) * self.channels)
            gradients = zip(self.momentum[r].sigmoid(), velocity, gradient(proposals[-1]), strict=True)
            velocity = [keep * v + g for keep, v, g in gradients]
            step = (self.step[r] + self.step_slope[r] * logs).exp()  # [B, matrices]
            unit = (self.unit[r] + self.unit_slope[r] * logs).exp()
            bias = self.mix_bias.unflatten(0, (-1, self.rounds * self.channels))[:, now]  # [K, C, H, H]
            hidden = (blend @ bias.flatten(1)).unflatten(1, bias.shape[1:])
            for k, v in enumerate(velocity):
                # [C, H, o] @ [B, 1, o, i] @ [C, i, H]
                scaled = (v * unit[:, k, None, None])[:, None]
                hidden = hidden + self.mix_left[k][now] @ scaled @ self.mix_right[k][now]
            hidden = F.gelu(hidden)
            after = []
            for k, v in enumerate(velocity):
                gated = (1 + self.gate[k][r]) * (self.left[k][r] @ v @ self.right[k][r])
                # [C, o, H] @ [B, C, H, H] @ [C, H, i], summed over the channels
                back = (self.back_left[k][now] @ hidden @ self.back_right[k][now]).sum(1)
                after.append(proposals[-1][k] - step[:, k, None, None] * gated - self.back_scale[r, k] * back)
            proposals.append(after)
        return proposals

    @torch.no_grad()
    def calibrate(self, gradient: Gradient, blend: Tensor) -> None:
        """Scale gradients at the prototype to about one before they are mixed, once before meta-training."""
        gradients = gradient(self.start(blend))
        for k, g in enumerate(gradients):
            self.unit[:, k] = -(g.square().mean() * len(gradients)).sqrt().clamp(min=1e-12).log()


def _orthogonal(count: int, rows: int, columns: int) -> Tensor:
    return torch.stack([nn.init.orthogonal_(torch.empty(rows, columns)) for _ in range(count)])
