"""Meta-gradients by truncated backpropagation through inner steps.

Legend: B networks, N elements of all parameters, K inner steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor

from amortopt.meta.rule.inner import InnerProblem
from amortopt.meta.rule.runs import InnerRuns
from amortopt.metanets.update_rule.rule import UNFRule, is_number

Objective: TypeAlias = Literal["loss", "log"]
"""What is averaged over inner steps: the loss, or its logarithm, which also weighs small losses."""
Data: TypeAlias = Literal["train", "val", "both"]


@dataclass(frozen=True)
class Estimate:
    """A meta-gradient.

    Attributes:
        loss: Mean loss over inner steps and networks, in nats; scalar.
        grads: Gradient of the objective for every parameter of the rule, in their order.
    """

    loss: Tensor
    grads: list[Tensor]


@dataclass(frozen=True)
class TruncatedBackprop:
    r"""Backpropagates through K inner steps, the inner gradients included.

    The objective is the mean over steps k = 1 ... K and networks of :math:`L(W_k)` on a minibatch that
    :math:`W_k` has not seen. With ``data="train"`` it is the one that the next inner step learns from, and
    costs nothing; with ``"val"`` it is a further one of held-out data; ``"both"`` is the mean of the two. The
    loss of a network that has diverged counts as `runs.GUARD` times that of its start.

    Args:
        truncation: Inner steps K.
        objective: ``"loss"`` or ``"log"``.
        data: What the objective is measured on.
        second_order: Whether inner gradients depend on the rule; without, a step costs about half.
        bound: Gradients that flow back from later steps are scaled down, per network and inner step, where
            they are larger than this multiple of what the gradients of all K losses would add up to if they
            all pointed in one direction; 0 for no bound. Chaotic inner dynamics make them explode.

    Raises:
        ValueError: An argument is out of its range.
    """

    truncation: int = 20
    objective: Objective = "loss"
    data: Data = "train"
    second_order: bool = True
    bound: float = 1.0

    def __post_init__(self) -> None:
        check_estimator(self.truncation, self.objective, self.data)
        check_flag("second_order", self.second_order)
        if not is_number(self.bound) or not 0 <= self.bound < float("inf"):
            raise ValueError(f"bound: got {self.bound!r}, expected a finite number of at least 0")

    copies = 1

    def __call__(self, rule: UNFRule, runs: InnerRuns, horizon: int) -> Estimate:
        """Advance inner runs by a truncation; those that start anew get ``horizon`` inner steps.

        The meta-gradient is not finite where one of the networks is not.
        """
        tape = _Tape(self, runs.inner)
        # So that all steps are alike to a compiler; these gradients are never computed.
        flat = runs.flat.detach().requires_grad_()
        state = {key: value.detach().requires_grad_(key != "step") for key, value in runs.state.items()}
        with torch.enable_grad():
            for k in range(self.truncation):
                at, grads = tape.read(runs, flat, moved=k > 0)
                direction, state = rule(runs.inner.layout, at, grads, state)
                flat = at - runs.rate(k) * direction
            tape.read(runs, flat, last=True)
            objective = tape.objective()
            grads = torch.autograd.grad(objective, list(rule.parameters()), allow_unused=True)
        losses = torch.stack(tape.losses)
        runs.advance(flat, state, losses, horizon)
        zeros = torch.zeros_like
        filled = [zeros(p) if g is None else g for p, g in zip(rule.parameters(), grads, strict=True)]
        return Estimate(losses[1:].mean(), filled)


class _Tape:
    """Losses and inner gradients of an unroll, and what is minimised."""

    def __init__(self, settings: TruncatedBackprop, inner: InnerProblem) -> None:
        self.settings, self.inner = settings, inner
        self.losses: list[Tensor] = []  # detached, [B] each
        self.terms: list[Tensor] = []  # of the objective, [B] each
        self.sizes: list[Tensor] = []  # of the gradients of the terms, [B] each
        self.limit: Tensor | None = (
            None  # norm of gradients that flow back, [B, 1], once the unroll has ended
        )

    def read(
        self, runs: InnerRuns, flat: Tensor, *, moved: bool = True, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Append the losses at ``flat``; start and gradients of the next step, [B, N] each."""
        s = self.settings
        x, y = runs.draw()
        # The gradient of this loss flows back to ``flat`` whole; that of later losses, bounded, to ``at``.
        at = cast(Tensor, _Bounded.apply(flat, self)) if moved and s.bound else flat
        losses, grads = self.inner.losses_and_grads(
            at, x, y, runs.scales, create_graph=moved and not last and s.second_order
        )
        self.losses.append(losses.detach())
        if len(self.losses) == 1:
            self.top = runs.top(self.losses[0])
        # Derivative of the terms by the losses, [B].
        before = self.losses[-1]
        slope = (1 / before if s.objective == "log" else torch.ones_like(before)) * (before <= self.top)
        self.sizes.append(grads.detach().norm(dim=1) * slope)
        if not moved:  # the first loss does not depend on the rule
            return at, grads.requires_grad_()
        terms = []
        if s.data != "train":
            # A network that diverges is as bad as one that is about to be restarted, and no worse.
            held_out = self.inner.losses(flat, *runs.draw("val"), runs.scales).minimum(self.top)
            terms.append(held_out.log() if s.objective == "log" else held_out)
        if s.data != "val":  # the gradient of the loss, without a second pass through the network
            terms.append((flat * grads.detach().nan_to_num(0.0, 0.0, 0.0)).sum(1) * slope)
        self.terms.append(torch.stack(terms).mean(0))
        return at, grads

    def objective(self) -> Tensor:
        """Mean over steps and networks; from here on the limit holds."""
        terms = torch.stack(self.terms)
        if self.settings.bound:
            mean = torch.stack(self.sizes).mean(0).unsqueeze(1)
            self.limit = self.settings.bound * mean / terms.shape[1]
        return terms.mean()


class _Bounded(torch.autograd.Function):
    """The identity; what flows back is scaled down where it is larger than a norm per network.

    By the square of how much larger it is: a gradient that exploded carries no information, so it should not
    weigh as much as the others.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, tape: _Tape) -> Tensor:
        ctx.tape = tape
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        norm = ctx.tape.limit
        if norm is None:
            return grad, None
        factor = (norm / grad.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
        return (grad * factor.square()).nan_to_num(0.0, 0.0, 0.0), None


def check_estimator(truncation: int, objective: str, data: str) -> None:
    """Raise a ``ValueError`` if what all estimators take is out of its range."""
    if isinstance(truncation, bool) or not isinstance(truncation, int) or truncation < 1:
        raise ValueError(f"truncation: got {truncation!r}, expected at least 1 inner step")
    for name, value, allowed in (
        ("objective", objective, get_args(Objective)),
        ("data", data, get_args(Data)),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(allowed)}")


def check_flag(name: str, value: object) -> None:
    """Raise a ``ValueError`` unless it is a truth value."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {value!r}, expected true or false")
