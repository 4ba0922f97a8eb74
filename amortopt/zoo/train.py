"""Many base networks at once: train by SGD. Maths only, no files.

Legend: B networks, N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.tasks import Examples, Problem, loss_and_grad_many
from amortopt.zoo.draw import epoch_order, noise_generator


def train_many(
    module: nn.Module,
    params: Params,
    data: Examples,
    problem: Problem,
    *,
    learning_rate: Tensor,
    epochs: np.ndarray,
    seed: int,
    batch_size: int = 128,
    momentum: float = 0.9,
    input_noise: float = 0.0,
    l1: float = 0.0,
    weight_decay: float = 0.0,
    on_epoch: Callable[[int], None] | None = None,
) -> Params:
    """Train stacked networks by SGD with momentum, each with its own learning rate and number of epochs.

    The update is torch.optim.SGD's. All networks read the same minibatches; the networks are sorted by their
    number of epochs, so that those that are done stand at the end and cost nothing.

    Args:
        module: Architecture; its own params are not read.
        params: Qualified name -> [B, ...]; not modified.
        data: Training examples, on the params' device.
        problem: Gives the loss.
        learning_rate: [B].
        epochs: Passes over the data per network, int [B].
        seed: Seed of order and noise.
        batch_size: Examples per step; the last step of an epoch may have fewer.
        momentum: Momentum of SGD.
        input_noise: Standard deviation of Gaussian noise on the inputs.
        l1: Factor of the sum of absolute params, added to the loss.
        weight_decay: Factor of params, added to the gradient.
        on_epoch: Called after every epoch with the number of networks that it trained.

    Returns:
        Trained params, same names and shapes.
    """
    rank = np.argsort(-epochs, kind="stable")
    lasting = epochs[rank]
    by_rank = torch.as_tensor(rank, device=data.x.device)
    theta = {name: p[by_rank] for name, p in params.items()}
    velocity = {name: torch.zeros_like(p) for name, p in theta.items()}
    step_size = {
        name: learning_rate[by_rank].to(p.dtype).view(-1, *[1] * (p.ndim - 1)) for name, p in theta.items()
    }
    for epoch in range(int(lasting[0]) if len(lasting) else 0):
        active = int((lasting > epoch).sum())
        noise = noise_generator(seed, epoch, data.x.device)
        order = epoch_order(seed, epoch, len(data.y)).to(data.x.device)
        for batch in order.split(batch_size):
            part = data.take(batch)
            part = replace(part, x=problem.augment(part.x, input_noise, noise))
            view = {name: p[:active] for name, p in theta.items()}
            for name, g in loss_and_grad_many(module, view, part, problem.objective)[1].items():
                p = view[name]
                if weight_decay:
                    g = g + weight_decay * p
                if l1:
                    g = g + l1 * p.sign()
                v = velocity[name][:active].mul_(momentum).add_(g)
                p.addcmul_(v, step_size[name][:active], value=-1)
        if on_epoch is not None:
            on_epoch(active)
    unsort = torch.argsort(by_rank)
    return {name: p[unsort] for name, p in theta.items()}
