"""Implicit representations of MNIST-5k: which digit do the weights of a SIREN show?

Two zoos of the same images: SIRENs 2-32-32-1 that Adam fitted from random starts of their own, and SIRENs
2-48-48-1 that one forward pass of the checkpoint ``images-siren`` gave, which share one gauge. All readers
get the same train images, augmentation, steps and networks per step. The score is accuracy on the networks
of 500 test images, which are used once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amortopt._types import Params
from amortopt.cli.zoo import main as zoo_command
from amortopt.meta.functional.augment import Augmentation
from amortopt.metanets import Functional, ScaleGMNFunctional, UNFFunctional
from amortopt.symmetry import SymmetrySpec, extract
from amortopt.symmetry.alignment.canonical import canonical_params
from amortopt.zoo import Zoo, load_zoo
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Store
from benchmarks.weights.predictors import Budget, Data, FlatMlp, StatNN, predict, score, train

BENCHMARK = "inr_classes"
HEAD = {"name": "classes", "count": 10}
ZOOS = {"independent": "mnist_inr", "one-pass": "mnist_inr_one_pass"}
READERS: dict[str, Callable[[SymmetrySpec], Functional]] = {
    "scalegmn_b": lambda spec: ScaleGMNFunctional(spec, head=HEAD, **SWEEPS),
    "scalegmn": lambda spec: ScaleGMNFunctional(spec, head=HEAD, direction="forward", **SWEEPS),
    "twin": lambda spec: ScaleGMNFunctional(spec, head=HEAD, respects="permutation", **SWEEPS),
    "unf": lambda spec: UNFFunctional(spec, head=HEAD, width=32),
    "mlp": lambda spec: FlatMlp(spec, head=HEAD, width=512, dropout=0.2),
    "statistics": lambda spec: StatNN(spec, head=HEAD, width=256),
}
SWEEPS: dict[str, Any] = {"width": 64, "channels": 1, "sweeps": 1, "dropout": 0.2}
CANONICAL = ("mlp",)
"""Readers that get canonicalised weights, without an augmentation that would leave the gauge."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        images: Images of both zoos.
        views: Fits per image of the zoo of independent fits.
        budget: Steps of the runs that count, by zoo.
        tuning: Steps of the runs that choose the learning rate.
        learning_rates: Those to choose from.
        augment: What is done to the networks of every step, by zoo.
        seeds: Runs that count, of each reader.
    """

    images: int = 5000
    views: int = 2
    budget: dict[str, Budget] = field(
        default_factory=lambda: {
            "independent": Budget(steps=1500, checks=3, weight_decay=0.01),
            "one-pass": Budget(steps=800, checks=3, weight_decay=0.01),
        }
    )
    tuning: Budget = field(default_factory=lambda: Budget(steps=100, checks=1, weight_decay=0.01))
    learning_rates: tuple[float, ...] = (0.004,)
    augment: dict[str, Augmentation] = field(
        default_factory=lambda: {
            "independent": Augmentation(rotation=0.25, stretch=0.1, shear=0.15, shift=0.1),
            "one-pass": Augmentation(noise=0.02),  # a moved picture would leave the common gauge
        }
    )
    seeds: int = 3


QUICK = Plan(
    images=300,
    views=1,
    budget={name: Budget(steps=40, checks=1, weight_decay=0.01) for name in ZOOS},
    tuning=Budget(steps=5, checks=1, weight_decay=0.01),
    learning_rates=(0.004,),
    seeds=1,
)


class Networks:
    """One of the zoos, built when something is to be measured.

    Args:
        which: Key of ``ZOOS``.
        plan: How many networks.
        zoos: Folder of the zoos.
    """

    def __init__(self, which: str, plan: Plan, zoos: Path) -> None:
        self.which, self.plan = which, plan
        quick = "" if plan.images == Plan.images else f"_{plan.images}"
        self.folder = zoos / f"{ZOOS[which]}{quick}"

    @property
    def recipe(self) -> Record:
        """What is built."""
        views = self.plan.views if self.which == "independent" else 1
        return {"fits": self.which, "images": self.plan.images, "views": views}

    @cached_property
    def zoo(self) -> Zoo:
        """All networks."""
        options = [f"--{key}={value}" for key, value in self.recipe.items()]
        zoo_command(["mnist-inr", "--out", str(self.folder), *options])
        return load_zoo(self.folder)

    @cached_property
    def spec(self) -> SymmetrySpec:
        """Their symmetry."""
        with torch.random.fork_rng(devices=[]):
            return extract(self.zoo.family.build(), self.zoo.family.example_input())

    @cached_property
    def parts(self) -> dict[str, Data]:
        """Networks and digits; of val and test images the first view."""
        parts = {}
        for which in ("train", "val", "test"):
            chosen = self.zoo.select(which)
            if which != "train":
                chosen = chosen.select(chosen.table["view"] == 0)
            parts[which] = Data(chosen.params, torch.as_tensor(chosen.table["label"]))
        return parts

    @cached_property
    def canonical(self) -> dict[str, Data]:
        """The same networks, each in its canonical gauge: closest to the first train network."""
        reference = {name: p[0] for name, p in self.parts["train"].params.items()}
        return {
            which: Data(canonical(self.spec, data.params, reference), data.target)
            for which, data in self.parts.items()
        }

    def about(self, advance: object = None) -> Record:
        """How well the networks show their images."""
        psnr = self.zoo.table["psnr"]
        return {
            "networks": {which: len(data) for which, data in self.parts.items()},
            "family": self.zoo.config["family"],
            "psnr": {"mean": float(np.mean(psnr)), "min": float(np.min(psnr))},
        }

    def train(self, reader: str, budget: Budget, rate: float, seed: int, on_step: Any = None) -> Any:
        """Train a reader."""
        parts = self.canonical if reader in CANONICAL else self.parts
        return train(
            partial(READERS[reader], self.spec),
            parts["train"],
            parts["val"],
            budget,
            learning_rate=rate,
            seed=seed,
            augment=None if reader in CANONICAL else self.plan.augment[self.which],
            on_step=on_step,
        )


def canonical(spec: SymmetrySpec, params: Params, reference: Params) -> Params:
    """Every network [n, ...] in its canonical gauge, float32."""
    count = len(next(iter(params.values())))
    rows = [{name: p[i] for name, p in params.items()} for i in range(count)]
    each = [canonical_params(spec, row, reference=reference) for row in rows]
    return {name: torch.stack([one[name] for one in each]).float() for name in params}


def reader_parts(reader: str, networks: Networks, plan: Plan, store: Store) -> list[Part]:
    """Runs that choose a reader's learning rate, then those that count.

    Keys are ``ZOO/READER/try/RATE`` and ``ZOO/READER/run/SEED``.
    """
    which = networks.which
    budget = plan.budget[which]

    def identity(budget: Budget, rate: float, seed: int) -> Record:
        shared = {"zoo": networks.recipe, "augment": plan.augment[which], "budget": budget}
        return shared | {"learning_rate": rate, "seed": seed, "config": config_of(reader, networks)}

    def tried(rate: float, advance: Any) -> Record:
        return {"val_accuracy": networks.train(reader, plan.tuning, rate, 1000, advance).val_score}

    def best() -> float:
        if len(plan.learning_rates) == 1:
            return plan.learning_rates[0]
        found = {r: store.records[f"{which}/{reader}/try/{r:g}"]["result"] for r in plan.learning_rates}
        return max(found, key=lambda rate: found[rate]["val_accuracy"])

    def scored(seed: int, advance: Any) -> Record:
        run = networks.train(reader, budget, best(), seed, advance)
        parts = networks.canonical if reader in CANONICAL else networks.parts
        test = parts["test"]
        return {
            "accuracy": score(predict(run.model, test.params), test.target),
            "val_accuracy": run.val_score,
            "best_step": run.best_step,
            "cpu_seconds": round(run.cpu_seconds, 1),
            "parameters": sum(p.numel() for p in run.model.parameters()),
        }

    tries = [
        Part(
            f"{which}/{reader}/try/{rate:g}",
            partial(identity, plan.tuning, rate, 1000),
            partial(tried, rate),
            plan.tuning.steps,
        )
        for rate in plan.learning_rates
        if len(plan.learning_rates) > 1
    ]
    runs = [
        Part(
            f"{which}/{reader}/run/{seed}",
            lambda seed=seed: identity(budget, best(), seed),
            partial(scored, seed),
            budget.steps,
        )
        for seed in range(plan.seeds)
    ]
    return tries + runs


def config_of(reader: str, networks: Networks) -> Record:
    """What a reader is made with."""
    with torch.random.fork_rng(devices=[]):
        made = READERS[reader](networks.spec)
    return {"name": made.name or type(made).__name__} | made.config


def all_parts(
    plan: Plan, zoos: Path, which: list[str], readers: list[str], store: Store, seeds: list[int] | None = None
) -> list[Part]:
    """The zoos, and every reader on each."""
    plan = plan if seeds is None else replace(plan, seeds=max(seeds) + 1)
    parts: list[Part] = []
    for name in which:
        networks = Networks(name, plan, zoos)
        parts.append(Part(f"{name}/zoo", networks.recipe, networks.about))
        for reader in readers:
            parts += reader_parts(reader, networks, plan, store)
    return parts
