"""Distributions over problems: data sets that differ from problem to problem, drawn or read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from amortopt.system.registry import Registry
from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import Objective
from amortopt.tasks.problem import SPLITS, Problem, Which, check_which, make_problem

T = TypeVar("T", bound=Callable[..., Any])


class ProblemFamily(ABC):
    """A distribution over problems of one input shape and one objective.

    Problems are numbered from 0 in each of three parts, ``"train"``, ``"val"`` and ``"test"``, that share no
    data set. Problem i of a part is always the same problem.
    """

    name: str
    """Name in the registry, see [make_problem_family][amortopt.tasks.make_problem_family]."""
    objective: Objective
    """What outputs and targets are compared by."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    @abstractmethod
    def count(self, which: Which) -> int | None:
        """Number of problems in a part; None: as many as one asks for."""

    @abstractmethod
    def draw(
        self, which: Which, start: int, problems: int, train: int, test: int
    ) -> tuple[Examples, Examples]:
        """Data of neighbouring problems.

        Args:
            which: The part.
            start: Number of the first problem.
            problems: How many problems P.
            train: How many examples N of each may be read.
            test: How many further examples M of each are there to judge.

        Returns:
            x [P, N, *input_shape] with y [P, N, *target_shape], in random order; and the same with M for N.
            Equal for equal arguments; other numbers give other examples of the same data sets.

        Raises:
            ValueError: If there are not so many problems or examples.
        """

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """JSON-able ``{"name": ..., **arguments}``; ``make_problem_family(**config)`` makes the same."""

    def real(self) -> Mapping[str, Problem | ProblemFamily]:
        """Real data, a data set or a family, that problems resemble and that are never drawn; by name."""
        return {}

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={v!r}" for k, v in self.to_config().items() if k != "name")
        return f"{type(self).__name__}({args})"


class GeneratedFamily(ProblemFamily):
    """Problems that are drawn by a random generator, without end.

    They are drawn in blocks of ``BLOCK``, vectorised over the problems of a block. A block's data sets and
    their examples have separate generators, seeded by the family's seed, the part and the block.

    Args:
        seed: Seed of all problems.
    """

    BLOCK: ClassVar[int] = 16
    """Problems that are drawn at a time: enough to vectorise, few enough to stay in memory."""

    def __init__(self, seed: int = 0) -> None:
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"seed: got {seed!r}, expected an integer from 0 to 2**32 - 1")
        self.seed = seed

    @abstractmethod
    def block(
        self, which: Which, data: torch.Generator, noise: torch.Generator, train: int, test: int
    ) -> tuple[Examples, Examples]:
        """One block of problems.

        Args:
            which: The part.
            data: Draws what the problems are.
            noise: Draws their examples.
            train: Examples N to read of each.
            test: Examples M to judge of each.

        Returns:
            Examples [BLOCK, N, ...] and [BLOCK, M, ...].
        """

    def count(self, which: Which) -> None:
        check_which(which)

    def draw(
        self, which: Which, start: int, problems: int, train: int, test: int
    ) -> tuple[Examples, Examples]:
        check_which(which)
        check_numbers(start, problems, train, test)
        blocks = range(start // self.BLOCK, (start + problems - 1) // self.BLOCK + 1)
        drawn = [self._block(which, block, train, test) for block in blocks]
        inside = slice(start % self.BLOCK, start % self.BLOCK + problems)
        read, judged = (
            Examples(
                torch.cat([pair[k].x for pair in drawn])[inside],
                torch.cat([pair[k].y for pair in drawn])[inside],
                shared=False,
            )
            for k in range(2)
        )
        return read, judged

    def _block(self, which: Which, block: int, train: int, test: int) -> tuple[Examples, Examples]:
        # SeedSequence mixes its entries, so neighbouring blocks and seeds are independent.
        words = np.random.SeedSequence((self.seed, SPLITS.index(which), block)).generate_state(2, np.uint64)
        data, noise = (torch.Generator().manual_seed(int(word >> np.uint64(1))) for word in words)
        return self.block(which, data, noise, train, test)


def check_numbers(start: int, problems: int, train: int, test: int) -> None:
    """Raise a ``ValueError`` unless the numbers ask for at least one problem with examples of both kinds."""
    if start < 0 or min(problems, train, test) < 1:
        raise ValueError(
            f"start, problems, train, test: got {start}, {problems}, {train}, {test}, expected start >= 0 "
            "and at least one problem, with at least one example to read and one to judge"
        )


PROBLEM_FAMILIES: Registry[ProblemFamily] = Registry("problem family")


def register_problem_family(name: str) -> Callable[[T], T]:
    """Decorator: make a class known to [make_problem_family][amortopt.tasks.make_problem_family]."""
    return PROBLEM_FAMILIES.register(name)


def make_problem_family(name: str, **kwargs: Any) -> ProblemFamily:
    """Make a family of problems by name.

    Args:
        name: ``"curves"``, ``"glyphs"``, ``"images"``, ``"folder"``, or what was registered.
        **kwargs: Its own arguments.

    Returns:
        The family; nothing is drawn or read yet, except by ``"folder"``, which checks its files.

    Raises:
        ValueError: If there is no such family, or it has no such argument.
    """
    return PROBLEM_FAMILIES.make(name, **kwargs)


def problem_family_names() -> list[str]:
    """Names that [make_problem_family][amortopt.tasks.make_problem_family] knows, sorted."""
    return PROBLEM_FAMILIES.names()


def make_problem_or_family(name: str, **kwargs: Any) -> Problem | ProblemFamily:
    """Make what a metanet was trained on: one problem, or a family of them, by name.

    Raises:
        ValueError: If there is neither, or it has no such argument.
    """
    known = name in PROBLEM_FAMILIES.names()
    return make_problem_family(name, **kwargs) if known else make_problem(name, **kwargs)
