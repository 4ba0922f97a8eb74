"""Meta-gradients by evolution strategies over whole trainings.

Legend: P antithetic pairs, B = 2 P networks, N elements of all parameters, M parameters of the rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from amortopt.meta.rule.inner import FINAL, InnerProblem
from amortopt.meta.rule.pes import split_vector
from amortopt.meta.rule.runs import InnerRuns
from amortopt.meta.rule.truncated import Data, Estimate, check_flag
from amortopt.metanets.update_rule.rule import UNFRule, is_number

SMALLEST = 3e-5
"""Losses below this share of a diverged network's count as equal."""
LARGEST = 0.2
"""Largest difference of a pair that counts, so that those of a few problems do not outweigh all others."""


@dataclass(frozen=True)
class WholeTrainings:
    r"""Evolution strategies whose every network is trained from its initialisation to its end.

    The two networks of pair p start alike and see the same minibatches at the same learning rates. One is
    trained by the rule with :math:`\epsilon_p \sim N(0, \sigma^2 I)` added to its parameters, the other with
    it subtracted. With the logarithms :math:`l^\pm_p` of their losses after the last step,

    .. math:: g = \frac{1}{P} \sum_p \frac{\epsilon_p}{2 \sigma^2} \left(l^+_p - l^-_p\right)

    is the gradient of what a user of the rule wants, smoothed over :math:`\sigma`, except that differences
    count as at most ``LARGEST``. Truncated objectives differ from it: they prefer the step that pays at once.

    All trainings of a meta step have one length, drawn as for runs that start anew.

    Args:
        sigma: Standard deviation of the perturbations.
        last: Whether only the network's last layers are perturbed and learn, those named ``..._out``, on the
            features that the other layers were drawn with. The fewer numbers, the less noise.
        data: What the loss after the last step is measured on.

    Raises:
        ValueError: An argument is out of its range.
    """

    sigma: float = 0.1
    last: bool = False
    data: Data = "train"

    def __post_init__(self) -> None:
        check_flag("last", self.last)
        if not is_number(self.sigma) or not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma: got {self.sigma!r}, expected a positive number")
        if self.data not in get_args(Data):
            raise ValueError(f"data: got {self.data!r}, expected one of {', '.join(get_args(Data))}")

    copies = 2
    truncation = 1
    """Horizons are multiples of it."""

    @torch.no_grad()
    def __call__(self, rule: UNFRule, runs: InnerRuns, horizon: int) -> Estimate:
        """Train all networks once, for ``horizon`` inner steps or, if lengths are drawn, up to so many."""
        steps = runs.align(horizon)
        noise = self._noise(rule, runs)  # [P, M]
        rules = rule.of_vectors(parameters_to_vector(rule.parameters()) + torch.cat([noise, -noise]))
        inner, flat, state = runs.inner, runs.flat, runs.state
        losses: list[Tensor] = []
        for k in range(steps):
            loss, grads = inner.losses_and_grads(flat, *runs.draw(), runs.scales)
            arguments = (inner.layout, flat, grads, state)
            direction, state = functional_call(rule, rules, arguments, {"inplace": True})
            flat = flat - runs.rate(k) * direction
            losses.append(loss)
        top = runs.top(losses[0])
        final = self._final(inner, runs, flat)
        final = torch.where(final.isfinite(), final, top).minimum(top)
        plus, minus = (final + SMALLEST * top).log().view(2, -1)
        gains = (plus - minus).clamp(-LARGEST, LARGEST).unsqueeze(1)
        grad = (noise * gains).mean(0) / (2 * self.sigma**2)
        runs.advance(flat, state, torch.stack([*losses, final]), horizon)
        return Estimate(final.mean(), [g.clone() for g in split_vector(rule, grad).values()])

    def _noise(self, rule: UNFRule, runs: InnerRuns) -> Tensor:
        """Perturbations [P, M]."""
        moved = [
            torch.full((p.numel(),), float(not self.last or name.endswith("_out")))
            for name, p in rule.named_parameters()
        ]
        scale = self.sigma * torch.cat(moved)
        noise = scale * torch.randn(runs.count // 2, len(scale), generator=runs.generator)
        return noise.to(next(rule.parameters()))

    def _final(self, inner: InnerProblem, runs: InnerRuns, flat: Tensor) -> Tensor:
        """Losses after the last step, on minibatches that a pair shares, [B]."""
        which = ("train", "val") if self.data == "both" else (self.data,)
        drawn = [inner.losses(flat, *runs.draw(part), runs.scales) for part in which for _ in range(FINAL)]
        return torch.stack(drawn).mean(0)
