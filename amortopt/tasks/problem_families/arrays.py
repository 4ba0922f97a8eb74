"""Problems that are arrays or tensors of the user's own, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from amortopt.tasks.problem import SPLITS
from amortopt.tasks.problem_families.base import register_problem_family
from amortopt.tasks.problem_families.finite import KEYS, FiniteFamily, Label, checked_shares

Four: TypeAlias = "Sequence[Tensor | np.ndarray | Sequence[Any]]"


@register_problem_family("arrays")
class Arrays(FiniteFamily[int]):
    """Problems given as ``(x_train, y_train, x_test, y_test)`` each.

    Everything is checked when the family is made. Which part a problem belongs to is drawn by ``seed``.
    Inputs are taken as they are: standardise them.

    Args:
        problems: Arrays or tensors of every problem, numbers of examples of any size; None: no data, as in a
            checkpoint.
        objective: As ``objective.to_config()``; by default cross-entropy for integer targets, with one class
            more than the largest label, squared error for real ones.
        val: Share of the problems that are for validation.
        test: Share of the problems that are for testing.
        seed: Seed of that choice.
        input_shape: Shape of one input, in place of data.

    Raises:
        ValueError: If an array does not fit; problem and array are named.
    """

    def __init__(
        self,
        problems: Sequence[Four] | None = None,
        objective: Mapping[str, Any] | None = None,
        val: float = 0.15,
        test: float = 0.15,
        seed: int = 0,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        checked_shares(val, test)
        self.val, self.test, self.seed = val, test, seed
        self._data: list[dict[str, Tensor]] = []
        if problems is None:
            super().__init__(None, (), objective, lambda: None, (), input_shape)
            return
        if isinstance(problems, str | Tensor | np.ndarray) or not isinstance(problems, Sequence):
            raise ValueError(
                f"problems: got {type(problems).__name__}, expected a list of (x_train, y_train, x_test, "
                "y_test), one for each problem"
            )
        self._data = [_tensors(problem, f"problems[{k}]") for k, problem in enumerate(problems)]
        if not self._data:
            raise ValueError("problems: got an empty list, expected at least one problem")
        for k, data in enumerate(self._data):
            for key in KEYS:
                _check_like(f"problems[{k}]: {key}", data[key], self._data[0][key[0] + "_train"])
        first = self._data[0]

        def largest_label() -> Label | None:
            if first["y_train"].is_floating_point():
                return None
            return max(
                Label(int(data[key].max()), f"problems[{k}]: {key}")
                for k, data in enumerate(self._data)
                for key in ("y_train", "y_test")
            )

        order = np.random.default_rng(seed).permutation(len(self._data)).tolist()
        held = [0 if not share else max(1, round(share * len(order))) for share in (val, test)]
        parts = (order[sum(held) :], order[: held[0]], order[held[0] : sum(held)])
        super().__init__(
            dict(zip(SPLITS, parts, strict=True)),
            tuple(first["x_train"].shape[1:]),
            objective,
            largest_label,
            tuple(first["y_train"].shape[1:]),
            input_shape,
        )
        for k, data in enumerate(self._data):
            for key in ("y_train", "y_test"):
                self.objective.check_targets(data[key], f"problems[{k}]: {key}")

    def to_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "objective": self.objective.to_config(),
            "val": self.val,
            "test": self.test,
            "seed": self.seed,
            "input_shape": list(self.input_shape),
        }

    def read(self, item: int, part: str, most: int) -> tuple[Tensor, Tensor]:
        """Examples of one problem; see [FiniteFamily][amortopt.tasks.problem_families.FiniteFamily]."""
        return self._data[item][f"x_{part}"][:most], self._data[item][f"y_{part}"][:most]


def _tensors(problem: Any, where: str) -> dict[str, Tensor]:
    """Arrays of one problem by name, as float32 inputs and int64 or float32 targets on the CPU."""
    if not isinstance(problem, tuple | list) or len(problem) != len(KEYS):
        got = f"{len(problem)} values" if isinstance(problem, tuple | list) else type(problem).__name__
        raise ValueError(f"{where}: got {got}, expected ({', '.join(KEYS)})")
    tensors = {}
    for key, array in zip(KEYS, problem, strict=True):
        try:
            tensor = torch.as_tensor(array).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{where}: {key} is no array of numbers ({error})") from error
        if tensor.is_complex() or tensor.ndim == 0 or tensor.numel() == 0:
            raise ValueError(
                f"{where}: {key} has the dtype {tensor.dtype} and the shape {tuple(tensor.shape)}, expected "
                "real numbers with at least one example on the first axis"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{where}: {key} has NaN or infinite values; leave those examples out")
        if key[0] == "x":
            tensor = tensor.float()
        elif not tensor.is_floating_point():
            tensor = tensor.long()
        else:
            tensor = tensor.float() if tensor.ndim > 1 else tensor.float().unsqueeze(1)
        tensors[key] = tensor
    for part in ("train", "test"):
        inputs, targets = len(tensors[f"x_{part}"]), len(tensors[f"y_{part}"])
        if inputs != targets:
            raise ValueError(f"{where}: y_{part} has {targets} targets for {inputs} inputs in x_{part}")
    return tensors


def _check_like(where: str, got: Tensor, first: Tensor) -> None:
    if got.shape[1:] != first.shape[1:] or got.dtype != first.dtype:
        raise ValueError(
            f"{where} has {got.dtype} examples of shape {tuple(got.shape[1:])}, expected {first.dtype} of "
            f"shape {tuple(first.shape[1:])} as in problems[0]; problems of one family have one input and "
            "one target shape"
        )
