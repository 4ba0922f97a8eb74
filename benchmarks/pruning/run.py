"""Networks with a fifth of their weights, on problems never seen: one pass against the usual ways.

    python benchmarks/pruning             # 25 min on one core
    python benchmarks/pruning --quick     # a little of everything -> runs/pruning_quick; 2 min
    python benchmarks/pruning --parts baselines     # needs no checkpoint
    python benchmarks/pruning --parts prototype     # iterative pruning from the learned prototype
    python benchmarks/pruning --checkpoint FOLDER   # another one that reads l1
    python benchmarks/pruning --report    # measures nothing

Every network has a data set of its own, of N examples, which the family draws for the test part; settings are
chosen on problems of the validation part. Sparsity is of the weights, parameters with two or more axes, with
one threshold for all layers. Baselines: magnitudes of the start, of networks trained by SGD, of networks
trained by proximal SGD with L1 (λ chosen by the accuracy after pruning), and iterative magnitude pruning
(IMP) from the trained networks: 5 steps, each with 25 epochs of fine-tuning. The part ``prototype`` does the
same, with the same epochs and settings to choose from, from the checkpoint's learned prototype in place of
the start; and once more with dense training of 10 or 25 epochs, whichever is better on validation problems,
since so few examples are soon learned by heart. Its checkpoints are one that reads λ and learned no masks,
and the one of dense passes. The part ``masked`` trains the pruner's own sparse prototype, with the weights
that the pass leaves. And curves over λ, with the learning rate tuned anew for every λ.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import torch

from amortopt import ScaleGMNOptimizer, load_release
from amortopt._types import Params
from amortopt.functional.networks import num_networks
from amortopt.optim.prune import prune
from benchmarks.harness.command import Part, command_line, measure, parse, results, write_report
from benchmarks.harness.store import Record, Store
from benchmarks.one_shot.baselines import Setting
from benchmarks.one_shot.cells import Cell, Fleet, Plan, cell_of_recipe
from benchmarks.one_shot.passes import Checkpoint
from benchmarks.pruning import tables
from benchmarks.pruning.training import (
    STEPS,
    accuracy,
    best,
    iterative,
    masks_of,
    point,
    pruned,
    row,
    trained,
)

BENCHMARK = "pruning"
PARTS = ("baselines", "prototype", "masked", "l1", "passes", "after")
CHECKPOINT = "curves-cnn-relu-sparse"
L1 = "curves-cnn-relu-l1"
"""Checkpoint of the curves over λ, and of a pretrained initialisation of iterative pruning."""
DENSE = "curves-cnn-relu"
"""Checkpoint of passes that leave all weights, and of another such initialisation."""
SPARSITY = 0.8
FINE_TUNING = 25
SHORT = (10, 25)
"""Epochs of dense training from the learned prototype to choose from, beside the usual ones."""
RATES = {"sgd": (0.06, 0.2, 0.6), "adam": (0.003, 0.01)}
L1_RATES = {"sgd": (0.06, 0.2), "adam": (0.003, 0.01)}


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        epochs: N -> epochs of training of dense networks and with L1.
        strengths: λ of L1 training.
        adam: N at which proximal Adam has a curve too.
        problems: Test problems, a network each.
        tuned_on: Validation problems.
        tested: Examples that a network is judged by.
    """

    epochs: dict[int, int]
    strengths: tuple[float, ...] = (1e-4, 5e-4, 2e-3)
    adam: int = 1000
    problems: int = 32
    tuned_on: int = 4
    tested: int = 1000


FULL = Sizes({200: 150, 1000: 100, 4000: 50})
QUICK = Sizes({200: 10}, strengths=(1e-3,), adam=200, problems=6, tuned_on=2, tested=300)


@cache
def cell_of(quick: bool) -> Cell:
    """The problems and networks; those of the dense checkpoint's recipe."""
    sizes = QUICK if quick else FULL
    plan = Plan(
        problems=sizes.problems, trained=sizes.problems, tuned_on=sizes.tuned_on, real=1,
        tested=sizes.tested, sizes=tuple(sizes.epochs), noises=(0.0, 0.3),
    )  # fmt: skip
    return replace(cell_of_recipe("curves_cnn_relu", quick=quick), plan=plan)


