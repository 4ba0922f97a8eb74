"""Text problems: predict the next character.

The vocabulary is the same for every text: newline, the 95 printable characters of ASCII, and one symbol for
all others. So networks of one shape fit every text, and a text that differs a little between machines (as
CPython's help does between Python's versions) changes the data but never the network.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from functools import lru_cache
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import CrossEntropy
from amortopt.tasks.problem import SPLITS, Problem, Which, check_which, register_problem

VOCABULARY = "\n" + "".join(map(chr, range(32, 127))) + "\N{REPLACEMENT CHARACTER}"
"""The character of every symbol; the last stands for all characters that are not among the others."""

_OTHER = len(VOCABULARY) - 1
_HELD_OUT = 0.1  # fraction of the characters in the val part, and in the test part


def encode(text: str) -> Tensor:
    """Symbols of a text.

    Args:
        text: Any text of L characters.

    Returns:
        Indices into ``VOCABULARY``, int64 [L].

    Examples:
        >>> encode("a~\\n\\u00e9").tolist()
        [66, 95, 0, 96]
    """
    points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32).astype(np.int64)
    symbols = np.where((points >= 32) & (points < 127), points - 31, _OTHER)
    return torch.from_numpy(np.where(points == ord("\n"), 0, symbols))


def decode(symbols: Tensor) -> str:
    """Text of symbols int64 [L]; undoes [encode][amortopt.tasks.text.encode], but for other symbols."""
    return "".join(VOCABULARY[i] for i in symbols.tolist())


class TextProblem(Problem):
    """Windows of a text; the class at every position is the character that comes next.

    The text is cut into three contiguous parts, the first 80 percent of its characters for train, then 10 for
    val and 10 for test, and each part into windows that share no character to be predicted. Inputs are
    symbols int64 [N, length], targets the same shifted by one.

    Args:
        length: Characters T of a window.
    """

    arguments = ("length",)

    def __init__(self, length: int = 32) -> None:
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"length: got {length!r}, expected a positive number of characters")
        self.length = length
        self.objective = CrossEntropy(len(VOCABULARY), (length,))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    @abstractmethod
    def symbols(self) -> Tensor:
        """The whole text, int64 [L]; the same tensor at every call."""

    @property
    def source(self) -> str:
        """What the text is on this machine: its origin, length and checksum, to be stored with results."""
        digest = sha256(self.symbols.to(torch.uint8).numpy().tobytes()).hexdigest()
        return f"{self.origin}, {len(self.symbols)} characters, sha256 {digest[:16]}"

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the text comes from, in words."""

    def split(self, which: Which) -> Examples:
        check_which(which)
        symbols = self.symbols
        held = int(_HELD_OUT * len(symbols))
        sizes = (len(symbols) - 2 * held, held, held)
        part = dict(zip(SPLITS, symbols.split(sizes), strict=True))[which]
        count = (len(part) - 1) // self.length
        if count < 1:
            raise ValueError(
                f"length: got {self.length} for a {which} part of {len(part)} characters, expected at most "
                f"{len(part) - 1}; take shorter windows or a longer text"
            )
        used = count * self.length
        shape = (count, self.length)
        return Examples(part[:used].reshape(shape), part[1 : used + 1].reshape(shape))


@register_problem("pydoc_text")
class PydocText(TextProblem):
    """The help texts that come with every Python: about 460,000 characters of technical English.

    CPython's ``pydoc_data.topics``, its topics one after the other in the order of their names. The text
    differs a little between Python's versions: ``source`` says which one this is.

    Args:
        length: Characters T of a window.
    """

    @property
    def symbols(self) -> Tensor:
        return _pydoc()

    @property
    def origin(self) -> str:
        version = sys.version_info
        return f"pydoc_data.topics of Python {version.major}.{version.minor}.{version.micro}"


@lru_cache(maxsize=1)
def _pydoc() -> Tensor:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "this Python has no pydoc_data.topics (some distributions package it apart); "
            "install Python's full standard library"
        ) from error
    return encode("\n".join(topics[name] for name in sorted(topics)))
