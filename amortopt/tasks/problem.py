"""What a problem is: data in three fixed parts, and an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from amortopt.system.registry import Registry
from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import Objective

Which: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Which, ...] = ("train", "val", "test")
T = TypeVar("T", bound=Callable[..., Any])


class Problem(ABC):
    """Data in three fixed parts and the objective of the networks that learn them.

    A problem holds its arguments and no tensors: the data are read on first use and shared in the process by
    all problems with the same arguments, so problems are cheap to make and to send to workers.
    """

    name: str
    """Name in the registry, see [make_problem][amortopt.tasks.make_problem]."""
    objective: Objective
    """What outputs and targets are compared by."""
    arguments: tuple[str, ...] = ()
    """Names of the constructor's arguments, each of which is an attribute too."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""

    @abstractmethod
    def split(self, which: Which) -> Examples:
        """One part of the data; the same tensors at every call, so do not write to them.

        Args:
            which: ``"train"``, ``"val"`` (held out from the train data) or ``"test"``.

        Returns:
            The part, on the CPU.

        Raises:
            ValueError: If ``which`` is none of the three.
            FileNotFoundError: If the data are read from files that are not there.
        """

    def to_config(self) -> dict[str, Any]:
        """JSON-able ``{"name": ..., **arguments}``; ``make_problem(**config)`` makes the same problem."""
        values = {key: getattr(self, key) for key in self.arguments}
        return {"name": self.name} | {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

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


PROBLEMS: Registry[Problem] = Registry("problem")


def register_problem(name: str) -> Callable[[T], T]:
    """Decorator: make a problem known to [make_problem][amortopt.tasks.make_problem] as ``name``.

    For a subclass of [Problem][amortopt.tasks.Problem], or for a function that returns a problem, such as an
    [ArrayProblem][amortopt.tasks.ArrayProblem] of that name.
    """
    return PROBLEMS.register(name)


def problem_names() -> list[str]:
    """Names that [make_problem][amortopt.tasks.make_problem] knows, sorted."""
    return PROBLEMS.names()


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
    return PROBLEMS.make(name, **kwargs)
