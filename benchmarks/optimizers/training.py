"""Training of many base networks at once, by any optimizer, on the same minibatches.

Legend: B networks, S seeds, R candidates (B = R S, seeds fastest), N elements, T steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from amortopt.functional.networks import apply_many
from amortopt.meta.rule.inner import InnerProblem
from benchmarks.harness.command import Advance
from benchmarks.optimizers.steppers import Stepper

CHUNK = 32
"""Networks that are trained at once."""


@dataclass(frozen=True)
class Run:
    """What came out of training.

    Attributes:
        losses: Loss of every step's minibatch, before the step, [T, B].
        flat: Step -> parameters after so many steps, [B, N].
    """

    losses: Tensor
    flat: dict[int, Tensor]


class Starts:
    """Initialisations and streams of minibatches, the same for every optimizer.

    Args:
        inner: The base networks.
        purpose: ``tuning``, ``final`` or ``test``: each has seeds of its own.
        seeds: Number of initialisations S.
    """

    def __init__(self, inner: InnerProblem, purpose: str, seeds: int) -> None:
        self.inner, self.seeds = inner, seeds
        self._seed = zlib.crc32(purpose.encode())
        self.flat = inner.init(seeds, torch.Generator().manual_seed(self._seed))

    def stream(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """The minibatches from the first on, every call gives the next: [S, n, ...] twice."""
        generator = torch.Generator().manual_seed(self._seed + 1)
        return lambda: self.inner.draw(self.seeds, generator)


def train(
    starts: Starts,
    stepper: Stepper,
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
    kept, keep = {}, {steps, *marks}
    flat = starts.flat.repeat(repeats, 1)
    state, draw, losses = stepper.init(flat), starts.stream(), []
    for index in range(steps):
        x, y = (part.repeat(repeats, *[1] * (part.ndim - 1)) for part in draw())
        loss, grads = starts.inner.losses_and_grads(flat, x, y)
        flat, state = stepper.step(flat, grads, state, index)
        losses.append(loss)
        if index + 1 in keep:
            kept[index + 1] = flat.clone()
        advance(len(flat))
    return Run(torch.stack(losses), kept)


@torch.no_grad()
def train_loss(inner: InnerProblem, flat: Tensor, examples: int | None = None) -> Tensor:
    """Loss on the train split, or on the same part of it for all.

    Args:
        inner: The base networks.
        flat: Their parameters [B, N].
        examples: Size of the part; None is the whole split.

    Returns:
        [B]; infinite where it is not finite.
    """
    if examples is None or examples >= len(inner.split("train")):
        parts = [inner.evaluate(some, which="train", chunk=128) for some in flat.split(CHUNK)]
    else:
        data = inner.split("train")
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:examples]
        chosen = chosen.to(flat.device)
        parts = [_mean_loss(inner, some, data.x[chosen], data.y[chosen]) for some in flat.split(CHUNK)]
    return torch.cat(parts).nan_to_num(float("inf"), float("inf"), float("inf"))


def _mean_loss(inner: InnerProblem, flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
    params, total = inner.layout.unpack(flat), torch.zeros(len(flat), device=flat.device)
    for some, wanted in zip(x.split(128), y.split(128), strict=True):
        total += inner.problem.objective.loss(apply_many(inner.network, params, some), wanted) * len(some)
    return total / len(x)
