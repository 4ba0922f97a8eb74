"""Base networks that learn a problem, many at once: what meta-training of update rules unrolls.

Legend: B networks, n examples per step, N elements of all parameters.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from amortopt.functional.networks import apply_many
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.symmetry import extract
from amortopt.tasks import Family, Problem
from amortopt.tasks.examples import Examples
from amortopt.tasks.families import init_many
from amortopt.tasks.problem import Which


class InnerProblem:
    """A problem and a family of base networks, vectorised over networks.

    Args:
        problem: Data and loss.
        family: Architecture of the base networks.
        batch: Examples per step.

    Raises:
        ValueError: ``batch`` is not positive.
    """

    def __init__(self, problem: Problem, family: Family, batch: int) -> None:
        if batch < 1:
            raise ValueError(f"batch: got {batch}, expected at least 1 example per step")
        self.problem, self.family, self.batch = problem, family, batch
        self.device = torch.device("cpu")

    @cached_property
    def network(self) -> nn.Module:
        """A network of the family; its parameters are not used, only what it computes."""
        with torch.random.fork_rng(devices=[]):
            network = self.family.build()
        return network.requires_grad_(False).to(self.device)

    @cached_property
    def layout(self) -> UpdateLayout:
        """Where its parameters lie in the flat vector."""
        spec = extract(self.network.cpu(), self.family.example_input())
        self.network.to(self.device)
        shapes = {name: p.shape for name, p in self.network.named_parameters()}
        return UpdateLayout(spec, shapes).to(self.device)

    def to(self, device: torch.device | str) -> InnerProblem:
        """Move network, layout and data to a device; returns itself."""
        self.device = torch.device(device)
        self.network.to(self.device)
        self.layout.to(self.device)
        self._splits.clear()
        return self

    @cached_property
    def _splits(self) -> dict[str, Examples]:
        return {}

    def split(self, which: Which) -> Examples:
        """One part of the data, on the device."""
        if which not in self._splits:
            self._splits[which] = self.problem.split(which).to(self.device)
        return self._splits[which]

    def init(self, count: int, generator: torch.Generator) -> Tensor:
        """Fresh networks.

        Args:
            count: Number of networks B.
            generator: Source of their seeds, on the CPU.

        Returns:
            [B, N].
        """
        seeds = torch.randint(2**31, (count,), generator=generator).tolist()
        return self.layout.pack(init_many(self.family.build, seeds)).to(self.device)

    def draw(self, count: int, generator: torch.Generator, which: Which = "train") -> tuple[Tensor, Tensor]:
        """A minibatch for every network, drawn with replacement.

        Args:
            count: Number of networks B.
            generator: Source of randomness, on the CPU.
            which: Part of the data.

        Returns:
            Inputs [B, n, ...] and targets [B, n, ...].
        """
        data = self.split(which)
        chosen = torch.randint(len(data), (count, self.batch), generator=generator).to(self.device)
        return data.x[chosen], data.y[chosen]

    def losses(self, flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Loss of every network on its own examples.

        Args:
            flat: [B, N].
            x: [B, n, ...].
            y: [B, n, ...].

        Returns:
            [B], in nats; differentiable in ``flat`` twice.
        """
        return self.problem.objective.loss(
            apply_many(self.network, self.layout.unpack(flat), x, shared=False), y
        )

    def losses_and_grads(
        self, flat: Tensor, x: Tensor, y: Tensor, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Loss of every network and its gradient.

        Args:
            flat: [B, N].
            x: [B, n, ...].
            y: [B, n, ...].
            create_graph: Whether both can be differentiated again.

        Returns:
            [B] and [B, N].
        """
        with torch.enable_grad():
            at = flat if create_graph and flat.requires_grad else flat.detach().requires_grad_()
            losses = self.losses(at, x, y)
            (grads,) = torch.autograd.grad(losses.sum(), at, create_graph=create_graph)
        return (losses, grads) if create_graph else (losses.detach(), grads)

    @torch.no_grad()
    def evaluate(self, flat: Tensor, which: Which = "train", chunk: int = 512) -> Tensor:
        """Loss of every network on a whole part of the data.

        Args:
            flat: [B, N].
            which: Part of the data.
            chunk: Examples at a time.

        Returns:
            [B].
        """
        data = self.split(which)
        params = self.layout.unpack(flat)
        total = torch.zeros(len(flat), device=flat.device)
        for start in range(0, len(data), chunk):
            x, y = data.x[start : start + chunk], data.y[start : start + chunk]
            total += self.problem.objective.loss(apply_many(self.network, params, x), y) * len(x)
        return total / len(data)
