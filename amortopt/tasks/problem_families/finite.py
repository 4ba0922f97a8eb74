"""Problems that are at hand, one by one: parts, and drawing from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from amortopt.tasks.examples import Examples
from amortopt.tasks.objective import CrossEntropy, Objective, SquaredError, make_objective
from amortopt.tasks.problem import SPLITS, Which, check_which
from amortopt.tasks.problem_families.base import ProblemFamily, check_numbers

KEYS = ("x_train", "y_train", "x_test", "y_test")
"""Arrays of one problem: examples to read and examples to judge."""
Item = TypeVar("Item", bound=Hashable)


class Label(NamedTuple):
    """A label, and which array it is in."""

    value: int
    where: str


class FiniteFamily(ProblemFamily, Generic[Item]):
    """Problems that exist already, in contrast to those that a generator draws.

    Without data it is what a release knows of such a family: the objective and the shape of inputs.

    Args:
        items: Part -> what its problems are read by, such as file names; None: no data here.
        shape: Shape of one input, if there are data.
        objective: As ``objective.to_config()``; None: cross-entropy for labels up to the largest one, squared
            error for real targets.
        largest_label: Finds the largest label of the data; None for real targets.
        target_shape: Shape of one target of the data.
        input_shape: Shape of one input as a release records it; has to be that of the data.

    Attributes:
        largest_label: The largest label, where it says how many classes there are.

    Raises:
        ValueError: If there are no data and no objective or shape, or the data have another shape.
    """

    def __init__(
        self,
        items: Mapping[Which, Sequence[Item]] | None,
        shape: tuple[int, ...],
        objective: Mapping[str, Any] | None,
        largest_label: Callable[[], Label | None],
        target_shape: tuple[int, ...],
        input_shape: Sequence[int] | None,
    ) -> None:
        self.has_data = items is not None
        self.largest_label: Label | None = None
        if items is None and (objective is None or input_shape is None):
            raise ValueError(
                f"objective, input_shape: got {objective}, {input_shape}, expected both for a family of "
                f"problems ({self.name!r}) without data"
            )
        recorded = None if input_shape is None else tuple(input_shape)
        if items is not None and recorded not in (None, shape):
            raise ValueError(f"input_shape: got {recorded}, but the inputs of the data have shape {shape}")
        self._input_shape = shape if recorded is None else recorded
        self._items: dict[Which, list[Item]] = {
            which: [] if items is None else list(items[which]) for which in SPLITS
        }
        self.objective: Objective
        if objective is not None:
            self.objective = make_objective(**objective)
        elif (largest := largest_label()) is None:
            self.objective = SquaredError(target_shape or (1,))
        else:
            self.largest_label = largest
            self.objective = CrossEntropy(largest.value + 1, target_shape)

    @abstractmethod
    def read(self, item: Item, part: str, most: int) -> tuple[Tensor, Tensor]:
        """Examples of one problem, checked.

        Args:
            item: The problem.
            part: ``"train"``, examples to read, or ``"test"``, examples to judge.
            most: At most so many, from the start.

        Returns:
            Inputs [N, ...], float32, and targets [N, *target_shape], int64 or float32.

        Raises:
            ValueError: That names the problem and the array.
        """

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._input_shape

    def count(self, which: Which) -> int:
        check_which(which)
        return len(self._items[which])

    def draw(
        self, which: Which, start: int, problems: int, train: int, test: int
    ) -> tuple[Examples, Examples]:
        """As [ProblemFamily][amortopt.tasks.ProblemFamily]: a problem's train examples are there to read.

        Examples are taken from the start of each array; problems that have fewer are padded and masked.
        """
        check_which(which)
        check_numbers(start, problems, train, test)
        if not self.has_data:
            raise ValueError(
                f"{self} has no data: it comes from a checkpoint, which records what its problems were like, "
                "not where they are; make the family anew with your data"
            )
        items = self._items[which][start : start + problems]
        if len(items) < problems:
            raise ValueError(
                f"start, problems: got {start}, {problems}, expected problems among the {self.count(which)} "
                f"of the {which} part of {self}"
            )
        return (
            Examples.from_list([self.read(item, "train", train) for item in items]),
            Examples.from_list([self.read(item, "test", test) for item in items]),
        )


def checked_shares(val: float, test: float) -> None:
    """Raise a ``ValueError`` unless these shares of the problems leave some for training."""
    for key, share in (("val", val), ("test", test)):
        if not 0 <= share < 1:
            raise ValueError(f"{key}: got {share}, expected a share from 0 to below 1")
    if val + test >= 1:
        raise ValueError(
            f"val, test: got {val} and {test}, expected shares that leave some problems for training"
        )
