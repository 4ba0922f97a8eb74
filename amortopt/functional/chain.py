r"""Gradients of chains of layers that can be differentiated once more, with both derivatives written out.

Meta-training differentiates through gradients. Autograd's second derivative of a chain makes many passes over
its activations; written out, it is one run forwards and one backwards (Pearlmutter 1994): for a direction v
of the params, the derivative of :math:`\langle \nabla L(\theta), v\rangle` by θ is the derivative of
:math:`\nabla L(\theta)` along v. A dot in names, such as ``out_dot``, is a derivative along v.

Legend: B networks, N examples, C channels or units, L positions in, P positions out, O / K rows and columns
of a product. Examples are the last axis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from amortopt._types import Params
from amortopt.functional.convolution import Windows
from amortopt.functional.many import POOLS, chain_of, is_known
from amortopt.functional.networks import apply_many

Losses = Callable[[Tensor], Tensor]
"""From outputs [B, N, ...] to a loss of each network [B]."""


class _Misfit(Exception):
    """Inputs that do not fit a layer's weights."""


class _Layer(ABC):
    """A layer of B networks while it runs: keeps what the later of its four methods need.

    They are called in this order; tensors are [B, C, *L, N] or [B, C, N].
    """

    @abstractmethod
    def run(self, x: Tensor) -> Tensor:
        """Output."""

    @abstractmethod
    def back(self, g: Tensor) -> Tensor:
        """Gradient by the output -> by the input."""

    @abstractmethod
    def run_dot(self, x_dot: Tensor) -> Tensor:
        """Derivative of the input -> of the output."""

    @abstractmethod
    def back_dot(self, g_dot: Tensor) -> Tensor:
        """Derivative of the gradient by the output -> of the gradient by the input."""


class _Product(_Layer):
    """A linear layer, or a convolution as a product with the windows that its kernel sees.

    Args:
        layer: What is computed.
        names: Of its weight and its bias.
        params: All params of the chain.
        first: Whether no params come before it: then nothing is done for its input.
    """

    def __init__(self, layer: nn.Module, names: list[str], params: Params, first: bool) -> None:
        self.names, self.first = names, first
        self.channels = params[names[0]].shape[2]
        self.weight, self.bias = self._matrices(params)  # [B, O, K] and [B, O, 1]
        self.windows: Windows | None = None
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            assert not isinstance(layer.padding, str)
            self.windows = Windows(layer.kernel_size, layer.stride, layer.padding, layer.dilation)

    def _matrices(self, params: Params) -> tuple[Tensor, Tensor | None]:
        weight = params[self.names[0]].flatten(2)
        return weight, params[self.names[1]].unsqueeze(2) if len(self.names) > 1 else None

    def grads(self) -> dict[str, Tensor]:
        """Gradients that ``back`` found, or their derivatives after ``back_dot``; handed out once."""
        found = dict(zip(self.names, self._found, strict=False))  # without a bias, its gradient is left
        self._found: list[Tensor] = []
        return found

    def _rows(self, x: Tensor) -> Tensor:
        if self.windows is None:
            return x
        self.lengths = tuple(x.shape[2:-1])
        copied = self.windows.copy_out(x)
        self.positions = copied.shape[2 + len(self.windows.kernel) :]
        return copied.view(len(x), -1, self.positions.numel())  # [B, C k, P N]

    def _out(self, out: Tensor) -> Tensor:
        return out if self.windows is None else out.unflatten(2, self.positions)

    def _into(self, by_rows: Tensor) -> Tensor:
        if self.windows is None:
            return by_rows
        copied = by_rows.unflatten(2, self.positions).unflatten(1, (-1, *self.windows.kernel))
        return self.windows.add_up(copied, self.lengths)

    def run(self, x: Tensor) -> Tensor:
        axes = 0 if self.windows is None else len(self.windows.kernel)
        if x.ndim != 3 + axes or x.shape[1] != self.channels:
            raise _Misfit
        if self.windows is not None and min(self.windows.positions(tuple(x.shape[2:-1]))) < 1:
            raise _Misfit
        self.rows = self._rows(x)
        if self.bias is None:
            return self._out(self.weight @ self.rows)
        return self._out(torch.baddbmm(self.bias, self.weight, self.rows))

    def back(self, g: Tensor) -> Tensor:
        self.g = g.reshape(len(g), -1, self.rows.shape[2])
        self._found = [self.g @ self.rows.mT, self.g.sum(2)]
        return g if self.first else self._into(self.weight.mT @ self.g)

    def move(self, direction: Params) -> None:
        """Take the derivative of the params, before ``run_dot``."""
        self.weight_dot, self.bias_dot = self._matrices(direction)

    def run_dot(self, x_dot: Tensor) -> Tensor:
        out = self.weight_dot @ self.rows
        if not self.first:
            self.rows_dot = self._rows(x_dot)
            out.baddbmm_(self.weight, self.rows_dot)
        return self._out(out if self.bias_dot is None else out.add_(self.bias_dot))

    def back_dot(self, g_dot: Tensor) -> Tensor:
        dot = g_dot.reshape(self.g.shape)
        by_weight = dot @ self.rows.mT
        self._found = [by_weight, dot.sum(2)]
        if self.first:
            return g_dot
        by_weight.baddbmm_(self.g, self.rows_dot.mT)
        return self._into(torch.baddbmm(self.weight_dot.mT @ self.g, self.weight.mT, dot))


