"""Many base networks trained at once; no Python loop over networks.

Legend: B networks, N examples, n examples per step, T steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import num_networks
from amortopt.tasks import Examples, Objective, loss_and_grad_many
from amortopt.training.stepper import Stepper


@dataclass(frozen=True, eq=False)
class Trained:
    """Networks after training.

    Attributes:
        params: [B, ...].
        losses: Objective of every network on every step's examples, before the step, [T, B]; NaN after a
            network's last step.
        seconds: Time of all steps of all networks together, without what callbacks took.
    """

    params: Params
    losses: Tensor
    seconds: float


def train_many(
    module: nn.Module,
    params: Params,
    draw: Callable[[int, Tensor], Examples],
    objective: Objective,
    stepper: Stepper,
    *,
    steps: int | np.ndarray,
    every: int = 1,
    on_steps: Callable[[int, float, Params], None] | None = None,
) -> Trained:
    """Train stacked networks, each for its number of steps.

    The networks are sorted by their number of steps, so that those that are done stand at the end and cost
    nothing.

    Args:
        module: Architecture; its own params are not read.
        params: Qualified name -> [B, ...]; not modified.
        draw: Called with the number of the step, from 0, and the positions [b] of the networks that train;
            returns their examples, shared or [b, n, ...], on the params' device.
        objective: What is minimised, plus the stepper's L1 strength times the L1 norm.
        stepper: The optimizer.
        steps: Number of steps T, one for all networks or int [B].
        every: Steps between two calls of ``on_steps``; it is called after the last one too.
        on_steps: Called with the number of steps done, seconds of training and params [B, ...]. What it takes
            does not count as training.

    Raises:
        ValueError: If a setting of the stepper is for another number of networks, or outputs do not fit the
            objective.
    """
    device = next(iter(params.values())).device
    lasting = np.broadcast_to(np.asarray(steps, dtype=np.int64), (num_networks(params),))
    order = torch.from_numpy(np.argsort(-lasting, kind="stable"))
    rank, back = order.to(device), torch.argsort(order).to(device)
    theta = {name: p[rank] for name, p in params.items()}
    state = stepper.start(theta)
    stepper, lengths = stepper.of(order), torch.from_numpy(lasting.copy())[order]
    total, losses, seconds = int(lasting.max(initial=0)), [], 0.0
    penalty = stepper.penalty
    started = time.perf_counter()
    for step in range(total):
        active = int((lasting > step).sum())
        view = {name: p[:active] for name, p in theta.items()}
        if isinstance(penalty, Tensor) and penalty.ndim:
            penalty = penalty[:active]
        loss, grads = loss_and_grad_many(module, view, draw(step, rank[:active]), objective, l1=penalty)
        stepper.step(theta, grads, state, steps=lengths)
        losses.append(loss)
        if on_steps is not None and ((step + 1) % every == 0 or step + 1 == total):
            seconds += _since(started, device)
            on_steps(step + 1, seconds, {name: p[back] for name, p in theta.items()})
            started = time.perf_counter()
    seconds += _since(started, device)
    table = torch.full((total, len(rank)), math.nan, device=device)  # [T, B]
    for step, loss in enumerate(losses):
        table[step, : len(loss)] = loss
    return Trained({name: p[back] for name, p in theta.items()}, table[:, back], seconds)


def train_epochs(
    module: nn.Module,
    params: Params,
    examples: Examples,
    objective: Objective,
    stepper: Stepper,
    *,
    epochs: int | np.ndarray,
    seed: int,
    batch_size: int = 128,
    input_noise: float = 0.0,
    stops: Collection[int] = (),
    on_stop: Callable[[int, float, Params], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> Trained:
    """Train stacked networks for passes over the data, which all of them go through in the same order.

    Other arguments, value and errors are those of [train_many][amortopt.training.train_many].

    Args:
        examples: On the params' device; shared by all networks or one set per network.
        epochs: Passes over the data, one number for all networks or int [B].
        seed: Seed of order and noise.
        batch_size: Examples per step; the last step of an epoch may have fewer.
        input_noise: Standard deviation of Gaussian noise on the inputs, in units of the standardised inputs.
        stops: Numbers of epochs after which ``on_stop`` is called.
        on_stop: Called with epochs done, seconds of training and params [B, ...].
        on_epoch: Called after every epoch with its number from 1, for a progress bar.
    """
    draw = EpochBatches(examples, batch_size, seed, input_noise)

    def on_steps(done: int, seconds: float, now: Params) -> None:
        epoch = done // draw.steps
        if on_stop is not None and epoch in stops:
            on_stop(epoch, seconds, now)
        if on_epoch is not None:
            on_epoch(epoch)

    watched = on_stop is not None or on_epoch is not None
    return train_many(
        module,
        params,
        draw,
        objective,
        stepper,
        steps=np.asarray(epochs) * draw.steps,
        every=draw.steps,
        on_steps=on_steps if watched else None,
    )


class EpochBatches:
    """Minibatches of passes over the data, a function of seed and epoch alone; drawn in order.

    All networks read the same positions of their examples. A network that has fewer examples than others
    reads its own again until the epoch ends, so every minibatch is full.

    Args:
        examples: Shared by all networks or one set per network.
        size: Examples per step n.
        seed: Seed of order and noise.
        noise: Standard deviation of noise on the inputs.

    Attributes:
        steps: Minibatches of an epoch.
    """

    def __init__(self, examples: Examples, size: int, seed: int, noise: float = 0.0) -> None:
        if examples.shared and examples.mask is not None:
            examples = replace(examples.take(examples.mask), mask=None)
        self.examples, self.size, self.seed, self.noise = examples, size, seed, noise
        self.steps = math.ceil(len(examples) / size)
        self._valid: Tensor | None = None
        if examples.mask is not None:
            # Positions of each network's examples, before those of padding: [B, N].
            self._valid = torch.argsort(~examples.mask, dim=1, stable=True)
            self._sizes = examples.mask.sum(1, keepdim=True)

    def __call__(self, step: int, networks: Tensor) -> Examples:
        """The minibatch of a step for networks at positions [b]; steps have to be asked for in order."""
        epoch, k = divmod(step, self.steps)
        device = self.examples.x.device
        if k == 0:
            self._order = epoch_order(self.seed, epoch, len(self.examples)).to(device)
            self._generator = noise_generator(self.seed, epoch, device)
        index = self._order[k * self.size : (k + 1) * self.size]
        if self._valid is not None:
            index = self._valid.gather(1, index % self._sizes)
        part = self.examples.take(index).of(networks)
        return replace(part, mask=None).noisy(self.noise, self._generator)


def epoch_order(seed: int, epoch: int, examples: int) -> Tensor:
    """Order of the examples in an epoch, the same for all networks: int64 [examples]."""
    return torch.randperm(examples, generator=_generator(seed, 1, epoch))


def noise_generator(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    """Source of an epoch's input noise, the same for all networks that share their examples."""
    return _generator(seed, 2, epoch, device=device)


def _generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state >> 1))


def _since(started: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
