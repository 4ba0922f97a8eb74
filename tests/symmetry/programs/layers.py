"""Steps with weights in parts, convolutions, pooling, recurrence."""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.symmetry.programs.base import Program, step_of_programs

# Weights in parts


@step_of_programs()
def weights_together(p: Program, x: Tensor, r: Random) -> Tensor:
    return F.linear(x, torch.cat([p.weight(2, x.shape[-1]), p.weight(2, x.shape[-1])]))


@step_of_programs()
def weight_in_parts(p: Program, x: Tensor, r: Random) -> Tensor:
    w, at, form = p.weight(6, x.shape[-1]), r.choice([2, 3, 4]), r.randrange(3)
    if form == 0:
        return torch.cat([F.linear(x, w[:at]), F.linear(x, w[at:]).tanh()], -1)
    if form == 1:
        a, b = w.chunk(2)
        return F.linear(x, a) * F.linear(x, b)
    return F.linear(x, w.view(3, 2, -1)[:, 0])


@step_of_programs()
def weight_in_columns(p: Program, x: Tensor, r: Random) -> Tensor | None:
    size = x.shape[-1]
    if size < 2:
        return None
    w, at = p.weight(4, size), r.randrange(1, size)
    return torch.cat([x[..., :at] @ w[:, :at].t(), (x[..., at:] @ w[:, at:].t()).tanh()], -1)


# Convolutions, pooling, recurrence


@step_of_programs(2, ndim=3)
def convolution(p: Program, x: Tensor, r: Random) -> Tensor:
    width, kernel = r.choice([4, 6]), r.choice([1, 3])
    bias = p.weight(width) if r.random() < 0.6 else None
    return F.conv1d(x, p.weight(width, x.shape[1], kernel), bias, padding=kernel // 2)


@step_of_programs(1, ndim=3)
def transposed_convolution(p: Program, x: Tensor, r: Random) -> Tensor:
    return F.conv_transpose1d(x, p.weight(x.shape[1], 4, 2), p.weight(4))


@step_of_programs(4, ndim=3)
def grouped_convolution(p: Program, x: Tensor, r: Random) -> Tensor:
    size, kernel = x.shape[1], r.choice([1, 3])
    groups = r.choice([n for n in (2, 3, size, size) if size % n == 0])
    out = groups * r.choice([1, 1, 2])
    bias = p.weight(out) if r.random() < 0.6 else None
    return F.conv1d(x, p.weight(out, size // groups, kernel), bias, padding=kernel // 2, groups=groups)


@step_of_programs(1, ndim=3)
def channel_shuffle(p: Program, x: Tensor, r: Random) -> Tensor | None:
    return F.channel_shuffle(x, 2) if x.shape[1] % 2 == 0 else None


@step_of_programs(2, ndim=3)
def pool(p: Program, x: Tensor, r: Random) -> Tensor:
    form = r.randrange(4)
    if form == 0:
        return F.max_pool1d(x, 3, 1, 1)
    if form == 1:
        return F.avg_pool1d(x, 3, 1, 1)
    return F.adaptive_avg_pool1d(x, 2) if form == 2 else F.interpolate(x, scale_factor=2)


@step_of_programs(2, ndim=3)
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
