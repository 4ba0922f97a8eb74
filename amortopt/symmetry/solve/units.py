"""Unit variables: what the units along a dimension are, as far as the constraints say.

A variable stands for itself or is bound to a dimension of other variables (a union-find with products and
sums). Units of an owner come in runs of equal length, one run for each of the owner's units. Where runs are
taken apart one by one, the owner becomes an index and its units a choice: other variables for every index.
What is said of a choice or of its scales is said of these; the variable itself only stands for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from amortopt.symmetry.solve.dims import Atom, Dim, Item


@dataclass
class Unit:
    """Facts about a unit variable.

    Attributes:
        size: Number of units; with an owner, in each run.
        owner: The variable whose every unit owns a run of these.
        permutable: Whether permutations are still allowed.
        origin: Where it comes from: a parameter, a module path, "input", "output" or "constant".
        constrained: Whether a constraint has met it, so that it may not be given an owner any more.
    """

    size: int
    owner: int | None
    permutable: bool
    origin: str
    constrained: bool = False


@dataclass(frozen=True)
class _Choice:
    """Other variables for every unit of an owner, the index."""

    index: int
    units: tuple[int, ...]


class Units:
    """Unit variables by number."""

    def __init__(self) -> None:
        self._units: list[Unit] = []
        self._bound: dict[int, Dim] = {}
        self._choices: dict[int, _Choice] = {}

    def new(self, size: int, origin: str, owner: int | None = None, permutable: bool = True) -> int:
        """A variable that stands for itself."""
        self._units.append(Unit(size, owner, permutable, origin))
        return len(self._units) - 1

    def __getitem__(self, unit: int) -> Unit:
        return self._units[unit]

    def constrain(self, unit: int) -> Unit:
        """The facts, to be changed by a constraint."""
        self[unit].constrained = True
        return self[unit]

    def is_input(self, item: Item) -> bool:
        """Whether an item is an atom along the network's input."""
        return isinstance(item, Atom) and item.unit is not None and self[item.unit].origin == "input"

    # What a variable stands for

    def bind(self, unit: int, target: Dim) -> None:
        """Let a variable stand for a dimension of others, which has no scales."""
        self._bound[unit] = target

    def target(self, unit: int) -> Dim | None:
        """What a variable is bound to; None if it stands for itself."""
        return self._bound.get(unit)

    # Owners

    def owner(self, unit: int) -> int | None:
        """The variable that owns runs of this one, if it still does."""
        owner = self[unit].owner
        while owner is not None and owner in self._bound:
            # A variable that became a chain of nested units is the last of them.
            above: int | None = None
            for item in self._bound[owner]:
                inner = item.unit if isinstance(item, Atom) else None
                if inner is None or (above is not None and self[inner].owner != above):
                    return None
                above = inner
            owner = above
        return owner

    def owners(self, unit: int | None) -> list[int]:
        """The variable, its owner, the owner's owner and so on; nothing for a fixed atom."""
        found: list[int] = []
        while unit is not None:
            found.append(unit)
            unit = self.owner(unit)
        return found

    # Choices

    def choose(self, unit: int, index: int, choices: list[int]) -> None:
        """Let units of an owner be other variables for each of its units."""
        self._choices[unit] = _Choice(index, tuple(choices))

    def forget_choices(self, unit: int) -> tuple[int, ...]:
        """Let units be no choice any more; what was chosen from."""
        choice = self._choices.pop(unit, None)
        return () if choice is None else choice.units

    def choices(self, unit: int | None) -> tuple[int, ...]:
        """The variables for every index; none if they are no choice."""
        choice = None if unit is None else self._choices.get(unit)
        return () if choice is None else choice.units

    def index(self, unit: int | None) -> int | None:
        """The owner whose units choose; None if they are no choice."""
        choice = None if unit is None else self._choices.get(unit)
        index = None if choice is None else choice.index
        while index is not None and index in self._bound:
            (target,) = self._bound[index]
            index = target.unit if isinstance(target, Atom) else None
        return index

    def chosen_by(self, index: int) -> list[int]:
        """All variables that are a choice over an index."""
        return [unit for unit in self._choices if self.index(unit) == index]

    def owner_of_choices(self, unit: int) -> int | None:
        """What owns the units at any one index, or once they are alike for all of them."""
        index = self.index(unit)
        return None if index is None else self.owner(index)
