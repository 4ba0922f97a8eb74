"""Steps with operations that models of other libraries use: indices, masks, Fourier, patches, experts."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.symmetry.programs.base import Program, axis_of, step_of_programs

_TWO: list[Callable[[Tensor, Tensor], Tensor]] = [
    *(torch.multiply, torch.subtract, torch.maximum, torch.minimum, torch.max, torch.hypot, torch.atan2),
    *(lambda x, y: torch.addcmul(x, y, y, value=0.3), lambda x, y: torch.addcdiv(x, y, 1 + y * y)),
    *(lambda x, y: torch.lerp(x, y, 0.3), lambda x, y: torch.lerp(x, y, y.sigmoid())),
    *(lambda x, y: torch.divide(x, 1 + y.square()), lambda x, y: torch.clamp(x, min=y)),
    *(lambda x, y: torch.greater(x, y) * x, lambda x, y: torch.greater(x, 0) * y),
    lambda x, y: torch.pow(1 + x.square(), torch.tanh(y)),
]
_ONE: list[Callable[[Tensor], Tensor]] = [
    *(torch.absolute, torch.negative, torch.arctan, torch.special.expit, torch.floor, torch.trunc),
    *(torch.nan_to_num, lambda x: x.clip(-1, 1), lambda x: torch.special.erf(x), lambda x: 2.0 ** -x.abs()),
]
_RUNNING: list[Callable[[Tensor, int], Tensor]] = [
    *(torch.cumsum, torch.logcumsumexp, lambda x, axis: torch.cummin(x, axis)[0]),
    lambda x, axis: torch.cumprod(x.tanh(), axis),
    *(lambda x, axis: torch.fft.fft(x, dim=axis).real, lambda x, axis: torch.fft.rfft(x, dim=axis).abs()),
    lambda x, axis: torch.fft.irfft(torch.fft.rfft(x, dim=axis), n=x.shape[axis], dim=axis),
]  # fmt: skip


@step_of_programs(3)
def of_two(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_TWO)(x, p.another(x, r, broadcast=r.random() < 0.3))


@step_of_programs()
def of_one(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_ONE)(x)


@step_of_programs(2)
def along_an_axis(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_RUNNING)(x, axis_of(x, r))


@step_of_programs(2)
def chosen(p: Program, x: Tensor, r: Random) -> Tensor:
    y, form = p.another(x, r), r.randrange(5)
    mask = (x if form == 0 else y.mean(axis_of(x, r), keepdim=True)) > 0
    if form < 2:
        return torch.where(mask, x, y)
    if form == 2:
        return torch.where(mask, x, 0.0) if r.random() < 0.5 else torch.where(mask, 0.5, x)
    if form == 3:
        # The mask has batch and rows, the value has neither.
        return torch.where(mask, p.weight(x.shape[-1]), x)
    return x.masked_fill(mask, r.choice([0.0, -1.0]))


@step_of_programs(2)
def by_index(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis, form = axis_of(x, r), r.randrange(5)
    index = [r.randrange(x.shape[axis]) for _ in range(r.choice([1, 2, 3]))]
    if form == 0:
        return x[(slice(None),) * axis + (index,)]
    if form == 1:
        return x[..., index, 1:] if x.ndim > 2 and max(index) < x.shape[-2] and x.shape[-1] > 1 else None
    if form == 2 and x.ndim > 3:
        return x[:, torch.tensor([0, 0]), :, torch.tensor([0, x.shape[3] - 1])].transpose(0, 1)
    if form == 3:
        return x[:, torch.tensor([True] * (x.shape[1] - 1) + [False])] if x.shape[1] > 1 else None
    return torch.take_along_dim(x, x.argsort(axis), axis)


@step_of_programs(2)
def written_by_index(p: Program, x: Tensor, r: Random) -> Tensor:
    axis, form = axis_of(x, r), r.randrange(6)
    size = x.shape[axis]
    index = torch.tensor([r.randrange(size) for _ in range(size)])
    y = torch.zeros_like(x) if r.random() < 0.5 else p.another(x, r)
    if form == 0:
        return y.index_add(axis, index, x)
    if form == 1:
        return y.index_copy(axis, torch.arange(size).flip(0), x)
    if form == 2:
        places = index.view(-1, *[1] * (x.ndim - 1 - axis)).expand(x.shape)
        return y.scatter_reduce(axis, places, x, r.choice(["sum", "mean", "amax"]), include_self=True)
    if form == 3:
        return torch.index_put(y, (torch.tensor([0, 1]),), x[:2], accumulate=r.random() < 0.5)
    if form == 4:
        return y.index_fill(axis, index[:1], r.choice([0.0, 1.0]))
    y = y.clone()
    y[..., 0] = x[..., -1]
    return y


@step_of_programs()
def complex_pairs(p: Program, x: Tensor, r: Random) -> Tensor | None:
    if x.shape[-1] % 2:
        return None
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    turn = torch.polar(torch.ones(z.shape[-1]), torch.arange(z.shape[-1]).to(x.dtype))
    return torch.view_as_real(z * turn).flatten(-2) if r.random() < 0.7 else (z * z.conj()).real


@step_of_programs(1, ndim=3)
def distances(p: Program, x: Tensor, r: Random) -> Tensor:
    y = x if r.random() < 0.5 else p.weight(4, x.shape[-1])
    return (
        torch.cdist(x, y, p=r.choice([1.0, 2.0]))
        if r.random() < 0.7
        else F.cosine_similarity(x, y[:1], dim=-1)
    )


@step_of_programs(1, ndim=3)
def scores_with_a_mask(p: Program, x: Tensor, r: Random) -> Tensor:
    q, k, v = (p.linear(x, 4, r) for _ in range(3))
    mask = torch.full((x.shape[1], x.shape[1]), -1e4).triu(1)
    scores = torch.baddbmm(mask if r.random() < 0.7 else p.weight(x.shape[1]), q, k.mT)
    return scores.softmax(-1) @ v


@step_of_programs(1, ndim=4)
def patches(p: Program, x: Tensor, r: Random) -> Tensor | None:
    if min(x.shape[2:]) < 2:
        return None
    form = r.randrange(3)
    if form == 0:
        return F.unfold(x, 2)
    if form == 1:
        return F.fold(F.unfold(x, 2) * 0.5, x.shape[2:], 2)
    grid = torch.linspace(-1, 1, 8, dtype=x.dtype).view(1, 2, 2, 2).expand(len(x), 2, 2, 2)
    return F.grid_sample(x, grid, align_corners=False)


@step_of_programs(1, ndim=2)
def image(p: Program, x: Tensor, r: Random) -> Tensor:
    return p.linear(x, 24, r).unflatten(-1, (r.choice([2, 6]), 2, -1))


@step_of_programs(1, ndim=3)
def selected_heads(p: Program, x: Tensor, r: Random) -> Tensor:
    w, y = p.weight(24, x.shape[-1]), x
    for _ in range(r.choice([1, 2])):
        t = F.linear(x, w).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        q, k, v = (t[0], t[1], t[2]) if r.random() < 0.5 else t.unbind(0)
        y = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
    return y


@step_of_programs()
def products(p: Program, x: Tensor, r: Random) -> Tensor:
    form, size = r.randrange(4), x.shape[-1]
    if form == 0:
        return torch.tensordot(x, p.weight(size, 4), 1)
    if form == 1:
        return torch.inner(x, p.weight(4, size))
    if form == 2:
        return x * torch.outer(p.weight(x.shape[-2]), p.weight(size)) if x.ndim > 2 else x * p.weight(size)
    return x * torch.dot(p.weight(size), p.weight(size)) + torch.mv(p.weight(size, 3), p.weight(3))


@step_of_programs()
def only_its_shape(p: Program, x: Tensor, r: Random) -> Tensor:
    size = x.flatten(1)[:, ::2].softmax(-1).shape[1]
    return x * size


@step_of_programs()
def moments(p: Program, x: Tensor, r: Random) -> Tensor:
    axis, form = axis_of(x, r), r.randrange(3)
    if form == 0:
        var, mean = torch.var_mean(x, axis, keepdim=True)
        return (x - mean) * (var + 0.1).rsqrt()
    if form == 1:
        low, high = torch.aminmax(x, dim=axis, keepdim=True)
        return x / (1 + high - low)
    return x.tril() if x.ndim > 2 else x.sort(axis)[0]


@step_of_programs(2)
def written_by_mask(p: Program, x: Tensor, r: Random) -> Tensor | None:
    form, y = r.randrange(5), p.another(x, r) if r.random() < 0.7 else torch.zeros_like(x)
    rows = torch.arange(x[..., 0].numel()).view(x.shape[:-1]) % 3 > 0
    mask = rows[..., None].expand_as(x)
    if form == 1:
        mask = y > 0
    elif form == 2:
        mask = mask & torch.ones_like(y).bool() if r.random() < 0.5 else mask & (x > 0)
    if form < 3:
        return torch.where(mask, x, 0.0) if r.random() < 0.2 else y.masked_scatter(mask, x)
    y = y.clone()
    if form == 3:
        y[rows] = p.weight(x.shape[-1]) if r.random() < 0.5 else x.flatten(0, -2)[: int(rows.sum())]
        return y
    if x.ndim < 3 or x.shape[1] < 2:
        return None
    y[:, [0, 1]] = x[:, 1:2] if r.random() < 0.5 else x[:, :2]
    return y


@step_of_programs(2)
def neighbours(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis, form = axis_of(x, r), r.randrange(4)
    if form == 0:
        return torch.diff(x, dim=axis) if x.shape[axis] > 1 else None
    if form == 1:
        return x.quantile(r.choice([0.25, 0.5]), dim=axis, keepdim=True).expand_as(x) - x
    if form == 2:
        return x / (1 + torch.linalg.norm(x, dim=axis, keepdim=True))
    return torch.linalg.vecdot(x, p.another(x, r), dim=axis) if x.ndim > 2 else torch.rad2deg(x) * 0.01


@step_of_programs(2, ndim=3)
def matrices(p: Program, x: Tensor, r: Random) -> Tensor | None:
    form, y = r.randrange(6), p.another(x, r)
    if form == 0:
        return torch.diagonal(x.mT @ y, r.choice([0, 0, 1]), -2, -1)
    if form == 1:
        return torch.diag_embed(x.mean(1)) @ p.weight(x.shape[-1], 3)
    if form == 2:
        return torch.linalg.inv(torch.diag_embed(1 + x.square().mean(1)))
    if form == 3:
        return torch.linalg.matrix_exp((x.mT @ y).tanh() * 0.1)
    if form == 4:
        return torch.linalg.cross(x[:, :3], y[:, :3], dim=1) if x.shape[1] >= 3 else None
    return torch.addbmm(x[0], y.softmax(-1), x.mT @ y / 9)


@step_of_programs()
def losses(p: Program, x: Tensor, r: Random) -> Tensor:
    y, form = p.another(x, r), r.randrange(5)
    if form == 0:
        return r.choice([F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss])(x, y, reduction="none")
    if form == 1:
        return x * F.mse_loss(x, y)
    if form == 2:
        return F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="none")
    if form == 3:
        return F.binary_cross_entropy_with_logits(x, y.sigmoid(), reduction="none")
    labels = torch.zeros_like(x[:, 0]).long() if r.random() < 0.5 else y.softmax(1)
    return x + F.cross_entropy(x, labels)
