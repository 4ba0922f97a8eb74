"""What a problem is: data in three fixed parts, a loss and an accuracy."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Which: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Which, ...] = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a problem's data.

    Attributes:
        x: Inputs [N, *input_shape]: float32, standardised by the train part, or int64 symbols.
        y: Class indices, int64 [N, *target_shape].
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"y: got {len(self.y)} labels for {len(self.x)} inputs, expected one label each")

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        """Copy to a device; itself if it is there already."""
        x, y = self.x.to(device), self.y.to(device)
        return self if x is self.x and y is self.y else Split(x, y)


class Problem(ABC):
    """Data and loss of a classification problem: one class per input, or one per position of a sequence.

    A problem holds its arguments and no tensors: the data are read on first use and shared in the process by
    all problems with the same arguments, so problems are cheap to make and to send to workers.
    """

    name: str
    """Name in the registry, see [make_problem][amortopt.tasks.make_problem]."""
    num_classes: int
    target_shape: tuple[int, ...] = ()
    """Shape of one input's classes: () for one class, [T] for one per position."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""

    @abstractmethod
    def split(self, which: Which) -> Split:
        """One part of the data; the same tensors at every call, so do not write to them.

        Args:
            which: ``"train"``, ``"val"`` (held out from the train data) or ``"test"``.

        Returns:
            The part, on the CPU.

        Raises:
            ValueError: If ``which`` is none of the three.
            FileNotFoundError: If the data are read from files that are not there.
        """

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """JSON-able ``{"name": ..., **arguments}``; ``make_problem(**config)`` makes the same problem."""

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy in nats, over examples and positions.

        Args:
            logits: [..., N, *target_shape, C]; leading axes are networks.
            y: Class indices [N, *target_shape], or [..., N, *target_shape].

        Returns:
            [...]: a scalar for one network. Differentiable in ``logits`` to any order.
        """
        shape = logits.shape[:-1]
        each = F.cross_entropy(logits.flatten(0, -2), y.expand(shape).flatten(), reduction="none")
        return each.unflatten(0, shape).mean(self._example_axes)

    def accuracy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Fraction of classes that have the largest logit.

        Args:
            logits: [..., N, *target_shape, C]; leading axes are networks.
            y: Class indices [N, *target_shape], or [..., N, *target_shape].

        Returns:
            [...] in [0, 1], in the dtype of ``logits``.
        """
        return (logits.argmax(-1) == y).to(logits.dtype).mean(self._example_axes)

    @property
    def _example_axes(self) -> tuple[int, ...]:
        """Axes of examples and their positions, from the back, where the class axis is gone."""
        return tuple(range(-1 - len(self.target_shape), 0))

    def augment(self, x: Tensor, noise: float, generator: torch.Generator | None = None) -> Tensor:
        """Add white noise to inputs.

        Args:
            x: Inputs [..., *input_shape]; not modified.
            noise: Standard deviation in units of the standardised inputs, so 1 is as strong as the signal.
            generator: Source of randomness, on the device of ``x``.

        Returns:
            New inputs; ``x`` itself when ``noise`` is 0.

        Raises:
            ValueError: If ``noise`` is negative or not finite, or inputs are symbols.
        """
        if not 0 <= noise < float("inf"):
            raise ValueError(f"noise: got {noise}, expected a finite standard deviation >= 0")
        if noise == 0:
            return x
        if not x.is_floating_point():
            raise ValueError(f"noise: got {noise} for inputs of {x.dtype}, expected 0; symbols take no noise")
        return x + noise * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={v!r}" for k, v in self.to_config().items() if k != "name")
        return f"{type(self).__name__}({args})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problem) and self.to_config() == other.to_config()

    def __hash__(self) -> int:
        return hash(repr(self))


def check_which(which: str) -> None:
    """Raise a ``ValueError`` unless ``which`` names a part of the data."""
    if which not in SPLITS:
        raise ValueError(f"which: got {which!r}, expected one of {', '.join(SPLITS)}")


def hold_out(count: int, held: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose which train examples become the val part.

    Args:
        count: Number of train examples.
        held: Number to hold out.
        seed: Seed of the permutation. NumPy freezes the stream of its legacy generator, so the choice is the
            same for every version and machine.

    Returns:
        Indices of the train and the val part, each in ascending order.

    Raises:
        ValueError: If nothing would be left in one of them.
    """
    if not 0 < held < count:
        raise ValueError(
            f"held: got {held} val examples of {count} train examples, expected 1 to {count - 1}"
        )
    order = np.random.RandomState(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


T = TypeVar("T", bound=type[Problem])
_REGISTRY: dict[str, type[Problem]] = {}


def register_problem(name: str) -> Callable[[T], T]:
    """Class decorator: make a problem known to [make_problem][amortopt.tasks.make_problem] as ``name``."""

    def add(cls: T) -> T:
        if name in _REGISTRY:
            raise ValueError(
                f"name: problem {name!r} is already {_REGISTRY[name].__qualname__}; choose another name"
            )
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return add


def problem_names() -> list[str]:
    """Names that [make_problem][amortopt.tasks.make_problem] knows, sorted."""
    return sorted(_REGISTRY)


def make_problem(name: str, **kwargs: Any) -> Problem:
    """Make a problem by name.

    Args:
        name: One of [problem_names][amortopt.tasks.problem_names], such as ``"mnist1d"``.
        **kwargs: The problem's own arguments.

    Returns:
        The problem; its data are not read yet.

    Raises:
        ValueError: If there is no such problem, or it has no such argument.
    """
    if name not in _REGISTRY:
        raise ValueError(f"name: got unknown problem {name!r}, expected one of {', '.join(problem_names())}")
    return construct(_REGISTRY[name], f"problem {name!r}", kwargs)


R = TypeVar("R")


def construct(cls: Callable[..., R], what: str, kwargs: dict[str, Any]) -> R:
    """Call ``cls(**kwargs)``; an argument that it lacks is a ``ValueError`` that lists those it has."""
    known = inspect.signature(cls).parameters
    for key in kwargs:
        if key not in known:
            raise ValueError(f"{key}: {what} has no such argument; it has {', '.join(known) or 'none'}")
    return cls(**kwargs)
