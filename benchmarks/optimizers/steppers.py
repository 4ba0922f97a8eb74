"""Optimizers for many networks at once: SGD, Adam and AdamW by hand, and learned rules.

Every network is a row of a matrix [B, N] of flat parameters, with a learning rate and a schedule of its own.

Legend: B networks, N elements of all parameters, T steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UpdateRule

Name: TypeAlias = Literal["sgd", "nesterov", "adam", "adamw"]
Schedule: TypeAlias = Literal["constant", "cosine", "warmup"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
State: TypeAlias = dict[str, Tensor]

MOMENTUM = 0.9
BETAS = (0.9, 0.999)
EPS = 1e-8
WARMUP = 0.1
"""Part of the steps over which ``warmup`` rises linearly; it then falls as ``cosine`` does."""


@dataclass(frozen=True)
class Config:
    """An optimizer with its settings.

    Attributes:
        optimizer: SGD with momentum 0.9 (``nesterov``: of that form), Adam or AdamW.
        learning_rate: Of the schedule's top.
        schedule: ``constant``, ``cosine`` to zero at the last step, or ``warmup`` and cosine.
        weight_decay: Of AdamW, decoupled.
    """

    optimizer: Name
    learning_rate: float
    schedule: Schedule = "constant"
    weight_decay: float = 0.0


def factors(schedule: Schedule, steps: int) -> Tensor:
    """What the learning rate is multiplied with at every step, [T].

    Args:
        schedule: Its form.
        steps: Number of steps T it is made for.
    """
    at = torch.arange(steps, dtype=torch.float64)
    if schedule == "constant":
        return torch.ones(steps)
    warm = max(round(WARMUP * steps), 1) if schedule == "warmup" else 0
    cosine = 0.5 * (1 + torch.cos(torch.pi * (at - warm) / max(steps - warm, 1)))
    return torch.where(at < warm, (at + 1) / max(warm, 1), cosine).float()


class Stepper(ABC):
    """One step of an optimizer for B networks."""

    @abstractmethod
    def init(self, flat: Tensor) -> State:
        """State before the first step, for parameters [B, N]."""

    @abstractmethod
    def step(self, flat: Tensor, grads: Tensor, state: State, index: int) -> tuple[Tensor, State]:
        """Parameters [B, N] after step ``index`` (from 0) and the new state; may overwrite the old ones."""


class HandMade(Stepper):
    """SGD, Adam or AdamW as ``torch.optim`` defines them, with its default constants.

    Args:
        configs: Settings of every network, [B]; of one optimizer.
        steps: Steps T that the schedules are made for.

    Raises:
        ValueError: There are several optimizers, or none.
    """

    def __init__(self, configs: Sequence[Config], steps: int) -> None:
        names = {config.optimizer for config in configs}
        if len(names) != 1:
            raise ValueError(
                f"configs: got optimizers {sorted(names)}, expected one; make a stepper for each"
            )
        (self.name,) = names
        curves: dict[Schedule, Tensor] = {c.schedule: factors(c.schedule, steps) for c in configs}
        self.rates = torch.stack([c.learning_rate * curves[c.schedule] for c in configs], dim=1)  # [T, B]
        self.decay = torch.tensor([c.weight_decay for c in configs])

    def init(self, flat: Tensor) -> State:
        self.rates, self.decay = self.rates.to(flat.device), self.decay.to(flat.device)
        names = ("first",) if self.name in ("sgd", "nesterov") else ("first", "second")
        return {name: torch.zeros_like(flat) for name in names}

    def step(self, flat: Tensor, grads: Tensor, state: State, index: int) -> tuple[Tensor, State]:
        rate, first = self.rates[index].unsqueeze(1), state["first"]
        if self.name in ("sgd", "nesterov"):
            first.mul_(MOMENTUM).add_(grads)
            direction = grads + MOMENTUM * first if self.name == "nesterov" else first
            return flat - rate * direction, state
        second = state["second"]
        first.lerp_(grads, 1 - BETAS[0])
        second.lerp_(grads.square(), 1 - BETAS[1])
        ones, twos = (1 - beta ** (index + 1) for beta in BETAS)
        direction = (first / ones) / ((second / twos).sqrt() + EPS)
        if self.name == "adamw":
            flat = flat * (1 - rate * self.decay.unsqueeze(1))
        return flat - rate * direction, state


class Learned(Stepper):
    """A learned rule.

    Args:
        rule: The rule; not modified.
        layout: Of the base networks.
        learning_rate: Factor on its updates.
    """

    def __init__(self, rule: UpdateRule, layout: UpdateLayout, learning_rate: float = 1.0) -> None:
        self.rule, self.layout, self.learning_rate = rule, layout, learning_rate

    def init(self, flat: Tensor) -> State:
        return self.rule.init_state(self.layout, flat)

    @torch.no_grad()
    def step(self, flat: Tensor, grads: Tensor, state: State, index: int) -> tuple[Tensor, State]:
        update, state = self.rule(self.layout, flat, grads, state, inplace=True)
        return flat - self.learning_rate * update, state
