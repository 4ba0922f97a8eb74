"""Convolutions of many networks, each with its own weights and inputs, as batched products.

A grouped convolution computes the same, but its second derivatives, which meta-training takes in every step,
are grouped convolutions of unusual shapes, slow on a CPU. Here the windows that a kernel sees are copied out,
and what is left is a matrix product, whose derivatives are products again.

Legend: B networks, N examples, C / O channels in and out, L positions in, P positions out, k of a kernel.
L, P and k may stand for several axes. Examples are the last axis, so that copies move long rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)
class Windows:
    """Which inputs a kernel sees at which position.

    Attributes:
        kernel: Size k along each axis.
        stride: Inputs from one window to the next.
        padding: Zeros on both sides.
        dilation: Inputs from one element of the kernel to the next.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def positions(self, lengths: tuple[int, ...]) -> list[int]:
        """P, for inputs of lengths L; less than one where a kernel does not fit."""
        axes = zip(lengths, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]

    def copy_out(self, x: Tensor) -> Tensor:
        """The inputs of every window: [B, C, L, N] -> [B, C, k, P, N]."""
        pads = [each for p in reversed(self.padding) for each in (p, p)]
        padded = F.pad(x, [0, 0, *pads])
        first, second, *along, last = padded.stride()
        kernel = [s * d for s, d in zip(along, self.dilation, strict=True)]
        steps = [s * t for s, t in zip(along, self.stride, strict=True)]
        sizes = (*x.shape[:2], *self.kernel, *self.positions(x.shape[2:-1]), x.shape[-1])
        return padded.as_strided(sizes, (first, second, *kernel, *steps, last)).contiguous()

    def add_up(self, windows: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """The transpose of ``copy_out``, a sum over all windows: [B, C, k, P, N] -> [B, C, L, N]."""
        axes = len(self.kernel)
        positions, every = windows.shape[2 + axes : -1], (slice(None), slice(None))
        padded = [n + 2 * p for n, p in zip(lengths, self.padding, strict=True)]
        total = windows.new_zeros(*windows.shape[:2], *padded, windows.shape[-1])
        for place in product(*(range(k) for k in self.kernel)):
            starts = zip(place, self.dilation, self.stride, positions, strict=True)
            seen = tuple(slice(j * d, j * d + s * (n - 1) + 1, s) for j, d, s, n in starts)
            total[every + seen] += windows[every + place]
        return total[every + tuple(slice(p, p + n) for p, n in zip(self.padding, lengths, strict=True))]


def convolve_many(x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
    """Convolutions of B networks with zero padding.

    Args:
        x: [B, N, C, L].
        weight: [B, O, C, k].
        bias: [B, O].
        windows: Where the kernels lie.

    Returns:
        [B, N, O, P], a view of [B, O, P, N]; differentiable in all three to any order.
    """
    copied = _CopyOut.apply(x.movedim(1, -1), windows)
    assert isinstance(copied, Tensor)
    positions = copied.shape[2 + len(windows.kernel) :]
    rows = copied.reshape(*weight.shape[:1], weight[0, 0].numel(), positions.numel())  # [B, C k, P N]
    kernels = weight.flatten(2)  # [B, O, C k]
    out = kernels @ rows if bias is None else torch.baddbmm(bias.unsqueeze(2), kernels, rows)
    return out.unflatten(2, positions).movedim(-1, 1)


class _CopyOut(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, windows: Windows) -> Tensor:
        return windows.copy_out(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Windows], output: Tensor) -> None:
        ctx.windows, ctx.lengths = inputs[1], tuple(inputs[0].shape[2:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _AddUp.apply(grads[0], ctx.windows, ctx.lengths), None


class _AddUp(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, windows: Windows, lengths: tuple[int, ...]) -> Tensor:
        return windows.add_up(g, lengths)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.windows = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _CopyOut.apply(grads[0], ctx.windows), None, None
