"""What is compared, and how much of it is measured: cells, methods, plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from amortopt._types import Params
from amortopt.cli.zoo import build_parser
from amortopt.release import Release
from amortopt.tasks import Family, Problem, make_family, make_problem
from amortopt.training import OptimizerName
from amortopt.zoo import ZooConfig
from amortopt.zoo.build import START_EPOCHS, starting_networks
from benchmarks.harness.store import ROOT

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "muon": "Muon"}
RECIPES = ROOT / "recipes" / "zoo"


@dataclass(frozen=True)
class Setting:
    """What a cell adds to its zoo's recipe.

    Attributes:
        plan: Key of ``PLANS``.
        cost: Time of an epoch of one network, as a multiple of the MLP's; for the progress bar.
        noise: Augmentation of the meta-objective: standard deviation of Gaussian noise on the inputs, in
            units of the standardised inputs. Baselines "+ noise" get the same.
        l1: L1 strength λ of the table's L1 columns.
    """

    plan: str
    cost: float = 1.0
    noise: float = 0.4
    l1: float = 3e-3


CELLS: dict[str, Setting] = {
    "mnist1d_mlp_tanh": Setting("full"),
    "mnist1d_mlp_relu": Setting("full"),
    "mnist1d_cnn_tanh": Setting("light", 8),
    "mnist1d_cnn_relu": Setting("small", 8),
    "digits_cnn_tanh": Setting("small", 20),
}
"""Label, which is also the name of the zoo's recipe -> setting; in the order of table and pictures."""


@dataclass(frozen=True)
class Method:
    """A kind of fine-tuning.

    Attributes:
        optimizer: ``"sgd"`` (momentum 0.9), ``"adam"`` or ``"muon"``.
        l1: Whether the objective has the L1 term.
        proximal: Whether that acts by soft thresholds.
        noisy: Whether it gets the cell's augmentation.
        lengths: Epochs, one row each; empty for all of the plan's.
    """

    optimizer: OptimizerName
    l1: bool = False
    proximal: bool = False
    noisy: bool = True
    lengths: tuple[int, ...] = ()

    @classmethod
    def from_key(cls, key: str, *lengths: int) -> Method:
        """The method of a key, such as ``ce-sgd``, ``l1-adam-noise`` or ``l1-prox-sgd-noise``."""
        parts = key.split("-")
        (optimizer,) = set(parts) & set(OPTIMIZERS)
        return cls(optimizer, "l1" in parts, "prox" in parts, "noise" in parts, lengths)

    @property
    def key(self) -> str:
        parts = ["l1" if self.l1 else "ce", "prox" * self.proximal, self.optimizer, "noise" * self.noisy]
        return "-".join(part for part in parts if part)


def _methods(every: str, few: str = "") -> tuple[Method, ...]:
    """Methods by their keys: first those with a row for all lengths, then those for 150 epochs only."""
    return (
        *(Method.from_key(key) for key in every.split()),
        *(Method.from_key(key, 150) for key in few.split()),
    )


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        networks: Networks that the numbers are for.
        tuning: Networks that learning rate and schedule are chosen on.
        lengths: Epochs of fine-tuning.
        methods: Kinds of fine-tuning.
        sgd: Learning rate in the middle of SGD's grid.
        adam: The same of Adam's.
        muon: The same of Muon's.
        factor: Ratio of neighbouring learning rates.
        reach: Learning rates on each side of the middle.
        widen: How often a grid is widened where its best rate is at an end.
        strengths: Number of λ on the baselines' curve, log-uniform in [low, high].
        low: Smallest λ of the curves.
        high: Largest λ of the curves.
        dense: Number of λ on the metanet's curve.
        curve: Kinds of fine-tuning that have a curve, all with the longest length and the cosine schedule.
        curve_networks: Networks of the baselines' curves.
        curve_tuning: Networks that the learning rate is chosen on, for every λ anew.
        timed: Epochs that are timed.
        repeats: Passes that are timed.
        seed: Seed of the networks; those for tuning have the next one.
        order_seed: Seed of the order of examples and of the noise in fine-tuning.
        batch_size: Examples per step.
        chunk: Networks that are trained at once; changes no result.
    """

    networks: int = 64
    tuning: int = 4
    lengths: tuple[int, ...] = (25, 50, 100, 150)
    methods: tuple[Method, ...] = _methods(
        "ce-sgd-noise l1-sgd-noise ce-sgd ce-adam-noise l1-prox-sgd-noise",
        "ce-adam l1-sgd l1-adam l1-adam-noise l1-prox-adam-noise",
    )
    sgd: float = 0.1
    adam: float = 0.005
    muon: float = 0.02
    factor: float = 2.5
    reach: int = 2
    widen: int = 3
    strengths: int = 8
    low: float = 1e-4
    high: float = 1e-2
    dense: int = 22
    curve: tuple[Method, ...] = _methods("l1-sgd-noise l1-adam-noise l1-prox-sgd-noise")
    curve_networks: int = 12
    curve_tuning: int = 2
    timed: int = 3
    repeats: int = 10
    seed: int = 640_001
    order_seed: int = 17
    batch_size: int = 128
    chunk: int = 64

    def lengths_of(self, method: Method) -> tuple[int, ...]:
        """Epochs of a method's rows."""
        return tuple(sorted(method.lengths or self.lengths))

    def rate(self, optimizer: OptimizerName, k: int) -> float:
        """The learning rate ``k`` steps above the middle of the grid."""
        return float(f"{getattr(self, optimizer) * self.factor**k:.6g}")

    def grid(self, count: int, high: float | None = None) -> list[float]:
        """L1 strengths, log-uniform in [low, high], by default up to the plan's ``high``."""
        return [float(f"{value:.4g}") for value in np.geomspace(self.low, high or self.high, count)]

    def part(self, *names: str) -> dict[str, Any]:
        """Some of the fields, for what a measurement depends on."""
        return {name: getattr(self, name) for name in names}


