"""Many networks of one architecture as batched products, where the architecture is a chain of known layers.

``vmap`` runs any module for many params at once, at the price of its dispatch and of extra passes over the
data. A chain of linear layers, convolutions and elementwise maps needs neither: a linear layer is one batched
product, a convolution one product with the windows that its kernel sees, and inputs that all networks share
stay one tensor until the first weights.

A module of another kind can bring a form of its own: see [ManyModule][amortopt.functional.many.ManyModule].

Legend: B networks, N examples, F features, C / O channels in and out, V rows of a table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.convolution import Windows, convolve_many

_ELEMENTWISE: set[type[nn.Module]] = {
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
}
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
POOLS = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

T = TypeVar("T", bound=type[nn.Module])


def elementwise(cls: T) -> T:
    """Class decorator: the module maps every number by itself and has no parameters."""
    _ELEMENTWISE.add(cls)
    return cls


class ManyModule(nn.Module, ABC):
    """A module with a form of its own for many networks of its architecture at once."""

    @abstractmethod
    def forward_many(self, params: Params, x: Tensor) -> Tensor:
        """Run B networks at once, each as ``forward`` runs one.

        Args:
            params: All parameters by name, [B, ...].
            x: Inputs [B, N, ...].

        Returns:
            Outputs [B, N, ...], differentiable in ``params`` to any order.
        """


def linear_many(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear layers of B networks: x [B, ..., F], weight [B, O, F], bias [B, O] -> [B, ..., O]."""
    rows = x.flatten(1, -2)
    out = rows @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return out if x.ndim == 3 else out.unflatten(1, x.shape[1:-1])


def embedding_many(table: Tensor, index: Tensor) -> Tensor:
    """Look-ups in the tables of B networks: table [B, V, F], index int64 [B, ...] -> [B, ..., F]."""
    count, rows = table.shape[:2]
    first = rows * torch.arange(count, device=index.device)
    return F.embedding(index + first.view(-1, *[1] * (index.ndim - 1)), table.flatten(0, 1))


def run_many(module: nn.Module, params: Params, x: Tensor, *, count: int, shared: bool) -> Tensor | None:
    """Run B networks at once by the form that their module brings, or as a chain of known layers.

    Known are ``nn.Sequential`` (nested too), ``Linear``, ``Conv1d``, ``Conv2d`` without groups, elementwise
    activations, ``Flatten``, average pooling to one, and dropout in eval mode; exactly these classes, without
    hooks. Inputs that do not fit the weights are left to the caller as well, whose error is the usual one.

    Args:
        module: What to compute; parameters that ``params`` leaves out keep the module's own values.
        params: Tensors [B, ...].
        x: Inputs [N, ...], or [B, N, ...] with ``shared=False``.
        count: Number of networks B.
        shared: Whether ``x`` is one batch for all networks.

    Returns:
        Outputs [B, N, ...], differentiable in ``params`` and ``x`` to any order; None if the module has no
        such form.
    """
    originals = dict(module.named_parameters())
    if not params.keys() <= originals.keys():
        return None
    full = {
        name: params[name] if name in params else p.expand(count, *p.shape) for name, p in originals.items()
    }
    if isinstance(module, ManyModule):
        if any(_hooked(part) for part in module.modules()):
            return None
        return module.forward_many(full, x.expand(count, *x.shape) if shared else x)
    layers = list(chain_of(module))
    if any(not is_known(layer) for layer in layers):
        return None
    # A tied parameter is named once, under its first name, as functional_call has it.
    stacked = {id(p): full[name] for name, p in originals.items()}
    many = not shared
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            weight = stacked[id(layer.weight)]
            bias = None if layer.bias is None else stacked[id(layer.bias)]
            # x [(B,) N, C, ...] has the channels and as many other axes as weight [B, O, C, ...] reads.
            axes = many + weight.ndim - 1
            if weight.ndim <= 2 or x.ndim != axes or x.shape[1 + many] != weight.shape[2]:
                return None
            if isinstance(layer, nn.Linear):
                # Inputs that are shared are the same memory for every network.
                x = linear_many(x if many else x.expand(count, *x.shape), weight, bias)
            elif many and (windows := _windows(layer, tuple(x.shape[3:]))) is not None:
                x = convolve_many(x, weight, bias, windows)
            else:
                # The channels out of all networks behind each other: [N, B C, ...].
                out = (F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d)(
                    x.transpose(0, 1).flatten(1, 2) if many else x,
                    weight.flatten(0, 1),
                    None if bias is None else bias.flatten(),
                    stride=layer.stride,
                    padding=layer.padding,
                    dilation=layer.dilation,
                    groups=count if many else 1,
                )
                x = out.unflatten(1, (count, -1)).transpose(0, 1)
            many = True
        elif isinstance(layer, nn.Flatten):
            x = x.flatten(1 + many)
        elif type(layer) in POOLS:
            axes = POOLS[type(layer)]
            if x.ndim != many + 2 + axes:
                return None
            x = x.mean(tuple(range(-axes, 0)), keepdim=True)
        else:
            x = layer(x)
    return x if many else None


def _windows(layer: nn.Conv1d | nn.Conv2d, lengths: tuple[int, ...]) -> Windows | None:
    """What a layer's kernels see; None for ``padding="same"`` and for inputs that are too short."""
    if isinstance(layer.padding, str):
        return None
    windows = Windows(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return windows if min(windows.positions(lengths)) > 0 else None


def chain_of(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested ``nn.Sequential`` without hooks, in order; another module is its own only one."""
    if type(module) is nn.Sequential and not _hooked(module):
        for child in module:
            yield from chain_of(child)
    else:
        yield module


def is_known(layer: nn.Module) -> bool:
    """Whether a layer of a chain has a form for many networks."""
    if _hooked(layer):
        return False
    # Exact classes: what a subclass computes is its own affair.
    kind = type(layer)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return kind in (nn.Conv1d, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    if isinstance(layer, nn.Flatten):
        return kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
    if isinstance(layer, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d):
        return kind in POOLS and layer.output_size in (1, (1,), (1, 1))
    return kind is nn.Linear or kind in _ELEMENTWISE or (kind in _DROPOUTS and not layer.training)


def _hooked(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in _HOOKS)