def fleets(cell: Cell, size: int, source: str | None = None) -> tuple[Fleet, Fleet]:
    """Validation and test problems, the latter without real data sets.

    Args:
        cell: The problems and networks.
        size: N.
        source: Checkpoint whose learned prototype, in each network's gauge, takes the place of the start;
            None: networks as they start.
    """
    tuning, test = cell.fleet("val", size), cell.fleet("test", size)
    rows = torch.arange(cell.plan.problems)
    start = {name: p[rows] for name, p in test.start.items()}
    test = Fleet(start, test.read.of(rows), test.judged.of(rows), {})
    if source is None:
        return tuning, test
    checkpoint = Checkpoint(source, load_release(source), cell)
    tuning, test = (replace(fleet, start=checkpoint.prototype(fleet)) for fleet in (tuning, test))
    return tuning, test


@cache
def dense(
    cell: Cell, size: int, epochs: int, source: str | None = None
) -> tuple[Params, Params, Setting, tuple[Any, ...]]:
    """Validation and test networks after ordinary training, its setting, and what else was tried.

    It begins where ``fleets`` begins with this ``source``.
    """
    tuning, test = fleets(cell, size, source)
    settings = [Setting("sgd", rate, noise) for rate, noise in product(RATES["sgd"], cell.noises())]
    setting, tried = best(cell, tuning, tuning.start, settings, epochs)
    first, second = (trained(cell, each, each.start, setting, epochs) for each in (tuning, test))
    return first, second, setting, tuple(tried)


def iterated(cell: Cell, size: int, epochs: int, source: str | None = None) -> Record:
    """Trained networks (see ``dense``) and IMP from these, with what was chosen on validation problems.

    Returns:
        ``epochs``, ``setting``, ``tried``, ``imp_rates``, and ``dense`` and ``imp``: the networks.
    """
    tuning, test = fleets(cell, size, source)
    first, after, setting, tried = dense(cell, size, epochs, source)
    scores = {
        rate: accuracy(
            cell, tuning,
            iterative(cell, tuning, first, replace(setting, rate=rate), SPARSITY, FINE_TUNING),
        )
        for rate in (setting.rate, setting.rate / 3)
    }  # fmt: skip
    fine = replace(setting, rate=max(scores, key=scores.__getitem__))
    return {
        "epochs": epochs, "setting": setting, "tried": tried, "imp_rates": list(scores.items()),
        "dense": after, "imp": iterative(cell, test, after, fine, SPARSITY, FINE_TUNING),
    }  # fmt: skip


def baseline_rows(cell: Cell, size: int, epochs: int) -> Record:
    """Magnitudes of the start and of trained networks, and IMP from the latter."""
    _, test = fleets(cell, size)
    result = iterated(cell, size, epochs)
    after, imp = result.pop("dense"), result.pop("imp")
    return result | {
        "rows": {
            "start, dense": row(cell, test, test.start),
            "start": row(cell, test, pruned(test.start, SPARSITY)),
            "trained, dense": row(cell, test, after),
            "trained": row(cell, test, pruned(after, SPARSITY)),
            "imp": row(cell, test, imp),
        },
    }


def prototype_rows(cell: Cell, size: int, lengths: Sequence[int], source: str, name: str) -> Record:
    """IMP from the learned prototype, as ``baseline_rows`` does from the start.

    Args:
        cell: The problems and networks.
        size: N.
        lengths: Epochs of dense training, of which the best on validation problems are taken.
        source: The checkpoint.
        name: What its rows begin with.
    """
    _, test = fleets(cell, size, source)
    reached = {e: max(score for *_, score in dense(cell, size, e, source)[3]) for e in lengths}
    result = iterated(cell, size, max(reached, key=reached.__getitem__), source)
    after, imp = result.pop("dense"), result.pop("imp")
    return result | {
        "lengths": list(reached.items()),
        "rows": {
            f"{name}, trained, dense": row(cell, test, after),
            f"{name}, trained": row(cell, test, pruned(after, SPARSITY)),
            f"{name}, imp": row(cell, test, imp),
        },
    }


def masked_rows(cell: Cell, size: int, lengths: Sequence[int], source: str) -> Record:
    """The learned sparse prototype, trained with its mask by SGD; the best setting on validation problems.

    Args:
        cell: The problems and networks.
        size: N.
        lengths: Epochs of training to choose from.
        source: A checkpoint whose strength says how many weights are left.
    """
    checkpoint = Checkpoint(source, load_release(source), cell)
    l1 = checkpoint.metanet.strength_for(SPARSITY)
    both = []
    for fleet in fleets(cell, size):
        start = checkpoint.rounds(fleet.start, fleet.read, rounds=0, l1=l1)[0]
        both.append((fleet, start, {name: p != 0 for name, p in start.items() if p.ndim > 2}))
    (tuning, start, masks), (test, test_start, test_masks) = both
    settings = [Setting("sgd", rate, noise) for rate, noise in product(RATES["sgd"], cell.noises())]
    scores = {
        (setting, epochs): accuracy(cell, tuning, trained(cell, tuning, start, setting, epochs, masks))
        for setting, epochs in product(settings, lengths)
    }
    setting, epochs = max(scores, key=scores.__getitem__)
    after = trained(cell, test, test_start, setting, epochs, test_masks)
    tried = [[s.rate, s.noise, e, round(value, 4)] for (s, e), value in scores.items()]
    return {
        "setting": setting, "epochs": epochs, "tried": tried,
        "rows": {"masked prototype, trained": row(cell, test, after)},
    }  # fmt: skip


