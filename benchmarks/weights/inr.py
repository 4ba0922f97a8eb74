"""Implicit representations of MNIST-5k: which digit do the weights of a SIREN show?

Two zoos of the same images: SIRENs 2-32-32-1 that Adam fitted from random starts of their own, and SIRENs
2-48-48-1 that one forward pass of the checkpoint ``images-siren`` gave, which share one gauge. The score is
accuracy on the networks of 500 test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from amortopt.cli.zoo import main as zoo_command
from amortopt.meta.functional.augment import Augmentation
from amortopt.zoo import Zoo, load_zoo
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Store
from benchmarks.weights import readers
from benchmarks.weights.predictors import Budget

BENCHMARK = "inr_classes"
ZOOS = {"independent": "mnist_inr", "one-pass": "mnist_inr_one_pass_moved"}


@dataclass(frozen=True)
class Plan(readers.ReadingPlan):
    """How much is measured.

    Attributes:
        images: Images of both zoos.
        views: Fits per image of the zoo of independent fits.
        moved_views: Fits per image of the zoo of one-pass fits, all but one of them of the image moved a
            little.
    """

    images: int = 5000
    views: int = 2
    moved_views: int = 6
    budget: dict[str, Budget] = field(
        default_factory=lambda: {
            "independent": Budget(steps=5000, checks=5, weight_decay=0.01),
            "one-pass": Budget(steps=3000, checks=5, weight_decay=0.01),
        }
    )
    augment: dict[str, Augmentation] = field(
        default_factory=lambda: {
            "independent": Augmentation(rotation=0.25, stretch=0.1, shear=0.15, shift=0.1),
            "one-pass": Augmentation(noise=0.02),  # a moved picture would leave the common gauge
        }
    )


QUICK = Plan(
    images=300,
    views=1,
    moved_views=1,
    budget={name: Budget(steps=40, checks=1, weight_decay=0.01) for name in ZOOS},
    tuning=Budget(steps=5, checks=1, weight_decay=0.01),
    seeds=1,
)


class Networks(readers.Networks):
    """One of the zoos.

    Args:
        which: Key of ``ZOOS``.
        plan: How many networks.
        zoos: Folder of the zoos.
    """

    head: ClassVar = {"name": "classes", "count": 10}
    swept: ClassVar = {"width": 64, "channels": 1, "sweeps": 1, "dropout": 0.2, "start": "pass"}
    label, score = "label", "accuracy"
    plan: Plan

    def __init__(self, which: str, plan: Plan, zoos: Path) -> None:
        super().__init__(which, plan)
        self.one_gauge = which == "one-pass"
        quick = "" if plan.images == Plan.images else f"_{plan.images}"
        self.folder = zoos / f"{ZOOS[which]}{quick}"

    @property
    def recipe(self) -> Record:
        views = self.plan.views if self.which == "independent" else self.plan.moved_views
        return {"fits": self.which, "images": self.plan.images, "views": views}

    @cached_property
    def zoo(self) -> Zoo:
        options = [f"--{key}={value}" for key, value in self.recipe.items()]
        zoo_command(["mnist-inr", "--out", str(self.folder), *options])
        return load_zoo(self.folder)

    def select(self, which: Any) -> Zoo:
        """The networks of a split; of val and test images the first view."""
        chosen = self.zoo.select(which)
        return chosen if which == "train" else chosen.select(chosen.table["view"] == 0)

    def about(self, advance: object = None) -> Record:
        """How well the networks show their images."""
        psnr = self.zoo.table["psnr"]
        return {
            "networks": {which: len(data) for which, data in self.parts.items()},
            "family": self.zoo.config["family"],
            "psnr": {"mean": float(np.mean(psnr)), "min": float(np.min(psnr))},
        }


def all_parts(plan: Plan, zoos: Path, which: Sequence[str], names: Sequence[str], store: Store) -> list[Part]:
    """The zoos, and every reader on each."""
    return readers.all_parts([Networks(name, plan, zoos) for name in which], names, store)
