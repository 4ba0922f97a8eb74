"""Newton-Schulz iterations as a step that can be differentiated and vectorised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amortopt.training.muon import orthogonalize


def orthogonal(matrices: Tensor) -> Tensor:
    """[orthogonalize][amortopt.training.muon.orthogonalize] of [.., m, n], with a damped derivative.

    The derivative of Newton-Schulz iterations is hundreds of times larger along small singular values than
    along large ones, so that derivatives through many steps explode. Here it is that of a matrix M over its
    norm, times the norm of the result: the right one if all singular values are alike.
    """
    return _Orthogonal.apply(matrices)  # pyright: ignore[reportReturnType]


class _Orthogonal(torch.autograd.Function):
    @staticmethod
    def forward(matrices: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Matrices of norm 1 are far from the smallest numbers, whatever the scale of the loss.
        size = matrices.abs().amax((-2, -1), keepdim=True)
        return orthogonalize(matrices / size.masked_fill(size == 0, 1.0))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        matrices, out = ctx.saved_tensors
        norm = torch.linalg.matrix_norm(matrices, keepdim=True)
        unit = matrices / norm.masked_fill(norm == 0, 1.0)
        along = (grad * unit).sum((-2, -1), keepdim=True)
        factor = torch.linalg.matrix_norm(out, keepdim=True) / norm.masked_fill(norm == 0, torch.inf)
        return (grad - along * unit) * factor

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], matrices: Tensor) -> tuple[Tensor, int]:
        return orthogonal(matrices.movedim(in_dims[0] or 0, 0)), 0
