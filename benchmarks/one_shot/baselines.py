"""Ordinary training on the examples that a pass reads: settings chosen on other problems, then the numbers.

Legend: B networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from amortopt._types import Params
from amortopt.functional.networks import l1_norm, num_networks
from amortopt.symmetry import SymmetrySpec, act, aligning_element, extract
from amortopt.tasks import evaluate_many
from amortopt.training import OptimizerName, Stepper, train_epochs
from benchmarks.harness.command import Advance
from benchmarks.harness.numbers import mean, values
from benchmarks.harness.store import Record
from benchmarks.one_shot.cells import RATES, UNSEEN, WIDER, Cell, Fleet
from benchmarks.one_shot.natural import natural_gradient

DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
"""Of natural gradient, to choose from."""
Begin = Callable[[Fleet], Params]
"""From networks and their problems to where training starts."""


def start_of(fleet: Fleet) -> Params:
    """Training goes on from the given networks."""
    return fleet.start


@dataclass(frozen=True)
class Setting:
    """How networks are trained.

    Attributes:
        optimizer: ``"sgd"`` (momentum 0.9), ``"adam"`` or ``"muon"``.
        rate: Learning rate, with cosine schedule.
        noise: Standard deviation of Gaussian noise on the inputs.
        l1: Strength λ of the L1 penalty.
        proximal: Whether λ acts by soft thresholds.
    """

    optimizer: OptimizerName
    rate: float
    noise: float
    l1: float = 0.0
    proximal: bool = False


def trained(
    cell: Cell, fleet: Fleet, start: Params, settings: Sequence[Setting], epochs: int
) -> list[Params]:
    """Copies of the networks, trained by every setting; those that differ in rate and λ alone at once."""
    results: dict[Setting, Params] = {}
    count, size = num_networks(start), len(fleet.read)
    kinds = dict.fromkeys((s.optimizer, s.noise, s.proximal) for s in settings)
    for optimizer, noise, proximal in kinds:
        alike = [s for s in settings if (s.optimizer, s.noise, s.proximal) == (optimizer, noise, proximal)]
        rows = torch.arange(count).repeat(len(alike))
        rate, l1 = (
            torch.tensor([getattr(s, name) for s in alike]).repeat_interleave(count)
            for name in ("rate", "l1")
        )
        params = train_epochs(
            cell.module, {name: p[rows] for name, p in start.items()}, fleet.read.of(rows),
            cell.problems.objective, Stepper(optimizer, rate, "cosine", l1=l1, proximal=proximal),
            epochs=epochs, seed=1, batch_size=cell.batch_size(size), input_noise=noise,
        ).params  # fmt: skip
        for k, setting in enumerate(alike):
            results[setting] = {name: p[k * count : (k + 1) * count] for name, p in params.items()}
    return [results[setting] for setting in settings]


def validated(cell: Cell, fleet: Fleet, params: Params, l1: float) -> float:
    """What settings are chosen by, the higher the better: the mean score, or minus the objective with λ."""
    loss, score = evaluate_many(cell.module, params, fleet.judged, cell.problems.objective)
    each = -(loss + l1 * l1_norm(params)) if l1 else score
    value = float(each.mean())
    return value if math.isfinite(value) else -math.inf


def chosen(
    cell: Cell, fleet: Fleet, start: Params, optimizer: OptimizerName, epochs: int, advance: Advance,
    *, l1: float = 0.0, proximal: bool = False, noises: Sequence[float] | None = None,
) -> tuple[Setting, list[list[Any]]]:  # fmt: skip
    """The best learning rate and noise on validation problems, and all that were tried.

    Where the best rate is at an end of its grid, the grid is widened there.
    """
    scores: dict[Setting, float] = {}
    noises = cell.noises() if noises is None else noises
    wanted = [Setting(optimizer, r, n, l1, proximal) for r, n in product(RATES[optimizer], noises)]
    for _ in range(1 + cell.plan.widen):
        for setting, params in zip(wanted, trained(cell, fleet, start, wanted, epochs), strict=True):
            scores[setting] = validated(cell, fleet, params, l1)
        advance(len(wanted) * num_networks(start) * epochs * len(fleet.read))
        best = max(scores, key=scores.__getitem__)
        tried = [setting.rate for setting in scores]
        if min(tried) < best.rate < max(tried):
            break
        rate = best.rate * WIDER if best.rate == max(tried) else best.rate / WIDER
        wanted = [Setting(optimizer, float(f"{rate:.3g}"), best.noise, l1, proximal)]
    table = [[epochs, s.rate, s.noise, round(score, 4)] for s, score in scores.items()]
    return best, table


def training_rows(
    cell: Cell, size: int, optimizer: OptimizerName, lengths: Sequence[int], anchors: Sequence[int],
    begin: Begin, advance: Advance,
) -> Record:  # fmt: skip
    """A row for every length of training, with the settings of the nearest anchor.

    Args:
        cell: The cell.
        size: N.
        optimizer: Its name.
        lengths: Epochs.
        anchors: Epochs that settings are chosen for.
        begin: Where training starts.
        advance: Moves the progress bar.
    """
    tuning, fleet = cell.fleet("val", size), cell.fleet("test", size).first(cell.plan.trained)
    first, start, settings, tables = begin(tuning), begin(fleet), {}, []
    for anchor in anchors:
        settings[anchor], table = chosen(cell, tuning, first, optimizer, anchor, advance)
        tables += table
    rows = []
    for epochs in lengths:
        nearest = min(anchors, key=lambda anchor: abs(math.log(anchor / epochs)))
        setting = settings[nearest]
        (params,) = trained(cell, fleet, start, [setting], epochs)
        advance(num_networks(start) * epochs * size)
        row = {"epochs": epochs, "rate": setting.rate, "noise": setting.noise}
        rows.append(row | {"sets": cell.judge(params, fleet)})
    return {"rows": rows, "tuning": {"columns": ["epochs", "rate", "noise", "score"], "rows": tables}}


def natural_rows(cell: Cell, size: int, advance: Advance) -> Record:
    """A row for every number of natural-gradient steps from the start, with the best damping for the most."""
    tuning, fleet = cell.fleet("val", size), cell.fleet("test", size).first(cell.plan.trained)
    most, scores = max(cell.plan.natural), {}
    for damping in DAMPINGS:
        params = natural_gradient(cell, tuning, damping, [most])[most]
        scores[damping] = validated(cell, tuning, params, 0.0)
    best = max(scores, key=scores.__getitem__)
    reached = natural_gradient(cell, fleet, best, cell.plan.natural)
    rows = [{"steps": k, "damping": best, "sets": cell.judge(reached[k], fleet)} for k in cell.plan.natural]
    return {
        "rows": rows,
        "tuning": {"columns": ["damping", "score"], "rows": [list(p) for p in scores.items()]},
    }


def start_row(cell: Cell, size: int) -> Record:
    """The networks as they start."""
    fleet = cell.fleet("test", size)
    return {"sets": cell.judge(fleet.start, fleet)}


def average_row(cell: Cell, size: int) -> Record:
    """One network for all problems of a set: the mean of the networks as they start, aligned."""
    fleet = cell.fleet("test", size)
    spec, averages = extract(cell.module, fleet.read.x[0, :2]), []
    for place in fleet.sets.values():
        some = {name: p[place] for name, p in fleet.start.items()}
        count = num_networks(some)
        averages.append({name: p.expand(count, *p.shape) for name, p in aligned_average(spec, some).items()})
    params = {name: torch.cat([average[name] for average in averages]) for name in fleet.start}
    return {"sets": cell.judge(params, fleet)}


def aligned_average(spec: SymmetrySpec, params: Params) -> Params:
    """Mean of networks [B, ...], each brought into the first one's gauge."""
    first, *others = ({name: p[k] for name, p in params.items()} for k in range(num_networks(params)))
    aligned = [first] + [act(spec, aligning_element(spec, first, other), other) for other in others]
    return {name: torch.stack([each[name] for each in aligned]).mean(0) for name in params}


