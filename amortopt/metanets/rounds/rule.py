"""The maths of rounds: gradients at a proposal, turned into the next proposal by learned maps.

Legend: B networks, K prototypes, o x i matrices of params, R rounds, S sources of gradients, C channels of
H x H numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MatrixGradient: TypeAlias = Callable[[list[Tensor]], list[Tensor]]
"""From proposals [B, o, i] to the gradient of each network's objective there."""


@dataclass(frozen=True, eq=False)
class Source:
    """What is read of each network in a round.

    Attributes:
        gradient: From proposals to a gradient.
        examples: Numbers of examples that it is the mean over, [B].
    """

    gradient: MatrixGradient
    examples: Tensor


_USUAL = 400
"""Number of examples at which step sizes are as learned."""
_FIRST_THRESHOLD = 0.01
"""Before meta-training; weights are about 1 / sqrt(fan in)."""


class RoundRule(nn.Module):
    r"""From a learned prototype, in R rounds of one gradient from each of S sources.

    .. math::
        \theta_0 &= M, \qquad m_{sr} = \sigma(\mu_{sr})\, m_{s,r-1} + \nabla_s(\theta_{r-1}) \\
        h_r &= \mathrm{GELU}\big(b_r + \sum_{sl} A_{srl}\, m_{srl}\, B_{srl}\big) \\
        \theta_{rl} &= \theta_{r-1,l} - \sum_s s_{srl} (1 + e_{srl}) \odot (L_{srl}\, m_{srl}\, R_{srl})
                        - c_{rl} \sum_k F_{rlk}\, h_{rk}\, G_{rlk}

    for every matrix l of the params. The second term is each matrix by its own gradients. The last one lets
    all matrices see all gradients through C channels h, nonlinearly: without the GELU the update would be
    linear in the gradients of its round.

    With several prototypes, for L1 strengths, prototypes M, gates e and biases b are blended for each
    network, and every round ends as a step of proximal gradient descent does, by soft thresholds
    :math:`\theta \leftarrow \operatorname{sign}(\theta)\max(|\theta| - t_{rl}, 0)` with a blended
    :math:`\log t_{rl}` for every weight: weights become exactly zero. At strength 0 there is no threshold.
    Without thresholds (``thresholds=False``), proposals are what ``keep`` leaves of them after every round.

    Args:
        first: Matrices [o, i] that the prototype starts from.
        rounds: R.
        channels: C.
        hidden: H.
        step: Size of the steps s before meta-training.
        blends: K.
        sources: S.
        most_examples: Number of examples beyond which step sizes change no more. A gradient's noise falls
            with the number N of examples, so steps may grow with log N; extrapolated beyond the numbers of
            meta-training, the dependence did harm.
        thresholds: Whether several prototypes have soft thresholds.
    """

    def __init__(
        self,
        first: Sequence[Tensor],
        *,
        rounds: int,
        channels: int,
        hidden: int,
        step: float = 1.0,
        blends: int = 1,
        sources: int = 1,
        most_examples: int = 1000,
        thresholds: bool = True,
    ) -> None:
        super().__init__()
        self.rounds, self.channels, self.sources = rounds, channels, sources
        self.most_examples = most_examples
        sizes = [(m.shape[0], m.shape[1]) for m in first]
        # [K, o, i]: the first of the K is common to all networks, the others are added to it.
        self.prototype = nn.ParameterList(
            torch.cat([m[None], torch.zeros(blends - 1, *m.shape)]) for m in first
        )
        # Leading axes of what belongs to a source: S R, or S R C; of what they share: R C.
        each, count = sources * rounds, rounds * channels
        self.left = nn.ParameterList(torch.eye(o).repeat(each, 1, 1) for o, _ in sizes)
        self.right = nn.ParameterList(torch.eye(i).repeat(each, 1, 1) for _, i in sizes)
        # [K S R, o, i] and [K R, o, i], the first of the K being common to all networks.
        self.gate = nn.ParameterList(torch.zeros(blends * each, o, i) for o, i in sizes)
        self.log_threshold = None
        if blends > 1 and thresholds:
            self.log_threshold = nn.ParameterList(torch.zeros(blends * rounds, o, i) for o, i in sizes)
            for logs in self.log_threshold:
                nn.init.constant_(logs[:rounds], math.log(_FIRST_THRESHOLD))
        # Logarithms of a matrix' step and of the scale before the channels, and their slopes over log N.
        self.step, self.step_slope, self.unit, self.unit_slope = (
            nn.Parameter(torch.zeros(each, len(sizes))) for _ in range(4)
        )
        nn.init.constant_(self.step, math.log(step))
        self.momentum = nn.Parameter(torch.full((each, len(sizes)), -1.0))
        self.mix_left = nn.ParameterList(_orthogonal(each * channels, hidden, o) for o, _ in sizes)
        self.mix_right = nn.ParameterList(_orthogonal(each * channels, i, hidden) for _, i in sizes)
        self.mix_bias = nn.Parameter(torch.zeros(blends * count, hidden, hidden))
        self.back_left = nn.ParameterList(_orthogonal(count, o, hidden) for o, _ in sizes)
        self.back_right = nn.ParameterList(_orthogonal(count, hidden, i) for _, i in sizes)
        # Small at the start: the linear part learns first.
        self.back_scale = nn.Parameter(torch.full((rounds, len(sizes)), 0.003))

    def start(self, blend: Tensor) -> list[Tensor]:
        """The proposal before any round: prototypes blended for each network, [B, K] -> [B, o, i]."""
        return [_blended(blend, p) for p in self.prototype]

    def forward(
        self,
        sources: Sequence[Sequence[Source]],
        blend: Tensor,
        keep: Callable[[list[Tensor]], list[Tensor]] | None = None,
    ) -> list[list[Tensor]]:
        """Proposals after 0, 1, ... rounds.

        Args:
            sources: What every round reads, at most R times S.
            blend: Weights of the prototypes [B, K].
            keep: Sets some weights of proposals to zero.

        Returns:
            Matrices [B, o, i] after every round, the first ones being the blended prototypes.
        """
        proposals = [self.start(blend)]
        velocity = [[torch.zeros_like(m) for m in proposals[0]] for _ in range(self.sources)]
        for r, read in enumerate(sources):
            channels = slice(r * self.channels, (r + 1) * self.channels)
            bias = self.mix_bias.unflatten(0, (-1, self.rounds * self.channels))[:, channels]  # [K, C, H, H]
            hidden = _blended(blend, bias).transpose(0, 1)  # [C, B, H, H]
            after = proposals[-1]
            for s, source in enumerate(read):
                sr = s * self.rounds + r
                now = slice(sr * self.channels, (sr + 1) * self.channels)
                gradient = source.gradient(proposals[-1])
                pairs = zip(self.momentum[sr].sigmoid(), velocity[s], gradient, strict=True)
                velocity[s] = [keep * v + g for keep, v, g in pairs]
                count = source.examples.to(blend).clamp(1, self.most_examples)
                log = torch.log(count / _USUAL)[:, None]
                step = (self.step[sr] + self.step_slope[sr] * log).exp()  # [B, matrices]
                unit = (self.unit[sr] + self.unit_slope[sr] * log).exp()
                moved = []
                for k, v in enumerate(velocity[s]):
                    scaled = v * unit[:, k, None, None]
                    hidden = hidden + into_channels(scaled, self.mix_left[k][now], self.mix_right[k][now])
                    gate = self.gate[k].unflatten(0, (-1, self.sources * self.rounds))[:, sr]
                    gate = gate[0] if len(gate) == 1 else _blended(blend, gate)
                    gated = (1 + gate) * (self.left[k][sr] @ (v @ self.right[k][sr]))
                    moved.append(after[k] - step[:, k, None, None] * gated)
                after = moved
            hidden = F.gelu(hidden)
            after = [
                m - scale * from_channels(hidden, left[channels], right[channels])
                for m, scale, left, right in zip(
                    after, self.back_scale[r], self.back_left, self.back_right, strict=True
                )
            ]
            if self.log_threshold is not None:
                penalised = 1 - blend[:, 1, None, None]  # the second prototype is that of strength 0
                logs_of_round = [logs[r :: self.rounds] for logs in self.log_threshold]
                limits = [_blended(blend, logs).exp() * penalised for logs in logs_of_round]
                after = [m - m.clamp(-t, t) for m, t in zip(after, limits, strict=True)]
            if keep is not None:
                after = keep(after)
            proposals.append(after)
        return proposals

    @torch.no_grad()
    def calibrate(self, sources: Sequence[Source], blend: Tensor) -> None:
        """Scale gradients at the prototype to about one before they are mixed, once before meta-training."""
        for s, source in enumerate(sources):
            at_start = source.gradient(self.start(blend))
            for k, g in enumerate(at_start):
                size = (g.square().mean() * len(at_start)).sqrt()
                self.unit[s * self.rounds : (s + 1) * self.rounds, k] = -size.clamp(min=1e-12).log()

    @torch.no_grad()
    def copy_from(self, other: RoundRule, rounds: int | None = None) -> None:
        """Begin where another rule is, for the same matrices, channels and blends.

        Args:
            other: Its first source is copied to every source. With more rounds here, the last round is
                repeated with smaller steps: what it would move a proposal by is due only once.
            rounds: Trained rounds of ``other``; by default all of its own.
        """
        trained = other.rounds if rounds is None else rounds
        mine, theirs = dict(self.named_parameters()), dict(other.named_parameters())
        for name, p in mine.items():
            kind, source = name.split(".")[0], theirs[name]
            if kind == "prototype":
                p.copy_(source)
                continue
            # [(K,) (S,) R, ...]
            blends = len(self.prototype[0]) if kind in ("mix_bias", "gate", "log_threshold") else 1
            common = kind in ("mix_bias", "log_threshold") or kind.startswith("back")
            sources, theirs_sources = (1, 1) if common else (self.sources, other.sources)
            to = p.view(blends, sources, self.rounds, -1)
            of = source.view(blends, theirs_sources, other.rounds, -1)
            for r in range(self.rounds):
                to[:, :, r] = of[:, :1, min(r, trained - 1)]
                if r >= trained:
                    if kind == "step":
                        to[:, :, r] -= 2
                    elif kind == "back_scale":
                        to[:, :, r] *= 0.1


