"""Base networks of a user's own class: known here by import path, never imported from text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amortopt.system.imports import import_path
from amortopt.tasks.families import Family, check_sizes, register_family

_NETWORKS: dict[str, Callable[[], nn.Module]] = {}


def register_network(build_network: Callable[[], nn.Module]) -> str:
    """Make a class of networks known to families named ``"module"``, such as that of a checkpoint.

    A checkpoint names the class as text, and nothing is imported because of that. A program that wants
    networks built, or [one_shot_params][amortopt.ScaleGMNOptimizer.one_shot_params], registers the class
    first; ``one_shot`` on networks does not need it.

    Args:
        build_network: A class, or a function, that makes a network when called without arguments. One of the
            same import path that was registered before is replaced.

    Returns:
        Its import path ``package.module:name``.

    Raises:
        ValueError: It cannot be called, or makes no network.

    Examples:
        >>> class Net(nn.Sequential):
        ...     def __init__(self):
        ...         super().__init__(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> path = register_network(Net)
        >>> len(list(ModuleFamily(path, (4,)).build().parameters()))
        4
    """
    _built(build_network)
    path = import_path(build_network)
    _NETWORKS[path] = build_network
    return path


@register_family("module")
@dataclass(frozen=True)
class ModuleFamily(Family):
    """Networks of a class of the user's own, see [register_network][amortopt.tasks.register_network].

    Attributes:
        module: Import path of the class, ``package.module:name``. It is a name and nothing more: it is looked
            up among the registered classes.
        input_shape: Shape of one input.
    """

    module: str = ""
    input_shape: tuple[int, ...] = ()
    activation: str = "any"

    def __post_init__(self) -> None:
        if not isinstance(self.module, str) or ":" not in self.module:
            raise ValueError(f"module: got {self.module!r}, expected package.module:name")
        object.__setattr__(self, "input_shape", check_sizes("input_shape", self.input_shape))

    @property
    def is_buildable(self) -> bool:
        """Whether the class is registered in this process."""
        return self.module in _NETWORKS

    def example_input(self) -> Tensor:
        return torch.zeros(1, *self.input_shape)

    def build(self) -> nn.Module:
        """A new network in eval mode.

        Raises:
            ValueError: The class is not registered in this process, or makes no network.
        """
        if not self.is_buildable:
            raise ValueError(
                f"module: {self.module} is a name in a checkpoint, and nothing is imported because a file "
                "names it; import the class and call amortopt.tasks.register_network(it) before, or pass "
                "networks of it to one_shot"
            )
        return _built(_NETWORKS[self.module])

    def to_config(self) -> dict[str, Any]:
        return {"name": self.name, "module": self.module, "input_shape": list(self.input_shape)}


def _built(build_network: Callable[[], Any]) -> nn.Module:
    if isinstance(build_network, nn.Module) or not callable(build_network):
        raise ValueError(
            f"build_network: got {type(build_network).__name__}, expected a class or function that makes a "
            "network; for a network that exists, pass lambda: copy.deepcopy(network)"
        )
    try:
        network = build_network()
    except TypeError as error:
        raise ValueError(
            f"build_network: {import_path(build_network)} cannot be called without arguments ({error}); pass "
            "a function that makes the network"
        ) from error
    except Exception as error:
        raise ValueError(
            f"build_network: {import_path(build_network)} failed when it was called, in its own code: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"build_network: {import_path(build_network)} makes {type(network).__name__}, expected an "
            "nn.Module"
        )
    return network.eval()
