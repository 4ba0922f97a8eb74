"""Networks over sequences: recurrent modules, cells in loops, causal convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.base import family, inputs, several, tokens


class Recurrent(nn.Module):
    """A recurrent module and a head over its last or over all outputs.

    Args:
        module: ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``.
        every: Whether the head reads every position, else the final hidden states of the last layer.
        options: For the module.
    """

    def __init__(self, module: Callable[..., nn.Module], *, every: bool = False, **options: Any) -> None:
        super().__init__()
        options = {"batch_first": True} | options
        self.rnn, self.every = module(3, 4, **options), every
        width = options.get("proj_size") or 4
        self.head = nn.Linear(width * (1 + bool(options.get("bidirectional"))), 2)

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.rnn(x)
        if self.every:
            return self.head(out)
        hidden = state[0] if isinstance(state, tuple) else state
        last = torch.cat([hidden[-2], hidden[-1]], -1) if self.rnn.bidirectional else hidden[-1]
        return self.head(last)


class GivenState(nn.Module):
    """An LSTM that starts from a learned state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)
        self.h0, self.c0 = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        state = (self.h0.expand(-1, batch, -1).contiguous(), self.c0.expand(-1, batch, -1).contiguous())
        return self.head(self.lstm(x.transpose(0, 1), state)[0][-1])


class StateFromInput(nn.Module):
    """A GRU whose initial state is computed by a dense layer, as in a captioner."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.gru, self.head = nn.Linear(5, 4), nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.head(self.gru(x, torch.tanh(self.start(context)).unsqueeze(0))[0])


class CellLoop(nn.Module):
    """A cell called once per position."""

    def __init__(self, cell: type[nn.RNNCellBase], **options: Any) -> None:
        super().__init__()
        self.cell, self.head = cell(3, 4, **options), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class HandWrittenLSTM(nn.Module):
    """All gates in one matrix over the concatenation of input and state."""

    def __init__(self, inner: int = 4) -> None:
        super().__init__()
        self.inner, self.gates, self.head = inner, nn.Linear(3 + inner, 4 * inner), nn.Linear(inner, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.inner)
        for step in x.unbind(1):
            i, f, g, o = self.gates(torch.cat([step, h], dim=1)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class HandWrittenRNN(nn.Module):
    """h = tanh(W x + U h), every state kept."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.input, self.state, self.head = nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        h, states = torch.zeros(x.shape[0], 4, dtype=self.state.weight.dtype), []
        for step in self.embed(x).unbind(1):
            h = torch.tanh(self.input(step) + self.state(h))
            states.append(h)
        return self.head(torch.stack(states, dim=1))


