"""Base networks as functions of their params, for one network or many.

Legend: B networks, N examples, C classes. A stacked ``Params`` has the network axis B first in every tensor.
The module that is passed is the architecture: its parameters are not written, and read only where ``params``
leaves them out; its buffers and its training/eval mode are used as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_leaves

from amortopt._types import Params
from amortopt.functional.many import run_many


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


class _ListOfTensors(nn.ParameterList):
    """A ``ParameterList`` whose slices hold its own tensors.

    Torch makes new parameters of tensors in a slice, so that a gradient would not reach what
    ``functional_call`` put in the place of parameters.
    """

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return super().__getitem__(index)


@contextmanager
def shared_slices(module: nn.Module) -> Iterator[None]:
    """Inside, slices of the module's ``ParameterList``s hold the tensors that the lists hold."""
    lists = [part for part in module.modules() if type(part) is nn.ParameterList]
    try:
        for part in lists:
            part.__class__ = _ListOfTensors
        yield
    finally:
        for part in lists:
            part.__class__ = nn.ParameterList


def params_of(module: nn.Module) -> Params:
    """Detached clones of a module's parameters by name, in its order; a tied one under its first name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def stack(many: Sequence[Params]) -> Params:
    """Put B networks of one architecture on a new leading axis: [B, ...], in the first one's name order.

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
    """Undo [stack][amortopt.functional.networks.stack]: [B, ...] -> one params dict per network, as views.

    Raises:
        ValueError: If params are empty or their leading axes differ.
    """
    count = num_networks(params)
    split = {name: value.unbind(0) for name, value in params.items()}
    return [{name: values[b] for name, values in split.items()} for b in range(count)]


def num_networks(params: Params) -> int:
    """Length B of the network axis of stacked params [B, ...].

    Raises:
        ValueError: If params are empty or their leading axes differ.
    """
    lengths = {name: value.shape[0] if value.ndim else None for name, value in params.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(
            f"params: got leading axes {lengths}, expected one network axis B shared by all; use stack([...])"
        )
    return next(value.shape[0] for value in params.values())


def finite_networks(params: Params) -> Tensor:
    """Which networks have no NaN and no infinity among their params: [B, ...] -> bool [B]."""
    return torch.stack([p.reshape(len(p), -1).isfinite().all(1) for p in params.values()]).all(0)


def l1_norm(params: Params) -> Tensor:
    """Sum of the absolute values of all params of each network: [B, ...] -> [B]; differentiable."""
    return torch.stack([p.abs().reshape(len(p), -1).sum(1) for p in params.values()]).sum(0)


def apply(module: nn.Module, params: Params, x: Tensor) -> Tensor:
    """Run one network at given params on inputs [N, ...]; differentiable in both.

    Parameters that ``params`` leaves out keep the module's own values. Of a dict, tuple or list that forward
    returns, the one tensor in it is the output.

    Raises:
        ValueError: forward returns no tensor, or several.
    """
    with shared_slices(module):
        output = functional_call(module, params, (x,))
    if isinstance(output, Tensor):
        return output
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if len(tensors) != 1:
        kind = type(output).__name__
        raise ValueError(
            f"network: forward of {type(module).__name__} returns {kind} with {len(tensors)} tensors, "
            "expected one; wrap the network in a module that returns the one to use"
        )
    return tensors[0]


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
    count = num_networks(params)
    if not shared and (x.ndim == 0 or x.shape[0] != count):
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected a leading network axis of {count} "
            "as in params; pass shared=True if all networks see the same batch"
        )
    out = run_many(module, params, x, count=count, shared=shared)
    if out is not None:
        return out
    return vmap(lambda p, xs: apply(module, p, xs), in_dims=(0, None if shared else 0))(params, x)
