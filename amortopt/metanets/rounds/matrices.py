"""Params as matrices, one per layer, for rules that multiply them from both sides.

Legend: B networks, o rows (units that are written), i columns (what a unit reads, its bias last).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amortopt._types import Params


class Matrices:
    """Which parameters make up which matrix.

    A parameter [o, ...] is a matrix [o, i] of its flattened rest; a bias [o] right behind it is one more
    column. Parameters that fit nowhere, such as a norm's gain, are matrices of one column.

    Args:
        shapes: Name -> shape of one network's parameters, in their order.
        scales: Name -> unit in which a parameter is measured, where it is not 1: entries of matrices are
            parameters divided by it.

    Attributes:
        sizes: (o, i) of every matrix.

    Example:
        >>> Matrices({"0.weight": (32, 40), "0.bias": (32,), "gain": (32,)}).sizes
        [(32, 41), (32, 1)]
    """

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], scales: Mapping[str, float] | None = None
    ) -> None:
        self._scales = dict(scales or {})
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._names: list[list[str]] = []
        for name, shape in self._shapes.items():
            weight = self._shapes[self._names[-1][0]] if self._names and len(self._names[-1]) == 1 else ()
            if len(shape) == 1 and len(weight) > 1 and weight[0] == shape[0]:
                self._names[-1].append(name)
            else:
                self._names.append([name])
        self.sizes = [self._size(names) for names in self._names]

    def weights(self) -> list[int]:
        """Number of leading columns of every matrix that are weights: of parameters with two or more axes."""
        return [
            math.prod(self._shapes[names[0]][1:]) if len(self._shapes[names[0]]) > 1 else 0
            for names in self._names
        ]

    def _size(self, names: list[str]) -> tuple[int, int]:
        rows, *rest = self._shapes[names[0]] or (1,)
        return rows, math.prod(rest) + len(names) - 1

    def pack(self, params: Params) -> list[Tensor]:
        """Params [B, ...] -> matrices [B, o, i]."""
        return self._packed(params, {name: 1 / scale for name, scale in self._scales.items()})

    def pack_gradient(self, gradient: Params) -> list[Tensor]:
        """Gradients by params [B, ...] -> gradients by matrices [B, o, i]."""
        return self._packed(gradient, self._scales)

    def _packed(self, params: Params, factors: Mapping[str, float]) -> list[Tensor]:
        def part(name: str, rows: int) -> Tensor:
            value = params[name].reshape(-1, rows, params[name][0].numel() // rows)
            return value * factors[name] if name in factors else value

        return [
            torch.cat([part(name, rows) for name in names], 2)
            for names, (rows, _) in zip(self._names, self.sizes, strict=True)
        ]

    def unpack(self, matrices: Sequence[Tensor]) -> Params:
        """The inverse of ``pack``."""
        params: Params = {}
        for names, matrix in zip(self._names, matrices, strict=True):
            weight = matrix[:, :, :-1] if len(names) == 2 else matrix
            params[names[0]] = weight.reshape(-1, *self._shapes[names[0]])
            if len(names) == 2:
                params[names[1]] = matrix[:, :, -1]
        for name, scale in self._scales.items():
            params[name] = params[name] * scale
        return params
