"""Optimizers for many networks at once: one step of stacked params.

Legend: B networks; b of them, the first ones, that take a step; [b, ...] a parameter of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.functional.networks import num_networks
from amortopt.training.muon import orthogonalize

OptimizerName: TypeAlias = Literal["sgd", "adam", "adamw", "nadam", "muon"]
Schedule: TypeAlias = Literal["constant", "cosine", "warmup"]
_PER_NETWORK = ("learning_rate", "weight_decay", "l1")
WARMUP = 0.1
"""Share of the steps in which the schedule ``warmup`` rises."""


@dataclass(eq=False)
class State:
    """What an optimizer remembers of B networks.

    Attributes:
        buffers: Name of a buffer -> name of a parameter -> [B, ...].
        steps: Steps done.
        momenta: Product of NAdam's momenta so far.
    """

    buffers: dict[str, Params]
    steps: int = 0
    momenta: float = 1.0


@dataclass(frozen=True, eq=False)
class Stepper:
    r"""An optimizer with its settings, each of them one for all networks or one per network [B].

    SGD, Adam, AdamW and NAdam are torch.optim's. Muon (Jordan et al. 2024) moves every hidden matrix or
    kernel by an orthogonalized momentum, and all other params as AdamW does.

    The L1 strength λ acts through the gradient, which whoever computes it has to include (see ``penalty``),
    or with ``proximal`` by a soft threshold t after every step, which makes weights exactly zero,
    :math:`\theta \leftarrow \operatorname{sign}(\theta)\max(|\theta|-t, 0)`:

    - SGD: t is learning rate times λ, and what the threshold moved counts in the momentum:
      :math:`\theta_{k+1} = \operatorname{prox}(\theta_k - \eta g_k + m\,(\theta_k - \theta_{k-1}))`
      (iterative soft-thresholding with inertia, Ochs et al. 2014). A momentum that does not include the
      threshold would minimise the loss plus a tenth of λ.
    - Adam and AdamW: t is that divided by the same root of the mean squared gradient as the step (Yun et
      al. 2021).

    Attributes:
        optimizer: ``"sgd"``, ``"adam"``, ``"adamw"``, ``"nadam"`` or ``"muon"``.
        learning_rate: At the schedule's top; of Muon, that of its matrices.
        schedule: ``"constant"``; ``"cosine"``, to 0 after the last step; or ``"warmup"``: linearly from 0 in
            the first tenth of the steps, then cosine.
        momentum: Of SGD (default 0.9) and of Muon's matrices (0.95).
        nesterov: Whether SGD's momentum is Nesterov's.
        betas: Averages of Adam and its kin.
        eps: Epsilon of Adam and its kin.
        weight_decay: Added to the gradient for SGD, Adam and NAdam, decoupled for AdamW and Muon.
        l1: Strength λ.
        proximal: Whether λ acts by soft thresholds.
        clip: Largest norm of a network's gradient; longer ones are shortened to it.
        matrices: Names that Muon orthogonalizes; by default all with two or more axes per network, except
            the first and the last of them, which read the inputs and write the outputs.
        adam_rate: Learning rate of Muon's other params, as a multiple of ``learning_rate``.

    Raises:
        ValueError: If a value is out of its range; the message names it.

    Examples:
        >>> stepper = Stepper("sgd", learning_rate=torch.tensor([0.1, 1.0]), momentum=0.0)
        >>> params = {"weight": torch.ones(2, 3)}
        >>> stepper.step(params, {"weight": torch.ones(2, 3)}, stepper.start(params))
        >>> params["weight"][:, 0]
        tensor([0.9000, 0.0000])
    """

    optimizer: OptimizerName
    learning_rate: float | Tensor
    schedule: Schedule = "constant"
    momentum: float | None = None
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float | Tensor = 0.0
    l1: float | Tensor = 0.0
    proximal: bool = False
    clip: float | None = None
    matrices: tuple[str, ...] | None = None
    adam_rate: float = 0.1

    def __post_init__(self) -> None:
        for name, known in (("optimizer", OptimizerName), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(get_args(known))}"
                )
        for name in _PER_NETWORK:
            value = torch.as_tensor(getattr(self, name))
            if value.ndim > 1 or not bool((value.isfinite() & (value >= 0)).all()):
                raise ValueError(
                    f"{name}: got {value.tolist()}, expected a finite number >= 0, or one per network [B]"
                )
        if self.proximal and self.optimizer not in ("sgd", "adam", "adamw"):
            raise ValueError(f"proximal: got True with {self.optimizer}, expected sgd, adam or adamw")
        if self.proximal and self.nesterov:
            raise ValueError("proximal: got True with nesterov=True, expected one of the two")

    @property
    def penalty(self) -> float | Tensor | None:
        """The L1 strength that belongs into the gradient, one number or [B]; None if there is none."""
        return None if self.proximal or not torch.as_tensor(self.l1).any() else self.l1

    def of(self, networks: Tensor | slice) -> Stepper:
        """The same optimizer for some of the networks."""
        values = {name: getattr(self, name) for name in _PER_NETWORK}
        chosen = {k: v[networks] for k, v in values.items() if isinstance(v, Tensor) and v.ndim}
        return replace(self, **chosen)

    def start(self, params: Params) -> State:
        """State before the first step of params [B, ...].

        Raises:
            ValueError: If a setting is for another number of networks.
        """
        count = num_networks(params)
        for name in _PER_NETWORK:
            shape = torch.as_tensor(getattr(self, name)).shape
            if shape not in ((), (count,)):
                raise ValueError(
                    f"{name}: got shape {tuple(shape)}, expected a number or {count}, one per network"
                )
        names = ("first",) if self.optimizer == "sgd" else ("first", "second")
        return State({name: {key: torch.zeros_like(p) for key, p in params.items()} for name in names})

    @torch.no_grad()
    def step(self, params: Params, grads: Params, state: State, *, steps: int | Tensor = 1) -> None:
        """Take a step, in place.

        Args:
            params: [B, ...].
            grads: [b, ...] for the first b networks; the others are left as they are. Not modified.
            state: Of these networks.
            steps: Length of the training, for the schedule: one number of steps, or one per network [B].
        """
        count = num_networks(grads)
        rate = torch.as_tensor(self.learning_rate, dtype=torch.float64)
        rate = rate * schedule_factor(self.schedule, state.steps, steps).to(rate.device)
        state.steps += 1
        if self.clip is not None:
            squares = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0)  # [b]
            shrink = (self.clip / (squares.sqrt() + 1e-6)).clamp(max=1)
            grads = {name: g * per_network(shrink, g) for name, g in grads.items()}
        if self.optimizer == "nadam":
            now, ahead = (
                self.betas[0] * (1 - 0.5 * 0.96 ** (0.004 * at)) for at in (state.steps, state.steps + 1)
            )
            state.momenta *= now
            mix = ((1 - now) / (1 - state.momenta), ahead / (1 - state.momenta * ahead))
        else:  # Adam's step is first / (1 - β₁ᵗ) over the root of the mean square
            mix = (0.0, 1 / (1 - self.betas[0] ** state.steps))
        hidden: tuple[str, ...] = ()  # what Muon orthogonalizes
        if self.optimizer == "muon":
            matrices = tuple(name for name, p in params.items() if p.ndim > 2)
            hidden = matrices[1:-1] if self.matrices is None else self.matrices
        for name, g in grads.items():
            p = params[name][:count]
            first, *more = (buffer[name][:count] for buffer in state.buffers.values())
            eta = per_network(rate, p)
            if self.optimizer == "muon" and name not in hidden:
                eta = self.adam_rate * eta
            threshold = eta * per_network(self.l1, p) if self.proximal else None
            if isinstance(self.weight_decay, Tensor) or self.weight_decay:
                decay = per_network(self.weight_decay, p)
                if self.optimizer in ("adamw", "muon"):
                    p.mul_(1 - eta * decay)
                else:
                    g = g + decay * p
            if self.optimizer == "sgd":
                momentum = 0.9 if self.momentum is None else self.momentum
                velocity = first.mul_(momentum).add_(g)
                p.addcmul_(g + momentum * velocity if self.nesterov else velocity, eta, value=-1)
                if threshold is not None:
                    # Over the rate, what the threshold subtracts is a subgradient of λ|p|.
                    moved = soft_threshold(p, threshold)
                    velocity.add_(moved / eta.clamp(min=torch.finfo(p.dtype).tiny))
            elif name in hidden:
                momentum = 0.95 if self.momentum is None else self.momentum
                update = g.lerp(first.lerp_(g, 1 - momentum), momentum)
                # A kernel [O, I, K, K] is the matrix [O, I K K].
                update = orthogonalize(update.flatten(2)).view_as(p)
                p.addcmul_(update, eta, value=-(max(1.0, p.shape[1] / p[0, 0].numel()) ** 0.5))
            else:
                (second,), (beta1, beta2) = more, self.betas
                first.lerp_(g, 1 - beta1)
                second.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                size = second.sqrt().div_(math.sqrt(1 - beta2**state.steps)).add_(self.eps)
                direction = first if mix[0] == 0 else first + (mix[0] / mix[1]) * g
                p.addcmul_(direction / size, eta, value=-mix[1])
                if threshold is not None:
                    soft_threshold(p, threshold / size)


def soft_threshold(p: Tensor, threshold: Tensor) -> Tensor:
    """Move p towards zero by the threshold t, in place; returns what is subtracted: p, clipped to ±t."""
    moved = torch.minimum(torch.maximum(p, -threshold), threshold)
    p.sub_(moved)
    return moved


def schedule_factor(schedule: Schedule, index: int, steps: int | Tensor) -> Tensor:
    """Factor on the learning rate at step ``index`` (from 0) of ``steps``: a number, or one per network."""
    total = torch.as_tensor(steps, dtype=torch.float64)
    if schedule == "constant":
        return torch.ones_like(total)
    warm = (WARMUP * total).round().clamp(min=1) if schedule == "warmup" else torch.zeros_like(total)
    falling = 0.5 * (1 + torch.cos(math.pi * (index - warm) / (total - warm).clamp(min=1)))
    return torch.where(index < warm, (index + 1) / warm.clamp(min=1), falling)


def per_network(value: float | Tensor, p: Tensor) -> Tensor:
    """A number, or the first b of one per network [B], broadcast over the axes of ``p`` [b, ...]."""
    value = torch.as_tensor(value, dtype=p.dtype, device=p.device)
    return value[: len(p)].view(-1, *[1] * (p.ndim - 1)) if value.ndim else value
