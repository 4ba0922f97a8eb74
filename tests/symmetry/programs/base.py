"""What a random program is, and the steps that it is drawn from.

A program is a list of steps, each drawn from its own seed, so that any sublist is a program too: what fails
can be made shorter by leaving steps out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step: TypeAlias = "Callable[[Program, Tensor, Random], Tensor | None]"
STEPS: list[tuple[Step, int | None]] = []
_LARGEST = 600
POINTWISE: list[Callable[[Tensor], Tensor]] = [
    *(torch.tanh, torch.relu, torch.sin, torch.abs, torch.neg, torch.clone, torch.sigmoid, torch.square),
    *(F.gelu, F.softsign, F.leaky_relu, F.hardtanh),
    *(lambda x: 0.5 * x, lambda x: x + 0.3, lambda x: x * x, lambda x: 0.7 * x + x),
]


class Program(nn.Module):
    """A program on inputs [N, 3, 6], with a linear layer at its end.

    Args:
        steps: One seed for each.

    Attributes:
        counts: Whether a number of elements depends on values. Extraction refuses numbers that are computed
            with it, and branches on any number of elements beside it.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.weights, self.parts = nn.ParameterList(), nn.ModuleList()
        self.order: list[int] = []
        self.log: list[str] = []
        self.recording, self.counts = True, False
        with torch.no_grad():
            self.forward(torch.randn(2, 3, 6))
        self.recording = False

    def forward(self, x: Tensor) -> Tensor:
        self.used = self.used_parts = 0
        self.seen = [x]
        for seed in self.steps:
            r = Random(seed)
            self.shares = r.random() < 0.12
            fitting = [step for step, ndim in STEPS if ndim in (None, x.ndim)]
            step = r.choice(fitting)
            y = step(self, x, r)
            if self.recording:
                self.log.append(f"{seed}: {step.__name__} {None if y is None else tuple(y.shape[1:])}")
            if y is not None and 0 < y.numel() <= _LARGEST * y.shape[0]:
                self.seen.append(y)
                x = y if r.random() > 0.07 else r.choice(self.seen[-4:])
        self.shares = False
        x = x.flatten(1)
        return F.linear(x, self.weight(2, x.shape[-1]))

    def weight(self, *shape: int) -> Tensor:
        """The next parameter: a new one, or sometimes one of that shape again."""
        if self.recording:
            same = [k for k, w in enumerate(self.weights) if tuple(w.shape) == shape]
            if self.shares and same:
                self.order.append(same[-1])
            else:
                self.order.append(len(self.weights))
                self.weights.append(nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5))
        self.used += 1
        return self.weights[self.order[self.used - 1]]

    def part(self, make: Callable[[], nn.Module]) -> nn.Module:
        """The next module."""
        if self.recording:
            self.parts.append(make().eval())
        self.used_parts += 1
        return self.parts[self.used_parts - 1]

    def another(self, x: Tensor, r: Random, *, broadcast: bool = False) -> Tensor:
        """A value of before of the same shape, or one that broadcasts to it."""

        def fits(y: Tensor) -> bool:
            sizes = zip(y.shape, x.shape, strict=True)
            return y.ndim == x.ndim and all(a == b or (broadcast and a == 1) for a, b in sizes)

        return r.choice([y for y in self.seen if y.ndim == x.ndim and fits(y)] or [x])

    def linear(self, x: Tensor, width: int, r: Random) -> Tensor:
        """A dense layer, in one of the ways to write it."""
        form, size = r.randrange(4), x.shape[-1]
        if form == 0:
            y = x @ self.weight(size, width)
        elif form == 1:
            y = torch.einsum("...i,oi->...o", x, self.weight(width, size))
        elif form == 2:
            y = x.matmul(self.weight(width, size).t())
        else:
            y = F.linear(x, self.weight(width, size))
        return y + self.weight(width) if r.random() < 0.6 else y


def run(program: nn.Module, x: Tensor) -> Tensor:
    """The output, with random numbers from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return program(x)


def refused(program: Program, error: Exception) -> bool:
    """Whether an error of ``extract`` says that the program's sizes depend on values, and they do."""
    return program.counts and isinstance(error, ValueError) and "number of elements" in str(error)


@torch.no_grad()
def shows(program: nn.Module, x: Tensor) -> bool:
    """Whether the output can tell right from wrong: finite, not zero, and not the same for every input.

    A few programs run on no other number of examples than they were made with; they show nothing.
    """
    try:
        y = run(program, x)
    except Exception:
        return False
    varies = (y - y.mean(0)).norm() > 1e-9 * y.norm()
    return bool(y.isfinite().all() and 1e-6 < y.norm() < 1e12 and varies)


@torch.no_grad()
def settled(program: nn.Module, x: Tensor, draws: int = 8) -> bool:
    """Whether an output in float64 does not hang on rounding, as that of ``mean(layer_norm(x)) > 0`` does.

    Such a program computes no function of its weights: any other order of a sum may change what comes out.
    """
    generator, there = torch.Generator().manual_seed(0), run(program, x)
    values = [x, *program.parameters()]
    kept = [value.clone() for value in values]
    try:
        for _ in range(draws):
            for value, before in zip(values, kept, strict=True):
                value.copy_(before * (1 + 1e-13 * torch.randn(before.shape, generator=generator).to(before)))
            if (run(program, x) - there).norm() > 1e-7 * there.norm():
                return False
    finally:
        for value, before in zip(values, kept, strict=True):
            value.copy_(before)
    return True


def step_of_programs(times: int = 1, ndim: int | None = None) -> Callable[[Step], Step]:
    def register(step: Step) -> Step:
        STEPS.extend([(step, ndim)] * times)
        return step

    return register


def axis_of(x: Tensor, r: Random) -> int:
    return r.randrange(1, x.ndim)
