"""What a base network of the tests consists of, and how its builder fills it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortopt.symmetry import ScaleKind


@dataclass(frozen=True)
class Case:
    """A network as a builder.

    ``permuted``, ``scaled`` and ``flipped`` are derived by hand from the architecture. They say what a spec
    must have at least; together with the proof that it is a symmetry they pin its size.

    Attributes:
        name: Test id.
        build: A new network, different for every global random state.
        example_input: Inputs with a batch axis, different for every global random state.
        kinds: Scale kinds of the hidden groups, in execution order; None where they are not pinned down.
        permuted: Degrees of the symmetric groups whose product permutes the hidden units: 4 heads of 3 units
            that may be permuted inside their head are (4, 3, 3, 3, 3).
        scaled: Independent continuous scalings of units.
        flipped: Independent sign flips of units.
    """

    name: str
    build: Callable[[], nn.Module]
    example_input: Callable[[], Tensor | tuple[Tensor, ...]]
    kinds: tuple[ScaleKind, ...] | None = None
    permuted: tuple[int, ...] = ()
    scaled: int = 0
    flipped: int = 0

    def __str__(self) -> str:
        return self.name


def inputs(*shape: int) -> Callable[[], Tensor]:
    """Normal inputs of a shape."""
    return lambda: torch.randn(*shape)


def tokens(vocabulary: int, *shape: int) -> Callable[[], Tensor]:
    """Integers below ``vocabulary``."""
    return lambda: torch.randint(vocabulary, shape)


def several(*parts: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """One input per part."""
    return lambda: tuple(part() for part in parts)


@torch.no_grad()
def filled(net: nn.Module) -> nn.Module:
    """The network with random values wherever an initialisation is constant, and random running statistics.

    A bias of zeros, a gain of ones or a variance of ones would hide that a symmetry forgets it.
    """
    for parameter in net.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter != 0))
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            torch.nn.init.normal_(module.running_mean, 0.0, 0.3)  # type: ignore[arg-type]
            module.running_var.uniform_(0.5, 1.5)
    return net


def family(
    name: str,
    build: Callable[[], nn.Module],
    example_input: Callable[[], Tensor | tuple[Tensor, ...]],
    *,
    permuted: tuple[int, ...] = (),
    scaled: int = 0,
    flipped: int = 0,
) -> Case:
    """A case with a [filled][] network."""
    return Case(name, lambda: filled(build()), example_input, None, permuted, scaled, flipped)