class _Elementwise(_Layer):
    """An activation, by its derivative ``slope`` and the derivative of that."""

    @abstractmethod
    def run_with_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output and slope."""

    @abstractmethod
    def slope_dot(self, x_dot: Tensor) -> Tensor | None:
        """Derivative of the slope; None: it is zero everywhere."""

    def run(self, x: Tensor) -> Tensor:
        self.out, self.slope = self.run_with_slope(x)
        return self.out

    def back(self, g: Tensor) -> Tensor:
        self.g = g
        return g * self.slope

    def run_dot(self, x_dot: Tensor) -> Tensor:
        self.x_dot = x_dot
        return x_dot * self.slope

    def back_dot(self, g_dot: Tensor) -> Tensor:
        out, bend = g_dot * self.slope, self.slope_dot(self.x_dot)
        return out if bend is None else out.addcmul_(self.g, bend)


class _Tanh(_Elementwise):
    def run_with_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = x.tanh()
        return out, 1 - out * out

    def slope_dot(self, x_dot: Tensor) -> Tensor:
        return (x_dot * self.slope).mul_(self.out).mul_(-2)


class _Relu(_Elementwise):
    def run_with_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu(), (x > 0).to(x.dtype)

    def slope_dot(self, x_dot: Tensor) -> None:
        return None


class _Fixed(_Layer):
    """A linear map without params: its derivative is itself."""

    @abstractmethod
    def transposed(self, g: Tensor) -> Tensor: ...

    def back(self, g: Tensor) -> Tensor:
        return self.transposed(g)

    def run_dot(self, x_dot: Tensor) -> Tensor:
        return self.run(x_dot)

    def back_dot(self, g_dot: Tensor) -> Tensor:
        return self.transposed(g_dot)


class _Flatten(_Fixed):
    def run(self, x: Tensor) -> Tensor:
        self.shape = x.shape
        return x.flatten(1, -2)

    def transposed(self, g: Tensor) -> Tensor:
        return g.reshape(self.shape)


class _MeanOverPositions(_Fixed):
    def __init__(self, axes: int) -> None:
        self.axes = axes

    def run(self, x: Tensor) -> Tensor:
        if x.ndim != 3 + self.axes:
            raise _Misfit
        self.shape = x.shape
        return x.mean(tuple(range(2, x.ndim - 1)), keepdim=True)

    def transposed(self, g: Tensor) -> Tensor:
        return (g / self.shape[2:-1].numel()).expand(self.shape)


_ACTIVATIONS: dict[type[nn.Module], type[_Elementwise]] = {nn.Tanh: _Tanh, nn.ReLU: _Relu}


def _layers(module: nn.Module, params: Params) -> list[_Layer] | None:
    """The layers of a chain; None if one is of another kind."""
    layers: list[_Layer] = []
    first_names: dict[int, str] = {id(p): name for name, p in module.named_parameters()}
    for layer in chain_of(module):
        kind = type(layer)
        if not is_known(layer) or isinstance(getattr(layer, "padding", None), str):
            return None
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            names = [first_names[id(p)] for p in layer.parameters()]
            first = not any(isinstance(before, _Product) for before in layers)
            layers.append(_Product(layer, names, params, first))
        elif kind in _ACTIVATIONS:
            layers.append(_ACTIVATIONS[kind]())
        elif kind is nn.Flatten:
            layers.append(_Flatten())
        elif kind in POOLS:
            layers.append(_MeanOverPositions(POOLS[kind]))
        elif kind is not nn.Identity:
            return None
    return layers if any(isinstance(layer, _Product) for layer in layers) else None


def chain_loss_and_grad(
    module: nn.Module, params: Params, x: Tensor, losses: Losses
) -> tuple[Tensor, Params] | None:
    """Losses of B networks and their gradients, both differentiable in the params.

    The derivative of the gradient is written out; autograd takes it where it is to be differentiated again.

    Args:
        module: What to compute.
        params: All of its parameters, [B, ...].
        x: Inputs [B, N, ...].
        losses: Of outputs [B, N, ...], one for each network, [B].

    Returns:
        [B], and gradients with the names and shapes of ``params``; None unless the module is a chain of
        ``Linear``, ``Conv1d``, ``Conv2d``, ``Tanh``, ``ReLU``, ``Flatten`` and average pooling to one, and
        ``x`` fits its weights.
    """
    names = [name for name, _ in module.named_parameters()]
    if params.keys() != set(names) or x.requires_grad or {len(p) for p in params.values()} != {len(x)}:
        return None
    if (layers := _layers(module, params)) is None:
        return None
    try:
        with torch.enable_grad():
            run = lambda at: losses(apply_many(module, at, x, shared=False))  # noqa: E731
            results = _LossAndGrad.apply(layers, names, x, losses, run, *(params[name] for name in names))
    except _Misfit:
        return None
    assert isinstance(results, tuple)
    grads = dict(zip(names, results[1:], strict=True))
    return results[0], {name: grads[name] for name in params}


class _LossAndGrad(Function):
    @staticmethod
    def forward(
        ctx: Any,
        layers: list[_Layer],
        names: list[str],
        x: Tensor,
        losses: Losses,
        run: Callable[[Params], Tensor],
        *params: Tensor,
    ) -> tuple[Tensor, ...]:
        value = x.movedim(1, -1)
        for layer in layers:
            value = layer.run(value)
        # Autograd differentiates the loss by the outputs, which are few numbers.
        with torch.enable_grad():
            outputs = value.movedim(-1, 1).contiguous().requires_grad_()
            loss = losses(outputs)
            (by_outputs,) = torch.autograd.grad(loss.sum(), outputs, create_graph=True)
        moving = layers[next(i for i, layer in enumerate(layers) if isinstance(layer, _Product)) :]
        g = by_outputs.detach().movedim(1, -1)
        for layer in reversed(moving):
            g = layer.back(g)
        grads = _collected(moving, names, params)
        ctx.layers, ctx.names, ctx.outputs, ctx.by_outputs = moving, names, outputs, by_outputs
        ctx.run = run
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*params, *grads)
        return loss.detach(), *grads

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor | None, *by_grads: Tensor | None) -> Any:
        saved = ctx.saved_tensors  # an error if params were written since
        params, grads = saved[: len(ctx.names)], saved[len(ctx.names) :]
        filled = [torch.zeros_like(p) if v is None else v for p, v in zip(params, by_grads, strict=True)]
        if torch.is_grad_enabled():
            at = [p.view_as(p) for p in params]  # what arrives may depend on the params too, but not on these
            loss = ctx.run(dict(zip(ctx.names, at, strict=True)))
            again = torch.autograd.grad(loss.sum(), at, create_graph=True)
            inner = sum(((g * v).sum() for g, v in zip(again, filled, strict=True)), loss.new_zeros(()))
            inner = inner if by_loss is None else inner + loss @ by_loss
            return *[None] * 5, *torch.autograd.grad(inner, at, create_graph=True)
        total = [torch.zeros_like(p) for p in params]
        if any(v is not None for v in by_grads):
            total = _along(ctx, dict(zip(ctx.names, filled, strict=True)), params)
        if by_loss is not None:
            weights = [by_loss.view(-1, *[1] * (g.ndim - 1)) for g in grads]
            total = [t.addcmul(g, w) for t, g, w in zip(total, grads, weights, strict=True)]
        return *[None] * 5, *total


def _along(ctx: Any, direction: Params, params: Sequence[Tensor]) -> list[Tensor]:
    """Derivative of the gradient along a direction of the params."""
    value_dot = params[0].new_zeros(())  # the first layer does not read it
    for layer in ctx.layers:
        if isinstance(layer, _Product):
            layer.move(direction)
        value_dot = layer.run_dot(value_dot)
    outputs_dot = value_dot.movedim(-1, 1)
    (by_outputs_dot,) = torch.autograd.grad(
        ctx.by_outputs, ctx.outputs, outputs_dot, retain_graph=True, materialize_grads=True
    )
    g_dot = by_outputs_dot.movedim(1, -1)
    for layer in reversed(ctx.layers):
        g_dot = layer.back_dot(g_dot)
    return _collected(ctx.layers, ctx.names, params)


def _collected(layers: Sequence[_Layer], names: list[str], params: Sequence[Tensor]) -> list[Tensor]:
    """What the layers found for each parameter; a tied one has the sum."""
    found: Params = {}
    for layer in layers:
        if isinstance(layer, _Product):
            for name, g in layer.grads().items():
                found[name] = found[name] + g if name in found else g
    return [found[name].reshape(p.shape) for name, p in zip(names, params, strict=True)]
