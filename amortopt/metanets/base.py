"""What a metanet is: an equivariant map from the params of many base networks to better ones."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from amortopt._types import Params
from amortopt.symmetry import SymmetrySpec

INPUTS = frozenset({"grads", "l1"})
"""What a metanet may read beside the weights: gradients of the problem's loss, and the L1 strength."""


class Metanet(nn.Module, ABC):
    """A network that reads the weights of base networks and returns weights.

    A final class takes ``spec`` and json-able keyword arguments, and hands both on to this constructor:
    ``super().__init__(spec, width=width)``.

    Args:
        spec: Symmetry of the family that the metanet is for.
        **config: All keyword arguments that the final class was called with;
            ``make_metanet(self.name, spec, **config)`` makes an untrained copy.

    Attributes:
        spec: Symmetry of the family.
        config: The keyword arguments.
    """

    name: ClassVar[str] = ""
    """Name in the registry, set by [register_metanet][amortopt.metanets.register_metanet]."""
    spec: SymmetrySpec
    config: dict[str, Any]

    def __init__(self, spec: SymmetrySpec, **config: Any) -> None:
        super().__init__()
        self.spec = spec
        self.config = config

    @property
    @abstractmethod
    def inputs(self) -> frozenset[str]:
        """What ``forward`` reads beside the weights: a subset of ``{"grads", "l1"}``."""

    @abstractmethod
    def forward(self, params: Params, *, grads: Params | None = None, l1: Tensor | None = None) -> Params:
        """Weights to weights, for B base networks of one architecture.

        Args:
            params: The family spec's parameter names -> [B, ...]; hidden widths may differ from the spec's,
                sizes are read from the tensors.
            grads: Gradients of each network's loss, names and shapes of ``params``; given if and only if
                ``"grads"`` is in :attr:`inputs`.
            l1: L1 strength >= 0 per network [B]; given if and only if ``"l1"`` is in :attr:`inputs`.

        Returns:
            New params: names, shapes and dtype of ``params``.
        """

    def matrix_parameters(self) -> list[Tensor]:
        """Parameters that act as matrices, for optimizers such as Muon; by default those of linear layers."""
        return [module.weight for module in self.modules() if isinstance(module, nn.Linear)]


T = TypeVar("T", bound=type[Metanet])
_REGISTRY: dict[str, type[Metanet]] = {}


def register_metanet(name: str) -> Callable[[T], T]:
    """Class decorator: make a metanet known to [make_metanet][amortopt.metanets.make_metanet] as ``name``."""

    def add(cls: T) -> T:
        if name in _REGISTRY:
            raise ValueError(
                f"name: metanet {name!r} is already {_REGISTRY[name].__qualname__}; choose another name"
            )
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return add


def metanet_names() -> list[str]:
    """Names that [make_metanet][amortopt.metanets.make_metanet] knows, sorted."""
    return sorted(_REGISTRY)


def make_metanet(name: str, spec: SymmetrySpec, **config: Any) -> Metanet:
    """Make an untrained metanet by name.

    Args:
        name: One of [metanet_names][amortopt.metanets.metanet_names].
        spec: Symmetry of the family that it is for.
        **config: The metanet's own keyword arguments.

    Returns:
        The metanet, initialised from the global random state.

    Raises:
        ValueError: If there is no such metanet, or it has no such argument.
    """
    if name not in _REGISTRY:
        known = ", ".join(metanet_names()) or "none"
        raise ValueError(f"name: got unknown metanet {name!r}, expected one of {known}")
    accepted = [key for key in inspect.signature(_REGISTRY[name]).parameters if key != "spec"]
    for key in config:
        if key not in accepted:
            raise ValueError(
                f"{key}: metanet {name!r} has no such argument; it has {', '.join(accepted) or 'none'}"
            )
    return _REGISTRY[name](spec, **config)
