"""A problem made of the user's own tensors or arrays."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import CrossEntropy, Objective, SquaredError
from amortopt.tasks.problem import Problem, Which, check_which, hold_out

Pair: TypeAlias = "tuple[Tensor | np.ndarray, Tensor | np.ndarray]"


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
        pairs = {"train": train, "val": val, "test": test}
        self._parts = {key: _read(pair, key) for key, pair in pairs.items() if pair is not None}
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


def _read(pair: Pair, argument: str) -> Examples:
    """Tensors on the CPU: float32 (targets [N, D]) or int64."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{argument}: got {type(pair).__name__}, expected a pair of inputs and targets")
    parts = []
    for letter, array in zip("xy", pair, strict=True):
        tensor = torch.as_tensor(array).detach().cpu()
        if tensor.ndim == 0 or tensor.numel() == 0:
            raise ValueError(
                f"{argument}: got {letter} of shape {tuple(tensor.shape)}, expected at least one example on "
                "its first axis"
            )
        tensor = tensor.float() if tensor.is_floating_point() else tensor.long()
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{argument}: got {letter} with values that are not finite; leave these out")
        parts.append(tensor)
    x, y = parts
    if len(x) != len(y):
        raise ValueError(f"{argument}: got {len(x)} inputs and {len(y)} targets, expected as many")
    return Examples(x, y.unsqueeze(1) if y.ndim == 1 and y.is_floating_point() else y)
