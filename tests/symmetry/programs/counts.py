"""Steps with sizes that depend on values: as numbers, which is refused, and as sizes of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.symmetry.programs.base import Program, axis_of, step_of_programs

_SIZES: list[Callable[[Tensor, float], int]] = [
    lambda x, c: x[x > c].numel(),
    lambda x, c: x[x > c].shape[0],
    lambda x, c: len(x[x.abs() > abs(c)]),
    lambda x, c: (x > c).nonzero().size(0),
    lambda x, c: torch.argwhere(x < c).shape[0],
    lambda x, c: torch.where(x > c)[0].numel(),
    lambda x, c: torch.nonzero(x > c, as_tuple=True)[-1].shape[0],
    lambda x, c: torch.masked_select(x, x > c).numel(),
    lambda x, c: torch.unique((3 * x).round()).numel(),
    lambda x, c: torch.unique_consecutive((3 * x).round()).numel(),
    lambda x, c: torch.bincount((9 * x.sigmoid()).long().flatten()).shape[0],
    lambda x, c: torch.repeat_interleave((3 * x.sigmoid()).long().flatten()).shape[0],
    lambda x, c: x.flatten(1)[:, (x > c).flatten(1).any(0)].shape[1],
    lambda x, c: x.flatten(0, -2)[x.flatten(0, -2).amax(-1) > c].shape[0],
    lambda x, c: F.pad(x[x > c], (1, 2)).numel() - 3,
    lambda x, c: torch.cat([x[x > c], x[x < c - 1]]).numel(),
    lambda x, c: torch.zeros_like(x[x > c]).view(-1, 1).shape[0],
    lambda x, c: x[x > c].outer(x[0].flatten()).numel(),
]
"""Tensor and threshold -> a number of elements that depends on the tensor's values."""
_NUMBERS: list[Callable[[Tensor, int], Tensor]] = [
    *(lambda x, n: x * n, lambda x, n: x / (n + 1), lambda x, n: x + 0.1 * n, lambda x, n: n - x),
    *(lambda x, n: x * float(n), lambda x, n: x * math.sqrt(n + 1), lambda x, n: (1 + x.abs()) ** (n / 9)),
    *(lambda x, n: x.clamp(max=n / 9), lambda x, n: torch.where(x > n / 9, x, 0.3 * x)),
    *(lambda x, n: torch.add(x, x.tanh(), alpha=n), lambda x, n: F.leaky_relu(x, n / 99)),
    *(lambda x, n: x * torch.tensor(n), lambda x, n: x * torch.tensor([n, n]).sum()),
    *(lambda x, n: x * torch.full((1,), n), lambda x, n: x * x.new_full((), n), lambda x, n: x.fill_(n) + x),
    *(lambda x, n: x * torch.ones(n).sum(), lambda x, n: x * torch.ones(n, 2).norm()),
    *(lambda x, n: x * torch.arange(n + 1).to(x.dtype).mean(), lambda x, n: x * torch.eye(n).sum()),
    *(lambda x, n: x * torch.linspace(0, 1, n + 2)[1], lambda x, n: x * torch.zeros(n + 1).numel()),
    *(lambda x, n: x * torch.empty(n).fill_(1).sum(), lambda x, n: x + torch.ones(n, 3).cumsum(0).mean()),
    lambda x, n: x * (torch.zeros(n + 1) + 1).sum(),
    lambda x, n: x * F.pad(torch.zeros(n), (0, 1), value=1.0).mean(),
    *(lambda x, n: x * x.flatten()[n % x.numel()], lambda x, n: x.roll(n, -1)),
    lambda x, n: x * torch.arange(x.shape[-1])[n % x.shape[-1]],
    lambda x, n: torch.cat([x[..., : n % x.shape[-1]].tanh(), x[..., n % x.shape[-1] :]], -1),
    lambda x, n: x + torch.ones_like(x).tril(n % 5 - 2),
    lambda x, n: x.index_select(-1, torch.tensor([n % x.shape[-1]])),
    lambda x, n: x * torch.ones(3, 3).expand(n + 1, 3, 3).sum(),
    lambda x, n: x * torch.ones(1).repeat(n + 1).sum(),
    lambda x, n: F.hardtanh(x, -n / 9, n / 9),
    lambda x, n: F.layer_norm(x, x.shape[-1:], eps=0.01 * (n + 1)),
]  # fmt: skip
"""What a number of elements becomes."""
_ONLY_SIZES: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    lambda x, y, m: x * y[m].sum(),
    lambda x, y, m: x * torch.cat([y[m], y.flatten()[:1]]).mean(),
    lambda x, y, m: x * y[m].view(-1, 1).square().sum(),
    lambda x, y, m: x + torch.nn.functional.pad(y[m], (0, 1)).amax(),
    lambda x, y, m: x * (torch.zeros(y[m].numel()) + y[m]).sum(),
    lambda x, y, m: x * torch.zeros_like(y[m]).new_zeros(1).add(0.7),
    lambda x, y, m: torch.zeros_like(x).masked_scatter(m, y[m].tanh()),
    lambda x, y, m: x * torch.masked_select(y, m).sort()[0].sum(),
    lambda x, y, m: x * F.softplus(y[m]).sum(),
]  # fmt: skip
"""Tensor, another one and a mask, all of one shape -> what uses a size only as that of tensors."""
_MATCHED: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    lambda x, y, m: torch.zeros_like(x).index_put(m.nonzero(as_tuple=True), y[m]),
    lambda x, y, m: x.clone().index_put_(torch.where(m), x[m] * y[m]),
    lambda x, y, m: x * torch.stack([x[m], y[m]]).prod(0).sum(),
    lambda x, y, m: x * (x[m] * y[m][: x[m].shape[0]]).sum(),
]  # fmt: skip
"""The same with two sizes that are equal, which tracing does not always know."""
_SHAPES: list[Callable[[Tensor, int], int]] = [
    lambda x, k: x.shape[k],
    lambda x, k: x.transpose(k, -1).flatten(1)[:, ::2].numel(),
    lambda x, k: len(x.unbind(k)),
    lambda x, k: x.softmax(k)[:, :1].size(1) + k,
    lambda x, k: torch.zeros(x.shape)[0].sum(0).numel(),
    lambda x, k: x[:, torch.arange(x.shape[1]) % 2 < 1].shape[1],
    lambda x, k: torch.unique(torch.arange(x.shape[k]) // 2).numel(),
    lambda x, k: (torch.arange(x.shape[k]) > 0).nonzero().shape[0],
    lambda x, k: torch.tensor([2.0, -1.0, 3.0])[torch.tensor([2.0, -1.0, 3.0]) > 0].numel(),
]
"""Tensor and axis -> a number of elements that depends on no value."""


@step_of_programs()
def number_of_elements(p: Program, x: Tensor, r: Random) -> Tensor:
    p.counts = True
    size, number, y = r.choice(_SIZES), r.choice(_NUMBERS), p.another(x, r)
    if r.random() < 0.2:
        return r.choice(_MATCHED)(x, y, y > r.choice([0.0, 0.2]))
    if r.random() < 0.2:
        y = p.weight(x.shape[-1]).expand_as(x)
    return number(x.clone(), size(y, r.choice([0.2, 0.5, -0.4])))


@step_of_programs(2)
def size_of_data(p: Program, x: Tensor, r: Random) -> Tensor:
    p.counts = True
    y, c = p.another(x, r), r.choice([0.0, 0.2, -0.4])
    return r.choice(_ONLY_SIZES)(x, y, r.choice([x, y]) > c)


@step_of_programs()
def size_of_no_data(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_NUMBERS)(x.clone(), r.choice(_SHAPES)(x, axis_of(x, r)))
