"""Base networks that learn a problem, many at once: what meta-training of update rules unrolls and validates.

Legend: B networks, n examples per step, N elements of all parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from amortopt.functional.networks import apply_many
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.symmetry import extract
from amortopt.tasks import Family, Problem, make_family, make_problem
from amortopt.tasks.examples import Examples
from amortopt.tasks.families import init_many
from amortopt.tasks.problem import Which
from amortopt.training.stepper import schedule_factor

FINAL = 32
"""Minibatches that a final loss is measured on."""


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
        self._splits: dict[str, Examples] = {}

    @classmethod
    def from_config(cls, entry: Mapping[str, Any], where: str) -> InnerProblem:
        """Make problem and family by name.

        Args:
            entry: ``problem`` and ``family``, each with a ``name`` and arguments; ``batch``, 32 by default.
                ``networks`` is allowed and not read.
            where: The entry's name, for messages.

        Raises:
            ValueError: A key is unknown, missing or wrong.
        """
        if set(entry) - {"problem", "family", "batch", "networks"} or not {"problem", "family"} <= set(entry):
            raise ValueError(
                f"{where}: got {', '.join(sorted(entry))}, expected problem and family, and if need be batch "
                "and networks"
            )
        parts = []
        for key, make in (("problem", make_problem), ("family", make_family)):
            arguments = entry[key]
            if not isinstance(arguments, Mapping) or not isinstance(arguments.get("name"), str):
                raise ValueError(f"{where}.{key}: got {arguments!r}, expected a mapping with a `name`")
            try:
                parts.append(make(**arguments))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where}.{key}: got {arguments}, but {error}; correct this key") from error
        return cls(*parts, batch=int(entry.get("batch", 32)))

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

    def split(self, which: Which) -> Examples:
        """One part of the data, on the device."""
        if which not in self._splits:
            self._splits[which] = self.problem.split(which).to(self.device)
        return self._splits[which]

    def init(self, count: int, generator: torch.Generator) -> Tensor:
        """B fresh networks [B, N], from seeds that ``generator``, on the CPU, draws."""
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

    def losses(self, flat: Tensor, x: Tensor, y: Tensor, scales: Tensor | None = None) -> Tensor:
        """Loss of every network on examples of its own, [B] in nats.

        Args:
            flat: Parameters [B, N].
            x: Inputs [B, n, ...].
            y: Targets [B, n, ...].
            scales: The networks compute with parameters times these, [B, N]: a reparametrisation.
        """
        params = self.layout.unpack(flat if scales is None else flat * scales)
        outputs = apply_many(self.network, params, x, shared=False)
        return self.problem.objective.loss(outputs, y)

    def losses_and_grads(
        self,
        flat: Tensor,
        x: Tensor,
        y: Tensor,
        scales: Tensor | None = None,
        *,
        create_graph: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """``losses`` [B] and their gradients [B, N]; with ``create_graph``, both can be differentiated."""
        with torch.enable_grad():
            at = flat if create_graph and flat.requires_grad else flat.detach().requires_grad_()
            losses = self.losses(at, x, y, scales)
            (grads,) = torch.autograd.grad(losses.sum(), at, create_graph=create_graph)
        return (losses, grads) if create_graph else (losses.detach(), grads)


@torch.no_grad()
def validate(
    rule: UNFRule, inner: InnerProblem, count: int, steps: int, lr: float = 0.02
) -> tuple[Tensor, Tensor, Tensor]:
    """Train networks, always from the same unseen initialisations and on the same minibatches.

    Args:
        rule: The rule.
        inner: Problem and family.
        count: Networks B.
        steps: Inner steps.
        lr: Learning rate of the first step; it falls to 0 as a cosine.

    Returns:
        Mean over steps of the loss on minibatches [B]; and the loss after the last step, on further
        minibatches [B] and on held-out ones [B]; in nats.
    """
    generator = torch.Generator().manual_seed(2**31)
    flat = inner.init(count, generator)
    state = rule.init_state(inner.layout, flat)
    losses = []
    for step in range(steps):
        loss, grads = inner.losses_and_grads(flat, *inner.draw(count, generator))
        direction, state = rule(inner.layout, flat, grads, state, inplace=True)
        flat = flat - float(lr * schedule_factor("cosine", step, steps)) * direction
        losses.append(loss)
    final, held_out = (
        torch.stack([inner.losses(flat, *inner.draw(count, generator, which)) for _ in range(FINAL)]).mean(0)
        for which in ("train", "val")
    )
    return torch.stack(losses).mean(0), final, held_out
