"""Random programs that nobody would write, over tensors of any shape: what a network might compute.

A program is a list of steps, each drawn from its own seed, so that any sublist is a program too: what fails
can be made shorter by leaving steps out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step: TypeAlias = "Callable[[Program, Tensor, Random], Tensor | None]"
_STEPS: list[tuple[Step, int | None]] = []
_LARGEST = 600


class Program(nn.Module):
    """A program on inputs [N, 3, 6], with a linear layer at its end.

    Args:
        steps: One seed for each.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.weights, self.parts = nn.ParameterList(), nn.ModuleList()
        self.order: list[int] = []
        self.log: list[str] = []
        self.recording = True
        with torch.no_grad():
            self.forward(torch.randn(2, 3, 6))
        self.recording = False

    def forward(self, x: Tensor) -> Tensor:
        self.used = self.used_parts = 0
        self.seen = [x]
        for seed in self.steps:
            r = Random(seed)
            self.shares = r.random() < 0.12
            fitting = [step for step, ndim in _STEPS if ndim in (None, x.ndim)]
            step = r.choice(fitting)
            y = step(self, x, r)
            if self.recording:
                self.log.append(f"{seed}: {step.__name__} {None if y is None else tuple(y.shape[1:])}")
            if y is not None and 0 < y.numel() <= _LARGEST * y.shape[0]:
                self.seen.append(y)
                x = y if r.random() > 0.07 else r.choice(self.seen[-4:])
        self.shares = False
        x = x.flatten(1)
        return F.linear(x, self.weight(2, x.shape[-1]))

    def weight(self, *shape: int) -> Tensor:
        """The next parameter: a new one, or sometimes one of that shape again."""
        if self.recording:
            same = [k for k, w in enumerate(self.weights) if tuple(w.shape) == shape]
            if self.shares and same:
                self.order.append(same[-1])
            else:
                self.order.append(len(self.weights))
                self.weights.append(nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5))
        self.used += 1
        return self.weights[self.order[self.used - 1]]

    def part(self, make: Callable[[], nn.Module]) -> nn.Module:
        """The next module."""
        if self.recording:
            self.parts.append(make().eval())
        self.used_parts += 1
        return self.parts[self.used_parts - 1]

    def another(self, x: Tensor, r: Random, *, broadcast: bool = False) -> Tensor:
        """A value of before of the same shape, or one that broadcasts to it."""

        def fits(y: Tensor) -> bool:
            sizes = zip(y.shape, x.shape, strict=True)
            return y.ndim == x.ndim and all(a == b or (broadcast and a == 1) for a, b in sizes)

        return r.choice([y for y in self.seen if y.ndim == x.ndim and fits(y)] or [x])

    def linear(self, x: Tensor, width: int, r: Random) -> Tensor:
        """A dense layer, in one of the ways to write it."""
        form, size = r.randrange(4), x.shape[-1]
        if form == 0:
            y = x @ self.weight(size, width)
        elif form == 1:
            y = torch.einsum("...i,oi->...o", x, self.weight(width, size))
        elif form == 2:
            y = x.matmul(self.weight(width, size).t())
        else:
            y = F.linear(x, self.weight(width, size))
        return y + self.weight(width) if r.random() < 0.6 else y


def generic(y: Tensor) -> bool:
    """Whether an output is finite, not zero, and not the same for every input."""
    y = y.detach()
    varies = (y - y.mean(0)).norm() > 1e-9 * y.norm()
    return bool(y.isfinite().all() and 1e-6 < y.norm() < 1e12 and varies)


def _step(times: int = 1, ndim: int | None = None) -> Callable[[Step], Step]:
    def register(step: Step) -> Step:
        _STEPS.extend([(step, ndim)] * times)
        return step

    return register


def _axis(x: Tensor, r: Random) -> int:
    return r.randrange(1, x.ndim)


