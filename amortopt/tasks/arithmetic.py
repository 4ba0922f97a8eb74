"""Arithmetic, character by character: the problem of the Tiny RNN Zoo and the networks that learn it.

An example is a text such as ``12+07=019``: every number has as many digits as the largest that can stand in
its place, so that all texts are equally long. A network reads all characters but the last; its outputs at the
``=`` and at the following digits of the answer are logits of the digit that comes next.

Legend: B networks, N texts, T characters that are read, A digits of the answer, V characters of the
vocabulary, H units.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.many import ManyModule, embedding_many, linear_many
from amortopt.tasks.examples import Examples
from amortopt.tasks.families import Family, check_sizes, register_family
from amortopt.tasks.objective import CrossEntropy
from amortopt.tasks.problem import Problem, Which, check_which, register_problem

VOCABULARY = "0123456789+="
"""The character of every symbol; digits come first, so the symbol of a digit is the digit."""
DIGITS = 10
_MOST = 1_000_000  # texts that are listed at all


@register_problem("arithmetic")
class Arithmetic(Problem):
    """Sums of numbers: symbols int64 [N, T], and the digits of the answer [N, A] as classes.

    The texts stand in a fixed random order; the last ones are the test part. There is no val part.

    Args:
        terms: How many numbers are added.
        digits: Digits of each of them.
        held_out: Texts of the test part.
        seed: Seed of the order.

    Raises:
        ValueError: A value is out of its range; the message names it.

    Examples:
        >>> text(Arithmetic(terms=2, digits=1, held_out=20).symbols[0])
        '2+6=08'
    """

    arguments = ("terms", "digits", "held_out", "seed")

    def __init__(self, terms: int = 3, digits: int = 1, held_out: int = 300, seed: int = 0) -> None:
        if terms < 2:
            raise ValueError(f"terms: got {terms}, expected at least 2 numbers to add")
        if digits < 1:
            raise ValueError(f"digits: got {digits}, expected at least 1")
        self.terms, self.digits, self.held_out, self.seed = terms, digits, held_out, seed
        if self.count > _MOST:
            raise ValueError(
                f"terms, digits: got {terms}, {digits}, which make {self.count:.0e} texts, expected at most "
                f"{_MOST:.0e}; ask for fewer terms or digits"
            )
        if not 0 < held_out < self.count:
            raise ValueError(
                f"held_out: got {held_out} of {self.count} texts, expected 1 to {self.count - 1}"
            )
        self.objective = CrossEntropy(DIGITS, (len(str(terms * (DIGITS**digits - 1))),))

    @property
    def count(self) -> int:
        """Number of all texts."""
        return DIGITS ** (self.terms * self.digits)

    @property
    def answer(self) -> int:
        """Digits A of an answer."""
        return self.objective.target_shape[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.terms * (self.digits + 1) + self.answer - 1,)

    @property
    def symbols(self) -> Tensor:
        """All texts with their answers, int64 [N, T + 1]."""
        return _symbols(self.terms, self.digits, self.answer, self.seed)

    def split(self, which: Which) -> Examples:
        check_which(which)
        if which == "val":
            raise ValueError("which: arithmetic has no val part; use train or test")
        rows = self.symbols[: -self.held_out] if which == "train" else self.symbols[-self.held_out :]
        return Examples(rows[:, :-1], rows[:, -self.answer :])


@lru_cache(maxsize=4)
def _symbols(terms: int, width: int, answer: int, seed: int) -> Tensor:
    count = DIGITS ** (terms * width)
    order = np.random.RandomState(seed).permutation(count)
    values = [order // DIGITS ** (width * k) % DIGITS**width for k in reversed(range(terms))]
    columns = list(itertools.chain(*(_digits(value, width, "+") for value in values)))
    columns[-1] = np.full(count, VOCABULARY.index("="))
    columns += _digits(sum(values, np.zeros_like(order)), answer)
    return torch.from_numpy(np.stack(columns, axis=1))


def _digits(values: np.ndarray, width: int, after: str = "") -> list[np.ndarray]:
    """Columns of decimal digits, the highest first, and one of the character that comes after them."""
    columns = [values // DIGITS**k % DIGITS for k in reversed(range(width))]
    return columns + [np.full(len(values), VOCABULARY.index(c)) for c in after]


def text(symbols: Tensor) -> str:
    """Symbols [L] as text."""
    return "".join(VOCABULARY[i] for i in symbols.tolist())


@register_family("arithmetic_rnn")
@dataclass(frozen=True)
class ArithmeticRnn(Family):
    """GRU over one-hot characters with a ``Linear`` at the last positions.

    Parameters: ``gru.weight_ih_l0`` [3 H, V], ``gru.weight_hh_l0`` [3 H, H], their biases,
    ``readout.weight`` [10, H], ``readout.bias``.

    Attributes:
        hidden: Units H.
        input_shape: ``(T,)``, characters that are read.
        answer: Positions A, from the end, at which a digit is predicted.
    """

    activation: ClassVar[str] = "tanh"
    hidden: int = 16
    input_shape: tuple[int, ...] = (7,)
    answer: int = 2

    def __post_init__(self) -> None:
        check_sizes("hidden, answer", (self.hidden, self.answer))
        object.__setattr__(self, "input_shape", check_sizes("input_shape", self.input_shape))

    def example_input(self) -> Tensor:
        return (torch.arange(self.input_shape[0]) % len(VOCABULARY)).unsqueeze(0)

    def build(self) -> nn.Module:
        return ArithmeticNetwork(self.hidden, self.answer).eval()


class ArithmeticNetwork(ManyModule):
    """Module of [ArithmeticRnn][amortopt.tasks.arithmetic.ArithmeticRnn]: int64 [N, T] -> [N, A, 10]."""

    def __init__(self, hidden: int, answer: int) -> None:
        super().__init__()
        self.answer = answer
        self.gru = nn.GRU(len(VOCABULARY), hidden, batch_first=True)
        self.readout = nn.Linear(hidden, DIGITS)

    def forward(self, symbols: Tensor) -> Tensor:
        x = F.one_hot(symbols, len(VOCABULARY)).to(self.readout.weight.dtype)
        return self.readout(self.gru(x)[0][:, -self.answer :])

    def forward_many(self, params: Params, x: Tensor) -> Tensor:
        size = self.readout.in_features
        b_ih, b_hh = params["gru.bias_ih_l0"], params["gru.bias_hh_l0"]
        # Reset and update gates add both biases; the new state's second one stands inside the reset gate.
        bias = b_ih + torch.cat([b_hh[:, : 2 * size], torch.zeros_like(b_hh[:, 2 * size :])], 1)
        table = params["gru.weight_ih_l0"].mT + bias.unsqueeze(1)  # [B, V, 3 H]
        drive = embedding_many(table, x.mT).split([2 * size, size], -1)  # [B, T, N, 2 H] and [B, T, N, H]
        w_gates, w_new = params["gru.weight_hh_l0"].mT.split([2 * size, size], -1)
        b_new = b_hh[:, 2 * size :].unsqueeze(1)
        h = drive[1].new_zeros(len(table), x.shape[1], size)  # [B, N, H]
        states = []
        for gates, new in zip(*(part.unbind(1) for part in drive), strict=True):
            reset, update = torch.baddbmm(gates, h, w_gates).sigmoid().split(size, -1)
            n = torch.addcmul(new, reset, torch.baddbmm(b_new, h, w_new)).tanh()
            h = torch.lerp(n, h, update)  # h' = (1 - z) n + z h
            states.append(h)
        last = torch.stack(states[-self.answer :], 2)  # [B, N, A, H]
        return linear_many(last, params["readout.weight"], params["readout.bias"])
