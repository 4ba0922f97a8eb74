"""Baselines that read weights, and how all readers are trained and scored: statistics, Deep Set.

All are functionals (see `amortopt.metanets.Functional`), so they differ in what they read and in nothing
else. Statistics and Deep Set read the blocks of the extracted symmetry (so the three gates of a GRU are
tensors of their own), each divided by its root mean square over the train networks. Legend: B networks,
c channels.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.meta.functional.augment import Augmentation
from amortopt.metanets import Functional
from amortopt.reading.scores import tau
from amortopt.symmetry import SymmetrySpec
from amortopt.symmetry.blocks import read_all

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def mlp(inputs: int, width: int, outputs: int = 1, dropout: float = 0.0) -> nn.Sequential:
    """Two hidden layers."""
    first = nn.Linear(inputs, width), nn.SiLU(), nn.Dropout(dropout)
    second = nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout)
    return nn.Sequential(*first, *second, nn.Linear(width, outputs))


class OfBlocks(Functional):
    """A functional of the blocks of a spec, each divided by its size.

    Args:
        spec: Symmetry of the networks.
        head: What the numbers mean.
        width: Size of the module.
        dropout: Of its MLP.
    """

    scale: Tensor

    def __init__(
        self, spec: SymmetrySpec, *, head: Mapping[str, Any], width: int, dropout: float = 0.0
    ) -> None:
        super().__init__(spec, head=head, width=width, dropout=dropout)
        self.shapes = {block.label: block.shape for block in spec.blocks if not block.buffer}
        self.register_buffer("scale", torch.ones(len(self.shapes)))

    @torch.no_grad()
    def standardize(self, params: Params) -> None:
        for number, value in enumerate(read_all(self.spec, params).values()):
            size = value.square().mean().sqrt()
            self.scale[number] = torch.where(size > 0, size, 1.0)

    def raw(self, networks: Sequence[Params]) -> list[Tensor]:
        return [self.of_blocks(self._scaled(params)) for params in networks]

    def _scaled(self, params: Params) -> Params:
        blocks = read_all(self.spec, params)
        return {name: x / s for (name, x), s in zip(blocks.items(), self.scale, strict=True)}

    def of_blocks(self, blocks: Params) -> Tensor:
        """Block -> [B, *shape] to the head's numbers [B, k]."""
        raise NotImplementedError


class StatNN(OfBlocks):
    """Mean, variance and quantiles of every tensor, then an MLP (Unterthiner et al. 2020)."""

    def __init__(
        self, spec: SymmetrySpec, *, head: Mapping[str, Any], width: int, dropout: float = 0.0
    ) -> None:
        super().__init__(spec, head=head, width=width, dropout=dropout)
        count = len(self.shapes) * (2 + len(QUANTILES))
        self.norm = nn.BatchNorm1d(count, affine=False)  # statistics have very different sizes
        self.mlp = mlp(count, width, self.head.raw, dropout=dropout)

    def of_blocks(self, blocks: Params) -> Tensor:
        return self.mlp(self.norm(statistics(blocks)))


def statistics(params: Params) -> Tensor:
    """Seven numbers per tensor, [B, 7 x tensors]."""
    columns: list[Tensor] = []
    for value in params.values():
        flat = value.flatten(1)
        levels = torch.tensor(QUANTILES, dtype=flat.dtype, device=flat.device)
        columns += [flat.mean(1), flat.var(1, unbiased=False), *flat.quantile(levels, dim=1)]
    return torch.stack(columns, dim=1)


class DeepSet(OfBlocks):
    """Every parameter embedded by its tensor's MLP, the mean per tensor, then an MLP (Zaheer et al. 2017).

    Two such layers: the second one also reads the first one's mean. ``width`` is the channels c of a
    parameter; the MLP has four times as many units.
    """

    def __init__(
        self, spec: SymmetrySpec, *, head: Mapping[str, Any], width: int, dropout: float = 0.0
    ) -> None:
        super().__init__(spec, head=head, width=width, dropout=dropout)
        self.first = nn.ParameterList([_uniform(1, 2, width) for _ in self.shapes])
        self.second = nn.ModuleList([nn.Linear(width, width) for _ in self.shapes])
        self.context = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in self.shapes])
        self.mlp = mlp(len(self.shapes) * width, 4 * width, self.head.raw, dropout=dropout)

    def of_blocks(self, blocks: Params) -> Tensor:
        pooled: list[Tensor] = []
        for k, value in enumerate(blocks.values()):
            scale, shift = self.first[k][0]
            x = F.silu(value.flatten(1)[..., None] * scale + shift)  # [B, elements, c]
            x = F.silu(self.second[k](x) + self.context[k](x.mean(1, keepdim=True)))
            pooled.append(x.mean(1))
        return self.mlp(torch.cat(pooled, dim=1))


