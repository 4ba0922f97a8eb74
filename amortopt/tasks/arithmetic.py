"""Arithmetic, character by character: the problems of the Tiny RNN Zoo and the network that answers them.

A problem is a text such as ``12+07=019``: every number has as many digits as the largest that can stand in
its place, so that all problems are equally long. The network reads all characters but the last and says, at
the ``=`` and at every digit of the answer that follows, which digit comes next. Legend: N problems, T
characters that are read, A digits of the answer, V characters of the vocabulary.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = "0123456789+="
"""The character of every symbol; digits come first, so the symbol of a digit is the digit."""
DIGITS = 10
_MOST = 1_000_000  # problems that are listed at all


@dataclass(frozen=True)
class Arithmetic:
    """Sums of numbers.

    Args:
        terms: How many numbers are added.
        digits: Digits of each of them.
        held_out: Problems that no network is trained on.
        seed: Seed of the order of the problems, by which some are held out.

    Raises:
        ValueError: A value is out of its range; the message names it.

    Example:
        >>> arithmetic = Arithmetic(terms=2, digits=1, held_out=20)
        >>> arithmetic.text(arithmetic.problems()[0])
        '2+6=08'
    """

    terms: int = 3
    digits: int = 1
    held_out: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if self.terms < 2:
            raise ValueError(f"terms: got {self.terms}, expected at least 2 numbers to add")
        if self.digits < 1:
            raise ValueError(f"digits: got {self.digits}, expected at least 1")
        if self.count > _MOST:
            raise ValueError(
                f"terms, digits: got {self.terms}, {self.digits}, which make {self.count:.0e} problems, "
                f"expected at most {_MOST:.0e}; ask for fewer terms or digits"
            )
        if not 0 < self.held_out < self.count:
            raise ValueError(
                f"held_out: got {self.held_out} of {self.count} problems, expected 1 to {self.count - 1}"
            )

    @property
    def count(self) -> int:
        """Number of all problems."""
        return DIGITS ** (self.terms * self.digits)

    @property
    def answer(self) -> int:
        """Digits A of an answer."""
        return len(str(self.terms * (DIGITS**self.digits - 1)))

    @property
    def length(self) -> int:
        """Characters T that a network reads: the problem and its answer without the last digit."""
        return self.terms * (self.digits + 1) + self.answer - 1

    def problems(self) -> Tensor:
        """All problems with their answers in a fixed random order: symbols int64 [N, T + 1]."""
        order = np.random.RandomState(self.seed).permutation(self.count)
        width = self.digits
        values = [order // DIGITS ** (width * k) % DIGITS**width for k in reversed(range(self.terms))]
        columns = list(itertools.chain(*(_digits(value, width, "+") for value in values)))
        columns[-1] = np.full(self.count, VOCABULARY.index("="))
        columns += _digits(sum(values, np.zeros_like(order)), self.answer)
        return torch.from_numpy(np.stack(columns, axis=1))

    def train(self) -> Tensor:
        """Problems to train on, in a fixed random order: symbols int64 [N, T + 1]."""
        return self.problems()[: -self.held_out]

    def test(self) -> Tensor:
        """The held-out problems: symbols int64 [N, T + 1]."""
        return self.problems()[-self.held_out :]

    def text(self, symbols: Tensor) -> str:
        """Symbols [any] as text."""
        return "".join(VOCABULARY[i] for i in symbols.tolist())

    def to_config(self) -> dict[str, int]:
        """JSON-able; ``Arithmetic(**config)`` makes the same problems."""
        return asdict(self)


def _digits(values: np.ndarray, width: int, after: str = "") -> list[np.ndarray]:
    """Columns of decimal digits, the highest first, and one of the character that comes after them."""
    columns = [values // DIGITS**k % DIGITS for k in reversed(range(width))]
    return columns + [np.full(len(values), VOCABULARY.index(c)) for c in after]


class ArithmeticRNN(nn.Module):
    """A GRU over one-hot characters with a linear readout of the next digit.

    Args:
        hidden: Units of the state.

    Example:
        >>> ArithmeticRNN(hidden=8)(torch.zeros(5, 7, dtype=torch.long)).shape
        torch.Size([5, 7, 10])
    """

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.gru = nn.GRU(len(VOCABULARY), hidden, batch_first=True)
        self.readout = nn.Linear(hidden, DIGITS)

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits of the next digit after every character: int64 [N, T] -> [N, T, 10]."""
        x = F.one_hot(symbols, len(VOCABULARY)).to(self.readout.weight.dtype)
        return self.readout(self.gru(x)[0])
