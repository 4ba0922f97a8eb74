"""Modules that nothing can be extracted from, or only with a message."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Branching(nn.Module):
    """Which layer runs depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else self.b(x)


class Halting(nn.Module):
    """How often a layer runs depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.halt = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(10):
            x = torch.tanh(self.layer(x))
            if self.halt(x).sigmoid().mean().item() > 0.9:
                break
        return x


class Masked(nn.Module):
    """The number of rows depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(x[x[:, 0] > 0])))


class ThroughNumpy(nn.Module):
    """Leaves torch in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.from_numpy(self.layer(x).detach().numpy().clip(0)))


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return self.head(torch.relu(x + torch.randn_like(x)))


class ConstantOutput(nn.Module):
    """Says the same whatever its parameters are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class MaskByValue(nn.Module):
    """``nn.Transformer`` compares its mask with a causal one unless it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(4, 2, 1, 1, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]).to(x.dtype)
        return self.transformer(x, x, tgt_mask=mask)


def with_parameter(parameter: Tensor) -> nn.Module:
    """A dense layer with one more parameter."""
    net = nn.Linear(4, 3)
    net.register_parameter("extra", nn.Parameter(parameter, requires_grad=False))
    return net


X = torch.ones(3, 4)

BAD: dict[str, Callable[[], nn.Module]] = {
    "branching": Branching,
    "halting": Halting,
    "numpy": ThroughNumpy,
    "lazy": lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()),
    "complex": lambda: with_parameter(torch.ones(2, dtype=torch.complex64)),
    "integer": lambda: with_parameter(torch.ones(2, dtype=torch.int64)),
    "boolean": lambda: with_parameter(torch.ones(2, dtype=torch.bool)),
    "no parameters": nn.Tanh,
    "other input": lambda: nn.Linear(5, 3),
}
"""Name -> a module for which [X][] is no input to extract anything with."""

ODD: dict[str, Callable[[], nn.Module]] = {
    "masked": Masked,
    "mask by value": MaskByValue,
    "noisy": Noisy,
    "constant output": ConstantOutput,
    "unused parameter": lambda: with_parameter(torch.ones(2, 3)),
    "empty parameter": lambda: with_parameter(torch.ones(0, 3)),
    "scalar parameter": lambda: with_parameter(torch.tensor(1.0)),
}
"""Name -> a module that takes [X][], out of the ordinary."""
