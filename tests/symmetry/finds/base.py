"""How a small module with a trap is written down, and the tables that hold them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Forward: TypeAlias = Callable[[Any, Tensor], Any]
Part: TypeAlias = "Callable[[], nn.Module] | tuple[int, ...] | Tensor"
Build: TypeAlias = Callable[[], tuple[nn.Module, Tensor]]

FINDS: dict[str, Build] = {}
TRAINING_ONLY: dict[str, Build] = {}
SHOW_NOTHING: dict[str, Build] = {}
DO_NOT_RUN: dict[str, Build] = {}


class _Net(nn.Module):
    def __init__(self, forward: Forward, parts: dict[str, Part]) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part.clone())
            else:
                setattr(self, name, nn.Parameter(torch.empty(part)) if isinstance(part, tuple) else part())

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def find(
    into: dict[str, Build] = FINDS, inputs: tuple[int, ...] = (4, 7), **parts: Part
) -> Callable[[Forward], Forward]:
    """A module with this forward; its parts are made by a call, parameters of a shape, or buffers."""

    def register(forward: Forward) -> Forward:
        def build() -> tuple[nn.Module, Tensor]:
            torch.manual_seed(0)
            net = _Net(forward, parts)
            for param in net.parameters():
                nn.init.normal_(param)
            for name, buffer in net.named_buffers():
                if "running_mean" in name:
                    buffer.normal_()
                elif "running_var" in name:
                    buffer.uniform_(0.5, 2)
            return net, torch.randn(inputs)

        into[forward.__name__] = build
        return forward

    return register


def linear(inputs: int, outputs: int, bias: bool = True) -> Callable[[], nn.Module]:
    return partial(nn.Linear, inputs, outputs, bias)


def heads(h: Tensor) -> Tensor:
    return h.view(-1, 6, 5)
