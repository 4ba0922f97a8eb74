"""Steps of packed sequences and cells, tables of vectors, and randomness that is left on in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.symmetry.programs.base import Program, axis_of, step_of_programs

_CELLS: dict[str, tuple[type[nn.RNNCellBase], dict[str, Any]]] = {
    "lstm": (nn.LSTMCell, {}),
    "gru": (nn.GRUCell, {}),
    "tanh": (nn.RNNCell, {}),
    "relu": (nn.RNNCell, {"nonlinearity": "relu"}),
}


def _left_on(kind: Any, *args: Any, **settings: Any) -> nn.Module:
    """A module that stays in training mode, whatever is asked of it."""

    class LeftOn(kind):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(True)

    return LeftOn(*args, **settings)


# Sequences


@step_of_programs(3, ndim=3)
def packed(p: Program, x: Tensor, r: Random) -> Tensor:
    kind = r.choice([nn.RNN, nn.GRU, nn.LSTM])
    settings: dict[str, Any] = {"num_layers": r.choice([1, 1, 2]), "bidirectional": r.random() < 0.4}
    if kind is nn.RNN:
        settings["nonlinearity"] = r.choice(["tanh", "relu"])
    if kind is nn.LSTM and r.random() < 0.3:
        settings["proj_size"] = 2
    rows_first, form = r.random() < 0.7, r.randrange(6)
    lengths = torch.tensor([1 + (n * 7 + r.randrange(3)) % x.shape[1] for n in range(len(x))])
    batch = x if rows_first else x.transpose(0, 1)
    rows = pack_padded_sequence(batch, lengths, batch_first=rows_first, enforce_sorted=False)
    if form == 0:
        # Packed and padded again, without a layer between.
        rows = rows._replace(data=r.choice([torch.tanh, torch.relu, torch.exp])(rows.data))
        return pad_packed_sequence(rows, True, total_length=x.shape[1])[0]
    states, last = p.part(lambda: kind(x.shape[-1], 4, **settings))(rows)
    last = last[0] if isinstance(last, tuple) else last
    if form == 1:
        return last.transpose(0, 1)
    padding = r.choice([0.0, 0.0, 0.0, -1.0])
    y = pad_packed_sequence(states, True, padding, total_length=x.shape[1])[0]
    return y.amax(1) if form == 2 else y


@step_of_programs(2, ndim=2)
@step_of_programs(1, ndim=3)
def cell(p: Program, x: Tensor, r: Random) -> Tensor:
    kind, settings = _CELLS[r.choice(list(_CELLS))]
    settings = settings | {"bias": r.random() < 0.7}
    step = p.part(lambda: kind(x.shape[-1], 4, **settings))
    if x.ndim == 2:
        state = step(x)
        state = step(x.tanh(), state)
        return r.choice(state) if isinstance(state, tuple) else state
    state, seen = None, []
    for part in x.unbind(1)[:3]:
        state = step(part, state)
        seen.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(seen, 1)


# Tables of vectors


@step_of_programs(2)
def looked_up(p: Program, x: Tensor, r: Random) -> Tensor | None:
    form, bins = r.randrange(3), torch.tensor([-0.6, 0.0, 0.6])
    # Classes of the network's inputs, or of a value that it computed.
    index = torch.bucketize(p.seen[0][:, :, 0] if form else x.flatten(1)[:, :3], bins)
    table = p.weight(4, r.choice([4, 6]))
    if r.random() < 0.6:
        return F.embedding(index, table)
    return F.embedding_bag(index, table, mode=r.choice(["mean", "sum", "max"]))


@step_of_programs()
def bilinear(p: Program, x: Tensor, r: Random) -> Tensor:
    y, out = p.another(x, r), r.choice([2, 4])
    bias = p.weight(out) if r.random() < 0.5 else None
    return F.bilinear(x, y, p.weight(out, x.shape[-1], y.shape[-1]), bias)


@step_of_programs()
def normed_weight(p: Program, x: Tensor, r: Random) -> Tensor:
    v = p.weight(4, x.shape[-1])
    return F.linear(x, torch._weight_norm(v, p.weight(4, 1), 0), p.weight(4) if r.random() < 0.5 else None)


# Randomness in eval mode


_NOISE: list[Callable[[Tensor], Tensor]] = [
    *(lambda x: torch.empty_like(x).normal_(), lambda x: torch.empty_like(x).uniform_(), torch.randn_like),
    *(lambda x: torch.empty_like(x).exponential_(), lambda x: torch.empty_like(x).log_normal_()),
    torch.rand_like,
    *(lambda x: torch.empty_like(x).geometric_(0.5), lambda x: torch.empty_like(x).cauchy_().atan()),
    *(lambda x: torch.randint_like(x, 3), lambda x: torch.empty_like(x).random_(3)),
    *(lambda x: torch.bernoulli(x.sigmoid()), lambda x: torch.poisson(x.tanh() + 1)),
    lambda x: torch.normal(x, 0.1),
    lambda x: torch.binomial(torch.full_like(x, 4.0), x.sigmoid()),
    lambda x: torch.bernoulli(torch.full_like(x, 0.7)),
]  # fmt: skip
_DROPPED: list[Callable[[Tensor], Tensor]] = [
    *(lambda x: F.dropout(x, 0.3, True), lambda x: F.alpha_dropout(x, 0.3, True)),
    lambda x: F.rrelu(x, training=True),
    *(lambda x: torch.feature_dropout(x, 0.3, True), lambda x: F.feature_alpha_dropout(x, 0.3, True)),
]  # fmt: skip


@step_of_programs(2)
def dropped(p: Program, x: Tensor, r: Random) -> Tensor:
    return r.choice(_DROPPED)(x)


@step_of_programs(2)
def noise(p: Program, x: Tensor, r: Random) -> Tensor:
    y = r.choice(_NOISE)(x)
    return x + 0.3 * y if r.random() < 0.5 else x * y


@step_of_programs(2)
def module_left_on(p: Program, x: Tensor, r: Random) -> Tensor:
    size, form = x.shape[1], r.randrange(5)
    if form == 0 and x.ndim == 3:
        kind = r.choice([nn.LSTM, nn.GRU])
        return p.part(lambda: _left_on(kind, x.shape[2], 4, num_layers=2, dropout=0.3, batch_first=True))(x)[
            0
        ]
    if form == 1 and x.ndim == 3 and x.shape[2] % 2 == 0:
        return p.part(lambda: _left_on(nn.MultiheadAttention, x.shape[2], 2, 0.3, batch_first=True))(x, x, x)[
            0
        ]
    if form == 2 and x.ndim in (2, 3):
        return p.part(lambda: _left_on(nn.BatchNorm1d, size, track_running_stats=False))(x)
    drop = r.choice([nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout])
    return p.part(lambda: _left_on(drop, 0.3))(x)


@step_of_programs(1, ndim=3)
def attention_with_dropout(p: Program, x: Tensor, r: Random) -> Tensor:
    q, k, v = (p.linear(x, 4, r) for _ in range(3))
    if r.random() < 0.5:
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.3)
    return y.transpose(1, 2).flatten(2) if y.ndim > x.ndim else y


@step_of_programs()
def chosen_at_random(p: Program, x: Tensor, r: Random) -> Tensor | None:
    axis = axis_of(x, r)
    if axis == x.ndim - 1 and x.ndim == 2:
        picked = torch.multinomial(x.softmax(-1), 1)
        return x * torch.take_along_dim(x, picked, 1)
    return x.index_select(axis, torch.randperm(x.shape[axis]))
