"""Optimizers that are compared: hand-made ones with their settings, and learned rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.training import Schedule, Stepper

Name: TypeAlias = Literal["sgd", "adam", "adamw", "muon"]


@dataclass(frozen=True)
class Config:
    """An optimizer with its settings.

    Attributes:
        optimizer: SGD with momentum 0.9, Adam, AdamW or Muon.
        learning_rate: Of the schedule's top.
        schedule: ``constant``, ``cosine`` to zero at the last step, or ``warmup`` and cosine.
        weight_decay: Of AdamW, decoupled.
    """

    optimizer: Name
    learning_rate: float
    schedule: Schedule = "constant"
    weight_decay: float = 0.0


def stepper_of(configs: Sequence[Config]) -> Stepper:
    """The stepper of B networks, each with its settings; optimizer and schedule have to be the same.

    Raises:
        ValueError: There are several optimizers or schedules, or none.
    """
    kinds = {(config.optimizer, config.schedule) for config in configs}
    if len(kinds) != 1:
        raise ValueError(f"configs: got {sorted(kinds)}, expected one optimizer and schedule; split them")
    ((optimizer, schedule),) = kinds
    rate, decay = (
        torch.tensor([getattr(config, name) for config in configs], dtype=torch.float64)
        for name in ("learning_rate", "weight_decay")
    )
    return Stepper(optimizer, rate, schedule, weight_decay=decay if bool(decay.any()) else 0.0)


class Learned:
    """A learned rule that steps as a [Stepper][amortopt.training.Stepper] does.

    Args:
        rule: The rule; not modified.
        layout: Of the base networks.
    """

    penalty = None

    def __init__(self, rule: UNFRule, layout: UpdateLayout) -> None:
        self.rule, self.layout = rule, layout

    def of(self, networks: Tensor | slice) -> Learned:
        """The same for some of the networks."""
        return self

    def start(self, params: Params) -> Params:
        """State before the first step."""
        return self.rule.init_state(self.layout, self.layout.pack(params))

    @torch.no_grad()
    def step(self, params: Params, grads: Params, state: Params, *, steps: int | Tensor = 1) -> None:
        """Take a step, in place."""
        flat, flat_grads = self.layout.pack(params), self.layout.pack(grads)
        update, new = self.rule(self.layout, flat, flat_grads, state, inplace=True)
        state.update(new)
        for name, p in self.layout.unpack(flat - update).items():
            params[name].copy_(p)
