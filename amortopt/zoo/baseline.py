"""What one pass is held against: networks trained a little, then fine-tuned by SGD or Adam, many at once.

Legend: B networks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional import num_networks
from amortopt.tasks import Split, Task, init_many
from amortopt.zoo.config import ZooConfig
from amortopt.zoo.draw import draw_table, epoch_order, noise_generator
from amortopt.zoo.train import gradients_many, train_many

OptimizerName: TypeAlias = Literal["sgd", "adam"]
Schedule: TypeAlias = Literal["constant", "cosine"]

START_EPOCHS = 13
"""Starting networks are trained for 0 to this many epochs, as in the recipes of the zoos."""


def starting_networks(task: dict[str, Any], family: dict[str, Any], *, count: int, seed: int) -> Params:
    """Networks trained a little: drawn as the zoos' recipes say, but with a seed of their own.

    Args:
        task: ``task.to_config()``.
        family: ``family.to_config()``.
        count: Number of networks B.
        seed: Takes the place of the zoo's seed; another one gives other networks.

    Returns:
        Params [B, ...].

    Raises:
        ValueError: If task or family do not exist or do not fit.
    """
    config = ZooConfig(task=task, family=family, count=count, seed=seed, epochs=START_EPOCHS)
    table, made = draw_table(config), config.make_family()
    with torch.random.fork_rng(devices=[]):
        module = made.build()
    return train_many(
        module,
        init_many(made.build, table["seed"].tolist(), table["init_scale"].tolist()),
        config.make_task().split("train"),
        config.make_task(),
        learning_rate=torch.as_tensor(table["learning_rate"]),
        epochs=table["epochs"],
        seed=seed,
        batch_size=config.batch_size,
        momentum=config.momentum,
    )


@dataclass(frozen=True)
class Finetuned:
    """What ``finetune`` returns.

    Attributes:
        params: [B, ...].
        seconds: Time of all steps for all networks together, without what ``on_epoch`` took.
    """

    params: Params
    seconds: float


def finetune(
    module: nn.Module,
    params: Params,
    data: Split,
    task: Task,
    *,
    optimizer: OptimizerName = "sgd",
    learning_rate: float | Tensor,
    schedule: Schedule = "cosine",
    epochs: int,
    seed: int,
    batch_size: int = 128,
    input_noise: float = 0.0,
    stops: Collection[int] = (),
    on_stop: Callable[[int, float, Params], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> Finetuned:
    """Train stacked networks on, vectorised: all networks take a step at once.

    The updates are torch.optim.SGD's with momentum 0.9 and torch.optim.Adam's with its defaults. The cosine
    schedule falls with every step, from the learning rate to 0 at the end of the last epoch. All networks
    read the same minibatches.

    Args:
        module: Architecture; its own params are not read.
        params: [B, ...]; not modified.
        data: Training examples, on the params' device.
        task: Gives the loss.
        optimizer: ``"sgd"`` or ``"adam"``.
        learning_rate: One for all networks, or one per network [B].
        schedule: ``"constant"`` or ``"cosine"``.
        epochs: Passes over the data.
        seed: Seed of order and noise.
        batch_size: Examples per step; the last step of an epoch may have fewer.
        input_noise: Standard deviation of Gaussian noise on the inputs, in units of the standardised inputs.
        stops: Numbers of epochs after which ``on_stop`` is called.
        on_stop: Called with epochs done, seconds of training so far and params, which go on changing: copy
            what is to stay. Its own time does not count.
        on_epoch: Called after every epoch with its number from 1, for a progress bar. Does not count either.

    Returns:
        Params and seconds.

    Raises:
        ValueError: If optimizer or schedule is neither of the two.
    """
    if optimizer not in _UPDATES:
        raise ValueError(f"optimizer: got {optimizer!r}, expected one of {', '.join(_UPDATES)}")
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"schedule: got {schedule!r}, expected constant or cosine")
    rate = torch.as_tensor(learning_rate, device=data.x.device).expand(num_networks(params))
    theta = {name: p.clone() for name, p in params.items()}
    rates = {name: rate.to(p.dtype).view(-1, *[1] * (p.ndim - 1)) for name, p in theta.items()}
    state = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in theta.items()}
    steps, step, seconds = epochs * math.ceil(len(data) / batch_size), 0, 0.0
    for epoch in range(epochs):
        started = time.perf_counter()
        noise = noise_generator(seed, epoch, data.x.device)
        for batch in epoch_order(seed, epoch, len(data)).to(data.x.device).split(batch_size):
            factor = 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / steps))
            step += 1
            x = task.augment(data.x[batch], input_noise, noise)
            for name, g in gradients_many(module, theta, x, data.y[batch], task).items():
                direction, scale = _UPDATES[optimizer](g, *state[name], step)
                theta[name].addcmul_(direction, rates[name], value=-factor * scale)
        _wait_for(data.x.device)
        seconds += time.perf_counter() - started
        if on_stop is not None and epoch + 1 in stops:
            on_stop(epoch + 1, seconds, theta)
        if on_epoch is not None:
            on_epoch(epoch + 1)
    return Finetuned(theta, seconds)


def _sgd(g: Tensor, velocity: Tensor, _: Tensor, step: int) -> tuple[Tensor, float]:
    return velocity.mul_(0.9).add_(g), 1.0


def _adam(g: Tensor, mean: Tensor, square: Tensor, step: int) -> tuple[Tensor, float]:
    mean.lerp_(g, 0.1)
    square.mul_(0.999).addcmul_(g, g, value=0.001)
    size = square.sqrt().div_(math.sqrt(1 - 0.999**step)).add_(1e-8)
    return mean / size, 1 / (1 - 0.9**step)


_UPDATES: dict[str, Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, float]]] = {
    "sgd": _sgd,
    "adam": _adam,
}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