_POINTWISE: list[Callable[[Tensor], Tensor]] = [
    *(torch.tanh, torch.relu, torch.sin, torch.abs, torch.neg, torch.clone, torch.sigmoid, torch.square),
    *(F.gelu, F.softsign, F.leaky_relu, F.hardtanh),
    *(lambda x: 0.5 * x, lambda x: x + 0.3, lambda x: x * x, lambda x: 0.7 * x + x),
]
_REDUCTIONS: list[Callable[[Tensor, int], Tensor]] = [
    *(torch.mean, torch.sum, torch.amax, torch.amin, torch.logsumexp, torch.var),
    *(lambda x, axis: x.max(axis)[0], lambda x, axis: x.norm(dim=axis)),
]  # fmt: skip
_ORDERED: list[Callable[[Tensor, int], Tensor]] = [
    *(torch.cumsum, torch.flip, lambda x, axis: x.roll(1, axis), lambda x, axis: x.sort(axis)[0]),
    lambda x, axis: torch.cummax(x, axis)[0],
]  # fmt: skip


# Elementwise


@_step(3)
def linear(p: Program, x: Tensor, r: Random) -> Tensor:
    return p.linear(x, r.choice([4, 6]), r)


@_step(3)
def pointwise(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_POINTWISE)(x)


@_step()
def prelu(p: Program, x: Tensor, r: Random) -> Tensor:
    return F.prelu(x, p.weight(x.shape[1] if r.random() < 0.5 else 1).abs())


@_step()
def residual(p: Program, x: Tensor, r: Random) -> Tensor:
    y = p.another(x, r, broadcast=True)
    return x + y if r.random() < 0.6 else x - 0.5 * y


@_step()
def product_with_another(p: Program, x: Tensor, r: Random) -> Tensor:
    return x * p.another(x, r, broadcast=True)


@_step()
def quotient(p: Program, x: Tensor, r: Random) -> Tensor:
    y = p.another(x, r)
    return x / (1 + y.abs()) if r.random() < 0.5 else x / (y * y + 0.1)


@_step(2)
def parameter(p: Program, x: Tensor, r: Random) -> Tensor:
    axis = _axis(x, r)
    w = p.weight(*r.choice([x.shape[1:], x.shape[-1:], (1,), (*x.shape[1:-1], 1), x.shape[axis:]]))
    return x - w if r.random() < 0.5 else x * w


@_step()
def choice(p: Program, x: Tensor, r: Random) -> Tensor:
    y, form = p.another(x, r), r.randrange(5)
    if form == 0:
        return torch.where(x > 0, x, 0.5 * y)
    if form == 1:
        return torch.where(y > 0.1, x, torch.zeros_like(x))
    return x.masked_fill(y > 0, 0.0) if form == 2 else (torch.maximum if form == 3 else torch.minimum)(x, y)


# Gates, products of branches, experts


@_step(2)
def gate(p: Program, x: Tensor, r: Random) -> Tensor:
    width = r.choice([4, 6, x.shape[-1]])
    a = x if width == x.shape[-1] else p.linear(x, width, r)
    return a * r.choice(_POINTWISE)(p.linear(x, width, r))


