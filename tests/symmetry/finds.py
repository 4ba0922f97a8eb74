"""Small modules in which a symmetry is easily read wrongly off the operations: one trap each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Forward: TypeAlias = Callable[[Any, Tensor], Any]
Part: TypeAlias = "Callable[[], nn.Module] | tuple[int, ...] | Tensor"
Build: TypeAlias = Callable[[], tuple[nn.Module, Tensor]]

FINDS: dict[str, Build] = {}
TRAINING_ONLY: dict[str, Build] = {}
SHOW_NOTHING: dict[str, Build] = {}
DO_NOT_RUN: dict[str, Build] = {}


class _Net(nn.Module):
    def __init__(self, forward: Forward, parts: dict[str, Part]) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part.clone())
            else:
                setattr(self, name, nn.Parameter(torch.empty(part)) if isinstance(part, tuple) else part())

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def find(
    into: dict[str, Build] = FINDS, inputs: tuple[int, ...] = (4, 7), **parts: Part
) -> Callable[[Forward], Forward]:
    """A module with this forward; its parts are made by a call, parameters of a shape, or buffers."""

    def register(forward: Forward) -> Forward:
        def build() -> tuple[nn.Module, Tensor]:
            torch.manual_seed(0)
            net = _Net(forward, parts)
            for param in net.parameters():
                nn.init.normal_(param)
            for name, buffer in net.named_buffers():
                if "running_mean" in name:
                    buffer.normal_()
                elif "running_var" in name:
                    buffer.uniform_(0.5, 2)
            return net, torch.randn(inputs)

        into[forward.__name__] = build
        return forward

    return register


def linear(inputs: int, outputs: int, bias: bool = True) -> Callable[[], nn.Module]:
    return partial(nn.Linear, inputs, outputs, bias)


def heads(h: Tensor) -> Tensor:
    return h.view(-1, 6, 5)


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


@find(SHOW_NOTHING, a=linear(7, 5), o=linear(5, 3))
def no_output(net: Any, x: Tensor) -> None:
    net.o(net.a(x))


# A branch as an operator, which cannot run while randomness is replaced by its expectation.


@find(DO_NOT_RUN, a=linear(7, 5), o=linear(5, 3))
def cond(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.o(torch.cond(h.sum() > 0, lambda h: h.relu(), lambda h: h.sin(), (h,)))
