"""What a metanet reads beside the weights: a batch of data, the network's function, an L1 strength."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from amortopt._types import Params
from amortopt.tasks.examples import Examples, Gradient

CONDITIONS = frozenset({"batch", "function", "l1"})
"""All that a metanet may declare to read."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """What B networks of one architecture are improved for.

    Attributes:
        gradient: From params [B, ...] to the gradient of each network's mean objective on its batch there,
            with the same names and shapes. Given only if the metanet declares ``"batch"``.
        l1: L1 strength λ >= 0 per network [B]. Given if and only if the metanet declares ``"l1"``.
        examples: Number of examples of each network's batch [B]. Given with the gradient.
        function: From params [B, ...] to the gradient of each network's divergence there from what the given
            network answers, on the metanet's probes. Given only if the metanet declares ``"function"``; one
            that declares both reads the batch, the function, or both.
        portions: From a number of portions and the least size of one, to the gradient on each portion of the
            batch and the number of examples behind it [B]; see
            [Examples.portions][amortopt.tasks.Examples.portions]. May be given with the gradient, for
            metanets whose rounds read different examples; without it they read the whole batch.
    """

    gradient: Gradient | None = None
    l1: Tensor | None = None
    examples: Tensor | None = None
    function: Gradient | None = None
    portions: Callable[[int, int], Sequence[tuple[Gradient, Tensor]]] | None = None

    @classmethod
    def of_batch(
        cls,
        examples: Examples,
        gradient_on: Callable[[Examples], Gradient],
        networks: int,
        *,
        l1: Tensor | None = None,
        function: Gradient | None = None,
    ) -> Conditions:
        """What is read of a batch, whole or in portions.

        Args:
            examples: The batches of all networks.
            gradient_on: From examples to the gradient of the objective on them.
            networks: Number of networks B.
            l1: L1 strengths [B], if they are read.
            function: As the attribute.
        """
        portions = examples.portioned(gradient_on, networks)
        return cls(gradient_on(examples), l1, examples.counts(networks), function, portions)

    def check(self, declared: Collection[str], count: int) -> None:
        """Raise a ``ValueError`` unless declared conditions are there, for ``count`` networks.

        A batch and a function can stand for one another, where both are declared; all else has to be there.
        """
        read = {"batch": self.gradient, "function": self.function}
        either = all(name in declared for name in read) and any(value is not None for value in read.values())
        for name, condition, value in (
            ("gradient", "batch", self.gradient),
            ("function", "function", self.function),
            ("l1", "l1", self.l1),
        ):
            if (value is not None) != (condition in declared) and not (condition in read and either):
                raise ValueError(
                    f"conditions.{name}: got {'none' if value is None else 'one'}, but this metanet was made "
                    f"with conditions={sorted(declared)}; pass what it reads, and nothing else"
                )
        if self.l1 is not None and self.l1.shape != (count,):
            raise ValueError(
                f"conditions.l1: got shape {tuple(self.l1.shape)}, expected ({count},), one strength per "
                "network; expand it"
            )

    def gradient_at(self, params: Params) -> Params | None:
        """The gradient of the batch at params [B, ...], or None if there is none.

        Raises:
            ValueError: It has other names or shapes than ``params``.
        """
        return None if self.gradient is None else checked(self.gradient, params, "gradient")


def checked(gradient: Gradient, params: Params, name: str) -> Params:
    """A gradient at params [B, ...].

    Raises:
        ValueError: It has other names or shapes than ``params``; the message calls it ``conditions.<name>``.
    """
    computed = gradient(params)
    for key, p in params.items():
        got = tuple(computed[key].shape) if key in computed else "none"
        if got != tuple(p.shape):
            raise ValueError(
                f"conditions.{name}: got {got} for {key!r}, expected a gradient of the parameter's "
                f"shape {tuple(p.shape)}"
            )
    return computed


@dataclass(frozen=True)
class L1Range:
    """Strengths λ of the objective L(θ) + λ‖θ‖₁ that were met in training.

    Attributes:
        low: Lowest positive strength.
        high: Highest strength.
        zero: Whether 0 was met too.

    Raises:
        ValueError: Unless 0 < low <= high < infinity.

    Examples:
        >>> print(L1Range(1e-5, 1e-2))
        0 and 1e-05 to 0.01
        >>> L1Range(1e-5, 1e-2).points(3)
        [1e-05, 0.00032, 0.01]
    """

    low: float
    high: float
    zero: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(f"l1: got {self.low} to {self.high}, expected [low, high] with 0 < low <= high")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> L1Range:
        """Undo [to_config][amortopt.metanets.conditions.L1Range.to_config].

        Raises:
            ValueError: It is no such mapping.
        """
        try:
            return cls(float(config["low"]), float(config["high"]), bool(config["zero"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"l1_range: got {config!r}, expected low, high and zero") from error

    def to_config(self) -> dict[str, Any]:
        """JSON-able ``{"low": ..., "high": ..., "zero": ...}``."""
        return asdict(self)

    def outside(self, strengths: Tensor) -> Tensor:
        """Which of the strengths [n] were not met in training, as a mask [n]."""
        edge = 1e-6  # strengths are drawn in float32
        within = (strengths >= self.low * (1 - edge)) & (strengths <= self.high * (1 + edge))
        return ~(within | (strengths == 0)) if self.zero else ~within

    def points(self, count: int) -> list[float]:
        """At most so many strengths, evenly spread on a log scale: both ends, and rounded ones between."""
        steps = max(1, count - 1)
        spread = [self.low * (self.high / self.low) ** (i / steps) for i in range(1, steps)]
        between = [point for point in (float(f"{value:.2g}") for value in spread) if point > self.low]
        chosen = [self.low, *(point for point in between if point < self.high), self.high]
        return list(dict.fromkeys(chosen))

    def __str__(self) -> str:
        positive = f"{self.low:g} to {self.high:g}" if self.low < self.high else f"{self.low:g}"
        return f"0 and {positive}" if self.zero else positive