@_step()
def glu(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = _axis(x, r)
    return F.glu(x, axis) if x.shape[axis] % 2 == 0 else None


@_step()
def stack_of_matrices(p: Program, x: Tensor, r: Random) -> Tensor:
    if x.ndim == 2:
        return p.linear(x, 4, r)
    count, width = x.shape[1], r.choice([4, 6])
    w = p.weight(count, x.shape[-1], width)
    if x.ndim > 3:
        return torch.einsum("ne...i,eio->ne...o", x, w)
    y = torch.einsum("nei,eio->neo", x, w) if r.random() < 0.5 else (x.transpose(0, 1) @ w).transpose(0, 1)
    return y + p.weight(count, width) if r.random() < 0.5 else y


@_step(1, ndim=2)
def experts(p: Program, x: Tensor, r: Random) -> Tensor:
    count = r.choice([2, 3])
    y = torch.einsum("ni,eoi->neo", x, p.weight(count, 4, x.shape[1]))
    weights = p.linear(x, count, r)
    return torch.einsum(
        "neo,ne->no", y.tanh() if r.random() < 0.5 else y, r.choice([weights, weights.softmax(-1)])
    )


@_step()
def gram(p: Program, x: Tensor, r: Random) -> Tensor:
    if x.ndim == 2:
        return x[:, :, None] * x[:, None, :]
    return x @ x.transpose(-1, -2) if r.random() < 0.5 else x.transpose(-1, -2) @ x


# Attention


@_step(2)
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


@_step(1, ndim=3)
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


@_step(2)
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


@_step(2, ndim=3)
@_step(1, ndim=2)
def batch_norm(p: Program, x: Tensor, r: Random) -> Tensor:
    return p.part(lambda: _batch_norm(x.shape[1]))(x)


@_step(2, ndim=3)
@_step(1, ndim=2)
def group_norm(p: Program, x: Tensor, r: Random) -> Tensor:
    size = x.shape[1]
    # One value by itself would be normalized to zero.
    groups = r.choice([n for n in range(1, size + x.ndim - 2) if size % n == 0] or [1])
    weight = p.weight(size) if r.random() < 0.8 else None
    return F.group_norm(x, groups, weight, p.weight(size) if r.random() < 0.7 else None, 1e-3)


@_step()
def normalized(p: Program, x: Tensor, r: Random) -> Tensor:
    return x / (x.norm(dim=_axis(x, r), keepdim=True) + r.choice([0, 1]))


@_step()
def softmax(p: Program, x: Tensor, r: Random) -> Tensor:
    return x.softmax(_axis(x, r))


@_step()
def reduced(p: Program, x: Tensor, r: Random) -> Tensor:
    axis, y = _axis(x, r), r.choice(_REDUCTIONS)
    return y(x, axis).unsqueeze(axis) if x.ndim == 2 or r.random() < 0.3 else y(x, axis)


@_step()
def plus_reduced(p: Program, x: Tensor, r: Random) -> Tensor:
    axis = _axis(x, r)
    return x + r.choice(_REDUCTIONS[:3])(x, axis).unsqueeze(axis)


@_step()
def ordered(p: Program, x: Tensor, r: Random) -> Tensor:
    axis, y = _axis(x, r), r.choice(_ORDERED)
    return x.flip((axis,)) if y is torch.flip else y(x, axis)


# Shapes


@_step()
def unflatten(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = _axis(x, r)
    size = x.shape[axis]
    runs = [n for n in (2, 3, size // 2, size // 3) if n > 1 and size % n == 0 and size // n > 1]
    return x.unflatten(axis, (r.choice(runs), -1)) if runs and x.ndim < 5 else None


@_step()
def flatten(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = r.randrange(1, max(x.ndim - 1, 2))
    return x.flatten(axis, axis + 1) if x.ndim > 2 else None


@_step(2)
def permute(p: Program, x: Tensor, r: Random) -> Tensor:
    return x.permute(0, *r.sample(range(1, x.ndim), x.ndim - 1))


@_step(2)
def split_and_cat(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = _axis(x, r)
    size = x.shape[axis]
    if size < 2:
        return None
    at = size // 2 if r.random() < 0.5 else r.randrange(1, size)
    a, b = x.split([at, size - at], axis)
    a = r.choice(_POINTWISE)(a) if r.random() < 0.5 else a
    if a.shape == b.shape and r.random() < 0.3:
        return a * b if r.random() < 0.5 else a + b
    parts = [a, b] if r.random() < 0.5 else [b, a]
    return torch.cat(parts + r.choice([[], [], [a], [b]]), axis)


@_step()
def stack(p: Program, x: Tensor, r: Random) -> Tensor | None:
    parts = [x, r.choice(_POINTWISE)(p.another(x, r))]
    return torch.stack(parts, r.randrange(1, x.ndim + 1)) if x.ndim < 4 else None


@_step()
def select(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = _axis(x, r)
    return x.select(axis, r.randrange(x.shape[axis])) if x.ndim > 2 else None


@_step()
def unbind(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = _axis(x, r)
    if x.ndim < 3 or x.shape[axis] < 2:
        return None
    parts, function, form = list(x.unbind(axis)), r.choice(_POINTWISE), r.randrange(4)
    a, b = r.sample(range(len(parts)), 2)
    if form == 0:
        return parts[a] * function(parts[b])
    if form == 1:
        return parts[a] + function(parts[b])
    if form == 2:
        return torch.cat([parts[a], function(parts[b])], r.randrange(1, x.ndim - 1))
    parts[a] = function(parts[a])
    return torch.stack(r.sample(parts, len(parts)), axis)


@_step()
def repeat(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis, form = _axis(x, r), r.randrange(3)
    if form == 0:
        return x.repeat_interleave(2, axis)
    if form == 1:
        return x.repeat(*(2 if other == axis else 1 for other in range(x.ndim)))
    return (
        x.unsqueeze(axis).expand(*x.shape[:axis], r.choice([2, 3]), *x.shape[axis:]) if x.ndim < 4 else None
    )


@_step()
def pad(p: Program, x: Tensor, r: Random) -> Tensor:
    return F.pad(x, [0, 0] * r.randrange(x.ndim - 1) + [r.randrange(2), 1])


@_step()
def index_select(p: Program, x: Tensor, r: Random) -> Tensor:
    axis = _axis(x, r)
    return x.index_select(axis, torch.tensor([r.randrange(x.shape[axis]) for _ in range(r.choice([2, 4]))]))


@_step()
def in_place(p: Program, x: Tensor, r: Random) -> Tensor:
    axis, form = _axis(x, r), r.randrange(4)
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


# Weights in parts


@_step()
def weights_together(p: Program, x: Tensor, r: Random) -> Tensor:
    return F.linear(x, torch.cat([p.weight(2, x.shape[-1]), p.weight(2, x.shape[-1])]))


@_step()
def weight_in_parts(p: Program, x: Tensor, r: Random) -> Tensor:
    w, at, form = p.weight(6, x.shape[-1]), r.choice([2, 3, 4]), r.randrange(3)
    if form == 0:
        return torch.cat([F.linear(x, w[:at]), F.linear(x, w[at:]).tanh()], -1)
    if form == 1:
        a, b = w.chunk(2)
        return F.linear(x, a) * F.linear(x, b)
    return F.linear(x, w.view(3, 2, -1)[:, 0])


@_step()
def weight_in_columns(p: Program, x: Tensor, r: Random) -> Tensor | None:
    size = x.shape[-1]
    if size < 2:
        return None
    w, at = p.weight(4, size), r.randrange(1, size)
    return torch.cat([x[..., :at] @ w[:, :at].t(), (x[..., at:] @ w[:, at:].t()).tanh()], -1)


# Convolutions, pooling, recurrence


@_step(2, ndim=3)
def convolution(p: Program, x: Tensor, r: Random) -> Tensor:
    width, kernel = r.choice([4, 6]), r.choice([1, 3])
    bias = p.weight(width) if r.random() < 0.6 else None
    return F.conv1d(x, p.weight(width, x.shape[1], kernel), bias, padding=kernel // 2)


@_step(1, ndim=3)
def transposed_convolution(p: Program, x: Tensor, r: Random) -> Tensor:
    return F.conv_transpose1d(x, p.weight(x.shape[1], 4, 2), p.weight(4))


@_step(4, ndim=3)
def grouped_convolution(p: Program, x: Tensor, r: Random) -> Tensor:
    size, kernel = x.shape[1], r.choice([1, 3])
    groups = r.choice([n for n in (2, 3, size, size) if size % n == 0])
    out = groups * r.choice([1, 1, 2])
    bias = p.weight(out) if r.random() < 0.6 else None
    return F.conv1d(x, p.weight(out, size // groups, kernel), bias, padding=kernel // 2, groups=groups)


@_step(1, ndim=3)
def channel_shuffle(p: Program, x: Tensor, r: Random) -> Tensor | None:
    return F.channel_shuffle(x, 2) if x.shape[1] % 2 == 0 else None


@_step(2, ndim=3)
def pool(p: Program, x: Tensor, r: Random) -> Tensor:
    form = r.randrange(4)
    if form == 0:
        return F.max_pool1d(x, 3, 1, 1)
    if form == 1:
        return F.avg_pool1d(x, 3, 1, 1)
    return F.adaptive_avg_pool1d(x, 2) if form == 2 else F.interpolate(x, scale_factor=2)


@_step(2, ndim=3)
def recurrent(p: Program, x: Tensor, r: Random) -> Tensor:
    kind = r.choice([nn.RNN, nn.GRU, nn.LSTM])
    settings: dict[str, object] = {"num_layers": r.choice([1, 1, 2]), "bidirectional": r.random() < 0.4}
    if kind is nn.RNN:
        settings["nonlinearity"] = r.choice(["tanh", "relu"])
    if kind is nn.LSTM and r.random() < 0.3:
        settings["proj_size"] = 2
    y, last = p.part(lambda: kind(x.shape[-1], 4, batch_first=True, **settings))(x)
    last = last[0] if isinstance(last, tuple) else last
    return last.transpose(0, 1) if r.random() < 0.3 else y
