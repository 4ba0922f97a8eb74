"""Traps about units: parameters behind views, heads, owners, scales of single units."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tests.symmetry.finds.base import find, heads, linear

# A parameter that is read through a view or dropout only.


@find(a=linear(7, 5), g=(5,), o=linear(5, 3))
def param_view(net: Any, x: Tensor) -> Tensor:
    return net.o(net.a(x).relu() * net.g.view(1, 5))


@find(a=linear(7, 5), g=(5,), o=linear(5, 3))
def param_unsqueeze(net: Any, x: Tensor) -> Tensor:
    return net.o((net.a(x) + net.g[None]).relu())


@find(a=linear(7, 5), w=(3, 5))
def param_dropout(net: Any, x: Tensor) -> Tensor:
    return F.linear(net.a(x).relu(), F.dropout(net.w, 0.5, net.training))


@find(r=partial(nn.GRU, 7, 5, 2), o=linear(5, 3), h=(2, 5), inputs=(6, 7))
def rnn_unbatched_state(net: Any, x: Tensor) -> Tensor:
    return net.o(net.r(x, net.h)[0])


# A parameter that meets its own transpose or itself: no unit owns its owner.


@find(w=(5, 5), a=linear(7, 5), o=linear(5, 3))
def plus_own_transpose(net: Any, x: Tensor) -> Tensor:
    return net.o(F.linear(net.a(x), net.w + net.w.t()))


@find(w=(7, 7), o=linear(7, 3))
def times_itself(net: Any, x: Tensor) -> Tensor:
    return net.o((x @ (net.w @ net.w)).relu())


# Heads in another order, dropped or combined, while each has units of its own.


@find(a=linear(7, 30), o=linear(6, 3))
def heads_roll(net: Any, x: Tensor) -> Tensor:
    h = heads(net.a(x))
    return net.o((h.roll(1, 1) * h.roll(2, 1)).sum(-1))


@find(a=linear(7, 30), o=linear(6, 3))
def heads_flip(net: Any, x: Tensor) -> Tensor:
    h = heads(net.a(x))
    return net.o((h.flip(1) * h.roll(1, 1)).sum(-1))


@find(a=linear(7, 30), o=linear(3, 3))
def heads_step(net: Any, x: Tensor) -> Tensor:
    h = heads(net.a(x))
    return net.o((h[:, ::2] * h[:, 1::2]).sum(-1))


@find(a=linear(7, 30), o=linear(6, 3))
def heads_pad_value(net: Any, x: Tensor) -> Tensor:
    h = heads(net.a(x))
    before, after = F.pad(h, (0, 0, 1, 0), value=1.0), F.pad(h, (0, 0, 0, 1), value=1.0)
    return net.o((before[:, :-1] * after[:, 1:]).sum(-1))


@find(a=linear(7, 30), o=linear(6, 3))
def heads_pad_negative(net: Any, x: Tensor) -> Tensor:
    h = heads(net.a(x))
    return net.o((F.pad(h, (0, 0, 1, -1)) * F.pad(h, (0, 0, -1, 1))).sum(-1))


@find(a=linear(7, 30), o=linear(6, 3))
def heads_pad_replicate(net: Any, x: Tensor) -> Tensor:
    h = heads(net.a(x)).mT
    before, after = F.pad(h, (1, 0), mode="replicate").mT, F.pad(h, (0, 1), mode="replicate").mT
    return net.o((before[:, :-1] * after[:, 1:]).sum(-1))


@find(a=linear(7, 30), o=linear(5, 3))
def heads_windows(net: Any, x: Tensor) -> Tensor:
    return net.o(heads(net.a(x)).unfold(1, 2, 1).mean(-1).pow(2).sum(-1))


@find(a=linear(7, 30), o=linear(6, 3))
def heads_cumsum(net: Any, x: Tensor) -> Tensor:
    return net.o(heads(net.a(x)).roll(1, 1).cumsum(1).tanh().sum(-1))


# A convolution of kernel one sums heads at positions that are units of each.


@find(a=linear(7, 30), c=partial(nn.Conv1d, 6, 4, 1), o=linear(4, 3))
def pointwise(net: Any, x: Tensor) -> Tensor:
    return net.o(net.c(heads(net.a(x))).pow(2).sum(-1))


@find(a=linear(7, 30), c=partial(nn.ConvTranspose1d, 6, 4, 1, bias=False), o=linear(4, 3))
def pointwise_transposed(net: Any, x: Tensor) -> Tensor:
    return net.o(net.c(heads(net.a(x))).tanh().sum(-1))


@find(a=linear(7, 30), c=partial(nn.Conv1d, 6, 4, 1, groups=2, bias=False), o=linear(4, 3))
def pointwise_grouped(net: Any, x: Tensor) -> Tensor:
    return net.o(net.c(heads(net.a(x))).tanh().sum(-1))


# The scale of a single unit in a value without dimensions.


@find(a=linear(7, 1), o=linear(5, 3), b=linear(7, 5), inputs=(1, 7))
def scalar_squeezed(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(x) * net.a(x).squeeze())


@find(a=linear(7, 5), g=linear(7, 1), o=linear(5, 3))
def scalar_gate(net: Any, x: Tensor) -> Tensor:
    return net.o(net.a(x).relu() * net.g(x.mean(0, keepdim=True)).squeeze())
