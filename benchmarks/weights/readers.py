"""What the tasks that read zoos share: the readers, the networks of a zoo, and the runs that are measured.

All readers of a task get the same networks, augmentation, steps and networks per step. Settings are chosen
on the val networks; the test networks are used once, in the state that was best on the val networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import torch

from amortopt._types import Params
from amortopt.meta.functional.augment import Augmentation
from amortopt.metanets import (
    Functional,
    PictureFunctional,
    ProbedFunctional,
    ScaleGMNFunctional,
    UNFFunctional,
)
from amortopt.symmetry import SymmetrySpec, extract
from amortopt.symmetry.alignment.canonical import canonical_params
from amortopt.tasks import Family
from amortopt.tasks.problem import SPLITS
from amortopt.zoo import Zoo
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Store
from benchmarks.weights.predictors import Budget, Data, FlatMlp, StatNN, predict, score, train

READERS: dict[str, Callable[[SymmetrySpec, Family, Mapping[str, Any], Mapping[str, Any]], Functional]] = {
    "picture": lambda spec, family, head, _: PictureFunctional(spec, head=head, family=family.to_config()),
    "probed": lambda spec, family, head, _: ProbedFunctional(spec, head=head, family=family.to_config()),
    "probed_examples": lambda spec, family, head, _: ProbedFunctional(
        spec, head=head, family=family.to_config()
    ),
    "scalegmn_b": lambda spec, _, head, swept: ScaleGMNFunctional(spec, head=head, **swept),
    "scalegmn": lambda spec, _, head, swept: ScaleGMNFunctional(
        spec, head=head, direction="forward", **swept
    ),
    "twin": lambda spec, _, head, swept: ScaleGMNFunctional(spec, head=head, respects="permutation", **swept),
    "scalegmn_b_random": lambda spec, _, head, swept: ScaleGMNFunctional(
        spec, head=head, **{**swept, "start": "random"}
    ),
    "twin_random": lambda spec, _, head, swept: ScaleGMNFunctional(
        spec, head=head, respects="permutation", **{**swept, "start": "random"}
    ),
    "unf": lambda spec, _, head, __: UNFFunctional(spec, head=head, width=32),
    "mlp": lambda spec, _, head, __: FlatMlp(spec, head=head, width=512, dropout=0.2),
    "statistics": lambda spec, _, head, __: StatNN(spec, head=head, width=256),
}
"""Reader -> what makes it, of the symmetry, the family, the head and the size of the ScaleGMNs."""
CANONICAL = ("mlp",)
"""Readers that get canonicalised weights, without an augmentation that would leave the gauge."""
OF_PICTURES = ("picture", "scalegmn_b_random", "twin_random")
"""Readers for image networks alone: others have no start but that of chance."""

OF_CNNS = ("probed_examples",)
"""Readers for CNNs alone; `generalisation.Networks` gives them training examples."""


@dataclass(frozen=True)
class ReadingPlan:
    """How long readers are trained.

    Attributes:
        budget: Steps of the runs that count, by zoo.
        tuning: Steps of the runs that choose the learning rate.
        learning_rates: Those to choose from; with one there are no such runs.
        augment: What is done to the networks of every step, by zoo; missing: nothing.
        seeds: Runs that count, of each reader.
    """

    budget: dict[str, Budget] = field(default_factory=dict)
    tuning: Budget = field(default_factory=lambda: Budget(steps=100, checks=1, weight_decay=0.01))
    learning_rates: tuple[float, ...] = (0.004,)
    augment: dict[str, Augmentation] = field(default_factory=dict)
    seeds: int = 3


class Networks(ABC):
    """The networks of a zoo, which is built when something is to be measured.

    Args:
        which: Key of the zoo in the task's plan.
        plan: How long readers are trained.

    Attributes:
        head: What readers answer.
        swept: Size of the ScaleGMNs, chosen on val networks.
        label: Column of the zoo's table that they learn.
        score: What the score is called.
        one_gauge: Whether all networks are in one gauge as they are; then nothing has to be canonicalised.
    """

    head: ClassVar[Mapping[str, Any]]
    one_gauge: bool = False
    swept: ClassVar[Mapping[str, Any]]
    label: ClassVar[str]
    score: ClassVar[str]

    def __init__(self, which: str, plan: ReadingPlan) -> None:
        self.which, self.plan = which, plan

    @property
    @abstractmethod
    def recipe(self) -> Record:
        """What is built."""

    @cached_property
    @abstractmethod
    def zoo(self) -> Zoo:
        """All networks."""

    @abstractmethod
    def about(self, advance: object = None) -> Record:
        """What the tables say of the networks."""

    @cached_property
    def spec(self) -> SymmetrySpec:
        """Their symmetry."""
        with torch.random.fork_rng(devices=[]):
            return extract(self.zoo.family.build(), self.zoo.family.example_input())

    def select(self, which: Any) -> Zoo:
        """The networks of a split."""
        return self.zoo.select(which)

    @cached_property
    def parts(self) -> dict[str, Data]:
        """Networks of each split, and what they are to be read as."""
        parts = {}
        for which in SPLITS:
            chosen = self.select(which)
            target = torch.as_tensor(chosen.table[self.label])
            parts[which] = Data(chosen.params, target.float() if target.is_floating_point() else target)
        return parts

    @cached_property
    def canonical(self) -> dict[str, Data]:
        """The same networks, each in its canonical gauge: closest to the first train network."""
        reference = {name: p[0] for name, p in self.parts["train"].params.items()}
        return {
            which: Data(canonical(self.spec, data.params, reference), data.target)
            for which, data in self.parts.items()
        }

    def of(self, reader: str) -> dict[str, Data]:
        """What a reader gets."""
        return self.canonical if reader in CANONICAL and not self.one_gauge else self.parts

    def make(self, reader: str) -> Functional:
        """An untrained reader."""
        return READERS[reader](self.spec, self.zoo.family, self.head, self.swept)

    def train(self, reader: str, budget: Budget, rate: float, seed: int, on_step: Any = None) -> Any:
        """Train a reader."""
        parts = self.of(reader)
        return train(
            partial(self.make, reader),
            parts["train"],
            parts["val"],
            budget,
            learning_rate=rate,
            seed=seed,
            augment=None if reader in CANONICAL and not self.one_gauge else self.plan.augment.get(self.which),
            on_step=on_step,
        )


def canonical(spec: SymmetrySpec, params: Params, reference: Params) -> Params:
    """Every network [n, ...] in its canonical gauge, float32."""
    count = len(next(iter(params.values())))
    rows = [{name: p[i] for name, p in params.items()} for i in range(count)]
    each = [canonical_params(spec, row, reference=reference) for row in rows]
    return {name: torch.stack([one[name] for one in each]).float() for name in params}


def reader_parts(reader: str, networks: Networks, store: Store) -> list[Part]:
    """Runs that choose a reader's learning rate, then those that count.

    Keys are ``ZOO/READER/try/RATE`` and ``ZOO/READER/run/SEED``.
    """
    which, plan = networks.which, networks.plan
    budget, val_score = plan.budget[which], f"val_{networks.score}"

    def identity(budget: Budget, rate: float, seed: int) -> Record:
        shared = {"zoo": networks.recipe, "augment": plan.augment.get(which), "budget": budget}
        return shared | {"learning_rate": rate, "seed": seed, "config": config_of(reader, networks)}

    def tried(rate: float, advance: Any) -> Record:
        return {val_score: networks.train(reader, plan.tuning, rate, 1000, advance).val_score}

    def best() -> float:
        if len(plan.learning_rates) == 1:
            return plan.learning_rates[0]
        found = {r: store.records[f"{which}/{reader}/try/{r:g}"]["result"] for r in plan.learning_rates}
        return max(found, key=lambda rate: found[rate][val_score])

    def scored(seed: int, advance: Any) -> Record:
        run, test = networks.train(reader, budget, best(), seed, advance), networks.of(reader)["test"]
        answers = predict(run.model, test.params)
        result = {
            networks.score: score(answers, test.target),
            val_score: run.val_score,
            "best_step": run.best_step,
            "cpu_seconds": round(run.cpu_seconds, 1),
            "parameters": sum(p.numel() for p in run.model.parameters()),
        }
        if seed or answers.ndim > 1:
            return result
        return result | {"predicted": [round(p, 4) for p in answers.tolist()]}

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
        made = networks.make(reader)
    config = {key: value for key, value in made.config.items() if (key, value) != ("start", "random")}
    return {"name": made.name or type(made).__name__} | config  # older records know no other start


def all_parts(zoos: Sequence[Networks], readers: Sequence[str], store: Store) -> list[Part]:
    """The zoos, and every reader on each."""
    parts: list[Part] = []
    for networks in zoos:
        parts.append(Part(f"{networks.which}/zoo", networks.recipe, networks.about))
        for reader in readers:
            parts += reader_parts(reader, networks, store)
    return parts
