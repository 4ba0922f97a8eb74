"""What is measured: baselines, tuned and then run on the test initialisations, and learned rules on the same.

Keys of the records are ``baseline/SETTING/STEPS/OPTIMIZER`` and ``rule/NAME/SETTING``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comparison.store import values

from amortopt.metanets.update_rule.rule import UpdateRule
from amortopt.release import load_release
from learned.optimizers import Config, HandMade, Learned, Name, Stepper
from learned.settings import HORIZON, LONGER, SETTINGS, Plan, Setting
from learned.store import Record, Store
from learned.training import Run, Starts, train, train_loss
from learned.tuning import Tuner

DIGITS = 5
LONG: tuple[Name, ...] = ("sgd", "adam")
"""Baselines of unseen settings and of longer runs."""
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Entry:
    """A trained rule that takes part.

    Attributes:
        name: Of its release.
        rule: The rule.
        sha256: Of its weights.
        role: ``main``, or ``rival``: another metanet at the same budget, run for the horizon only.
    """

    name: str
    rule: UpdateRule
    sha256: str
    role: str


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Attributes:
        key: Of its record.
        setting: Where.
        cost: Network-steps, about.
        identity: What it depends on.
        work: Measures it.
    """

    key: str
    setting: Setting
    cost: float
    identity: Callable[[], Any]
    work: Callable[[Advance], Record]


def read_rules(sources: Sequence[str], role: str) -> list[Entry]:
    """Rules by name or folder.

    Raises:
        FileNotFoundError: There is none of that name.
    """
    releases = [load_release(source, "rule") for source in sources]
    return [Entry(release.name, release.module, release.sha256, role) for release in releases]


def baseline_key(setting: Setting, steps: int, optimizer: Name) -> str:
    """Key of a baseline's record."""
    return f"baseline/{setting.label}/{steps}/{optimizer}"


def baseline_parts(setting: Setting, plan: Plan, store: Store, *, horizon: int = HORIZON) -> list[Part]:
    """The baselines of a setting: at the horizon and, for one that rules were trained on, at a longer one."""
    if setting.kind != "seen":
        near = SETTINGS[setting.near]
        return [
            _baseline(setting, horizon, name, plan, store, baseline_key(near, horizon, name), coarse=True)
            for name in LONG
        ]
    adam = baseline_key(setting, horizon, "adam")
    parts = [
        _baseline(setting, horizon, name, plan, store, adam if name == "adamw" else None)
        for name in plan.baselines
    ]
    if not plan.longer:
        return parts
    return parts + [
        _baseline(
            setting, LONGER * horizon, name, plan, store, baseline_key(setting, horizon, name), coarse=True
        )
        for name in LONG
    ]


def _baseline(
    setting: Setting,
    steps: int,
    optimizer: Name,
    plan: Plan,
    store: Store,
    around: str | None,
    *,
    coarse: bool = False,
) -> Part:
    def start() -> Config | None:
        return Config(**store.records[around]["result"]["config"]) if around in store.records else None

    def chosen() -> Plan:
        known = start()
        return plan.coarse(known.schedule if known else plan.schedules[0]) if coarse else plan

    def identity() -> Any:
        return {"setting": setting.identity, "steps": steps, "plan": chosen().identity, "around": start()}

    def work(advance: Advance) -> Record:
        tuned = Tuner(setting, steps, chosen(), advance).tune(optimizer, start())
        stepper = HandMade([tuned.best] * plan.test_seeds, steps)
        tried = [
            {"config": config, "losses": [round(loss, DIGITS) for loss in losses]}
            for config, losses in tuned.tried.items()
        ]
        return {"config": tuned.best, "tried": tried} | _test(setting, stepper, steps, (), plan, advance)

    candidates = 4 if coarse else 8 * len(plan.decays) if optimizer == "adamw" else 6 * len(plan.schedules)
    networks = candidates * plan.tuning_seeds + plan.finalists * plan.final_seeds + plan.test_seeds
    return Part(baseline_key(setting, steps, optimizer), setting, networks * steps, identity, work)


def rule_part(entry: Entry, setting: Setting, plan: Plan, *, horizon: int = HORIZON) -> Part:
    """A rule on a setting."""
    longer = plan.longer and entry.role == "main" and setting.kind == "seen"
    steps = LONGER * horizon if longer else horizon

    def identity() -> Any:
        return {
            "setting": setting.identity,
            "steps": steps,
            "rule": {"sha256": entry.sha256, "config": entry.rule.config, "role": entry.role},
            "plan": {"test_seeds": plan.test_seeds, "stretch": plan.stretch},
        }

    def work(advance: Advance) -> Record:
        stepper = Learned(entry.rule, setting.inner.layout)
        return _test(setting, stepper, steps, (horizon,), plan, advance)

    # A step of a rule costs about as much as a step of training does.
    return Part(f"rule/{entry.name}/{setting.label}", setting, 2 * plan.test_seeds * steps, identity, work)


def _test(
    setting: Setting, stepper: Stepper, steps: int, marks: Sequence[int], plan: Plan, advance: Advance
) -> Record:
    """Final losses on the whole train split, by step, and the curve of the minibatch losses."""
    run = train(Starts(setting.inner, "test", plan.test_seeds), stepper, steps, marks=marks, advance=advance)
    final = {at: values(train_loss(setting.inner, flat), DIGITS) for at, flat in sorted(run.flat.items())}
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
