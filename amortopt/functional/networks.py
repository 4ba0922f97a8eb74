"""Base networks as functions of their params: output, loss and gradient, for one network or many.

Legend: B networks, N examples, C classes. A stacked ``Params`` has the network axis B first in every tensor.
The module that is passed only says what to compute: its own parameters are neither read (where params names
them) nor written, its buffers and its training/eval mode are used as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from amortopt._types import Params
from amortopt.functional.many import run_many

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits [N, C], y [N]) -> scalar``."""


@contextmanager
def eval_mode(module: nn.Module, training: bool = False) -> Iterator[None]:
    """Eval mode, or training mode, inside; every submodule's own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.train(training)
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def params_of(module: nn.Module) -> Params:
    """Copy a module's parameters.

    Args:
        module: Any module; not modified.

    Returns:
        Detached clones of ``module.named_parameters()``, in its order. A tied parameter stands once,
        under its first name.
    """
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def stack(many: Sequence[Params]) -> Params:
    """Put networks of one architecture behind each other on a new leading axis.

    Args:
        many: B params with the same names and shapes.

    Returns:
        Params with tensors [B, ...], in the name order of the first network.

    Raises:
        ValueError: If ``many`` is empty, or names or shapes differ.
    """
    if len(many) == 0:
        raise ValueError("many: got no networks, expected at least one params dict to stack")
    first = many[0]
    for b, params in enumerate(many):
        if params.keys() != first.keys():
            odd = sorted(params.keys() ^ first.keys())
            raise ValueError(
                f"many[{b}]: parameter names differ from many[0] in {odd}; "
                "stack networks of one architecture only"
            )
        for name, value in params.items():
            if value.shape != first[name].shape:
                raise ValueError(
                    f"many[{b}][{name!r}]: got shape {tuple(value.shape)}, expected "
                    f"{tuple(first[name].shape)} as in many[0]; stack networks of one architecture only"
                )
    return {name: torch.stack([params[name] for params in many]) for name in first}


def unstack(params: Params) -> list[Params]:
    """Undo [stack][amortopt.functional.networks.stack]: one params dict per network, as views.

    Args:
        params: Tensors [B, ...].

    Returns:
        B params without the leading axis.

    Raises:
        ValueError: If params are empty or their leading axes differ.
    """
    count = num_networks(params)
    split = {name: value.unbind(0) for name, value in params.items()}
    return [{name: values[b] for name, values in split.items()} for b in range(count)]


def num_networks(params: Params) -> int:
    """Length B of the network axis of stacked params.

    Args:
        params: Tensors [B, ...].

    Returns:
        B.

    Raises:
        ValueError: If params are empty or their leading axes differ.
    """
    lengths = {name: value.shape[0] if value.ndim else None for name, value in params.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(
            f"params: got leading axes {lengths}, expected one network axis B shared by all; use stack([...])"
        )
    return next(value.shape[0] for value in params.values())


def apply(module: nn.Module, params: Params, x: Tensor) -> Tensor:
    """Run one network at given params.

    Args:
        module: What to compute.
        params: Qualified name -> tensor; parameters left out keep the module's own values.
        x: Inputs [N, ...].

    Returns:
        The module's output, [N, C] for a classifier; differentiable in ``params`` and ``x``.
    """
    return functional_call(module, params, (x,))


def apply_many(module: nn.Module, params: Params, x: Tensor, *, shared: bool = True) -> Tensor:
    """Run B networks of one architecture at once.

    Chains of common layers and modules that bring a form of their own run as batched products (see
    [run_many][amortopt.functional.many.run_many]), every other module under ``vmap``.

    Args:
        module: What to compute.
        params: Tensors [B, ...].
        x: Inputs [N, ...] that all networks share, or [B, N, ...] with ``shared=False``.
        shared: Whether ``x`` is one batch for all networks.

    Returns:
        Outputs [B, N, ...]; differentiable in ``params`` and ``x``.

    Raises:
        ValueError: If the network axes of ``params`` and ``x`` do not fit.
    """
    _check_network_axis(params, shared, x=x)
    out = run_many(module, params, x, count=num_networks(params), shared=shared)
    if out is not None:
        return out
    return vmap(lambda p, xs: apply(module, p, xs), in_dims=(0, None if shared else 0))(params, x)


def loss_and_grad_many(
    module: nn.Module, params: Params, x: Tensor, y: Tensor, loss: Loss, *, shared: bool = True
) -> tuple[Tensor, Params]:
    """Loss of each of B networks and its gradient at that network's params.

    Args:
        module: What to compute.
        params: Tensors [B, ...].
        x: Inputs [N, ...] that all networks share, or [B, N, ...] with ``shared=False``.
        y: Targets [N], or [B, N] with ``shared=False``.
        loss: ``(logits [N, C], y [N]) -> scalar``.
        shared: Whether ``x`` and ``y`` are one batch for all networks.

    Returns:
        Losses [B] and gradients with the names and shapes of ``params``; both differentiable in ``params``.

    Raises:
        ValueError: If the network axes of ``params``, ``x`` and ``y`` do not fit.
    """
    _check_network_axis(params, shared, x=x, y=y)

    def total(p: Params) -> tuple[Tensor, Tensor]:
        logits = apply_many(module, p, x, shared=shared)
        losses = vmap(loss, in_dims=(0, None if shared else 0))(logits, y)
        return losses.sum(), losses

    # A network's loss depends on its own params alone, so the gradient of the sum holds every network's own.
    grads, losses = grad(total, has_aux=True)(params)
    return losses, grads


def _check_network_axis(params: Params, shared: bool, **data: Tensor) -> None:
    count = num_networks(params)
    for name, value in data.items():
        if not shared and (value.ndim == 0 or value.shape[0] != count):
            raise ValueError(
                f"{name}: got shape {tuple(value.shape)}, expected a leading network axis of {count} "
                "as in params; pass shared=True if all networks see the same batch"
            )
