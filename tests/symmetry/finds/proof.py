"""Traps of the proof: other functions in training mode, nothing to compare, what cannot run."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.symmetry.finds.base import DO_NOT_RUN, SHOW_NOTHING, TRAINING_ONLY, find, heads, linear

# Another function in training mode, or more of it: the symmetry is that of eval mode.


@find(TRAINING_ONLY, a=linear(7, 5), o=linear(5, 3))
def train_branch(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.o(h.tanh() if net.training else h)


@find(TRAINING_ONLY, a=linear(7, 5), o=linear(5, 3), aux=linear(5, 2), w=(8, 7), q=linear(4, 3))
def train_aux_split(net: Any, x: Tensor) -> Any:
    h = net.a(x).relu()
    u, v = net.w.chunk(2)
    y = net.o(h) + net.q(F.linear(x, u) * F.linear(x, v))
    return (y, net.aux(h)) if net.training else y


@find(TRAINING_ONLY, a=linear(7, 5), o=linear(5, 3), aux=linear(5, 2))
def train_aux_untraceable(net: Any, x: Tensor) -> Any:
    h = net.a(x).relu()
    y = net.o(h)
    return (y, net.aux(h)) if net.training and float(y.sum()) > -1e9 else y


@find(TRAINING_ONLY, a=linear(7, 5), o=linear(5, 3), ema=torch.tensor([0.3, -1.2, 0.8, 2.0, -0.5]))
def ema_buffer(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    if net.training:
        net.ema.mul_(0.9).add_(h.mean(0).detach(), alpha=0.1)
    return net.o(h.relu())


# Nothing to compare: outputs that are all zero, or none.


@find(SHOW_NOTHING, a=linear(7, 30, False), o=linear(6, 3))
def zero_output(net: Any, x: Tensor) -> Tensor:
    h = heads(net.a(x))
    return (net.o((h.roll(1, 1) * h.roll(2, 1)).sum(-1)) > 1e9).to(x.dtype)


# A branch as an operator.


@find(a=linear(7, 5), o=linear(5, 3))
def cond(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.o(torch.cond(h.sum() > 0, lambda h: h.relu(), lambda h: h.sin(), (h,)))


@find(DO_NOT_RUN, a=linear(7, 5), o=linear(5, 3))
def refuses_float64(net: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        raise ValueError("float32 only,\nplease")
    return net.o(net.a(x))