def l1_rows(cell: Cell, optimizer: OptimizerName, proximal: bool, advance: Advance) -> Record:
    """Training with an L1 penalty, tuned anew for every strength λ: a point per λ."""
    size, epochs, points = cell.plan.l1_size, cell.plan.l1_length, []
    tuning, fleet = cell.fleet("val", size), cell.fleet("test", size).first(cell.plan.trained)
    for l1 in cell.plan.strengths:
        setting, _ = chosen(
            cell, tuning, tuning.start, optimizer, epochs, advance,
            l1=l1, proximal=proximal, noises=cell.noises()[:2],
        )  # fmt: skip
        (params,) = trained(cell, fleet, fleet.start, [setting], epochs)
        points.append({"rate": setting.rate, "noise": setting.noise} | l1_point(cell, fleet, params, l1))
    return {"epochs": epochs, "points": points}


def l1_point(cell: Cell, fleet: Fleet, params: Params, l1: float) -> Record:
    """Of the family's unseen problems: score, cut of the L1 norm from the start in %, objective."""
    place = fleet.sets[UNSEEN]
    norm, before = (l1_norm(p)[place].double() for p in (params, fleet.start))
    row = cell.judge(params, fleet)[UNSEEN]
    loss = torch.tensor([math.nan if v is None else v for v in row["loss"]]).double()
    return {
        "l1": l1, "score": row["score"], "cut": values(100 * (1 - norm / before), 2),
        "objective": values(loss + l1 * norm, 4),
    }  # fmt: skip


def outside_row(cell: Cell, size: int, variant: str, setting: Setting, epochs: int, begin: Begin) -> Record:
    """Problems outside of the family: as they start, and after training with the settings of the family."""
    fleet = cell.fleet("test", size, variant=variant).first(cell.plan.trained)
    (params,) = trained(cell, fleet, begin(fleet), [setting], epochs)
    start, after = (cell.judge(p, fleet)[UNSEEN] for p in (fleet.start, params))
    return {
        "start": start["score"], "training": after["score"], "epochs": epochs, "optimizer": setting.optimizer,
    }  # fmt: skip


def mean_score(row: Record, name: str = UNSEEN) -> float:
    """Mean score of a row in a set of problems; minus infinity where training failed or there is none."""
    scores = row["sets"].get(name, {}).get("score", [])
    return mean(scores) if scores and None not in scores else -math.inf
