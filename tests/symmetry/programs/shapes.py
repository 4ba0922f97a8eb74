"""Steps that move values about."""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.symmetry.programs.base import POINTWISE, Program, axis_of, step_of_programs

# Shapes


@step_of_programs()
def unflatten(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = axis_of(x, r)
    size = x.shape[axis]
    runs = [n for n in (2, 3, size // 2, size // 3) if n > 1 and size % n == 0 and size // n > 1]
    return x.unflatten(axis, (r.choice(runs), -1)) if runs and x.ndim < 5 else None


@step_of_programs()
def flatten(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = r.randrange(1, max(x.ndim - 1, 2))
    return x.flatten(axis, axis + 1) if x.ndim > 2 else None


@step_of_programs(2)
def permute(p: Program, x: Tensor, r: Random) -> Tensor:
    return x.permute(0, *r.sample(range(1, x.ndim), x.ndim - 1))


@step_of_programs(2)
def split_and_cat(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = axis_of(x, r)
    size = x.shape[axis]
    if size < 2:
        return None
    at = size // 2 if r.random() < 0.5 else r.randrange(1, size)
    a, b = x.split([at, size - at], axis)
    a = r.choice(POINTWISE)(a) if r.random() < 0.5 else a
    if a.shape == b.shape and r.random() < 0.3:
        return a * b if r.random() < 0.5 else a + b
    parts = [a, b] if r.random() < 0.5 else [b, a]
    return torch.cat(parts + r.choice([[], [], [a], [b]]), axis)


@step_of_programs()
def stack(p: Program, x: Tensor, r: Random) -> Tensor | None:
    parts = [x, r.choice(POINTWISE)(p.another(x, r))]
    return torch.stack(parts, r.randrange(1, x.ndim + 1)) if x.ndim < 4 else None


@step_of_programs()
def select(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = axis_of(x, r)
    return x.select(axis, r.randrange(x.shape[axis])) if x.ndim > 2 else None


@step_of_programs()
def unbind(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = axis_of(x, r)
    if x.ndim < 3 or x.shape[axis] < 2:
        return None
    parts, function, form = list(x.unbind(axis)), r.choice(POINTWISE), r.randrange(4)
    a, b = r.sample(range(len(parts)), 2)
    if form == 0:
        return parts[a] * function(parts[b])
    if form == 1:
        return parts[a] + function(parts[b])
    if form == 2:
        return torch.cat([parts[a], function(parts[b])], r.randrange(1, x.ndim - 1))
    parts[a] = function(parts[a])
    return torch.stack(r.sample(parts, len(parts)), axis)


@step_of_programs()
def repeat(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis, form = axis_of(x, r), r.randrange(3)
    if form == 0:
        return x.repeat_interleave(2, axis)
    if form == 1:
        return x.repeat(*(2 if other == axis else 1 for other in range(x.ndim)))
    return (
        x.unsqueeze(axis).expand(*x.shape[:axis], r.choice([2, 3]), *x.shape[axis:]) if x.ndim < 4 else None
    )


@step_of_programs()
def pad(p: Program, x: Tensor, r: Random) -> Tensor:
    return F.pad(x, [0, 0] * r.randrange(x.ndim - 1) + [r.randrange(2), 1])


@step_of_programs()
def index_select(p: Program, x: Tensor, r: Random) -> Tensor:
    axis = axis_of(x, r)
    return x.index_select(axis, torch.tensor([r.randrange(x.shape[axis]) for _ in range(r.choice([2, 4]))]))


@step_of_programs()
def as_strided(p: Program, x: Tensor, r: Random) -> Tensor | None:
    x = x.contiguous() if r.random() < 0.8 else x.clone()
    rest, form = x[0].numel(), r.randrange(3)
    if x.ndim < 3 or x.shape[1] < 2:
        return None
    inner, others = rest // x.shape[1], x.stride()[2:]
    sizes, strides = [
        # Windows of two positions, every other position, pairs of neighbouring numbers.
        ((len(x), x.shape[1] - 1, 2, *x.shape[2:]), (rest, inner, inner, *others)),
        ((len(x), (x.shape[1] + 1) // 2, *x.shape[2:]), (rest, 2 * inner, *others)),
        ((len(x), rest - 1, 2), (rest, 1, 1)),
    ][form]
    reach = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return x.as_strided(sizes, strides) if reach <= x.numel() else None


@step_of_programs()
def in_place(p: Program, x: Tensor, r: Random) -> Tensor:
    axis, form = axis_of(x, r), r.randrange(4)
    size = x.shape[axis]
    part = r.randrange(1, max(size, 2))
    y = x.clone() if form < 3 else torch.zeros_like(x)
    if form == 0:
        y.add_(p.another(x, r))
    elif form == 1:
        y.narrow(axis, 0, part).mul_(2)
    elif form == 2:
        y.narrow(axis, 0, part).copy_(x.narrow(axis, size - part, part).tanh())
    else:
        y.narrow(axis, 0, part).copy_(x.narrow(axis, 0, part))
    return y
