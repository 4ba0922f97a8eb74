"""Training that a demo compares a pass with: copies of the networks, and the curve that they draw.

Legend: B networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

from torch import nn

from amortopt._types import Params
from amortopt.cli.picture import Curve
from amortopt.functional.networks import num_networks
from amortopt.tasks import Examples, Objective
from amortopt.training import Stepper, train_epochs

Advance = Callable[[str, int], None]
"""Called with what is being done and the epochs that were done since."""

NOISE = 0.4
"""Standard deviation of the noise on the inputs that training may have: that of meta-training."""
STOPS = (1, 2, 3, 5, 8, 12, 18, 25, 40, 60, 90, 120)
"""Epochs after which a curve has a point, beside the last."""


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call that was made before, in seconds."""
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return median(times)


def training_curve(
    curve: Curve,
    module: nn.Module,
    start: Params,
    examples: Examples,
    objective: Objective,
    stepper: Stepper,
    *,
    epochs: int,
    seed: int,
    tested: Callable[..., float],
    row: str,
    advance: Callable[[int], None],
    end: str,
    **options: Any,
) -> Curve:
    """Train copies of networks and draw how they get better.

    Args:
        curve: Label, colour and dashes of the curve.
        module: The networks' architecture.
        start: Networks [B, ...].
        examples: What they are trained on.
        objective: What is minimised.
        stepper: How.
        epochs: How long.
        seed: Seed of order and noise.
        tested: Mean score of params; with the name of a method and its seconds per network it writes a row.
        row: That name.
        advance: Called with 1 after every epoch.
        end: Text at the last point.
        **options: Further arguments of ``train_epochs``.

    Returns:
        The curve with a point at every stop, seconds being those per network.
    """
    count = num_networks(start)
    seconds: list[float] = []
    scores: list[float] = []

    def on_stop(_: int, elapsed: float, params: Params) -> None:
        seconds.append(elapsed / count)
        scores.append(tested(params))

    trained = train_epochs(
        module,
        start,
        examples,
        objective,
        stepper,
        epochs=epochs,
        seed=seed,
        stops=[*(stop for stop in STOPS if stop < epochs), epochs],
        on_stop=on_stop,
        on_epoch=lambda _: advance(1),
        **options,
    )
    tested(trained.params, row, trained.seconds / count)
    return replace(curve, seconds=seconds, accuracy=scores, names=[""] * (len(scores) - 1) + [end])
