"""Optimizers that are compared: hand-made ones with their settings, and rules with theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.training import Schedule, Stepper
from amortopt.training.stepper import OptimizerName, schedule_factor

HAND_MADE: tuple[str, ...] = get_args(OptimizerName)


@dataclass(frozen=True)
class Config:
    """An optimizer with its settings.

    Attributes:
        optimizer: One of ``HAND_MADE``, or the name of a rule.
        learning_rate: Of the schedule's top.
        schedule: ``constant``, ``cosine`` to zero at the last step, or ``warmup`` and cosine.
        weight_decay: Decoupled, of AdamW.
    """

    optimizer: str
    learning_rate: float
    schedule: Schedule = "constant"
    weight_decay: float = 0.0


def stepper_of(
    configs: Sequence[Config], rules: Mapping[str, UNFRule] | None = None, layout: UpdateLayout | None = None
) -> Stepper | Learned:
    """The stepper of B networks, each with its settings; optimizer and schedule have to be the same.

    Args:
        configs: Per network.
        rules: Rules by name.
        layout: Of the networks, for rules.

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
    if optimizer in (rules or {}) or optimizer not in HAND_MADE:  # a rule may be called muon
        assert rules is not None and layout is not None
        return Learned(rules[optimizer], layout, rate, schedule)
    name: Any = optimizer
    return Stepper(name, rate, schedule, weight_decay=decay if bool(decay.any()) else 0.0)


@dataclass(frozen=True, eq=False)
class Learned:
    """A rule that steps as a [Stepper][amortopt.training.Stepper] does.

    Attributes:
        rule: The rule; not modified.
        layout: Of the base networks.
        learning_rate: Of every network [B], at the schedule's top.
        schedule: As of a Stepper.
    """

    rule: UNFRule
    layout: UpdateLayout
    learning_rate: Tensor
    schedule: Schedule = "constant"
    penalty = None

    def of(self, networks: Tensor | slice) -> Learned:
        """The same for some of the networks."""
        return replace(self, learning_rate=self.learning_rate[networks])

    def start(self, params: Params) -> Params:
        """State before the first step."""
        return self.rule.init_state(self.layout, self.layout.pack(params))

    @torch.no_grad()
    def step(self, params: Params, grads: Params, state: Params, *, steps: int | Tensor = 1) -> None:
        """Take a step, in place."""
        flat, flat_grads = self.layout.pack(params), self.layout.pack(grads)
        done = int(state["step"].flatten()[0])
        rate = self.learning_rate * schedule_factor(self.schedule, done, steps)
        direction, new = self.rule(self.layout, flat, flat_grads, state, inplace=True)
        state.update(new)
        moved = flat - rate.to(flat).unsqueeze(1) * direction
        for name, p in self.layout.unpack(moved).items():
            params[name].copy_(p)
