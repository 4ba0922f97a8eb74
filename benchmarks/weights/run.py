"""What can be read from weights: how well a recurrent network adds, which digit an image network shows.

    python benchmarks/weights --quick                    # all tasks, small -> runs/*_quick; 5 min
    python benchmarks/weights --tasks tiny-rnn           # builds zoos/tiny_rnn; 1 hour
    python benchmarks/weights --tasks inr-classes        # builds zoos/mnist_inr*; 3 hours, 1 with --seeds 1
    python benchmarks/weights --tasks inr-editing        # the same zoos; 1 hour
    python benchmarks/weights --tasks generalisation     # builds zoos/cnn_*; 2 hours
    python benchmarks/weights --tasks tiny-rnn --only unf deep_set --threads 2
    python benchmarks/weights --report                   # measures nothing: tables and pictures

Results go to benchmarks/results/{tiny_rnn_zoo,inr_classes,inr_editing,generalisation}.*; what is there
already is not measured again. Times are of one core. Every reader of a task gets the same networks, steps,
networks per step and seeds, and the same number of settings to try on the val networks; test networks are
used once.

tiny-rnn: networks of `amortopt zoo tiny-rnn`, Kendall's tau-b of predicted success rates. The published
experiment has 10,000 of its own (Zhou, Finn and Harrison 2024, arXiv 2402.05232).
inr-classes, inr-editing: networks of `amortopt zoo mnist-inr`; see inr.py and editing.py.
generalisation: networks of `amortopt zoo cnn`; see generalisation.py.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amortopt.metanets import Functional, UNFFunctional
from amortopt.symmetry import SymmetrySpec, extract
from amortopt.tasks.problem import SPLITS
from amortopt.zoo import load_zoo
from amortopt.zoo.formats.tiny_rnn_zoo import TinyRNNZooConfig, build_tiny_rnn_zoo, from_dict
from benchmarks.harness.command import Part, command_line, measure, parse, results, write_report
from benchmarks.harness.store import ROOT, Record, Store
from benchmarks.weights import (
    editing,
    editing_tables,
    generalisation,
    generalisation_tables,
    inr,
    inr_tables,
    tables,
)
from benchmarks.weights.predictors import (
    Budget,
    Data,
    DeepSet,
    StatNN,
    Trained,
    predict,
    tau,
    train,
)  # fmt: skip
from benchmarks.weights.readers import OF_CNNS, OF_PICTURES, READERS

BENCHMARK = "tiny_rnn_zoo"
RATE = {"name": "regression", "low": 0.0, "high": 1.0}
"""Head of a predictor of success rates."""
MAKERS: dict[str, Callable[[SymmetrySpec, int], Functional]] = {
    "unf": lambda spec, width: UNFFunctional(spec, head=RATE, width=width),
    "statnn": lambda spec, width: StatNN(spec, head=RATE, width=width),
    "deep_set": lambda spec, width: DeepSet(spec, head=RATE, width=width),
}
COLUMNS = ("steps", "learning_rate", "init_scale", "train_size", "weight_decay", "train_loss")
"""What the zoo's table has beside the weights."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        zoo: Recipe of the networks.
        budget: Steps of the runs that count.
        tuning: Steps of the runs that choose settings.
        learning_rates: Learning rates to choose from.
        widths: Predictor -> widths to choose from.
        seeds: Runs that count, of each predictor.
    """

    zoo: TinyRNNZooConfig = field(default_factory=lambda: TinyRNNZooConfig(count=5000))
    budget: Budget = field(default_factory=lambda: Budget(steps=1000))
    tuning: Budget = field(default_factory=lambda: Budget(steps=250, checks=5))
    learning_rates: tuple[float, ...] = (0.003, 0.01)
    widths: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {"unf": (16, 32), "statnn": (128, 512), "deep_set": (8, 16)}
    )
    seeds: int = 3


QUICK = Plan(
    zoo=TinyRNNZooConfig(count=600, steps=(50, 800), shard_size=200),
    budget=Budget(steps=100),
    tuning=Budget(steps=30, checks=2),
    learning_rates=(0.003,),
    seeds=2,
)


class Networks:
    """The zoo, built when something is to be measured.

    Args:
        config: Its recipe.
        folder: Where it is built, if it is not there.
    """

    def __init__(self, config: TinyRNNZooConfig, folder: Path) -> None:
        self.config, self.folder = config, folder

    @cached_property
    def zoo(self) -> Any:
        """All networks."""
        build_tiny_rnn_zoo(self.config, self.folder, progress=True)
        return load_zoo(self.folder)

    @cached_property
    def spec(self) -> SymmetrySpec:
        """Their symmetry."""
        config = from_dict(self.zoo.config)
        with torch.random.fork_rng(devices=[]):
            return extract(config.family.build(), config.problem.split("test").x[:4])

    @cached_property
    def parts(self) -> dict[str, Data]:
        """Weights and success rates."""
        chosen = {which: self.zoo.select(which) for which in SPLITS}
        return {
            which: Data(zoo.params, torch.as_tensor(zoo.table["success_rate"]).float())
            for which, zoo in chosen.items()
        }

    def about(self, advance: object = None) -> Record:
        """How the success rates spread, and what else than the weights orders the test networks."""
        rates, test = self.zoo.table["success_rate"], self.zoo.select("test").table
        target = torch.as_tensor(test["success_rate"])
        return {
            "networks": {which: len(self.zoo.select(which)) for which in ("train", "val", "test")},
            "histogram": np.histogram(rates, 10, (0, 1))[0].tolist(),
            "quartiles": np.quantile(rates, (0.25, 0.5, 0.75)).round(3).tolist(),
            "tau_of": {name: tau(torch.as_tensor(test[name]).double(), target) for name in COLUMNS},
            "test_success_rates": target.tolist(),
        }

    def train(self, predictor: str, budget: Budget, rate: float, width: int, seed: int) -> Trained:
        """Train a predictor."""
        make = partial(MAKERS[predictor], self.spec, width)
        return train(make, self.parts["train"], self.parts["val"], budget, learning_rate=rate, seed=seed)


def predictor_parts(predictor: str, plan: Plan, networks: Networks, store: Store) -> list[Part]:
    """Runs that choose a predictor's settings, then those that count.

    Keys are ``PREDICTOR/try/RATE/WIDTH`` and ``PREDICTOR/run/SEED``.
    """
    recipe = {"zoo": plan.zoo.to_dict()}
    settings = list(product(plan.learning_rates, plan.widths[predictor]))

    def key(rate: float, width: int) -> str:
        return f"{predictor}/try/{rate:g}/{width}"

    def identity(budget: Budget, rate: float, width: int, seed: int) -> Record:
        return recipe | {"budget": budget, "learning_rate": rate, "width": width, "seed": seed}

    def tried(rate: float, width: int, advance: object = None) -> Record:
        return {"val_tau": networks.train(predictor, plan.tuning, rate, width, 1000).val_score}

    def best() -> tuple[float, int]:
        return max(settings, key=lambda setting: store.records[key(*setting)]["result"]["val_tau"])

    def scored(seed: int, advance: object = None) -> Record:
        run, test = networks.train(predictor, plan.budget, *best(), seed), networks.parts["test"]
        predicted = predict(run.model, test.params)
        result = {
            "tau": tau(predicted, test.target),
            "val_tau": run.val_score,
            "best_step": run.best_step,
            "cpu_seconds": round(run.cpu_seconds, 1),
            "parameters": sum(p.numel() for p in run.model.parameters()),
        }
        return result if seed else result | {"predicted": [round(p, 4) for p in predicted.tolist()]}

    tries = [
        Part(
            key(*setting), identity(plan.tuning, *setting, 1000), partial(tried, *setting), plan.tuning.steps
        )
        for setting in settings
    ]
    runs = [
        Part(
            f"{predictor}/run/{seed}",
            lambda seed=seed: identity(plan.budget, *best(), seed),
            partial(scored, seed),
            plan.budget.steps,
        )
        for seed in range(plan.seeds)
    ]
    return tries + runs


def all_parts(plan: Plan, predictors: Sequence[str], networks: Networks, store: Store) -> list[Part]:
    """The zoo, and every predictor on it."""
    zoo = Part("zoo", {"zoo": plan.zoo.to_dict()}, networks.about)
    return [zoo, *(part for name in predictors for part in predictor_parts(name, plan, networks, store))]


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    names = list(dict.fromkeys([*MAKERS, *READERS, *editing.EDITORS]))
    parser = command_line(__doc__, only=names, threads=1)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS), help="what to read")
    parser.add_argument("--count", type=int, help="networks of the Tiny RNN Zoo")
    parser.add_argument("--zoo", type=Path, help="folder of the Tiny RNN Zoo; built if it is not there")
    parser.add_argument("--zoos", type=Path, default=ROOT / "zoos", help="folder of the other zoos")
    parser.add_argument("--seeds", type=int, help="runs of each reader")
    parser.add_argument("--fits", nargs="*", choices=inr.ZOOS, help="which image networks")
    parser.add_argument("--cnns", nargs="*", choices=generalisation.ZOOS, help="which zoos of CNNs")
    options = parse(parser, args, names)
    for task in options.tasks:
        TASKS[task](options)


def tiny_rnn(options: Namespace) -> None:
    """The Tiny RNN Zoo."""
    plan = QUICK if options.quick else Plan()
    if options.count is not None:
        plan = replace(plan, zoo=replace(plan.zoo, count=options.count))
    networks = Networks(plan.zoo, options.zoo or ROOT / "zoos" / ("tiny_rnn" + "_quick" * options.quick))
    chosen = [name for name in MAKERS if not options.only or name in options.only]
    with results(BENCHMARK, options) as store:
        if not options.report:
            measure(store, all_parts(plan, chosen, networks, store), again=options.again)
        write_report(store, tables.markdown(store.records), {"": tables.picture(store.records)})


def inr_classes(options: Namespace) -> None:
    """Digits from image networks."""
    plan = inr.QUICK if options.quick else inr.Plan()
    plan = plan if options.seeds is None else replace(plan, seeds=options.seeds)
    of_pictures = [name for name in READERS if name not in OF_CNNS]
    chosen = [name for name in of_pictures if not options.only or name in options.only]
    with results(inr.BENCHMARK, options) as store:
        if not options.report:
            which = options.fits or list(inr.ZOOS)
            parts = inr.all_parts(plan, options.zoos, which, chosen, store)
            measure(store, parts, again=options.again)
        write_report(store, inr_tables.markdown(store.records))


def inr_editing(options: Namespace) -> None:
    """Image networks that are dilated."""
    plan = editing.QUICK if options.quick else editing.Plan()
    plan = plan if options.seeds is None else replace(plan, seeds=options.seeds)
    plan = plan if options.fits is None else replace(plan, zoos=tuple(options.fits))
    chosen = [name for name in editing.EDITORS if not options.only or name in options.only]
    with results(editing.BENCHMARK, options) as store:
        if not options.report:
            measure(store, editing.all_parts(plan, options.zoos, chosen, store), again=options.again)
        text = editing_tables.markdown(store.records)
        write_report(store, text, {"": editing_tables.picture(store.records)})


def cnn_generalisation(options: Namespace) -> None:
    """Accuracies of CNNs."""
    plan = generalisation.quick() if options.quick else generalisation.Plan()
    plan = plan if options.seeds is None else replace(plan, seeds=options.seeds)
    of_cnns = [name for name in READERS if name not in OF_PICTURES]
    chosen = [name for name in of_cnns if not options.only or name in options.only]
    with results(generalisation.BENCHMARK, options) as store:
        if not options.report:
            which = options.cnns or generalisation.ZOOS
            parts = generalisation.all_parts(plan, options.zoos, which, chosen, store)
            measure(store, parts, again=options.again)
        text = generalisation_tables.markdown(store.records)
        write_report(store, text, {"": generalisation_tables.picture(store.records)})


TASKS = {
    "tiny-rnn": tiny_rnn,
    "inr-classes": inr_classes,
    "inr-editing": inr_editing,
    "generalisation": cnn_generalisation,
}
