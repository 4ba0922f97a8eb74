"""Meta-gradients by persistent evolution strategies.

Legend: P antithetic pairs, B = 2 P networks, N elements of all parameters, K inner steps, M parameters of the
rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from amortopt.meta.rule.runs import InnerRuns
from amortopt.meta.rule.truncated import Data, Estimate, Objective, check_estimator, check_flag
from amortopt.metanets.update_rule.rule import UNFRule, is_number


@dataclass(frozen=True)
class PersistentES:
    r"""Persistent evolution strategies (Vicol, Metz and Sohl-Dickstein 2021, arXiv 2112.13835, algorithm 2).

    Every pair of networks p has a perturbation :math:`\epsilon_p \sim N(0, \sigma^2 I)` of the rule per
    truncation, added in one and subtracted in the other, and the sum :math:`\xi_p` of those since it started.
    With the mean :math:`L^\pm_p` of the losses of the truncation, each at most that of a diverged network,

    .. math:: g = \frac{1}{P} \sum_p \frac{\xi_p}{2 \sigma^2} \left(L^+_p - L^-_p\right)

    is without bias from truncation, unlike evolution strategies, which have :math:`\epsilon_p` for
    :math:`\xi_p`.

    Args:
        truncation: Inner steps K.
        sigma: Standard deviation of the perturbations.
        objective: ``"loss"`` or ``"log"``.
        data: What the objective is measured on.
        persistent: False for truncated evolution strategies.

    Raises:
        ValueError: An argument is out of its range.
    """

    truncation: int = 20
    sigma: float = 0.01
    objective: Objective = "loss"
    data: Data = "train"
    persistent: bool = True

    def __post_init__(self) -> None:
        check_estimator(self.truncation, self.objective, self.data)
        check_flag("persistent", self.persistent)
        if not is_number(self.sigma) or not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma: got {self.sigma!r}, expected a positive number")

    copies = 2

    @torch.no_grad()
    def __call__(self, rule: UNFRule, runs: InnerRuns, horizon: int) -> Estimate:
        """Advance inner runs, antithetic pairs, by a truncation; new ones get ``horizon`` inner steps."""
        center = parameters_to_vector(rule.parameters())
        noise = torch.randn(runs.count // 2, len(center), generator=runs.generator)
        noise = self.sigma * noise.to(center)
        held = runs.perturbations
        runs.perturbations = noise if held is None else held + noise
        rules = rule.of_vectors(center + torch.cat([noise, -noise]))
        inner, flat, state = runs.inner, runs.flat, runs.state
        before: list[Tensor] = []  # losses of W_0 ... W_K, [B] each
        held_out: list[Tensor] = []  # of W_1 ... W_K
        for k in range(self.truncation):
            loss, grads = inner.losses_and_grads(flat, *runs.draw(), runs.scales)
            direction, state = functional_call(rule, rules, (inner.layout, flat, grads, state))
            flat = flat - runs.rate(k) * direction
            before.append(loss)
            if self.data != "train":
                held_out.append(inner.losses(flat, *runs.draw("val"), runs.scales))
        before.append(inner.losses(flat, *runs.draw(), runs.scales))
        losses = torch.stack(before)
        measured = torch.stack([*([] if self.data == "val" else losses[1:]), *held_out])
        top = runs.top(losses[0]).expand_as(measured)
        measured = torch.where(measured.isfinite(), measured, top).minimum(top)
        gains = (measured.log() if self.objective == "log" else measured).mean(0)
        plus, minus = gains.view(2, -1)
        xi = runs.perturbations if self.persistent else noise
        grad = (xi * (plus - minus).unsqueeze(1)).mean(0) / (2 * self.sigma**2)
        runs.advance(flat, state, losses, horizon)
        grads = [g.clone() for g in split_vector(rule, grad).values()]
        return Estimate(losses[1:].mean(), grads)


def split_vector(rule: UNFRule, vector: Tensor) -> dict[str, Tensor]:
    """A rule's parameters from vectors: [*batch, M] -> name -> [*batch, *shape]."""
    params: dict[str, Tensor] = {}
    start = 0
    for name, p in rule.named_parameters():
        params[name] = vector[..., start : start + p.numel()].reshape((*vector.shape[:-1], *p.shape))
        start += p.numel()
    return params
