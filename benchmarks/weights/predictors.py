"""Predict one number from a network's weights: statistics, Deep Set; how they are trained and scored.

A predictor is a module ``params {block: [B, *shape]} -> logits [B]``. All of them read the same tensors, the
blocks of the extracted symmetry (so the three gates of a GRU are tensors of their own), each divided by its
root mean square over the train networks. Legend: B networks, c channels.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt._types import Params

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def mlp(inputs: int, width: int, outputs: int = 1, dropout: float = 0.0) -> nn.Sequential:
    """Two hidden layers."""
    first = nn.Linear(inputs, width), nn.SiLU(), nn.Dropout(dropout)
    second = nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout)
    return nn.Sequential(*first, *second, nn.Linear(width, outputs))


class StatNN(nn.Module):
    """Mean, variance and quantiles of every tensor, then an MLP (Unterthiner et al. 2020, arXiv 2002.11448).

    Args:
        shapes: Block -> shape.
        width: Units of the MLP's hidden layers.
        dropout: Of the MLP.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], width: int, dropout: float = 0.0) -> None:
        super().__init__()
        count = len(shapes) * (2 + len(QUANTILES))
        self.norm = nn.BatchNorm1d(count, affine=False)  # statistics have very different sizes
        self.head = mlp(count, width, dropout=dropout)

    def forward(self, params: Params) -> Tensor:
        """Logits [B]."""
        return self.head(self.norm(statistics(params))).squeeze(-1)


def statistics(params: Params) -> Tensor:
    """Seven numbers per tensor, [B, 7 x tensors]."""
    columns: list[Tensor] = []
    for value in params.values():
        flat = value.flatten(1)
        levels = torch.tensor(QUANTILES, dtype=flat.dtype, device=flat.device)
        columns += [flat.mean(1), flat.var(1, unbiased=False), *flat.quantile(levels, dim=1)]
    return torch.stack(columns, dim=1)


class DeepSet(nn.Module):
    """Every parameter embedded by its tensor's MLP, the mean per tensor, then an MLP (Zaheer et al. 2017).

    Two such layers: the second one also reads the first one's mean.

    Args:
        shapes: Block -> shape.
        width: Channels c of a parameter; the head has four times as many units.
        dropout: Of the head.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.ParameterList([_uniform(1, 2, width) for _ in shapes])
        self.second = nn.ModuleList([nn.Linear(width, width) for _ in shapes])
        self.context = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in shapes])
        self.head = mlp(len(shapes) * width, 4 * width, dropout=dropout)

    def forward(self, params: Params) -> Tensor:
        """Logits [B]."""
        pooled: list[Tensor] = []
        for k, value in enumerate(params.values()):
            scale, shift = self.first[k][0]
            x = F.silu(value.flatten(1)[..., None] * scale + shift)  # [B, elements, c]
            x = F.silu(self.second[k](x) + self.context[k](x.mean(1, keepdim=True)))
            pooled.append(x.mean(1))
        return self.head(torch.cat(pooled, dim=1)).squeeze(-1)


def _uniform(fan_in: int, *shape: int) -> nn.Parameter:
    bound = math.sqrt(3 / fan_in)
    return nn.Parameter(torch.empty(1, *shape).uniform_(-bound, bound))


@dataclass(frozen=True)
class Data:
    """Networks of one part of the zoo.

    Attributes:
        params: Block -> [n, ...], scaled.
        target: Success rates [n] in [0, 1].
    """

    params: Params
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class Budget:
    """What every predictor gets.

    Attributes:
        steps: Training steps.
        batch: Networks per step.
        checks: How often the val networks are looked at; the best of these states is kept.
    """

    steps: int = 2000
    batch: int = 64
    checks: int = 10


@dataclass
class Trained:
    """A trained predictor, its tau on the val networks, when it was reached, and what the training took."""

    model: nn.Module
    val_tau: float
    best_step: int
    cpu_seconds: float


def train(
    make: Callable[[], nn.Module], data: Data, val: Data, budget: Budget, *, learning_rate: float, seed: int
) -> Trained:
    """Train by cross-entropy against the success rates: Adam, a linear warm-up, a cosine decay.

    Args:
        make: Makes the untrained predictor.
        data: Train networks.
        val: Val networks, on which one of the states is chosen by Kendall's tau.
        budget: Steps and networks per step.
        learning_rate: Highest learning rate.
        seed: Of initialisation and order.

    Returns:
        The predictor in the state that was best on the val networks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        began, best = time.process_time(), (-math.inf, 0, model.state_dict())
        order = torch.empty(0, dtype=torch.long)
        for step in range(budget.steps):
            if len(order) < budget.batch:
                order = torch.randperm(len(data), generator=generator)
            rows, order = order[: budget.batch], order[budget.batch :]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * warmup_cosine(step, budget.steps)
            logits = model({name: p[rows] for name, p in data.params.items()})
            loss = F.binary_cross_entropy_with_logits(logits, data.target[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % max(1, budget.steps // budget.checks) == 0:
                reached = tau(predict(model, val.params), val.target)
                if reached > best[0]:
                    best = (reached, step + 1, copy.deepcopy(model.state_dict()))
        model.load_state_dict(best[2])
    return Trained(model, best[0], best[1], time.process_time() - began)


def warmup_cosine(step: int, steps: int) -> float:
    """Factor on the learning rate: rises over the first twentieth of the steps, then falls to zero."""
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def predict(model: nn.Module, params: Params, chunk: int = 256) -> Tensor:
    """Logits [n] in eval mode."""
    training = model.training
    model.eval()
    count = len(next(iter(params.values())))
    parts = [model({k: p[i : i + chunk] for k, p in params.items()}) for i in range(0, count, chunk)]
    model.train(training)
    return torch.cat(parts)


def tau(predicted: Tensor, target: Tensor) -> float:
    """Kendall's rank correlation tau-b of two lists [n], with ties; 0 where one of them is constant.

    Raises:
        ValueError: The lists are not equally long.
    """
    if predicted.shape != target.shape or predicted.ndim != 1:
        raise ValueError(
            f"target: got shape {tuple(target.shape)}, expected {tuple(predicted.shape)} as predicted"
        )
    a, b = (np.asarray(values, dtype=np.float64) for values in (predicted, target))
    signs = [np.sign(values[:, None] - values[None]) for values in (a, b)]
    pairs = [float((sign * sign).sum()) for sign in signs]
    agreeing = float((signs[0] * signs[1]).sum())
    return agreeing / math.sqrt(pairs[0] * pairs[1]) if min(pairs) > 0 else 0.0
