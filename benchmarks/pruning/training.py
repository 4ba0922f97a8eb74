"""Ordinary ways to sparse networks: training with masks, iterative magnitude pruning, L1 training.

Legend: B networks, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from amortopt._types import Params
from amortopt.functional.networks import l1_norm, num_networks
from amortopt.optim.prune import smallest_left_out
from amortopt.tasks import evaluate_many
from amortopt.training import Stepper, train_epochs
from benchmarks.harness.numbers import values
from benchmarks.harness.store import Record
from benchmarks.one_shot.baselines import Setting
from benchmarks.one_shot.cells import Cell, Fleet

STEPS = 5
"""Of iterative pruning, each of which keeps the same share of the weights that are left."""


@dataclass(frozen=True, eq=False)
class Masked:
    """A stepper whose steps leave masked weights at zero.

    Attributes:
        stepper: The optimizer.
        masks: Name of a parameter -> bool [B, ...]; parameters without a mask are free.
    """

    stepper: Stepper
    masks: Params

    @property
    def penalty(self) -> Any:
        return self.stepper.penalty

    def of(self, networks: Any) -> Masked:
        return Masked(self.stepper.of(networks), {name: m[networks] for name, m in self.masks.items()})

    def start(self, params: Params) -> Any:
        return self.stepper.start(params)

    def step(self, params: Params, grads: Params, state: Any, *, steps: Any = 1) -> None:
        self.stepper.step(params, grads, state, steps=steps)
        for name, mask in self.masks.items():
            params[name].mul_(mask)


def trained(
    cell: Cell, fleet: Fleet, start: Params, setting: Setting, epochs: int, masks: Params | None = None
) -> Params:
    """Networks after training by SGD or Adam with cosine; masked weights stay at zero."""
    stepper: Any = Stepper(
        setting.optimizer, setting.rate, "cosine", l1=setting.l1, proximal=setting.proximal
    )
    return train_epochs(
        cell.module, start, fleet.read, cell.problems.objective,
        stepper if masks is None else Masked(stepper, masks),  # type: ignore[arg-type]
        epochs=epochs, seed=1, batch_size=cell.batch_size(len(fleet.read)), input_noise=setting.noise,
    ).params  # fmt: skip


def masks_of(params: Params, sparsity: float) -> Params:
    """Masks [B, ...] of the weights, False at each network's smallest magnitudes, of all layers together."""
    weights = {name: p for name, p in params.items() if p.ndim > 2}
    each = [
        smallest_left_out({name: w[b] for name, w in weights.items()}, sparsity, "global")
        for b in range(num_networks(params))
    ]
    return {name: torch.stack([masks[name] for masks in each]) for name in weights}


def pruned(params: Params, sparsity: float) -> Params:
    """Params with each network's smallest weights at zero."""
    masks = masks_of(params, sparsity)
    return {name: p * masks[name] if name in masks else p for name, p in params.items()}


def iterative(
    cell: Cell, fleet: Fleet, dense: Params, setting: Setting, sparsity: float, epochs: int
) -> Params:
    """Iterative magnitude pruning: leave out some of the smallest weights, train on, and so on."""
    params = dense
    for k in range(1, STEPS + 1):
        masks = masks_of(params, 1 - (1 - sparsity) ** (k / STEPS))
        start = {name: p * masks[name] if name in masks else p for name, p in params.items()}
        params = trained(cell, fleet, start, setting, epochs, masks)
    return params


def zeros(params: Params) -> torch.Tensor:
    """Share of the weights that are zero [B]."""
    weights = torch.cat([p.flatten(1) for p in params.values() if p.ndim > 2], 1)
    return (weights == 0).double().mean(1)


def accuracy(cell: Cell, fleet: Fleet, params: Params) -> float:
    """Mean accuracy on examples that were not read."""
    return float(evaluate_many(cell.module, params, fleet.judged, cell.problems.objective)[1].mean())


def row(cell: Cell, fleet: Fleet, params: Params) -> Record:
    """Accuracy in %, loss and share of zero weights in % of every network."""
    loss, score = evaluate_many(cell.module, params, fleet.judged, cell.problems.objective)
    return {
        "score": values(100 * score, 2), "loss": values(loss, 4), "zeros": values(100 * zeros(params), 2),
    }  # fmt: skip


def point(cell: Cell, fleet: Fleet, params: Params, l1: float) -> Record:
    """A point of the curves over λ: what ``row`` has, the L1 norm, the objective with it."""
    norm = l1_norm(params).double()
    loss, _ = evaluate_many(cell.module, params, fleet.judged, cell.problems.objective)
    cut = 100 * (1 - norm / l1_norm(fleet.start).double())
    return row(cell, fleet, params) | {
        "l1": l1, "norm": values(norm, 2), "cut": values(cut, 2), "objective": values(loss + l1 * norm, 4),
    }  # fmt: skip


def best(
    cell: Cell, tuning: Fleet, start: Params, settings: Sequence[Setting], epochs: int, l1: float = 0.0
) -> tuple[Setting, list[list[Any]]]:
    """The best setting on validation problems, by accuracy or by the objective with λ, and all scores."""
    scores: dict[Setting, float] = {}
    for setting in settings:
        params = trained(cell, tuning, start, replace(setting, l1=l1), epochs)
        loss, score = evaluate_many(cell.module, params, tuning.judged, cell.problems.objective)
        value = float((-(loss + l1 * l1_norm(params)) if l1 else score).mean())
        scores[setting] = value if value == value else -torch.inf
    table = [[s.rate, s.noise, round(value, 4)] for s, value in scores.items()]
    return replace(max(scores, key=scores.__getitem__), l1=l1), table
