"""Learning rates and schedules of the baselines, chosen on separate initialisations.

For every schedule a grid of half-decades grows from its start until the best has worse neighbours on both
sides; quarter-decades around the best follow. The few best of all schedules meet on more initialisations, and
the lowest mean loss on (a fixed part of) the train split at the last step is taken. One network that diverges
rules a candidate out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.training import Schedule
from benchmarks.harness.command import Advance
from benchmarks.harness.numbers import mean
from benchmarks.optimizers.settings import Plan, Setting
from benchmarks.optimizers.steppers import Config, stepper_of
from benchmarks.optimizers.training import CHUNK, Starts, train, train_loss

GRID_STARTS = {"sgd": -4, "adam": -10, "adamw": -10, "nadam": -10}
"""Quarter-decades that the search starts from where nothing better is known: 0.1 and 0.003."""
RULE_START = -6
"""The same for Muon and all rules: 0.03."""
MOVES = 6
"""A grid moves on at most so often."""


@dataclass(frozen=True)
class Tuned:
    """The outcome of tuning.

    Attributes:
        best: The best settings.
        tried: All settings, with the loss on each of their tuning initialisations (nats; infinite: diverged).
    """

    best: Config
    tried: dict[Config, list[float]]

    @property
    def loss(self) -> float:
        """Mean loss of the best on its tuning initialisations."""
        return mean(self.tried[self.best])


class Tuner:
    """Trains candidates of one setting.

    Args:
        setting: Problem and base networks.
        steps: Steps T.
        plan: What to try.
        advance: Called with the network-steps done since.
        rules: Rules by name.
    """

    def __init__(
        self,
        setting: Setting,
        steps: int,
        plan: Plan,
        advance: Advance = lambda count: None,
        rules: Mapping[str, UNFRule] | None = None,
    ) -> None:
        self.setting, self.steps, self.plan, self.advance = setting, steps, plan, advance
        self.rules = rules
        self.starts = Starts(setting.inner, "tuning", plan.tuning_seeds)

    def tune(self, optimizer: str, around: Config | None = None) -> Tuned:
        """Find the best settings of an optimizer.

        Args:
            optimizer: Which.
            around: Settings to start from. AdamW takes its schedule from there and tries weight decays.
        """
        near = _quarter(around.learning_rate) if around else GRID_STARTS.get(optimizer, RULE_START)
        kinds: list[tuple[Schedule, float]]
        if optimizer == "adamw":
            schedule = around.schedule if around else self.plan.schedules[0]
            kinds = [(schedule, decay) for decay in self.plan.decays]
        else:
            kinds = [(schedule, 0.0) for schedule in self.plan.schedules]
        tried: dict[Config, list[float]] = {}
        for schedule, decay in kinds:
            losses = self._search(optimizer, schedule, decay, near)
            near = _quarter(_best(losses).learning_rate)
            tried |= losses
        if not self.plan.final_seeds:
            return Tuned(_best(tried), tried)
        finalists = sorted(tried, key=lambda config: mean(tried[config]))[: self.plan.finalists]
        more = self._losses(finalists, Starts(self.setting.inner, "final", self.plan.final_seeds))
        longer = {config: tried[config] + more[config] for config in finalists}
        return Tuned(_best(longer), tried | longer)

    def _search(
        self, optimizer: str, schedule: Schedule, decay: float, near: int
    ) -> dict[Config, list[float]]:
        """Grow the grid around the best until that is in its middle; then once more with half its step."""
        losses: dict[Config, list[float]] = {}
        for step in (2, 1) if self.plan.fine else (2,):
            for _ in range(MOVES):
                rates = [float(f"{10 ** ((near + k) / 4):.3g}") for k in (-step, 0, step)]
                configs = [Config(optimizer, rate, schedule, decay) for rate in rates]
                losses |= self._losses([config for config in configs if config not in losses], self.starts)
                moved, near = near, _quarter(_best(losses).learning_rate)
                if moved == near:
                    break
        return losses

    def _losses(self, configs: Sequence[Config], starts: Starts) -> dict[Config, list[float]]:
        room, result = max(CHUNK // starts.seeds, 1), {}
        for schedule in dict.fromkeys(config.schedule for config in configs):
            alike = [config for config in configs if config.schedule == schedule]
            for some in (alike[i : i + room] for i in range(0, len(alike), room)):
                each = [config for config in some for _ in range(starts.seeds)]
                stepper = stepper_of(each, self.rules, self.setting.inner.layout)
                run = train(starts, stepper, self.steps, repeats=len(some), advance=self.advance)
                losses = train_loss(self.setting.inner, run.params[self.steps], self.plan.screen)
                result |= dict(zip(some, losses.view(len(some), -1).tolist(), strict=True))
        return result


def _quarter(rate: float) -> int:
    return round(4 * math.log10(rate))


def _best(tried: dict[Config, list[float]]) -> Config:
    # Where all diverge, the smallest learning rate leads on to smaller ones.
    return min(tried, key=lambda config: (mean(tried[config]), config.learning_rate))