class LanguageLSTM(nn.Module):
    """Embedding, LSTM, logits, the embedding's weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(7, 4), nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0])


class CausalConvolutions(nn.Module):
    """Dilated convolutions that see the past only, gated as in WaveNet, with residuals and skips."""

    def __init__(self, width: int = 4, inner: int = 3) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, width, 1), nn.Conv1d(width, 2, 1)
        self.filters = nn.ModuleList(nn.Conv1d(width, 2 * inner, 2, dilation=d) for d in (1, 2))
        self.outs = nn.ModuleList(nn.Conv1d(inner, width, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for dilation, conv, out in zip((1, 2), self.filters, self.outs, strict=True):
            filtered, gate = conv(F.pad(x, (dilation, 0))).chunk(2, dim=1)
            x = x + out(torch.tanh(filtered) * torch.sigmoid(gate))
        return self.head(F.relu(x))


class TemporalConvolutions(nn.Module):
    """Padded convolutions, cut back to length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 4, 3, padding=2), nn.Conv1d(4, 4, 3, padding=4, dilation=2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        x = F.relu(self.first(x)[..., :length])
        x = x + F.relu(self.second(x)[:, :, :-4])
        return self.head(x[:, :, -1])


def _padded(mode: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        *(nn.Conv1d(2, 4, 3, padding=1, padding_mode=mode), nn.Tanh()),
        *(nn.Conv1d(4, 3, 3, padding=2, padding_mode=mode), nn.Flatten()),
    )


def _recurrent(module: Callable[..., nn.Module], **options: Any) -> Callable[[], nn.Module]:
    return lambda: Recurrent(module, **options)


SEQUENCE = inputs(2, 5, 3)

CASES = (
    family("rnn-tanh", _recurrent(nn.RNN), SEQUENCE, permuted=(4,), flipped=4),
    family("rnn-relu", _recurrent(nn.RNN, nonlinearity="relu"), SEQUENCE, permuted=(4,), scaled=4),
    family("rnn-no-bias", _recurrent(nn.RNN, bias=False, every=True), SEQUENCE, permuted=(4,), flipped=4),
    family("gru", _recurrent(nn.GRU), SEQUENCE, permuted=(4,), flipped=4),
    family(
        "gru-stacked", _recurrent(nn.GRU, num_layers=2, bidirectional=True, dropout=0.1), SEQUENCE,
        permuted=(4, 4, 4, 4), flipped=16,
    ),
    family("gru-every-output", _recurrent(nn.GRU, every=True), SEQUENCE, permuted=(4,), flipped=4),
    family("lstm", _recurrent(nn.LSTM), SEQUENCE, permuted=(4,), flipped=4),
    family(
        "lstm-stacked", _recurrent(nn.LSTM, num_layers=2, every=True), SEQUENCE, permuted=(4, 4), flipped=8
    ),
    family(
        "lstm-bidirectional", _recurrent(nn.LSTM, bidirectional=True, every=True), SEQUENCE,
        permuted=(4, 4), flipped=8,
    ),
    family(
        # In float32 torch warns that oneDNN has no projections.
        "lstm-projected", lambda: Recurrent(nn.LSTM, proj_size=3).double(), lambda: SEQUENCE().double(),
        permuted=(4, 3), scaled=3, flipped=7,
    ),
    family("lstm-sequence-first", _recurrent(nn.LSTM, batch_first=False), SEQUENCE, permuted=(4,), flipped=4),
    family("lstm-given-state", GivenState, SEQUENCE, permuted=(4,), flipped=4),
    family("lstm-language", LanguageLSTM, tokens(7, 2, 5), permuted=(4,), flipped=4),
    family(
        "gru-state-from-input", StateFromInput, several(SEQUENCE, inputs(2, 5)), permuted=(4,), flipped=4
    ),
    family("rnn-cell", lambda: CellLoop(nn.RNNCell), SEQUENCE, permuted=(4,), flipped=4),
    family(
        "rnn-cell-relu", lambda: CellLoop(nn.RNNCell, nonlinearity="relu"), SEQUENCE,
        permuted=(4,), scaled=4,
    ),
    family("gru-cell", lambda: CellLoop(nn.GRUCell), SEQUENCE, permuted=(4,), flipped=4),
    family("lstm-cell", lambda: CellLoop(nn.LSTMCell), SEQUENCE, permuted=(4,), flipped=4),
    family("lstm-by-hand", HandWrittenLSTM, SEQUENCE, permuted=(4,), flipped=4),
    family("rnn-by-hand", HandWrittenRNN, tokens(7, 2, 5), permuted=(3, 4), scaled=3, flipped=7),
    family(
        "wavenet", CausalConvolutions, inputs(2, 2, 6), permuted=(4, 3, 3), scaled=4, flipped=6
    ),
    family("temporal-convolutions", TemporalConvolutions, inputs(2, 2, 6), permuted=(4,), scaled=4),
    family("padding-circular", _padded("circular"), inputs(2, 2, 6), permuted=(4,), flipped=4),
    family("padding-reflect", _padded("reflect"), inputs(2, 2, 6), permuted=(4,), flipped=4),
)  # fmt: skip
"""Recurrent networks and convolutions over time."""
