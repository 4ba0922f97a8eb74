"""What is measured: baselines and rules, tuned on the same grid and then run on the test initialisations.

Keys of the records are ``baseline/SETTING/STEPS/OPTIMIZER``, ``rule/NAME/SETTING/STEPS`` and
``cost/NETWORK``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.optim.stepwise import LEARNING_RATE
from amortopt.release import load_release
from amortopt.training import Stepper
from benchmarks.harness.command import Advance, Part
from benchmarks.harness.numbers import values
from benchmarks.harness.store import Record, Store
from benchmarks.optimizers.settings import HORIZON, LONGER, LONGEST, Plan, Setting
from benchmarks.optimizers.steppers import Config, Learned, stepper_of
from benchmarks.optimizers.training import Run, Starts, train, train_loss
from benchmarks.optimizers.tuning import Tuner

DIGITS = 5
LONG = ("sgd", "adam")
"""Baselines of unseen settings and of longer runs."""
MUON = "muon"
"""Name of the rule that has learned nothing: Muon and Adam."""


def numbers_of(rule: UNFRule) -> Record:
    """Arguments of a rule; records that are older than the last of them lack these."""
    later = {"floor": 1.0, "ramp": 1, "sizes": True}
    return {key: value for key, value in rule.config.items() if later.get(key) != value}


@dataclass(frozen=True)
class Entry:
    """A rule that takes part.

    Attributes:
        name: Of its release, or ``MUON``.
        rule: The rule.
        sha256: Of its weights; empty for one that has learned nothing.
        role: ``baseline`` for that one; ``main``; or ``rival``: another metanet at the same budget, run for
            the horizon only.
        rate: Default learning rate.
    """

    name: str
    rule: UNFRule
    sha256: str
    role: str
    rate: float = LEARNING_RATE

    @property
    def identity(self) -> Record:
        """What its numbers depend on."""
        # Records that are older than the rate lack it.
        config = numbers_of(self.rule)
        rate = {} if self.rate == 0.02 else {"rate": self.rate}
        return {"sha256": self.sha256, "config": config, **rate}


def muon() -> Entry:
    """The rule that has learned nothing."""
    return Entry(MUON, UNFRule("none"), "", "baseline", 0.02)


def read_rules(sources: Sequence[str], role: str) -> list[Entry]:
    """Rules by name or folder.

    Raises:
        FileNotFoundError: There is none of that name.
    """
    releases = [load_release(source, "rule") for source in sources]
    return [Entry(release.name, release.module, release.sha256, role) for release in releases]


def baseline_parts(setting: Setting, plan: Plan, store: Store, *, horizon: int = HORIZON) -> list[Part]:
    """The baselines of a setting: at the horizon and, for a known task, at a longer one."""

    def part(name: str, steps: int, around: str = "", coarse: bool = True) -> Part:
        return _baseline(setting, steps, name, plan, store, around, coarse=coarse)

    def key(label: str, name: str) -> str:
        return f"baseline/{label}/{horizon}/{name}"

    if setting.kind != "known":
        return [part(name, horizon, key(setting.near, name)) for name in LONG]
    adam = key(setting.label, "adam")
    parts = [part(name, horizon, adam if name == "adamw" else "", coarse=False) for name in plan.baselines]
    longer = LONG if plan.longer else ()
    return parts + [part(name, LONGER * horizon, key(setting.label, name)) for name in longer]


def _baseline(
    setting: Setting, steps: int, optimizer: str, plan: Plan, store: Store, around: str, *, coarse: bool
) -> Part:
    """Tune around the best settings of the record ``around``, if there is one, and test."""

    def start() -> Config | None:
        return Config(**store.records[around]["result"]["config"]) if around in store.records else None

    def chosen() -> Plan:
        known = start()
        return plan.coarse(known.schedule if known else plan.schedules[0]) if coarse else plan

    def identity() -> Any:
        return {"setting": setting.identity, "steps": steps, "plan": chosen().identity, "around": start()}

    def work(advance: Advance) -> Record:
        tuned = Tuner(setting, steps, chosen(), advance).tune(optimizer, start())
        stepper = stepper_of([tuned.best] * plan.test_seeds)
        tried = [
            {"config": config, "losses": [round(loss, DIGITS) for loss in losses]}
            for config, losses in tuned.tried.items()
        ]
        return {"config": tuned.best, "tried": tried} | _test(setting, stepper, steps, (), plan, advance)

    candidates = 4 if coarse else 8 * len(plan.decays) if optimizer == "adamw" else 6 * len(plan.schedules)
    networks = candidates * plan.tuning_seeds + plan.finalists * plan.final_seeds + plan.test_seeds
    return Part(f"baseline/{setting.label}/{steps}/{optimizer}", identity, work, networks * steps)


def rule_parts(entry: Entry, setting: Setting, plan: Plan, *, horizon: int = HORIZON) -> list[Part]:
    """A rule on a setting: at the horizon and, on a known task, at two longer ones.

    Rules are tuned on half-decades and one schedule, which is the baselines' coarse grid, and run at their
    default as well.
    """
    longer = plan.longer and entry.role != "rival" and setting.kind == "known"
    grid = plan.coarse(plan.schedules[0])
    rules = {entry.name: entry.rule}

    def part(steps: int) -> Part:
        def work(advance: Advance) -> Record:
            tuned = Tuner(setting, steps, grid, advance, rules).tune(entry.name)
            tried = [
                {"config": config, "losses": [round(loss, DIGITS) for loss in losses]}
                for config, losses in tuned.tried.items()
            ]
            found: Record = {"config": tuned.best, "tried": tried}
            usual = {"default": Config("", entry.rate), "default_falling": Config("", entry.rate, "cosine")}
            for key, config in {"": tuned.best, **usual}.items():
                rate = torch.full((plan.test_seeds,), config.learning_rate, dtype=torch.float64)
                stepper = Learned(entry.rule, setting.inner.layout, rate, config.schedule)
                tested = _test(setting, stepper, steps, (), plan, advance)
                found |= {key: tested["final"]} if key else tested
            return found

        identity = {
            "setting": setting.identity,
            "steps": steps,
            "rule": {**entry.identity, "role": entry.role},
            "plan": grid.identity,
        }
        # A step of a rule costs about as much as a step of training does.
        networks = 4 * plan.tuning_seeds + 3 * plan.test_seeds
        return Part(f"rule/{entry.name}/{setting.label}/{steps}", identity, work, 2 * networks * steps)

    return [part(times * horizon) for times in ((1, LONGER, LONGEST) if longer else (1,))]


def _test(
    setting: Setting,
    stepper: Stepper | Learned,
    steps: int,
    marks: Sequence[int],
    plan: Plan,
    advance: Advance,
) -> Record:
    """Final losses on the whole train split, by step, and the curve of the minibatch losses."""
    run = train(Starts(setting.inner, "test", plan.test_seeds), stepper, steps, marks=marks, advance=advance)
    final = {
        at: values(train_loss(setting.inner, params), DIGITS) for at, params in sorted(run.params.items())
    }
    return {"final": final, "curve": curve(run, plan.stretch)}


def curve(run: Run, stretch: int) -> Record:
    """Minibatch losses of every network as means over stretches of steps.

    Args:
        run: What to draw.
        stretch: Steps of a stretch.

    Returns:
        ``steps``, the middle of each stretch, and ``losses``: per stretch a list over networks, None where
        not finite.
    """
    stretches = torch.arange(len(run.losses)).split(stretch)
    return {
        "steps": [float(steps.float().mean()) for steps in stretches],
        "losses": [values(run.losses[steps].mean(0), DIGITS) for steps in stretches],
    }


def all_parts(
    settings: Sequence[Setting], entries: Sequence[Entry], plan: Plan, store: Store, kinds: Sequence[str]
) -> list[Part]:
    """Everything to measure, in an order in which nothing misses what it depends on."""
    parts: list[Part] = []
    for setting in settings:
        if "baselines" in kinds:
            parts += baseline_parts(setting, plan, store)
        if "rules" in kinds:
            rules = [part for entry in entries for part in rule_parts(entry, setting, plan)]
            parts += sorted(rules, key=lambda part: part.cost)  # the short runs of all first
    return parts
