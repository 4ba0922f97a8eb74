"""A problem and a rule of a few numbers each, in float64, with the interfaces of InnerProblem and
UNFRule."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from amortopt.meta.rule.runs import Draws

SIZE = 3
UNIT = Draws(slowest=1.0, fastest=1.0, cosine=0.0)
"""The rate is part of what ``ToyRule`` returns."""


class ToyInner:
    """Noisy quadratics: L(w) = mean over examples of (1 + w² / 2) a (w - x)² / 2, summed over N = 3."""

    def __init__(self, noise: float = 0.3, curvature: float = 1.0) -> None:
        self.layout: Any = SimpleNamespace(size=SIZE)
        self.noise = noise
        self.scale = curvature * torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)

    def init(self, count: int, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(count, SIZE, generator=generator, dtype=torch.float64)
        return 1.0 + self.noise * drawn

    def draw(self, count: int, generator: torch.Generator, which: str = "train") -> tuple[Tensor, Tensor]:
        x = torch.randn(count, 2, SIZE, generator=generator, dtype=torch.float64)
        return self.noise * x + (1.0 if which == "val" else 0.0), x[..., 0]

    def losses(self, flat: Tensor, x: Tensor, y: Tensor, scales: Tensor | None = None) -> Tensor:
        flat = flat if scales is None else flat * scales
        away = (flat.unsqueeze(1) - x).square()
        return 0.1 + (self.scale * (1 + 0.5 * flat.square()).unsqueeze(1) * away / 2).sum(-1).mean(-1)

    def losses_and_grads(
        self, flat: Tensor, x: Tensor, y: Tensor, scales: Tensor | None = None, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = flat if create_graph else flat.detach().requires_grad_()
            losses = self.losses(at, x, y, scales)
            (grads,) = torch.autograd.grad(losses.sum(), at, create_graph=create_graph)
        return (losses, grads) if create_graph else (losses.detach(), grads)


class ToyRule(nn.Module):
    """Momentum with a decay towards 0: three numbers that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([-1.5, 0.05], dtype=torch.float64))
        self.momentum = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def init_state(self, layout: Any, flat: Tensor) -> dict[str, Tensor]:
        return {"step": torch.zeros(flat.shape[:-1]), "momenta": torch.zeros_like(flat)}

    def of_vectors(self, vectors: Tensor) -> dict[str, Tensor]:
        return {"rates": vectors[:, :2].t().unsqueeze(2), "momentum": vectors[:, 2:]}

    def forward(
        self, layout: Any, flat: Tensor, grads: Tensor, state: dict[str, Tensor], *, inplace: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        momenta = self.momentum * state["momenta"] + grads
        update = self.rates[0].exp() * momenta + self.rates[1] * flat.tanh()
        return update, {"step": state["step"] + 1, "momenta": momenta}