def l1_rows(cell: Cell, size: int, epochs: int, optimizer: str, strengths: tuple[float, ...]) -> Record:
    """Proximal training with an L1 penalty: a point for every λ, and the best of them after pruning."""
    tuning, test = fleets(cell, size)
    noise = dense(cell, size, epochs)[2].noise
    points, scores, rows = [], [], []
    for l1 in strengths:
        wanted = [Setting(optimizer, rate, noise, 0.0, True) for rate in L1_RATES[optimizer]]  # type: ignore[arg-type]
        setting, tried = best(cell, tuning, tuning.start, wanted, epochs, l1)
        chosen = trained(cell, tuning, tuning.start, setting, epochs)
        after = trained(cell, test, test.start, setting, epochs)
        scores.append(accuracy(cell, tuning, pruned(chosen, SPARSITY)))
        points.append(point(cell, test, after, l1) | {"setting": setting, "tried": tried})
        rows.append(row(cell, test, pruned(after, SPARSITY)))
    k = max(range(len(scores)), key=scores.__getitem__)
    return {"epochs": epochs, "points": points, "best": strengths[k], "val": scores, "row": rows[k]}


def as_params(models: list[Any]) -> Params:
    """Networks -> params [B, ...]."""
    each = [dict(model.named_parameters()) for model in models]
    return {name: torch.stack([one[name].detach() for one in each]) for name in each[0]}


def as_models(cell: Cell, params: Params) -> list[Any]:
    """Params [B, ...] -> networks."""
    models = [cell.family.build() for _ in range(num_networks(params))]
    for b, model in enumerate(models):
        model.load_state_dict({name: p[b] for name, p in params.items()})
    return models


def pass_rows(cell: Cell, size: int, source: str) -> Record:
    """One pass with a fifth of the weights, and the controls."""
    _, test = fleets(cell, size)
    opt = ScaleGMNOptimizer.from_pretrained(source)
    pairs = list(zip(test.read.x, test.read.y, strict=True))
    with warnings.catch_warnings():
        # Losses that rise for the sake of few weights are what is asked for.
        warnings.simplefilter("ignore", UserWarning)
        models = as_models(cell, test.start)
        sparse, reports = prune(models, SPARSITY, pairs, optimizer=opt, return_report=True)
        by_layer = prune(models, SPARSITY, pairs, optimizer=opt, scope="layer")
        full = opt.one_shot_params(test.start, batch=pairs)
        usual = ScaleGMNOptimizer.from_pretrained(DENSE).one_shot_params(test.start, batch=pairs)
    params = as_params(sparse)
    other = {name: p.roll(1, 0) for name, p in params.items()}
    return {
        "strengths": [report.l1 for report in reports], "by_pass": [report.by_pass for report in reports],
        "rows": {
            "pass": row(cell, test, params),
            "pass, by layer": row(cell, test, as_params(by_layer)),
            "pass, swapped": row(cell, test, other),
            "pass, dense": row(cell, test, full),
            "usual pass, dense": row(cell, test, usual),
            "usual pass": row(cell, test, pruned(usual, SPARSITY)),
        },
    }  # fmt: skip


