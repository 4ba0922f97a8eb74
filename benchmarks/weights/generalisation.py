"""How well does a CNN generalise? Its accuracy on held-out images, predicted from its weights alone.

Zoos of small CNNs 1-16-16-16-10 whose accuracies spread, because hyper-parameters are drawn for every network
(Unterthiner et al. 2020): on MNIST-5k and scikit-learn's digits, with ReLU and tanh. The score is Kendall's
tau-b of predicted and measured accuracy over the test networks. The measured ones are shares of right answers
among some thousand images, so that even the true accuracies would not reach 1: ``bound``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from amortopt.meta.functional.augment import Augmentation
from amortopt.metanets import Functional, ProbedFunctional
from amortopt.reading.scores import tau, tau_bound
from amortopt.system.recipes import find_recipe
from amortopt.zoo import Zoo, load_zoo
from amortopt.zoo.cnn import CnnZooConfig, build_cnn_zoo, parts_of
from amortopt.zoo.config import recipe_parser
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Store
from benchmarks.weights import readers
from benchmarks.weights.predictors import Budget

BENCHMARK = "generalisation"
ZOOS = ("mnist_5k_relu", "mnist_5k_tanh", "digits_relu", "digits_tanh")
"""Zoos; each has a recipe ``cnn_NAME``."""
COLUMNS = ("learning_rate", "init_scale", "weight_decay", "dropout", "steps", "train_size")
"""Hyper-parameters, which a reader does not get."""


@dataclass(frozen=True)
class Plan(readers.ReadingPlan):
    """How much is measured.

    Attributes:
        zoos: Name -> recipe.
    """

    zoos: dict[str, CnnZooConfig] = field(
        default_factory=lambda: {name: recipe_of(f"cnn_{name}") for name in ZOOS}
    )
    budget: dict[str, Budget] = field(
        default_factory=lambda: dict.fromkeys(ZOOS, Budget(steps=1000, checks=5, weight_decay=0.3))
    )
    augment: dict[str, Augmentation] = field(
        default_factory=lambda: dict.fromkeys(ZOOS, Augmentation(noise=0.1))
    )


def recipe_of(name: str) -> CnnZooConfig:
    """A zoo recipe of the package."""
    path = find_recipe(name, "zoo")
    options = recipe_parser(CnnZooConfig, "cnn").parse_args(["--config", str(path)])
    return CnnZooConfig(**{key.name: options[key.name] for key in fields(CnnZooConfig)})


def quick() -> Plan:
    """Little of everything."""
    small = {
        name: replace(recipe_of(f"cnn_{name}"), count=120, steps=(5, 60), shard_size=60)
        for name in ("mnist_5k_relu", "mnist_5k_tanh")
    }
    budget = dict.fromkeys(small, Budget(steps=30, checks=1, weight_decay=0.01))
    return Plan(zoos=small, budget=budget, seeds=1)


class Networks(readers.Networks):
    """One of the zoos.

    Args:
        which: Name of a zoo of the plan.
        plan: How many networks.
        zoos: Folder of the zoos.
    """

    head: ClassVar = {"name": "regression", "low": 0.0, "high": 1.0}
    # Lower frequencies than for SIRENs, and channels for the positions of a kernel.
    swept: ClassVar = {"width": 64, "channels": 16, "sweeps": 1, "frequency": 1.0, "dropout": 0.3}
    label, score = "test_accuracy", "tau"
    plan: Plan

    def __init__(self, which: str, plan: Plan, zoos: Path) -> None:
        super().__init__(which, plan)
        self.config = plan.zoos[which]
        full = self.config.count == CnnZooConfig.count
        self.folder = zoos / (f"cnn_{which}" + ("" if full else f"_{self.config.count}"))

    @property
    def recipe(self) -> Record:
        return self.config.to_dict()

    @cached_property
    def zoo(self) -> Zoo:
        build_cnn_zoo(self.config, self.folder, progress=True)
        return load_zoo(self.folder)

    def make(self, reader: str) -> Functional:
        """An untrained reader; the probes of one start at training images, without their labels."""
        made = super().make(reader)
        if reader in readers.OF_CNNS:
            assert isinstance(made, ProbedFunctional)
            made.start_from(parts_of(self.config)[0].x[: len(made.probes)])
        return made

    def about(self, advance: object = None) -> Record:
        """How the accuracies spread, what they can be predicted to, and what else orders the networks."""
        accuracy, test = self.zoo.table[self.label], self.select("test").table
        target, held_out = torch.as_tensor(test[self.label]), len(parts_of(self.config)[1])
        return {
            "networks": {which: len(data) for which, data in self.parts.items()},
            "held_out": held_out,
            "histogram": np.histogram(accuracy, 10, (0, 1))[0].tolist(),
            "quantiles": np.quantile(accuracy, (0.1, 0.5, 0.9)).round(3).tolist(),
            "bound": tau_bound(test[self.label], held_out),
            "tau_of": {name: tau(torch.as_tensor(test[name]).double(), target) for name in COLUMNS},
            "test_accuracies": [round(float(value), 4) for value in target],
        }


def all_parts(plan: Plan, zoos: Path, which: Sequence[str], names: Sequence[str], store: Store) -> list[Part]:
    """The zoos, and every reader on each."""
    chosen = [Networks(name, plan, zoos) for name in which if name in plan.zoos]
    return readers.all_parts(chosen, names, store)