PLANS: dict[str, Plan] = {
    "full": Plan(),
    "light": Plan(
        methods=_methods("ce-sgd-noise l1-sgd-noise", "ce-sgd ce-adam-noise l1-adam-noise l1-prox-sgd-noise"),
        curve=_methods("l1-sgd-noise l1-prox-sgd-noise"),
        **{"tuning": 3, "reach": 1, "strengths": 5, "curve_networks": 6, "curve_tuning": 1, "timed": 2},
        chunk=32,
    ),
    "small": Plan(
        lengths=(25, 150),
        methods=_methods("ce-sgd-noise l1-sgd-noise", "ce-sgd ce-adam-noise"),
        curve=_methods("l1-sgd-noise"),
        **{"tuning": 2, "reach": 1, "strengths": 4, "curve_networks": 4, "curve_tuning": 1, "timed": 1},
        chunk=16,
    ),
}
"""Key -> plan, by what an epoch of a network costs."""
QUICK = Plan(
    lengths=(25, 50),
    methods=_methods("ce-sgd-noise l1-sgd-noise ce-sgd ce-adam-noise l1-adam-noise l1-prox-sgd-noise"),
    **{"networks": 16, "tuning": 3, "reach": 1, "widen": 1, "strengths": 4, "dense": 7},
    **{"curve_networks": 6, "curve_tuning": 2, "repeats": 3},
)
"""Takes the place of every cell's plan."""


@dataclass(frozen=True)
class Cell:
    """A problem and a family of networks.

    Attributes:
        label: ``PROBLEM_FAMILY_ACTIVATION``.
        zoo: Recipe of the zoo; starting networks are drawn by it, with other seeds.
        setting: Augmentation, λ of the table, plan.
        plan: How much is measured.
    """

    label: str
    zoo: ZooConfig
    setting: Setting
    plan: Plan

    @property
    def problem(self) -> Problem:
        return self.zoo.make_problem()

    @property
    def family(self) -> Family:
        return self.zoo.make_family()

    def module(self) -> nn.Module:
        """The architecture."""
        return self.family.build()

    def networks(self, count: int, *, tuning: bool = False) -> Params:
        """Starting networks: the ones that are measured, or the others for tuning; [count, ...]."""
        replaced = ("problem", "family", "count", "seed")
        recipe = {key: value for key, value in asdict(self.zoo).items() if key not in replaced}
        return starting_networks(
            self.problem.to_config(),
            self.family.to_config(),
            count=count,
            seed=self.plan.seed + tuning,
            recipe=recipe,
        )

    def identity(self) -> dict[str, Any]:
        """What every measurement of this cell depends on: a change of it makes stored ones useless."""
        unread = ("count", "val_fraction", "test_fraction", "shard_size", "seed")
        zoo = {key: value for key, value in self.zoo.to_dict().items() if key not in unread}
        return {"zoo": zoo} | self.plan.part("seed")


def label_of(problem: Mapping[str, Any], family: Mapping[str, Any]) -> str:
    """``PROBLEM_FAMILY_ACTIVATION`` of two configs."""
    return f"{problem['name']}_{family['name']}_{family.get('activation', 'tanh')}"


def cell_of_recipe(label: str, *, quick: bool) -> Cell | None:
    """A cell of ``CELLS``; None if there is no zoo recipe of its name."""
    path = RECIPES / f"{label}.yaml"
    if not path.is_file():
        return None
    parsed = build_parser().parse_args(["--config", str(path)]).as_dict()
    zoo = ZooConfig(**{key: parsed[key] for key in ZooConfig.__dataclass_fields__})
    setting = CELLS[label]
    return Cell(label, zoo, setting, QUICK if quick else PLANS[setting.plan])


def cell_of_release(release: Release, *, quick: bool) -> Cell:
    """The cell that a checkpoint belongs to: one of ``CELLS``, else one made of its metadata alone.

    Raises:
        ValueError: It names no problem or family, or it differs from the cell of its label: in problem,
            family, or augmentation, which both sides must share.
    """
    if not release.problem or not release.family:
        raise ValueError(f"checkpoints: {release.name} names no problem or no family to make networks for")
    problem, family = make_problem(**release.problem), make_family(**release.family)
    label = label_of(release.problem, release.family)
    data = release.recipe.get("data") if isinstance(release.recipe, dict) else None
    noise = float(data.get("input_noise", 0.0)) if isinstance(data, dict) else None
    cell = cell_of_recipe(label, quick=quick) if label in CELLS else None
    if cell is None:
        setting = CELLS.get(label, Setting("light", noise=noise or 0.0, l1=1e-3))
        zoo = ZooConfig(problem=problem.to_config(), family=family.to_config(), epochs=START_EPOCHS)
        cell = Cell(label, zoo, setting, QUICK if quick else PLANS[setting.plan])
    if (cell.problem, cell.family) != (problem, family):
        raise ValueError(
            f"checkpoints: {release.name} is for {problem} and {family}, expected {cell.problem} and "
            f"{cell.family} as in recipes/zoo/{label}.yaml; both would be called {label}"
        )
    if noise is not None and noise != cell.setting.noise:
        raise ValueError(
            f"checkpoints: {release.name} was trained with input noise {noise}, expected "
            f"{cell.setting.noise} as the baselines of {label} get; change CELLS in "
            "benchmarks/one_shot/cells.py and measure both anew"
        )
    return cell
