"""What a one-pass metanet has to beat on the problems that it is judged by, computed by ordinary training.

Legend: n networks, each with a problem; N examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import num_networks
from amortopt.meta.one_pass.data import Held
from amortopt.tasks import Examples, Objective, evaluate_many, init_many
from amortopt.tasks.problem import Which
from amortopt.training import Stepper, train_epochs, train_many

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Learning rates that SGD is tuned over."""
_MOST_TUNED = 16
"""Problems that the rate is tuned on; one for all problems."""


@dataclass(frozen=True, eq=False)
class Reached:
    """What n networks have reached on the examples that they are judged by.

    Attributes:
        loss: [n].
        score: [n]; see [Objective][amortopt.tasks.Objective].
    """

    loss: Tensor
    score: Tensor


def tuned_rate(
    module: nn.Module, held: Held, which: Which, objective: Objective, *, epochs: int, seed: int = 0
) -> float:
    """The learning rate of SGD that has the lowest mean loss on the examples that problems are judged by.

    Args:
        module: Architecture.
        held: Starts [n, ...], examples to train on and examples to be judged by.
        which: Name of the latter.
        objective: Of all problems.
        epochs: Passes over the data.
        seed: Seed of the order of examples.
    """
    some = slice(0, _MOST_TUNED)
    count = len(next(iter(held.params.values()))[some])
    rates = torch.tensor(RATES).repeat_interleave(count)
    # [rates * n]: all problems at the first rate, then at the next one.
    params = {name: p[some].repeat(len(RATES), *[1] * (p.ndim - 1)) for name, p in held.params.items()}
    read, judged = (_repeated(part.of(some), len(RATES)) for part in (held.read, held.data[which]))
    reached = _sgd(module, params, read, judged, objective, rates.to(read.x.device), epochs, seed)
    losses = torch.nan_to_num(reached.loss, nan=math.inf).unflatten(0, (len(RATES), count)).mean(1)
    return RATES[int(losses.argmin())]


def trained_by_sgd(
    module: nn.Module,
    held: Held,
    which: Which,
    objective: Objective,
    *,
    rate: float,
    epochs: int,
    seed: int = 0,
) -> Reached:
    """SGD with momentum 0.9 and a cosine schedule from the same starts and on the same examples as a pass.

    Other arguments are those of [tuned_rate][amortopt.meta.one_pass.rivals.tuned_rate].
    """
    return _sgd(module, held.params, held.read, held.data[which], objective, rate, epochs, seed)


def trained_on_all(
    module: nn.Module,
    pooled: Examples,
    held: dict[Which, Held],
    objective: Objective,
    *,
    steps: int = 300,
    seed: int = 0,
) -> dict[Which, Reached]:
    """One network, trained on all training problems at once, on problems that are held out.

    It tells whether problems have their targets in common: where class 3 means something else in every
    problem, it is no better than chance.

    Args:
        module: Architecture; it starts from weights that are drawn anew.
        pooled: Examples of the training problems, [P, N, ...] with a mask.
        held: Part -> problems.
        objective: Of all problems.
        steps: Steps of Adam, of 256 examples each.
        seed: Seed of the start and the examples.
    """
    params = init_many(lambda: module, [seed])
    device = pooled.x.device
    params = {name: p.to(device) for name, p in params.items()}
    generator = torch.Generator(device).manual_seed(seed)
    places = torch.arange(pooled.x.shape[0] * pooled.x.shape[1], device=device)
    if pooled.mask is not None:
        places = places[pooled.mask.flatten()]

    def draw(step: int, networks: Tensor) -> Examples:
        at = places[torch.randint(len(places), (256,), generator=generator, device=device)]
        return Examples(pooled.x.flatten(0, 1)[at], pooled.y.flatten(0, 1)[at])

    stepper = Stepper("adam", learning_rate=0.003, schedule="cosine")
    common = train_many(module, params, draw, objective, stepper, steps=steps).params
    results: dict[Which, Reached] = {}
    for which, part in held.items():
        many = {name: p.expand(num_networks(part.params), *p.shape[1:]) for name, p in common.items()}
        results[which] = Reached(*evaluate_many(module, many, part.data[which], objective))
    return results


def _sgd(
    module: nn.Module,
    params: Params,
    read: Examples,
    judged: Examples,
    objective: Objective,
    rate: float | Tensor,
    epochs: int,
    seed: int,
) -> Reached:
    # Small batches where there are few examples: otherwise an epoch has hardly a step.
    size = 32 if len(read) <= 1000 else 128
    stepper = Stepper("sgd", learning_rate=rate, schedule="cosine")
    trained = train_epochs(
        module, params, read, objective, stepper, epochs=epochs, seed=seed, batch_size=size
    )
    return Reached(*evaluate_many(module, trained.params, judged, objective))


def _repeated(examples: Examples, times: int) -> Examples:
    tensors: Sequence[Tensor | None] = (examples.x, examples.y, examples.mask)
    x, y, mask = (None if t is None else t.repeat(times, *[1] * (t.ndim - 1)) for t in tensors)
    assert x is not None and y is not None
    return Examples(x, y, shared=False, mask=mask)