def after_rows(cell: Cell, size: int, epochs: int, source: str) -> Record:
    """What needs trained networks: their functions read without data, and fine-tuning after a pass."""
    _, test = fleets(cell, size)
    _, after, setting, _ = dense(cell, size, epochs)
    opt = ScaleGMNOptimizer.from_pretrained(source)
    pairs = list(zip(test.read.x, test.read.y, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        own, reports = prune(as_models(cell, after), SPARSITY, optimizer=opt, return_report=True)
        params = as_params(prune(as_models(cell, test.start), SPARSITY, pairs, optimizer=opt))
    tuned = trained(cell, test, params, setting, FINE_TUNING, masks_of(params, SPARSITY))
    return {
        "passed": sum(report.passed for report in reports),
        "rows": {
            "function": row(cell, test, as_params(own)), "pass, fine-tuned": row(cell, test, tuned),
        },
    }  # fmt: skip


def curve(cell: Cell, size: int, source: str) -> list[Record]:
    """A point per λ, of one checkpoint."""
    _, test = fleets(cell, size)
    opt = ScaleGMNOptimizer.from_pretrained(source)
    assert opt.l1_range is not None
    pairs = list(zip(test.read.x, test.read.y, strict=True))
    points = []
    for l1 in sorted({*opt.l1_range.points(10), *FULL.strengths}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            points.append(point(cell, test, opt.one_shot_params(test.start, batch=pairs, l1=l1), l1))
    return points


def all_parts(options: argparse.Namespace) -> list[Part]:
    """Everything that the options ask for."""
    sizes, cell, parts = QUICK if options.quick else FULL, cell_of(options.quick), []

    def identity(size: int, **more: Any) -> dict[str, Any]:
        return cell.identity(size) | {
            "sparsity": SPARSITY, "tuned_on": sizes.tuned_on, "steps": STEPS, "fine_tuning": FINE_TUNING,
            "epochs": sizes.epochs[size],
        } | more  # fmt: skip

    for size, epochs in sizes.epochs.items():
        cost = float(size * epochs)
        if "baselines" in options.parts:
            parts.append(Part(
                f"baselines/{size}", identity(size, rates=RATES["sgd"]),
                lambda _, s=size, e=epochs: baseline_rows(cell, s, e), 3 * cost,
            ))  # fmt: skip
        if "prototype" in options.parts:
            for key, name, lengths, source in (
                ("prototype", "prototype", (epochs,), L1),
                ("prototype/short", "short prototype", SHORT, L1),
                ("prototype/dense", "dense prototype", SHORT, DENSE),
            ):
                sha = {"sha256": load_release(source).sha256}
                parts.append(Part(
                    f"{key}/{size}", identity(size, rates=RATES["sgd"], lengths=lengths, **sha),
                    lambda _, s=size, e=lengths, n=name, c=source: prototype_rows(cell, s, e, c, n),
                    3 * cost,
                ))  # fmt: skip
        if "masked" in options.parts:
            sha = {"sha256": load_release(options.checkpoint).sha256}
            parts.append(Part(
                f"masked/{size}", identity(size, rates=RATES["sgd"], lengths=SHORT, **sha),
                lambda _, s=size: masked_rows(cell, s, SHORT, options.checkpoint), 3.0 * size * SHORT[-1],
            ))  # fmt: skip
        for optimizer in L1_RATES if "l1" in options.parts else ():
            if optimizer == "sgd" or size == sizes.adam:
                parts.append(Part(
                    f"l1/{optimizer}/{size}",
                    identity(size, strengths=sizes.strengths, rates=L1_RATES[optimizer]),
                    lambda _, s=size, e=epochs, o=optimizer: l1_rows(cell, s, e, o, sizes.strengths),
                    4 * cost,
                ))  # fmt: skip
        if "passes" in options.parts:
            sha = {"sha256": load_release(options.checkpoint).sha256}
            parts.append(Part(
                f"passes/{size}", identity(size, **sha),
                lambda _, s=size: pass_rows(cell, s, options.checkpoint), 10.0 * size,
            ))  # fmt: skip
            sha = {"sha256": load_release(L1).sha256}
            parts.append(Part(
                f"curve/{size}", identity(size, **sha), lambda _, s=size: curve(cell, s, L1), 10.0 * size,
            ))  # fmt: skip
        if "after" in options.parts:
            sha = {"sha256": load_release(options.checkpoint).sha256}
            parts.append(Part(
                f"after/{size}", identity(size, rates=RATES["sgd"], **sha),
                lambda _, s=size, e=epochs: after_rows(cell, s, e, options.checkpoint), cost,
            ))  # fmt: skip
    return parts


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(__doc__, parts=PARTS, threads=1)
    parser.add_argument("--checkpoint", default=CHECKPOINT, help="name or folder of one that reads l1")
    parser.add_argument("--sizes", nargs="*", type=int, help="numbers N of examples; default: all")
    options = parse(parser, args)
    with results(BENCHMARK, options) as store:
        if not options.report:
            wanted = all_parts(options)
            if options.sizes:
                wanted = [part for part in wanted if int(part.key.split("/")[-1]) in options.sizes]
            measure(store, wanted, again=options.again)
        _write(store)


def _write(store: Store) -> None:
    write_report(store, tables.markdown(store.records), {"": tables.picture(store.records)})
