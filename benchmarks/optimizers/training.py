"""Training of many base networks at once, by any optimizer, on the same minibatches.

Legend: B networks, S seeds, R candidates (B = R S, seeds fastest), T steps.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.meta.rule.inner import InnerProblem
from amortopt.tasks import Examples, evaluate_many
from amortopt.training import Stepper, train_many
from benchmarks.harness.command import Advance
from benchmarks.optimizers.steppers import Learned

CHUNK = 32
"""Networks that are trained at once."""


@dataclass(frozen=True)
class Run:
    """What came out of training.

    Attributes:
        losses: Loss of every step's minibatch, before the step, [T, B].
        params: Step -> parameters after so many steps, [B, ...].
    """

    losses: Tensor
    params: dict[int, Params]


class Starts:
    """Initialisations and streams of minibatches, the same for every optimizer.

    Args:
        inner: The base networks.
        purpose: ``tuning``, ``final`` or ``test``: each has other seeds.
        seeds: Number of initialisations S.
    """

    def __init__(self, inner: InnerProblem, purpose: str, seeds: int) -> None:
        self.inner, self.seeds = inner, seeds
        self._seed = zlib.crc32(purpose.encode())
        flat = inner.init(seeds, torch.Generator().manual_seed(self._seed))
        self.params: Params = inner.layout.unpack(flat)

    def stream(self, repeats: int = 1) -> Callable[..., Examples]:
        """The minibatches from the first on, every call gives the next: [R S, n, ...]."""
        generator = torch.Generator().manual_seed(self._seed + 1)

        def draw(*_: object) -> Examples:
            parts = self.inner.draw(self.seeds, generator)
            return Examples(*(part.repeat(repeats, *[1] * (part.ndim - 1)) for part in parts), shared=False)

        return draw


def train(
    starts: Starts,
    stepper: Stepper | Learned,
    steps: int,
    *,
    repeats: int = 1,
    marks: Iterable[int] = (),
    advance: Advance = lambda count: None,
) -> Run:
    """Train every initialisation ``repeats`` times.

    Args:
        starts: Initialisations and minibatches.
        stepper: Optimizer of B = repeats x seeds networks, seeds fastest.
        steps: Steps T.
        repeats: Candidates R.
        marks: Steps after which the parameters are kept, beside the last.
        advance: Called with the network-steps done since.

    Returns:
        The run.
    """
    inner, keep, kept = starts.inner, {steps, *marks}, {}
    start = {name: p.repeat(repeats, *[1] * (p.ndim - 1)) for name, p in starts.params.items()}
    every = math.gcd(*keep, 50)

    def on_steps(done: int, _: float, params: Params) -> None:
        if done in keep:
            kept[done] = {name: p.clone() for name, p in params.items()}
        advance(every * repeats * starts.seeds)

    optimizer: Any = stepper
    trained = train_many(
        inner.network, start, starts.stream(repeats), inner.problem.objective, optimizer, steps=steps,
        every=every, on_steps=on_steps,
    )  # fmt: skip
    return Run(trained.losses, kept)


def train_loss(inner: InnerProblem, params: Params, examples: int | None = None) -> Tensor:
    """Loss on the train split, or on the same part of it for all.

    Args:
        inner: The base networks.
        params: Their parameters [B, ...].
        examples: Size of the part; None is the whole split.

    Returns:
        [B]; infinite where it is not finite.
    """
    data = inner.split("train")
    if examples is not None and examples < len(data):
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:examples]
        data = data.take(chosen.to(data.x.device))
    losses, _ = evaluate_many(inner.network, params, data, inner.problem.objective, chunk=128)
    return losses.nan_to_num(float("inf"), float("inf"), float("inf"))
