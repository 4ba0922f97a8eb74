"""A network with any function in its middle, for tests of what tracing sees."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Between(nn.Module):
    """A hidden layer, and what ``function`` makes of its six units."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.function = nn.Linear(4, 6), nn.Linear(6, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))
