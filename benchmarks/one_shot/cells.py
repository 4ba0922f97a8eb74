"""What is compared and on what: families of problems with an architecture, their data and networks, plans.

Legend: B networks, each with a problem of its own; N examples to read, M to judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.release import Release
from amortopt.system.recipes import find_recipe
from amortopt.tasks import (
    CrossEntropy,
    Examples,
    Family,
    Problem,
    ProblemFamily,
    evaluate_many,
    init_many,
    make_family,
    make_problem_family,
    problem_family_names,
)
from amortopt.tasks.problem import Which
from amortopt.training import OptimizerName, Stepper, train_epochs
from benchmarks.harness.numbers import values
from benchmarks.harness.store import Record

UNSEEN = "unseen"
"""Name of the set of problems that are drawn from the family; others are real data sets."""
RATES: dict[OptimizerName, tuple[float, ...]] = {
    "sgd": (0.02, 0.06, 0.2, 0.6),
    "adam": (0.001, 0.003, 0.01, 0.03),
    "muon": (0.003, 0.01, 0.03, 0.1),
}
"""Optimizer -> learning rates to choose from."""
WIDER = 3.0
"""Factor from the last learning rate of a grid to the next one, where the best is the last."""
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "curves": {
        "twice the noise": {"noise": 2.0},
        "shifted twice as far": {"shift": 72},
        "sampled 1.5 times as densely": {"sampling": 1.5},
        "sampled 1.5 times as sparsely": {"sampling": 1 / 1.5},
    }
}
"""Family -> problems outside of it: name -> arguments of the family; ``sampling`` is this module's."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        problems: Problems of the test part, a network for each.
        trained: How many of them, the first ones, networks are trained on in the ordinary way.
        tuned_on: Problems of the validation part that settings of training are chosen on.
        real: Networks for each real data set, each with its own choice of examples.
        tested: Most examples M that a network is judged by.
        sizes: Numbers N of examples to read; networks that learn a picture have all of its pixels instead.
        lengths: Epochs of training.
        long: Epochs of further training, where N is at most ``few``.
        few: See ``long``.
        anchors: Lengths that settings are chosen for; any other takes those of the nearest, by ratio.
        optimizers: What trains from the start.
        prototype_optimizers: What trains from the learned prototype.
        continued_optimizers: What trains from what a pass returns.
        prototype_lengths: Epochs of both.
        natural: Steps of natural gradient.
        noises: Standard deviations of input noise to choose from.
        widen: How often a grid of learning rates goes on beyond a best one at its end.
        l1_size: N of the curves over λ.
        l1_length: Epochs of training of the curves over λ.
        strengths: λ of these curves.
        qualities: Epochs that starting networks are trained for, in the section on that; 8 stands for 1 to 8.
            They are of the first ``trained`` problems.
        repeats: Calls that are timed.
    """

    problems: int = 64
    trained: int = 64
    tuned_on: int = 8
    real: int = 8
    tested: int = 1000
    sizes: tuple[int, ...] = (50, 200, 1000, 4000)
    lengths: tuple[int, ...] = (25, 50, 100, 150)
    long: tuple[int, ...] = (500,)
    few: int = 1000
    anchors: tuple[int, ...] = (25, 150)
    optimizers: tuple[OptimizerName, ...] = ("sgd", "adam", "muon")
    prototype_optimizers: tuple[OptimizerName, ...] = ("sgd", "adam", "muon")
    continued_optimizers: tuple[OptimizerName, ...] = ("adam",)
    prototype_lengths: tuple[int, ...] = (1, 5, 25)
    natural: tuple[int, ...] = (1, 4, 16)
    noises: tuple[float, ...] = (0.0, 0.2, 0.5)
    widen: int = 2
    l1_size: int = 1000
    l1_length: int = 150
    strengths: tuple[float, ...] = (1e-4, 5e-4, 2e-3, 8e-3)
    qualities: tuple[int, ...] = (0, 8, 25, 150)
    repeats: int = 5

    def lengths_of(self, optimizer: OptimizerName, size: int) -> tuple[int, ...]:
        """Epochs of training from the start on so many examples; of Muon, which costs most, the anchors."""
        if optimizer == "muon":
            return self.anchors
        return self.lengths + self.long if size <= self.few else self.lengths


FULL = Plan()
LIGHT = Plan(
    trained=24, tuned_on=4, real=4, lengths=(25, 150), long=(), optimizers=("sgd", "adam"), noises=(0.0, 0.3)
)
"""For networks whose steps cost many times those of a small MLP."""
QUICK = Plan(
    **{"problems": 12, "trained": 12, "tuned_on": 4, "real": 4, "tested": 500},
    sizes=(50, 400), lengths=(25,), long=(), anchors=(25,), optimizers=("sgd", "adam"),
    prototype_optimizers=("sgd",), continued_optimizers=("sgd",), prototype_lengths=(5,), natural=(4,),
    noises=(0.0, 0.3), widen=0, l1_size=400, l1_length=25, strengths=(5e-4, 2e-3), qualities=(0, 25),
    repeats=2,
)  # fmt: skip
"""Takes the place of every plan."""


@dataclass(frozen=True, eq=False)
class Fleet:
    """Networks, and the problem of each.

    Attributes:
        start: Networks as they start [B, ...].
        read: Examples that they may read or be trained on [B, N, ...].
        judged: Other examples of the same problems [B, M, ...].
        sets: Name of a set of problems -> its networks.
    """

    start: Params
    read: Examples
    judged: Examples
    sets: Mapping[str, slice]

    def first(self, problems: int) -> Fleet:
        """The first problems of the family, and all networks of the real data sets."""
        rows, sets, begin = [], {}, 0
        for name, place in self.sets.items():
            chosen = list(range(place.start, place.stop))[: problems if name == UNSEEN else None]
            rows += chosen
            sets[name] = slice(begin, begin + len(chosen))
            begin += len(chosen)
        index = torch.tensor(rows)
        start = {name: p[index] for name, p in self.start.items()}
        return Fleet(start, self.read.of(index), self.judged.of(index), sets)


@dataclass(frozen=True)
class Cell:
    """A family of problems, and an architecture.

    Attributes:
        problems: Where problems come from.
        family: What the networks are.
        plan: How much is measured.
    """

    problems: ProblemFamily
    family: Family
    plan: Plan

    @property
    def label(self) -> str:
        """Such as ``curves_mlp_tanh``."""
        return f"{self.problems.name}_{self.family.name}_{self.family.activation}"

    @property
    def pictures(self) -> bool:
        """Whether networks learn a picture each, judged by the pixels that they are trained on."""
        return not isinstance(self.problems.objective, CrossEntropy)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers N of examples to read."""
        side = getattr(self.problems, "side", None)
        return (side**2,) if self.pictures and side else self.plan.sizes

    @cached_property
    def module(self) -> nn.Module:
        """The architecture."""
        with torch.random.fork_rng(devices=[]):
            return self.family.build()

    def batch_size(self, size: int) -> int:
        """Examples in a step of training, N / 8 to fill whole steps: at least about 12, at most 128."""
        if self.pictures:
            return size
        return math.ceil(size / math.ceil(size / min(128, max(12, size // 8))))

    def noises(self) -> tuple[float, ...]:
        """Input noise to choose from; coordinates of pixels get none."""
        return (0.0,) if self.pictures else self.plan.noises

    def identity(self, size: int) -> dict[str, Any]:
        """What every measurement on N examples depends on."""
        read, judged = self.problems.draw("test", 0, 1, 4, 4)
        # Two digits of what is drawn: they change with the family's code, not with the processor's rounding.
        drawn = [float(f"{t.double().abs().mean():.2g}") for t in (read.x, judged.x)]
        plan = {"networks": self.plan.problems, "of_real": self.plan.real, "tested": self.plan.tested}
        return {
            "problems": self.problems.to_config(), "family": self.family.to_config(), "drawn": drawn,
            "real": sorted(self.problems.real()), "size": size, **plan,
        }  # fmt: skip

    def fleet(
        self,
        which: Which,
        size: int,
        *,
        epochs: int | None = None,
        variant: str = "",
        problems: int | None = None,
    ) -> Fleet:
        """Networks that have N examples each and are trained on these a little.

        Args:
            which: Part of the family; the validation part comes without real data sets.
            size: N. Smaller N are the first examples of larger N.
            epochs: How long they are trained; None: between 1 and 8 epochs, drawn for each.
            variant: Key of ``VARIANTS``, for problems outside of the family.
            problems: Only so many, the first ones of the family; None: all, and real data sets.
        """
        return _fleet(self, which, size, epochs, variant, problems)

    def started(self, fresh: Params, read: Examples, epochs: int | None) -> Params:
        """Networks after a little training on what they read; see ``fleet``."""
        drawn = torch.randint(1, 9, (len(read.x),), generator=torch.Generator().manual_seed(0))
        lasting = drawn.numpy() if epochs is None else epochs
        stepper = Stepper("adam", 1e-3, "cosine") if self.pictures else Stepper("sgd", 0.03, "cosine")
        return train_epochs(
            self.module, fresh, read, self.problems.objective, stepper, epochs=lasting, seed=3,
            batch_size=self.batch_size(len(read)), input_noise=0.0 if self.pictures else 0.2,
        ).params  # fmt: skip

    def judge(self, params: Params, fleet: Fleet) -> dict[str, Record]:
        """Set of problems -> score (accuracy in %, PSNR in dB) and loss of every network."""
        loss, score = evaluate_many(self.module, params, fleet.judged, self.problems.objective)
        factor = 1 if self.pictures else 100
        return {
            name: {"score": values(factor * score[place], 2), "loss": values(loss[place], 4)}
            for name, place in fleet.sets.items()
        }


def cell_of(problems: Mapping[str, Any], family: Mapping[str, Any], *, quick: bool) -> Cell:
    """The cell of a family of problems and a family of networks, both as JSON-able configs."""
    networks = make_family(**family)
    plan = QUICK if quick else LIGHT if networks.name == "cnn" else FULL
    return Cell(make_problem_family(**problems), networks, plan)


def cell_of_recipe(label: str, *, quick: bool) -> Cell:
    """The cell of a recipe of ``amortopt fit``, such as ``curves_mlp_tanh``; needs no checkpoint.

    Raises:
        FileNotFoundError: There is no such recipe.
        ValueError: It is not for a family of problems.
    """
    model = yaml.safe_load(find_recipe(label, "fit", argument="--cells").read_text(encoding="utf-8"))["model"]
    if model["problem"]["name"] not in problem_family_names():
        raise ValueError(f"cells: {label} is for {model['problem']['name']}, expected a family of problems")
    return cell_of(model["problem"], model["family"], quick=quick)


def cell_of_release(release: Release, *, quick: bool) -> Cell | None:
    """The cell that a checkpoint belongs to; None if it was meta-trained on one data set."""
    if not release.problem or not release.family:
        raise ValueError(f"checkpoints: {release.name} names no problem or no family of networks")
    if release.problem["name"] not in problem_family_names():
        return None
    return cell_of(release.problem, release.family, quick=quick)


@lru_cache(maxsize=2)
def _fleet(
    cell: Cell, which: Which, size: int, epochs: int | None, variant: str, problems: int | None
) -> Fleet:
    count = cell.plan.problems if which == "test" else cell.plan.tuned_on
    count, real = min(problems or count, count), which == "test" and not variant and problems is None
    read, judged = _drawn(cell, which, count, max(*cell.sizes, size), variant)
    parts, sets = [(read.take(slice(size)), judged)], {UNSEEN: slice(0, count)}
    for name, problem in cell.problems.real().items() if real else ():
        part = _real(problem, size, cell.plan.real, judged.x.shape[1])
        if part is not None:
            begin = sum(len(pair[0].x) for pair in parts)
            sets[name] = slice(begin, begin + len(part[0].x))
            parts.append(part)
    read, judged = (
        Examples(torch.cat([p[k].x for p in parts]), torch.cat([p[k].y for p in parts]), shared=False)
        for k in range(2)
    )
    first = 10_000 if which == "test" else 20_000
    fresh = init_many(cell.family.build, range(first, first + len(read.x)))
    return Fleet(cell.started(fresh, read, epochs), read, judged, sets)


@lru_cache(maxsize=2)
def _drawn(cell: Cell, which: Which, count: int, largest: int, variant: str) -> tuple[Examples, Examples]:
    changes = dict(VARIANTS[cell.problems.name][variant]) if variant else {}
    sampling = changes.pop("sampling", 1.0)
    problems = make_problem_family(**{**cell.problems.to_config(), **changes})
    tested = min(cell.plan.tested, largest) if cell.pictures else cell.plan.tested
    read, judged = problems.draw(which, 0, count, largest, tested)
    return (resampled(read, sampling), resampled(judged, sampling)) if sampling != 1 else (read, judged)


def resampled(examples: Examples, density: float) -> Examples:
    """Signals [B, N, ..., L] sampled at another density about their middle; past the ends the last value."""
    x = examples.x
    length = x.shape[-1]
    place = (torch.arange(length) - (length - 1) / 2) / density * 2 / length  # in grid_sample's [-1, 1]
    grid = torch.stack([place, torch.zeros(length)], -1).view(1, 1, length, 2)
    rows = x.reshape(-1, 1, 1, length)
    new = F.grid_sample(rows, grid.expand(len(rows), -1, -1, -1), padding_mode="border", align_corners=False)
    return replace(examples, x=new.view_as(x))


def _real(
    problem: Problem | ProblemFamily, size: int, networks: int, tested: int
) -> tuple[Examples, Examples] | None:
    """Examples [B, N, ...] of a real data set, drawn anew for each network; None if there are fewer."""
    if isinstance(problem, ProblemFamily):
        return problem.draw("test", 0, networks, size, tested)
    train, val, test = (problem.split(which) for which in ("train", "val", "test"))
    x, y = torch.cat([train.x, val.x]), torch.cat([train.y, val.y])
    if len(x) < size or len(test) < tested:
        return None
    generator = torch.Generator().manual_seed(1)
    chosen = torch.stack([torch.randperm(len(x), generator=generator)[:size] for _ in range(networks)])
    judged = test.take(slice(tested))
    return Examples(x[chosen], y[chosen], shared=False), Examples(*_repeated(judged, networks), shared=False)


def _repeated(examples: Examples, networks: int) -> tuple[Tensor, Tensor]:
    return tuple(t.expand(networks, *t.shape) for t in (examples.x, examples.y))  # type: ignore[return-value]
