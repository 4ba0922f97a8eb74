"""The model behind wrappers, and its parameters by the names that it gives them itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

COMPILED = "_orig_mod."


def unwrapped(model: Any) -> nn.Module:
    """The network that was compiled, or given to ``DistributedDataParallel``.

    Raises:
        ValueError: It is no module, such as ``model.parameters()``.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model: got {type(model).__name__}, expected the nn.Module itself: its symmetry is read, not "
            f"only its "
            "parameters"
        )
    while isinstance(model, (OptimizedModule, DataParallel, DistributedDataParallel)):
        model = model._orig_mod if isinstance(model, OptimizedModule) else model.module
    return model


def own_name(name: str) -> str:
    """The name without what wrappers put before it."""
    while name.startswith((COMPILED, "module.")):
        name = name.split(".", 1)[1]
    return name


def read_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, tied ones once.

    Raises:
        ValueError: There are none, one is lazy or holds no real numbers, or they are on several devices.
    """
    found = dict(model.named_parameters())
    if not found:
        raise ValueError(f"model: {type(model).__name__} has no parameters, expected at least one")
    for name, p in found.items():
        if is_lazy(p):
            raise ValueError(
                f"model: {name!r} is lazy, expected its shape to be known; run the model once first"
            )
        if not p.is_floating_point():
            raise ValueError(f"model: {name!r} is {p.dtype}, expected real floating-point parameters")
    devices = sorted({str(p.device) for p in found.values()})
    if len(devices) > 1 or devices == [str(torch.device("meta"))]:
        raise ValueError(
            f"model: got parameters on {', '.join(devices)}, expected one device with memory; move the "
            f"model first"
        )
    return found


def check_options(lr: Any, weight_decay: Any) -> None:
    """Raise a ``ValueError`` unless learning rate and weight decay of a group are in their range."""
    for name, value, least in (("lr", lr, "> 0"), ("weight_decay", weight_decay, ">= 0")):
        number = float(value) if isinstance(value, (int, float, Tensor)) else math.nan
        if not math.isfinite(number) or number < 0 or (least == "> 0" and number == 0):
            raise ValueError(f"{name}: got {value!r}, expected a finite number {least}")
