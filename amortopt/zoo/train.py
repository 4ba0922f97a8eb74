"""Many base networks at once: train by SGD, evaluate. Maths only, no files.

Legend: B networks, N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import apply_many, num_networks
from amortopt.tasks import Problem, Split
from amortopt.zoo.draw import epoch_order, noise_generator


def train_many(
    module: nn.Module,
    params: Params,
    data: Split,
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
            x = problem.augment(data.x[batch], input_noise, noise)
            view = {name: p[:active] for name, p in theta.items()}
            for name, g in gradients_many(module, view, x, data.y[batch], problem).items():
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


def gradients_many(module: nn.Module, params: Params, x: Tensor, y: Tensor, problem: Problem) -> Params:
    """Gradient of each network's own loss, all networks reading the same examples.

    Args:
        module: Architecture; its own params are not read.
        params: Qualified name -> [B, ...]; not modified.
        x: Inputs [N, ...].
        y: Targets [N].
        problem: Gives the loss.

    Returns:
        Gradients, names and shapes of ``params``.
    """
    # A network's loss depends on its own params alone, so the gradient of the sum holds every network's own
    # gradient. One plain backward pass is a quarter faster here than vmap over per-network gradients.
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    total = problem.loss(apply_many(module, leaves, x), y).sum()
    grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


@torch.no_grad()
def evaluate_many(
    module: nn.Module, params: Params, data: Split, problem: Problem, *, chunk: int = 1000
) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of stacked networks.

    Args:
        module: Architecture; its own params are not read.
        params: Qualified name -> [B, ...].
        data: Examples, on the params' device.
        problem: Gives loss and accuracy, both means over examples.
        chunk: Examples per forward pass, which bounds the memory.

    Returns:
        Loss [B] and accuracy [B] in [0, 1], float64.
    """
    total = torch.zeros(2, num_networks(params), dtype=torch.float64, device=data.x.device)
    for x, y in zip(data.x.split(chunk), data.y.split(chunk), strict=True):
        logits = apply_many(module, params, x)
        total += torch.stack([problem.loss(logits, y), problem.accuracy(logits, y)]).double() * len(y)
    loss, accuracy = total / len(data)
    return loss, accuracy