class FlatMlp(OfBlocks):
    """An MLP on all weights in one row, each standardized over the networks.

    What it is given should be canonical: it knows no symmetry. Of networks in one gauge, weights differ by
    little beside what they have in common.
    """

    def __init__(
        self, spec: SymmetrySpec, *, head: Mapping[str, Any], width: int, dropout: float = 0.0
    ) -> None:
        super().__init__(spec, head=head, width=width, dropout=dropout)
        count = sum(math.prod(shape) for shape in self.shapes.values())
        self.norm = nn.BatchNorm1d(count, affine=False)
        self.mlp = mlp(count, width, self.head.raw, dropout=dropout)

    def of_blocks(self, blocks: Params) -> Tensor:
        return self.mlp(self.norm(torch.cat([value.flatten(1) for value in blocks.values()], dim=1)))


def _uniform(fan_in: int, *shape: int) -> nn.Parameter:
    bound = math.sqrt(3 / fan_in)
    return nn.Parameter(torch.empty(1, *shape).uniform_(-bound, bound))


@dataclass(frozen=True)
class Data:
    """Networks of one part of the zoo.

    Attributes:
        params: Name -> [n, ...].
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
        weight_decay: Of AdamW.
    """

    steps: int = 2000
    batch: int = 64
    checks: int = 10
    weight_decay: float = 0.0


@dataclass
class Trained:
    """A trained predictor, its score on the val networks, when it was reached, what the training took."""

    model: Functional
    val_score: float
    best_step: int
    cpu_seconds: float


def train(
    make: Callable[[], Functional],
    data: Data,
    val: Data,
    budget: Budget,
    *,
    learning_rate: float,
    seed: int,
    augment: Augmentation | None = None,
    on_step: Callable[[float], None] | None = None,
) -> Trained:
    """Train by the head's loss, such as cross-entropy: AdamW, a linear warm-up, a cosine decay.

    Args:
        make: Makes the untrained predictor.
        data: Train networks.
        val: Val networks, on which one of the states is chosen, by accuracy or Kendall's tau.
        budget: Steps and networks per step.
        learning_rate: Highest learning rate.
        seed: Of initialisation, order and augmentation.
        augment: What is done to the networks of every step.
        on_step: Called with 1 after every step.

    Returns:
        The predictor in the state that was best on the val networks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        model.standardize(data.params)
        model.head.observe(data.target)
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=budget.weight_decay)
        began, best = time.process_time(), (-math.inf, 0, model.state_dict())
        order = torch.empty(0, dtype=torch.long)
        for step in range(budget.steps):
            if len(order) < budget.batch:
                order = torch.randperm(len(data), generator=generator)
            rows, order = order[: budget.batch], order[budget.batch :]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * warmup_cosine(step, budget.steps)
            params = {name: p[rows] for name, p in data.params.items()}
            params = params if augment is None else augment(params, model.spec, generator)
            (raw,) = model.raw([params])
            loss = model.head.loss(raw, data.target[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % max(1, budget.steps // budget.checks) == 0:
                reached = score(predict(model, val.params), val.target)
                if reached > best[0]:
                    best = (reached, step + 1, copy.deepcopy(model.state_dict()))
            if on_step is not None:
                on_step(1)
        model.load_state_dict(best[2])
    return Trained(model, best[0], best[1], time.process_time() - began)


def warmup_cosine(step: int, steps: int) -> float:
    """Factor on the learning rate: rises over the first twentieth of the steps, then falls to zero."""
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def predict(model: Functional, params: Params, chunk: int = 256) -> Tensor:
    """The head's answers, in eval mode: numbers [n], or logits [n, C]."""
    training = model.training
    model.eval()
    count = len(next(iter(params.values())))
    parts = [model({k: p[i : i + chunk] for k, p in params.items()}) for i in range(0, count, chunk)]
    model.train(training)
    return torch.cat(parts).squeeze(-1)


def score(answers: Tensor, target: Tensor) -> float:
    """Accuracy of logits [n, C], Kendall's tau of numbers [n]."""
    if answers.ndim == 2:
        return (answers.argmax(-1) == target).double().mean().item()
    return tau(answers, target)
