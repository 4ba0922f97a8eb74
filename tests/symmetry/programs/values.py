"""Steps that compute values: elementwise, gates, attention, norms, reductions, orders."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.symmetry.programs.base import POINTWISE, Program, axis_of, step_of_programs

_REDUCTIONS: list[Callable[[Tensor, int], Tensor]] = [
    *(torch.mean, torch.sum, torch.amax, torch.amin, torch.logsumexp, torch.var),
    *(lambda x, axis: x.max(axis)[0], lambda x, axis: x.norm(dim=axis)),
]  # fmt: skip
_ORDERED: list[Callable[[Tensor, int], Tensor]] = [
    *(torch.cumsum, torch.flip, lambda x, axis: x.roll(1, axis), lambda x, axis: x.sort(axis)[0]),
    lambda x, axis: torch.cummax(x, axis)[0],
]  # fmt: skip


# Elementwise


@step_of_programs(3)
def linear(p: Program, x: Tensor, r: Random) -> Tensor:
    return p.linear(x, r.choice([4, 6]), r)


@step_of_programs(3)
def pointwise(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(POINTWISE)(x)


@step_of_programs()
def prelu(p: Program, x: Tensor, r: Random) -> Tensor:
    return F.prelu(x, p.weight(x.shape[1] if r.random() < 0.5 else 1).abs())


@step_of_programs()
def residual(p: Program, x: Tensor, r: Random) -> Tensor:
    y = p.another(x, r, broadcast=True)
    return x + y if r.random() < 0.6 else x - 0.5 * y


@step_of_programs()
def product_with_another(p: Program, x: Tensor, r: Random) -> Tensor:
    return x * p.another(x, r, broadcast=True)


@step_of_programs()
def quotient(p: Program, x: Tensor, r: Random) -> Tensor:
    y = p.another(x, r)
    return x / (1 + y.abs()) if r.random() < 0.5 else x / (y * y + 0.1)


@step_of_programs(2)
def parameter(p: Program, x: Tensor, r: Random) -> Tensor:
    axis = axis_of(x, r)
    w = p.weight(*r.choice([x.shape[1:], x.shape[-1:], (1,), (*x.shape[1:-1], 1), x.shape[axis:]]))
    return x - w if r.random() < 0.5 else x * w


@step_of_programs()
def choice(p: Program, x: Tensor, r: Random) -> Tensor:
    y, form = p.another(x, r), r.randrange(5)
    if form == 0:
        return torch.where(x > 0, x, 0.5 * y)
    if form == 1:
        return torch.where(y > 0.1, x, torch.zeros_like(x))
    return x.masked_fill(y > 0, 0.0) if form == 2 else (torch.maximum if form == 3 else torch.minimum)(x, y)


# Gates, products of branches, experts


@step_of_programs(2)
def gate(p: Program, x: Tensor, r: Random) -> Tensor:
    width = r.choice([4, 6, x.shape[-1]])
    a = x if width == x.shape[-1] else p.linear(x, width, r)
    return a * r.choice(POINTWISE)(p.linear(x, width, r))


@step_of_programs()
def glu(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = axis_of(x, r)
    return F.glu(x, axis) if x.shape[axis] % 2 == 0 else None


@step_of_programs()
def stack_of_matrices(p: Program, x: Tensor, r: Random) -> Tensor:
    if x.ndim == 2:
        return p.linear(x, 4, r)
    count, width = x.shape[1], r.choice([4, 6])
    w = p.weight(count, x.shape[-1], width)
    if x.ndim > 3:
        return torch.einsum("ne...i,eio->ne...o", x, w)
    y = torch.einsum("nei,eio->neo", x, w) if r.random() < 0.5 else (x.transpose(0, 1) @ w).transpose(0, 1)
    return y + p.weight(count, width) if r.random() < 0.5 else y


@step_of_programs(1, ndim=2)
def experts(p: Program, x: Tensor, r: Random) -> Tensor:
    count = r.choice([2, 3])
    y = torch.einsum("ni,eoi->neo", x, p.weight(count, 4, x.shape[1]))
    weights = p.linear(x, count, r)
    return torch.einsum(
        "neo,ne->no", y.tanh() if r.random() < 0.5 else y, r.choice([weights, weights.softmax(-1)])
    )


@step_of_programs()
def gram(p: Program, x: Tensor, r: Random) -> Tensor:
    if x.ndim == 2:
        return x[:, :, None] * x[:, None, :]
    return x @ x.transpose(-1, -2) if r.random() < 0.5 else x.transpose(-1, -2) @ x


# Attention


@step_of_programs(2)
def attention(p: Program, x: Tensor, r: Random) -> Tensor | None:
    if x.ndim < 3:
        return None
    others = [y for y in p.seen if y.ndim == x.ndim and y.shape[:-2] == x.shape[:-2]]
    width, y = r.choice([4, 6]), r.choice(others or [x])
    q, k = p.linear(x, width, r), p.linear(y, width, r)
    v = p.linear(y, r.choice([4, 6]), r) if r.random() < 0.7 else y
    heads, fused = r.choice([1, 1, 2, width // 2]), r.random() < 0.4
    if heads > 1 and x.ndim == 3 and v.shape[-1] % heads == 0:
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    if fused:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        scores = q @ k.transpose(-1, -2)
        out = (scores.relu() if r.random() < 0.2 else scores.softmax(-1)) @ v
    return out.transpose(1, 2).flatten(2) if out.ndim > x.ndim else out


@step_of_programs(1, ndim=3)
def packed_attention(p: Program, x: Tensor, r: Random) -> Tensor:
    heads = r.choice([2, 3])
    qkv, form = p.linear(x, 6 * heads, r), r.randrange(3)
    if form == 0:
        q, k, v = qkv.unflatten(-1, (3, heads, 2)).permute(2, 0, 3, 1, 4)
    elif form == 1:
        q, k, v = qkv.unflatten(-1, (heads, 6)).transpose(1, 2).chunk(3, -1)
    else:
        q, k, v = (part.unflatten(-1, (heads, 2)).transpose(1, 2) for part in qkv.chunk(3, -1))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=r.random() < 0.3)
    return out.transpose(1, 2).flatten(2)


# Norms, reductions, orders


@step_of_programs(2)
def norm_of_last(p: Program, x: Tensor, r: Random) -> Tensor:
    shape = x.shape[-(r.choice([1, 1, 2]) if x.ndim > 2 else 1) :]
    weight = p.weight(*shape) if r.random() < 0.8 else None
    if r.random() < 0.5:
        return F.rms_norm(x, shape, weight, 1e-3)
    return F.layer_norm(
        x, shape, weight, p.weight(*shape) if weight is not None and r.random() < 0.7 else None
    )


def _batch_norm(size: int) -> nn.Module:
    norm = nn.BatchNorm1d(size)
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        assert tensor is not None
        nn.init.normal_(tensor)
    assert norm.running_var is not None
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


@step_of_programs(2, ndim=3)
@step_of_programs(1, ndim=2)
def batch_norm(p: Program, x: Tensor, r: Random) -> Tensor:
    return p.part(lambda: _batch_norm(x.shape[1]))(x)


@step_of_programs(2, ndim=3)
@step_of_programs(1, ndim=2)
def group_norm(p: Program, x: Tensor, r: Random) -> Tensor:
    size = x.shape[1]
    # One value by itself would be normalized to zero.
    groups = r.choice([n for n in range(1, size + x.ndim - 2) if size % n == 0] or [1])
    weight = p.weight(size) if r.random() < 0.8 else None
    return F.group_norm(x, groups, weight, p.weight(size) if r.random() < 0.7 else None, 1e-3)


@step_of_programs()
def normalized(p: Program, x: Tensor, r: Random) -> Tensor:
    return x / (x.norm(dim=axis_of(x, r), keepdim=True) + r.choice([0, 1]))


@step_of_programs()
def softmax(p: Program, x: Tensor, r: Random) -> Tensor:
    return x.softmax(axis_of(x, r))


@step_of_programs()
def reduced(p: Program, x: Tensor, r: Random) -> Tensor:
    axis, y = axis_of(x, r), r.choice(_REDUCTIONS)
    return y(x, axis).unsqueeze(axis) if x.ndim == 2 or r.random() < 0.3 else y(x, axis)


@step_of_programs()
def plus_reduced(p: Program, x: Tensor, r: Random) -> Tensor:
    axis = axis_of(x, r)
    return x + r.choice(_REDUCTIONS[:3])(x, axis).unsqueeze(axis)


@step_of_programs()
def ordered(p: Program, x: Tensor, r: Random) -> Tensor:
    axis, y = axis_of(x, r), r.choice(_ORDERED)
    return x.flip((axis,)) if y is torch.flip else y(x, axis)
