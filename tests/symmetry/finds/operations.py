"""Traps about single operations: written in place, indexed, with further arguments, computed numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.symmetry.finds.base import find, heads, linear

# Written in place through another view of it.


@find(a=linear(7, 5), g=(5,), o=linear(5, 3))
def inplace_view_as(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    h.view_as(h).mul_(net.g)
    return net.o(h)


@find(a=linear(7, 5), g=(4,), o=linear(5, 3))
def inplace_swapaxes(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    h.swapaxes(0, 1).mul_(net.g)
    return net.o(h)


@find(a=linear(7, 5), g=(5,), o=linear(5, 3))
def inplace_movedim(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    h.movedim(0, 1).movedim(0, 1).mul_(net.g)
    return net.o(h)


@find(a=linear(7, 5), g=(5,), o=linear(5, 3))
def inplace_transposed(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    h.T.mT.mul_(net.g)
    return net.o(h)


@find(a=linear(7, 5), g=(2,), o=linear(5, 3))
def inplace_windows(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    h.unfold(1, 2, 2).mul_(net.g)
    return net.o(h)


@find(a=linear(7, 5), g=(5,), o=linear(5, 3))
def inplace_dropout(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    F.dropout(h, 0.5, net.training).mul_(net.g)
    return net.o(h)


# Metadata changed in place: another shape, and nothing written.


@find(a=linear(7, 12), g=(3,), o=linear(12, 3))
def inplace_transpose(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    v = h.view(-1, 3, 4)
    v.transpose_(1, 2)
    v.mul_(net.g)
    return net.o(h)


@find(a=linear(7, 12), o=linear(12, 3))
def inplace_unsqueeze(net: Any, x: Tensor) -> Tensor:
    v = net.a(x).view(-1, 3, 4)
    v.unsqueeze_(1)
    return net.o(v.flatten(1))


# Units are put, multiplied or weighted at places that are constants.


@find(a=linear(7, 5), o=linear(9, 3))
def scatter(net: Any, x: Tensor) -> Tensor:
    places = torch.tensor([[0, 3, 5, 8, 2]]).expand(4, 5)
    return net.o(torch.zeros(4, 9).to(x).scatter(1, places, net.a(x)))


@find(a=linear(7, 5), o=linear(9, 3))
def scatter_add(net: Any, x: Tensor) -> Tensor:
    places = torch.tensor([[0, 3, 5, 8, 2]]).expand(4, 5)
    return net.o(torch.zeros(4, 9).to(x).scatter_add(1, places, net.a(x)))


@find(a=linear(7, 5, False), o=linear(5, 3))
def scatter_multiply(net: Any, x: Tensor) -> Tensor:
    h, places = net.a(x), torch.tensor([[0, 3, 2, 1]]).expand(5, 4).t()
    return net.o(h.scatter(0, places, h.relu(), reduce="multiply"))


@find(a=linear(7, 5), o=linear(6, 3), e=partial(nn.EmbeddingBag, 10, 6, mode="sum"))
def bag_weights(net: Any, x: Tensor) -> Tensor:
    return net.o(net.e(torch.arange(20).view(4, 5) % 10, per_sample_weights=net.a(x)))


@find(a=linear(7, 5), o=linear(5, 3), mask=torch.tensor([1, 0, 1, 1, 0.0]))
def where_indices(net: Any, x: Tensor) -> Tensor:
    return net.o(net.a(x)[:, torch.where(net.mask > 0)[0]].sum(-1, keepdim=True).expand(-1, 5))


# The rows that a cell takes are slots: they move in its input and its state alike.


@find(a=linear(7, 5), q=(5, 4), c=partial(nn.RNNCell, 7, 4), o=linear(4, 3))
def cell_slots(net: Any, x: Tensor) -> Tensor:
    return net.o(net.c(net.a(x).softmax(-1).t() @ x, net.q.tanh())).sum(0)


@find(q=(5, 8), c=partial(nn.GRUCell, 7, 8), o=linear(8, 3), i=linear(7, 5))
def cell_slots_batched(net: Any, x: Tensor) -> Tensor:
    h = torch.einsum("ni,nk->nki", x, net.i(x)).flatten(0, 1)
    return net.o(net.c(h, net.q.expand(4, 5, 8).reshape(20, 8))).view(4, 5, 3).mean(1)


# Running statistics that are read outside of their norm too.


@find(a=linear(7, 5), bn=partial(nn.BatchNorm1d, 5), o=linear(5, 3))
def statistics_read(net: Any, x: Tensor) -> Tensor:
    return net.o(net.bn(net.a(x)).relu()) + net.bn.running_mean[:3]


# A bias that has not one entry for each output.


@find(a=linear(7, 5), o=linear(5, 3), b=(5, 5), inputs=(5, 7))
def bias_square(net: Any, x: Tensor) -> Tensor:
    return net.o(F.linear(x, net.a.weight, net.b).relu())


@find(a=linear(7, 5), o=linear(5, 3), b=(4, 5))
def bias_rows(net: Any, x: Tensor) -> Tensor:
    return net.o(F.linear(x, net.a.weight, net.b).relu())


@find(a=linear(7, 5), o=linear(5, 3), b=(1,))
def bias_one(net: Any, x: Tensor) -> Tensor:
    return net.o(F.linear(x, net.a.weight, net.b).relu())


@find(a=linear(7, 5), o=linear(5, 3), b=())
def bias_scalar(net: Any, x: Tensor) -> Tensor:
    return net.o(F.linear(x, net.a.weight, net.b).relu())


# An argument that makes another function of a known one.


@find(a=(6, 5, 7), o=linear(6, 3))
def norm_counts(net: Any, x: Tensor) -> Tensor:
    return net.o(torch.linalg.vector_norm(torch.einsum("ni,hdi->nhd", x, net.a), ord=0, dim=-1))


@find(a=linear(7, 15), o=linear(5, 3))
def sum_truncates(net: Any, x: Tensor) -> Tensor:
    return net.o((net.a(x) * 5).view(-1, 5, 3).sum(-1, dtype=torch.int64).to(x.dtype))


@find(a=linear(7, 5), o=linear(5, 3))
def softsign_floor(net: Any, x: Tensor) -> Tensor:
    h = net.a(x) * 4
    return net.o(torch.div(h, 1 + h.abs(), rounding_mode="floor"))


# A number that is computed: neither a constant nor left out.


@find(a=linear(7, 5), o=linear(5, 3), m=(1,))
def clamp_item(net: Any, x: Tensor) -> Tensor:
    return net.o(net.a(x).clamp(max=net.m.sum().item()))


@find(a=linear(7, 5), o=linear(5, 3), m=(1,))
def pow_item(net: Any, x: Tensor) -> Tensor:
    return net.o(net.a(x).abs() ** net.m.sum().item())


# Operands of unequal shapes: conditions wider than the values, two vectors, keys without a batch.


@find(a=linear(7, 5), o=linear(5, 3))
def where_wide_input(net: Any, x: Tensor) -> Tensor:
    return net.o(torch.where(net.a(x) > 0, x[:, :1], 0.0))


@find(a=linear(7, 5), b=linear(7, 1), o=linear(5, 3))
def where_wide_unit(net: Any, x: Tensor) -> Tensor:
    return net.o(torch.where(net.a(x) > 0, net.b(x), -net.b(x)))


@find(a=linear(7, 5), o=linear(5, 3))
def masked_fill_wide(net: Any, x: Tensor) -> Tensor:
    return net.o(torch.masked_fill(x[:, :1], net.a(x) > 0, 0.0))


@find(a=(5,), b=(5,), o=linear(7, 3))
def dot(net: Any, x: Tensor) -> Tensor:
    return net.o(x) * (net.a @ net.b)


@find(q=linear(7, 5), k=(8, 5), v=(8, 4), o=linear(4, 5), inputs=(4, 6, 7))
def attention_ranks(net: Any, x: Tensor) -> Tensor:
    return net.o(F.scaled_dot_product_attention(net.q(x), net.k, net.v))


# A softsign whose denominator is read again.


@find(a=linear(7, 5), o=linear(5, 3))
def softsign_shared(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    t = h.abs() + 1
    return net.o(h / t + t)


# One huge constant output beside which no difference shows.


@find(a=linear(7, 30, False), o=linear(6, 3))
def beside_a_huge_output(net: Any, x: Tensor) -> Tensor:
    h = heads(net.a(x))
    y = net.o((h.roll(1, 1) * h.roll(2, 1)).sum(-1))
    return y.masked_fill(torch.tensor([True, False, False]), torch.finfo(torch.float32).min)
