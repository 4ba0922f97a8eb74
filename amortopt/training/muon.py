"""Muon: momentum whose matrix updates are orthogonalized, all matrices of one shape at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    r"""Move all singular values to about one by Newton-Schulz iterations.

    :math:`X \leftarrow aX + b(XX^\top)X + c(XX^\top)^2X` with (a, b, c) of Jordan et al. 2024, which leaves
    singular values between 0.7 and 1.2.

    Matrices [.., m, n] -> [.., m, n], without gradient; zero stays zero. ``steps`` are the iterations.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    x = wide.reshape(-1, *wide.shape[-2:])
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    # The same three buffers in all iterations: on a CPU fresh memory costs more than the products.
    gram = x.new_empty(*x.shape[:-1], x.shape[-2])
    factor, other = torch.empty_like(gram), torch.empty_like(x)
    for _ in range(steps):
        torch.bmm(x, x.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=factor)  # b XX^T + c (XX^T)^2
        torch.baddbmm(x, factor, x, beta=a, out=other)
        x, other = other, x
    x = x.reshape(wide.shape)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates (Jordan et al. 2024) for matrices, AdamW for everything else.

    Param groups with ``muon=True`` hold matrices [m, n] or stacks of them [k, m, n]. Their update has
    spectral norm ``lr * sqrt(max(1, m / n))``. Other groups are updated as by ``torch.optim.AdamW``.

    torch has Muon for 2-D parameters since 2.9; this one also runs on older versions, and updates all
    matrices of a shape in one batch, which is several times faster for many small ones.

    Args:
        params: Param groups; each may set ``muon``, ``lr``, ``momentum``, ``betas``, ``weight_decay``.
        lr: Default learning rate.
        momentum: Default Nesterov momentum of Muon groups.
        betas: Default AdamW averages.
        eps: Default AdamW epsilon.
        weight_decay: Default decoupled weight decay, times the learning rate.

    Raises:
        ValueError: If a learning rate is not positive, or a Muon group holds a vector or scalar.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults | {"muon": False})
        for group in self.param_groups:
            if not 0 < group["lr"] < float("inf"):
                raise ValueError(f"lr: got {group['lr']}, expected a positive learning rate")
            for p in group["params"]:
                if group["muon"] and p.ndim not in (2, 3):
                    raise ValueError(
                        f"params: got a tensor of shape {tuple(p.shape)} in a Muon group, expected a matrix "
                        "or a stack of matrices; put it in a group with muon=False"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; returns the loss that ``closure`` computes."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            if live:
                (self._muon_step if group["muon"] else self._adam_step)(live, group)
        return loss

    def _muon_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = _grads(params)
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
        shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for p, matrix in zip(params, ahead, strict=True):
            rows, columns = p.shape[-2:]
            # A matrix and its transpose are orthogonalized alike, so they go together.
            key = (min(rows, columns), max(rows, columns))
            shapes.setdefault(key, []).append((p, matrix if rows <= columns else matrix.mT))
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
        for pairs in shapes.values():
            stacked = torch.cat([matrix.reshape(-1, *matrix.shape[-2:]) for _, matrix in pairs])
            updates = orthogonalize(stacked).split([p.shape[0] if p.ndim == 3 else 1 for p, _ in pairs])
            for (p, _), update in zip(pairs, updates, strict=True):
                rows, columns = p.shape[-2:]
                update = update if rows <= columns else update.mT
                p.sub_(update.reshape(p.shape), alpha=group["lr"] * max(1, rows / columns) ** 0.5)

    def _adam_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                zeros = torch.zeros_like
                # The step counts on the CPU, as in torch: reading it from a GPU would wait for the GPU.
                self.state[p].update(mean=zeros(p), square=zeros(p), step=torch.zeros(()))
        # One kernel for the whole list, where torch keeps the step counts beside the parameters.
        fused = all(p.device.type == "cpu" and p.is_floating_point() for p in params)
        adamw(
            params,
            _grads(params),
            *([self.state[p][key] for p in params] for key in ("mean", "square")),
            max_exp_avg_sqs=[],
            state_steps=[self.state[p]["step"] for p in params],
            foreach=not fused,
            fused=fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _grads(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]