def _blended(blend: Tensor, values: Tensor) -> Tensor:
    """Sums of K tensors [K, ...] by the weights of each network [B, K]: [B, ...]."""
    return (blend @ values.flatten(1)).unflatten(1, values.shape[1:])


def into_channels(matrices: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r""":math:`A_c\, m\, B_c` for matrices [B, o, i], left [C, H, o] and right [C, i, H] -> [C, B, H, H].

    Two products of large matrices instead of B C of small ones.
    """
    count, rows, columns = matrices.shape
    channels, hidden, _ = left.shape
    half = left.flatten(0, 1) @ matrices.transpose(0, 1).reshape(rows, -1)  # [C H, B i]
    half = half.view(channels, hidden, count, columns).transpose(1, 2).reshape(channels, -1, columns)
    return (half @ right).view(channels, count, hidden, hidden)


def from_channels(hidden: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r""":math:`\sum_c F_c\, h_c\, G_c` for hidden [C, B, H, H], left [C, o, H] and right [C, H, i]."""
    channels, count, size, _ = hidden.shape
    columns = right.shape[-1]
    half = (hidden.flatten(1, 2) @ right).view(channels, count, size, columns)
    half = half.transpose(1, 2).reshape(channels * size, -1)  # [C H, B i]
    out = left.transpose(0, 1).flatten(1) @ half  # [o, B i]
    return out.view(-1, count, columns).transpose(0, 1)


def _orthogonal(count: int, rows: int, columns: int) -> Tensor:
    return torch.stack([nn.init.orthogonal_(torch.empty(rows, columns)) for _ in range(count)])
