"""Further steps that move values about: views, parts, what is put together, written, or made anew."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.symmetry.programs.base import Program, axis_of, step_of_programs

_aten = torch.ops.aten
_VIEWS: list[Callable[[Tensor], Tensor]] = [
    *(lambda x: x.reshape(len(x), -1), lambda x: x.flatten(1).view_as(x.flatten(1))),
    lambda x: x.reshape_as(x),
    *(lambda x: _aten._unsafe_view(x.contiguous(), [len(x), x[0].numel()]), lambda x: x.swapaxes(1, -1)),
    lambda x: _aten._reshape_alias(x.contiguous(), [len(x), x[0].numel()], [x[0].numel(), 1]),
    lambda x: x.movedim(1, -1),
    *(lambda x: x.flatten(1).t().t(), lambda x: x.flatten(1).T.T),
    lambda x: x.flatten(1).H.mT if x.ndim < 3 else x.mH,
    *(lambda x: x.adjoint() if x.ndim > 2 else x.adjoint().mT, lambda x: x.mT if x.ndim > 2 else x.mH.mT),
    *(lambda x: torch.atleast_3d(x.flatten(1))[..., 0], lambda x: torch.atleast_2d(x)),
    lambda x: torch.atleast_1d(x),
    *(lambda x: x.ravel().view(x.shape), lambda x: x.unsqueeze(1).squeeze(1), lambda x: x.fliplr()),
    lambda x: x.movedim([1], [-1]),
    *(lambda x: x.transpose(0, 1).flipud().transpose(0, 1), lambda x: _aten._to_copy(x)),
    lambda x: _aten.detach_copy(x),
    *(lambda x: torch.broadcast_to(x, x.shape), lambda x: x.tile((1,) * (x.ndim - 1) + (2,))),
    lambda x: x.detach().clone(),
]  # fmt: skip


@step_of_programs(2)
def view(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_VIEWS)(x)


@step_of_programs(2)
def parts(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis, form = axis_of(x, r), r.randrange(7)
    size = x.shape[axis]
    if size < 2:
        return None
    if form == 0:
        a, b = x.tensor_split(2, axis)
    elif form == 1:
        a, b = torch.unsafe_chunk(x, 2, axis)
    elif form == 2:
        a, b = torch.unsafe_split(x, (size + 1) // 2, axis)
    elif form == 3:
        a, b = x.split((size + 1) // 2, axis)
    elif form == 4:
        axis, half = 1, x.shape[1] // 2
        if not half:
            return None
        a, b = x.hsplit([half])
    elif form == 5:
        axis, half = 1, x.shape[1] // 2
        if not half:
            return None
        a, b = (part.transpose(0, 1) for part in x.transpose(0, 1).vsplit([half]))
    else:
        a, b = _aten.unsafe_split_with_sizes(x, [1, size - 1], axis)
    a = a.tanh() if r.random() < 0.5 else a
    return torch.cat([b, a] if r.random() < 0.5 else [a, b], axis)


@step_of_programs()
def put_together(p: Program, x: Tensor, r: Random) -> Tensor:
    y, form = p.another(x, r), r.randrange(4)
    if form == 0:
        return torch.hstack([x, y.tanh()])
    if form == 1:
        return torch.vstack([x.transpose(0, 1), y.transpose(0, 1)]).transpose(0, 1)
    if form == 2:
        return torch.dstack([x, y]) if x.ndim > 2 else torch.column_stack([x, y])
    a, b = torch.broadcast_tensors(x, y.amax(-1, keepdim=True))
    return torch.column_stack([a, b.sigmoid()])


@step_of_programs(2)
def made_anew(p: Program, x: Tensor, r: Random) -> Tensor:
    form, axis = r.randrange(9), axis_of(x, r)
    part = r.randrange(1, x.shape[axis] + 1)
    if form == 0:
        y = torch.empty_like(x)
    elif form == 1:
        y = torch.empty(x.shape)
    elif form == 2:
        y = x.new_empty(x.shape)
    elif form == 3:
        return x + torch.full_like(x, 0.5)
    elif form == 4:
        return torch.cat([x, x.new_ones(x.shape), x.new_full(x.shape, 0.3)], axis)
    elif form == 5:
        y = x.clone()
        y.narrow(axis, 0, part).zero_()
        return y
    elif form == 6:
        y = x.clone()
        y.narrow(axis, 0, part).fill_(r.choice([0.0, 0.7]))
        return y
    elif form == 7:
        return torch.cat([x.new_zeros(x.shape), x], axis)
    else:
        return _aten.constant_pad_nd(x, [1, 1], r.choice([0.0, 0.0, 0.4]))
    y.copy_(x)
    y.narrow(axis, 0, part).mul_(0.5)
    return y


@step_of_programs(2)
def by_places(p: Program, x: Tensor, r: Random) -> Tensor:
    axis, form, y = axis_of(x, r), r.randrange(6), p.another(x, r)
    size = x.shape[axis]
    index = torch.tensor([r.randrange(size) for _ in range(size)])
    places = index.view(-1, *[1] * (x.ndim - 1 - axis)).expand(x.shape)
    if form == 0:
        return x.gather(axis, places)
    if form == 1:
        return (
            x.scatter(axis, places, y) if r.random() < 0.5 else x.scatter(axis, places, r.choice([0.0, 0.6]))
        )
    if form == 2:
        return x.scatter_add(axis, places, y)
    if form == 3:
        return x.index_reduce(axis, index, y, r.choice(["mean", "amax", "amin", "prod"]))
    if form == 4:
        values, order = x.topk(max(size // 2, 1), axis)
        return values if r.random() < 0.5 else y.gather(axis, order)
    return x.gather(axis, y.argsort(axis))


@step_of_programs()
def square_matrices(p: Program, x: Tensor, r: Random) -> Tensor:
    form, m = r.randrange(8), x.flatten(1)[:, :4]
    m = F.pad(m, (0, 4 - m.shape[1])) if m.shape[1] < 4 else m
    square = 0.3 * m.unflatten(1, (2, 2)).tanh()
    if form == 0:
        return torch.linalg.matrix_power(square, 2)
    if form == 1:
        return _aten.linalg_matrix_exp(square) if r.random() < 0.5 else _aten.matrix_exp(square)
    if form == 2:
        return torch.inverse(square + torch.eye(2))
    if form == 3:
        return torch.linalg.diagonal(square)
    if form == 4:
        return square * torch.trace(square[0]) + torch.trace(square[-1])
    if form == 5:
        return m @ torch.diag(p.weight(4)) if r.random() < 0.5 else m @ torch.diagflat(p.weight(4))
    if form == 6:
        return m * torch.diag(p.weight(4, 4))
    return _aten.matrix_power(square, 2)


@step_of_programs(2)
def products_of_matrices(p: Program, x: Tensor, r: Random) -> Tensor:
    form, rows = r.randrange(7), x.flatten(1)
    size, y = rows.shape[1], p.another(x, r).flatten(1)
    if form == 0:
        return torch.addmm(
            p.weight(r.choice([1, 4])) if r.random() < 0.6 else p.weight(1, 4), rows, p.weight(size, 4)
        )
    if form == 1:
        return torch.mm(rows, p.weight(size, 4))
    if form == 2:
        return rows * torch.addmv(p.weight(size), p.weight(size, 3), p.weight(3))
    if form == 3:
        return rows[:, :3] @ torch.addr(
            p.weight(rows[:, :3].shape[1], 4), p.weight(rows[:, :3].shape[1]), p.weight(4)
        )
    if form == 4:
        return torch.bmm(rows[:, :, None], y[:, None, :4]).flatten(1)
    if form == 5:
        return rows * torch.vdot(p.weight(size), p.weight(size))
    x, y = rows[:, :3], y[:, :3]
    return torch.cross(x, y, dim=1) if x.shape[1] == 3 else _aten.linalg_matmul(x, y.mT)


@step_of_programs()
def further_losses(p: Program, x: Tensor, r: Random) -> Tensor:
    y, form, rows = p.another(x, r), r.randrange(12), x.flatten(1)
    other = y.flatten(1)
    labels = torch.zeros_like(rows[:, 0]).long()
    if form == 0:
        return F.binary_cross_entropy(x.sigmoid(), y.sigmoid(), reduction="none")
    if form == 1:
        return F.soft_margin_loss(x, y.tanh(), reduction="none")
    if form == 2:
        return F.hinge_embedding_loss(x, y.tanh().sign(), reduction="none")
    if form == 3:
        return F.poisson_nll_loss(x.tanh(), y.square(), reduction="none")
    if form == 4:
        return x * F.cosine_embedding_loss(rows, other, torch.ones(len(x)))
    if form == 5:
        return rows + F.triplet_margin_loss(rows, other, rows.tanh(), reduction="none")[:, None]
    if form == 6:
        return F.margin_ranking_loss(x, y, torch.ones_like(x), reduction="none")
    if form == 7:
        return x * F.multi_margin_loss(rows, labels)
    if form == 8:
        return x * F.multilabel_margin_loss(rows, torch.zeros_like(rows).long())
    if form == 9:
        return x * _nll(x)
    if form == 10:
        scores = rows.unsqueeze(1).expand(-1, 4, -1).log_softmax(-1).transpose(0, 1)
        lengths = torch.full((len(x),), 4)
        return x * F.ctc_loss(scores, torch.ones(len(x), 1).long(), lengths, lengths // 4, zero_infinity=True)
    return rows * _aten.nll_loss(rows.log_softmax(1), labels, None, 0)[:, None]


def _nll(x: Tensor) -> Tensor:
    scores = x.log_softmax(1)
    if x.ndim == 4:
        labels = torch.zeros_like(x[:, 0]).long()
        return _aten.nll_loss2d(scores, labels) if x.shape[1] > 2 else _aten.nll_loss_nd(scores, labels)
    return _aten.nll_loss_nd(scores, torch.zeros_like(x[:, 0]).long())
