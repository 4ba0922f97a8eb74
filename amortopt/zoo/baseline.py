"""What one pass is held against: networks trained a little, then fine-tuned by SGD or Adam, many at once.

Legend: B networks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import num_networks
from amortopt.tasks import Examples, Problem, init_many, loss_and_grad_many
from amortopt.zoo.config import ZooConfig
from amortopt.zoo.draw import draw_table, epoch_order, noise_generator
from amortopt.zoo.train import train_many

OptimizerName: TypeAlias = Literal["sgd", "adam"]
Schedule: TypeAlias = Literal["constant", "cosine"]

START_EPOCHS = 13
"""Starting networks are trained for 0 to this many epochs, as in the recipes of the zoos."""


def starting_networks(
    problem: dict[str, Any],
    family: dict[str, Any],
    *,
    count: int,
    seed: int,
    recipe: Mapping[str, Any] | None = None,
) -> Params:
    """Networks trained a little: drawn as the zoos' recipes say, but with a seed of their own.

    Args:
        problem: ``problem.to_config()``.
        family: ``family.to_config()``.
        count: Number of networks B.
        seed: Takes the place of the zoo's seed; another one gives other networks.
        recipe: Other keys of the zoo's recipe, such as ``learning_rate`` or ``epochs``, where they are not
            those of [ZooConfig][amortopt.zoo.ZooConfig] with 0 to 13 epochs. Its count, seed, problem and
            family are not read.

    Returns:
        Params [B, ...].

    Raises:
        ValueError: If problem or family do not exist or do not fit, or the recipe has an unknown key.
    """
    keys: dict[str, Any] = {"epochs": START_EPOCHS} | dict(recipe or {})
    if unknown := keys.keys() - ZooConfig.__dataclass_fields__.keys():
        known = ", ".join(ZooConfig.__dataclass_fields__)
        raise ValueError(
            f"recipe: got {', '.join(sorted(unknown))}, expected keys of a zoo's recipe: {known}"
        )
    config = ZooConfig(**(keys | {"problem": problem, "family": family, "count": count, "seed": seed}))
    table, made = draw_table(config), config.make_family()
    with torch.random.fork_rng(devices=[]):
        module = made.build()
    return train_many(
        module,
        init_many(made.build, table["seed"].tolist(), table["init_scale"].tolist()),
        config.make_problem().split("train"),
        config.make_problem(),
        learning_rate=torch.as_tensor(table["learning_rate"]),
        epochs=table["epochs"],
        seed=seed,
        batch_size=config.batch_size,
        momentum=config.momentum,
        input_noise=config.input_noise,
        l1=config.l1,
        weight_decay=config.weight_decay,
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
    data: Examples,
    problem: Problem,
    *,
    optimizer: OptimizerName = "sgd",
    learning_rate: float | Tensor,
    schedule: Schedule = "cosine",
    epochs: int,
    seed: int,
    batch_size: int = 128,
    input_noise: float = 0.0,
    l1: float | Tensor = 0.0,
    proximal: bool = False,
    stops: Collection[int] = (),
    on_stop: Callable[[int, float, Params], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> Finetuned:
    r"""Train stacked networks on, vectorised: all networks take a step at once.

    The objective is the problem's loss plus :math:`\lambda \lVert\theta\rVert_1`, over all weights and
    biases. Without ``proximal`` its (sub)gradient goes to torch.optim.SGD's update with momentum 0.9, or to
    torch.optim.Adam's with its defaults. With ``proximal`` the gradient of the loss alone does, and every
    step ends with a soft threshold, :math:`\theta \leftarrow \operatorname{sign}(\theta)\max(|\theta|-t, 0)`,
    which leaves weights that are exactly zero:

    - SGD: t is learning rate times λ, and what the threshold moved counts in the momentum:
      :math:`\theta_{k+1} = \operatorname{prox}(\theta_k - \eta g_k + 0.9\,(\theta_k - \theta_{k-1}))`
      (iterative soft-thresholding with inertia, Ochs et al. 2014). Momentum that did not know of the
      threshold would minimise the loss plus a tenth of λ.
    - Adam: t is that divided by the same root of the mean squared gradient as the step (Yun et al. 2021).

    The cosine schedule falls with every step, from the learning rate to 0 at the end of the last epoch. All
    networks read the same minibatches.

    Args:
        module: Architecture; its own params are not read.
        params: [B, ...]; not modified.
        data: Training examples, on the params' device.
        problem: Gives the loss.
        optimizer: ``"sgd"`` or ``"adam"``.
        learning_rate: One for all networks, or one per network [B].
        schedule: ``"constant"`` or ``"cosine"``.
        epochs: Passes over the data.
        seed: Seed of order and noise.
        batch_size: Examples per step; the last step of an epoch may have fewer.
        input_noise: Standard deviation of Gaussian noise on the inputs, in units of the standardised inputs.
        l1: Strength λ >= 0, one for all networks or one per network [B].
        proximal: Whether λ acts by soft thresholds instead of by its subgradient.
        stops: Numbers of epochs after which ``on_stop`` is called.
        on_stop: Called with epochs done, seconds of training so far and params, which go on changing: copy
            what is to stay. Its own time does not count.
        on_epoch: Called after every epoch with its number from 1, for a progress bar. Does not count either.

    Returns:
        Params and seconds.

    Raises:
        ValueError: If optimizer or schedule is neither of the two, λ is negative or not finite, or learning
            rate or λ are neither one nor B.
    """
    if optimizer not in _UPDATES:
        raise ValueError(f"optimizer: got {optimizer!r}, expected one of {', '.join(_UPDATES)}")
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"schedule: got {schedule!r}, expected constant or cosine")
    count, device = num_networks(params), data.x.device
    rate = _per_network("learning_rate", learning_rate, count, device)
    strength = _per_network("l1", l1, count, device)
    penalised = bool((strength > 0).any())
    theta = {name: p.clone() for name, p in params.items()}
    rates, strengths = (
        {name: value.to(p.dtype).view(-1, *[1] * (p.ndim - 1)) for name, p in theta.items()}
        for value in (rate, strength)
    )
    state = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in theta.items()}
    update, threshold = _UPDATES[optimizer]
    steps, step, seconds = epochs * math.ceil(len(data) / batch_size), 0, 0.0
    for epoch in range(epochs):
        started = time.perf_counter()
        noise = noise_generator(seed, epoch, device)
        for batch in epoch_order(seed, epoch, len(data)).to(device).split(batch_size):
            factor = 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / steps))
            step += 1
            part = data.take(batch)
            part = replace(part, x=problem.augment(part.x, input_noise, noise))
            for name, g in loss_and_grad_many(module, theta, part, problem.objective)[1].items():
                p, lam = theta[name], strengths[name]
                if penalised and not proximal:
                    g = g.addcmul(p.sign(), lam)
                direction, scale = update(g, *state[name], step)
                p.addcmul_(direction, rates[name], value=-factor * scale)
                if penalised and proximal:
                    threshold(p, factor * rates[name], lam, *state[name], step)
        _wait_for(device)
        seconds += time.perf_counter() - started
        if on_stop is not None and epoch + 1 in stops:
            on_stop(epoch + 1, seconds, theta)
        if on_epoch is not None:
            on_epoch(epoch + 1)
    return Finetuned(theta, seconds)


def _per_network(name: str, value: float | Tensor, count: int, device: torch.device) -> Tensor:
    """One value per network [B]."""
    values = torch.as_tensor(value, dtype=torch.float64, device=device)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != count):
        raise ValueError(
            f"{name}: got shape {tuple(values.shape)}, expected a number or {count}, one per network"
        )
    if not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError(f"{name}: got {values.tolist()}, expected finite numbers >= 0")
    return values.expand(count)


def _sgd(g: Tensor, velocity: Tensor, _: Tensor, step: int) -> tuple[Tensor, float]:
    return velocity.mul_(0.9).add_(g), 1.0


def _adam(g: Tensor, mean: Tensor, square: Tensor, step: int) -> tuple[Tensor, float]:
    mean.lerp_(g, 0.1)
    square.mul_(0.999).addcmul_(g, g, value=0.001)
    return mean / _size(square, step), 1 / (1 - 0.9**step)


def _size(square: Tensor, step: int) -> Tensor:
    """What Adam divides by."""
    return square.sqrt().div_(math.sqrt(1 - 0.999**step)).add_(1e-8)


def _shrink_sgd(p: Tensor, rate: Tensor, lam: Tensor, velocity: Tensor, _: Tensor, step: int) -> None:
    # A soft threshold subtracts p, clipped to ±t. Over the rate, that is a subgradient of λ|p|.
    t = rate * lam
    moved = torch.minimum(torch.maximum(p, -t), t)
    p.sub_(moved)
    velocity.add_(moved / rate.clamp(min=torch.finfo(p.dtype).tiny))


def _shrink_adam(p: Tensor, rate: Tensor, lam: Tensor, mean: Tensor, square: Tensor, step: int) -> None:
    t = rate * lam / _size(square, step)
    p.sub_(torch.minimum(torch.maximum(p, -t), t))


_UPDATES: dict[str, tuple[Callable[..., tuple[Tensor, float]], Callable[..., None]]] = {
    "sgd": (_sgd, _shrink_sgd),
    "adam": (_adam, _shrink_adam),
}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
