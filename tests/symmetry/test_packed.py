"""Packed sequences: the rows of a recurrent layer without padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from amortopt.symmetry import extract


class Reader(nn.Module):
    """Tokens [N, T] and lengths [N] -> [N, T, 3], or what ``head`` makes of the packed states."""

    def __init__(
        self,
        kind: Any = nn.LSTM,
        head: Callable[[PackedSequence], Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), head
        self.states = kind(6, 5, batch_first=True, **settings)
        self.out = nn.Linear(10 if settings.get("bidirectional") else 5, 3)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.table(tokens), lengths, batch_first=True, enforce_sorted=False)
        states, _ = self.states(packed)
        if self.head is not None:
            return self.out(self.head(states))
        return self.out(pad_packed_sequence(states, batch_first=True)[0])


INPUTS = torch.arange(21).view(3, 7) % 11, torch.tensor([2, 7, 5])


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (nn.LSTM, {}, "sign"),
        (nn.GRU, {"num_layers": 2, "bidirectional": True}, "sign"),
        (nn.RNN, {"nonlinearity": "relu"}, "positive"),
    ],
)
def test_packed_sequences_have_the_symmetry_of_padded_ones(
    kind: Any, settings: dict[str, Any], expected: str
) -> None:
    net = Reader(kind, **settings)
    spec = extract(net, INPUTS, strict=True)
    assert spec.group(spec.blocks_of("out.weight")[0].groups[1]).kind == expected
    proof = spec.verify(net, INPUTS)
    assert proof.holds
    assert not proof.larger


def test_packed_rows_are_read_without_padding_them_again() -> None:
    net = Reader(head=lambda packed: packed.data.tanh())
    assert extract(net, INPUTS).verify(net, INPUTS).holds


def test_packed_sequences_padded_with_a_number_have_no_scale() -> None:
    net = Reader(head=lambda packed: pad_packed_sequence(packed, padding_value=-1.0)[0].amax(0))
    spec = extract(net, INPUTS)
    assert spec.group(spec.blocks_of("out.weight")[0].groups[1]).kind == "none"
    assert spec.verify(net, INPUTS).holds


def test_packed_list_of_sequences_may_be_the_input() -> None:
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.states, self.out = nn.GRU(4, 5), nn.Linear(5, 2)

        def forward(self, sequences: list[Tensor]) -> Tensor:
            packed = pack_sequence(sequences, enforce_sorted=False)
            return self.out(self.states(packed)[1][-1])

    net, inputs = Packs(), ([torch.randn(n, 4) for n in (3, 6, 2)],)
    spec = extract(net, inputs, strict=True)
    assert spec.group(spec.blocks_of("out.weight")[0].groups[1]).kind == "sign"
    assert spec.verify(net, inputs).holds


@pytest.mark.parametrize(
    "head",
    [
        lambda packed: packed.data.relu() if len(packed.data) > 12 else packed.data,
        lambda packed: sum(packed.data.sin() for _ in range(len(packed.batch_sizes))),
    ],
    ids=["rows", "steps"],
)
def test_branch_on_lengths_of_packed_sequences_is_refused(head: Callable[[PackedSequence], Tensor]) -> None:
    with pytest.raises(ValueError, match="a branch depends on how long the sequences"):
        extract(Reader(head=head), INPUTS)
