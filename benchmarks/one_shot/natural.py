"""Natural gradient without forming a curvature matrix: damped Gauss-Newton steps by conjugate gradients.

Legend: B networks, each with its own problem and its own step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.functional.networks import apply_many
from amortopt.tasks import loss_and_grad_many, loss_many
from benchmarks.one_shot.cells import Cell, Fleet

ITERATIONS = 10
"""Conjugate-gradient iterations of a step."""
CURVATURE = 500
"""Most examples that curvature is taken on; gradient and line search take all."""
STEP_SIZES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.0)
"""Of the line search; 0 keeps a network as it is."""


def natural_gradient(cell: Cell, fleet: Fleet, damping: float, stops: Sequence[int]) -> dict[int, Params]:
    r"""Networks after so many steps :math:`\theta - \eta\,(G + \delta I)^{-1} \nabla L` on what they read.

    G is the generalised Gauss-Newton matrix, for cross-entropy the Fisher matrix. η is the best of
    ``STEP_SIZES`` for each network. Nothing is approximated by Kronecker factors: products with G are exact.

    Args:
        cell: The cell.
        fleet: Networks and problems; the networks are not modified.
        damping: δ, as a multiple of each network's g G g / g g, with g its gradient.
        stops: Numbers of steps.
    """
    objective, module = cell.problems.objective, cell.module
    names, part = list(fleet.start), fleet.read.take(slice(CURVATURE))
    theta = dict(fleet.start)

    def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        return sum((x * y).flatten(1).sum(1) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]

    def axpy(a: Sequence[Tensor], scale: Tensor, b: Sequence[Tensor]) -> list[Tensor]:
        return [x + scale.view(-1, *[1] * (x.ndim - 1)) * y for x, y in zip(a, b, strict=True)]

    def product(at: Params, v: Sequence[Tensor]) -> list[Tensor]:
        # G v = J^T H (J v), with J v as a derivative of J^T u by u.
        leaves = [at[name].detach().requires_grad_() for name in names]
        outputs = apply_many(module, dict(zip(names, leaves, strict=True)), part.x, shared=part.shared)
        u = torch.zeros_like(outputs, requires_grad=True)
        back = torch.autograd.grad(outputs, leaves, u, create_graph=True)
        (jv,) = torch.autograd.grad(back, u, list(v), retain_graph=True)
        free = outputs.detach().requires_grad_()
        loss = objective.loss(free, part.y, part.mask).sum()
        (slope,) = torch.autograd.grad(loss, free, create_graph=True)
        (hjv,) = torch.autograd.grad(slope, free, jv.detach())
        return [g.detach() for g in torch.autograd.grad(outputs, leaves, hjv)]

    reached: dict[int, Params] = {}
    for step in range(1, max(stops) + 1):
        _, gradient = loss_and_grad_many(module, theta, fleet.read, objective)
        residual = [gradient[name] for name in names]  # of (G + δ) x = g at x = 0
        square = dot(residual, residual)
        delta = damping * dot(residual, product(theta, residual)) / square.clamp(min=1e-20)  # [B]
        x = [torch.zeros_like(r) for r in residual]
        direction = residual
        for _ in range(ITERATIONS):
            moved = axpy(product(theta, direction), delta, direction)
            rate = square / dot(direction, moved).clamp(min=1e-20)
            x, residual = axpy(x, rate, direction), axpy(residual, -rate, moved)
            before, square = square, dot(residual, residual)
            direction = axpy(residual, square / before.clamp(min=1e-20), direction)
        with torch.no_grad():
            places = [{n: theta[n] - size * d for n, d in zip(names, x, strict=True)} for size in STEP_SIZES]
            tried = torch.stack([loss_many(module, place, fleet.read, objective) for place in places])
            best = torch.tensor(STEP_SIZES)[tried.nan_to_num(torch.inf).argmin(0)]
            theta = dict(zip(names, axpy([theta[n] for n in names], -best, x), strict=True))
        if step in stops:
            reached[step] = theta
    return reached
