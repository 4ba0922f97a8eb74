"""Problems: data in three fixed parts, and an objective; of a name, or of the user's own arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from amortopt.system.registry import Registry
from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import CrossEntropy, Objective, SquaredError

Which: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Which, ...] = ("train", "val", "test")
Pair: TypeAlias = "tuple[Tensor | np.ndarray, Tensor | np.ndarray]"
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
    """Choose ``held`` of ``count`` train examples for the val part: ascending indices of train and val part.

    NumPy freezes the stream of its legacy generator, so a seed's choice is the same for every version and
    machine.

    Raises:
        ValueError: If nothing would be left in one of them.
    """
    if not 0 < held < count:
        raise ValueError(
            f"held: got {held} val examples of {count} train examples, expected 1 to {count - 1}"
        )
    order = np.random.RandomState(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


class ArrayProblem(Problem):
    """A problem made of tensors or arrays.

    Inputs are taken as they are: standardise them by the train part, if the networks should be.

    Args:
        train: Inputs [N, ...] and targets: classes [N] or [N, T] (integers), or real numbers [N] or [N, D].
        test: The same for testing; None: there is no test part.
        val: The same for validation; by default a part of ``train`` is held out.
        objective: What the targets are for; by default cross-entropy for integers, with as many classes as
            there are, and squared error for real numbers.
        val_fraction: Share of ``train`` that is held out, in (0, 1), where ``val`` is None.
        seed: Seed of that choice.
        name: Name of the data, which has to tell them apart from others: two array problems of one name are
            equal. Recipes find the problem by it after
            ``register_problem(name)(lambda: ArrayProblem(..., name=name))``.

    Raises:
        ValueError: If a part does not fit; the message names the argument.

    Examples:
        >>> problem = ArrayProblem((torch.randn(20, 3), torch.arange(20) % 2), name="parity")
        >>> problem.objective, problem.input_shape, len(problem.split("train")), len(problem.split("val"))
        (CrossEntropy(num_classes=2, target_shape=()), (3,), 18, 2)
    """

    def __init__(
        self,
        train: Pair,
        *,
        test: Pair | None = None,
        val: Pair | None = None,
        objective: Objective | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        name: str = "array",
    ) -> None:
        self.name = name
        self._parts: dict[str, Examples] = {}
        for key, pair in (("train", train), ("val", val), ("test", test)):
            if pair is None:
                continue
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(f"{key}: got {type(pair).__name__}, expected a pair of inputs and targets")
            tensors: list[Tensor] = []
            for letter, array in zip("xy", pair, strict=True):
                tensor = torch.as_tensor(array).detach().cpu()
                if tensor.ndim == 0 or tensor.numel() == 0:
                    raise ValueError(
                        f"{key}: got {letter} of shape {tuple(tensor.shape)}, expected at least one example "
                        "on its first axis"
                    )
                if not bool(tensor.isfinite().all()):
                    raise ValueError(f"{key}: got {letter} with values that are not finite; leave these out")
                tensors.append(tensor.float() if tensor.is_floating_point() else tensor.long())
            x, y = tensors
            if len(x) != len(y):
                raise ValueError(f"{key}: got {len(x)} inputs and {len(y)} targets, expected as many")
            if y.ndim == 1 and y.is_floating_point():
                y = y.unsqueeze(1)
            self._parts[key] = Examples(x, y)
        first = self._parts["train"]
        if val is None:
            if not 0 < val_fraction < 1:
                raise ValueError(f"val_fraction: got {val_fraction}, expected a share between 0 and 1")
            held = max(1, round(val_fraction * len(first)))
            keep, out = (torch.from_numpy(part) for part in hold_out(len(first), held, seed))
            self._parts |= {"train": first.take(keep), "val": first.take(out)}
        if objective is None:
            shape = tuple(first.y.shape[1:])
            most = max(int(part.y.max()) for part in self._parts.values())
            objective = SquaredError(shape) if first.y.is_floating_point() else CrossEntropy(most + 1, shape)
        self.objective = objective
        for key, part in self._parts.items():
            for letter, shape in (("x", first.x.shape[1:]), ("y", objective.target_shape)):
                got = getattr(part, letter).shape[1:]
                if got != shape:
                    raise ValueError(
                        f"{key}: got {letter} of shape {tuple(got)} per example, expected {tuple(shape)} as "
                        + ("in train" if letter == "x" else f"in {objective}")
                    )
            objective.check_targets(part.y, key)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self._parts["train"].x.shape[1:])

    def split(self, which: Which) -> Examples:
        check_which(which)
        if which not in self._parts:
            raise ValueError(f"which: {self} has no {which} part; pass {which}=(x, y) to its constructor")
        return self._parts[which]


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
    """Make a problem by name; its data are not read yet.

    Args:
        name: One of [problem_names][amortopt.tasks.problem_names], such as ``"mnist1d"``.
        **kwargs: The problem's own arguments.

    Raises:
        ValueError: If there is no such problem, or it has no such argument.
    """
    return PROBLEMS.make(name, **kwargs)
