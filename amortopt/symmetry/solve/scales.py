"""Scale variables: what is still allowed for the scalings along units, and how they depend on each other.

A value is multiplied by a monomial of scale variables, such as a^1 b^-1. That two monomials are equal is
solved at once, by expressing one variable through the others: a^1 b^-1 = c^1 gives c := a b^-1 if c is free.
Variables begin with everything allowed and only ever lose freedom.
"""

from __future__ import annotations

from collections.abc import Sequence

from amortopt.symmetry.axes import ScaleKind, meet
from amortopt.symmetry.solve.dims import Monomial, power, times


class Scales:
    """Scale variables, each over the units of one unit variable."""

    def __init__(self) -> None:
        # By number: what is still allowed, what decided that, and the unit variable that a scale is over.
        self._kind: list[ScaleKind] = []
        self._reason: list[str] = []
        self._unit: list[int] = []
        # Expressed through others.
        self._equal: dict[int, Monomial] = {}
        self._over: dict[int, list[int]] = {}
        # Of a variable over units that stand for a dimension of others: a monomial for each of its atoms.
        self._shares: dict[int, tuple[Monomial, ...]] = {}
        # Of a variable over units that are others for every index: a variable for each.
        self._choices: dict[int, list[int]] = {}

    def fresh(self, unit: int, kind: ScaleKind = "free", reason: str = "") -> int:
        """A new variable over the units of a unit variable."""
        self._kind.append(kind)
        self._unit.append(unit)
        self._reason.append(reason)
        self._over.setdefault(unit, []).append(len(self._kind) - 1)
        return len(self._kind) - 1

    def kind(self, var: int) -> ScaleKind:
        """What is still allowed."""
        return self._kind[var]

    def reason(self, var: int) -> str:
        """What decided the kind."""
        return self._reason[var]

    def unit(self, var: int) -> int:
        """The unit variable that a variable is over."""
        return self._unit[var]

    def over(self, unit: int) -> list[int]:
        """Variables over a unit variable that are not expressed through others."""
        return [var for var in self._over.get(unit, ()) if var not in self._equal]

    def move(self, old: int, new: int) -> None:
        """Move the variables over a unit variable to the one that it is united with."""
        for var in self._over.pop(old, ()):
            self._unit[var] = new
            self._over.setdefault(new, []).append(var)

    def share(self, var: int, shares: list[Monomial]) -> None:
        """Give a variable whose units are bound to a dimension: a monomial for each of its atoms."""
        self._shares[var] = tuple(shares)

    def shares(self, scale: Monomial, count: int) -> list[Monomial]:
        """A monomial over units as one along each of the ``count`` atoms that they stand for."""
        factors = [(self._shares.get(var, ((),) * count), e) for var, e in self._expand(scale)]
        return [times(*(power(shares[k], e) for shares, e in factors)) for k in range(count)]

    def choose(self, var: int, choices: list[int]) -> None:
        """Let a variable be another one at every index."""
        self._choices[var] = choices

    def forget_choices(self, var: int) -> list[int]:
        """Let a variable be no choice any more; returns the variables it was chosen from."""
        return self._choices.pop(var, [])

    def at(self, scale: Monomial, index: int) -> Monomial:
        """A monomial at an index, where some of its variables are a choice."""
        chosen = ((self._choices[v][index] if v in self._choices else v, e) for v, e in self._expand(scale))
        return times(*((pair,) for pair in chosen))

    def _expand(self, scale: Monomial) -> Monomial:
        """The monomial in variables that are not expressed through others."""
        while any(var in self._equal for var, _ in scale):
            scale = times(*(power(self._equal.get(var, ((var, 1),)), e) for var, e in scale))
        return scale

    def formal(self, scale: Monomial) -> Monomial:
        """The expanded monomial, with factors that are always 1: the table shows their exponents."""
        kept = []
        for var, exponent in self._expand(scale):
            if self._kind[var] == "sign":
                # q^2 = 1
                exponent = (exponent % 2) * (1 if exponent > 0 else -1)
            if exponent:
                kept.append((var, exponent))
        return tuple(kept)

    def reduce(self, scale: Monomial) -> Monomial:
        """The expanded monomial without what is always 1."""
        return tuple((var, e) for var, e in self.formal(scale) if self._kind[var] != "none")

    def limit(self, scale: Monomial, kind: ScaleKind, reason: str, along: Sequence[int] = ()) -> None:
        """Let a monomial be of ``kind`` at most.

        Args:
            scale: What values along some units are multiplied by.
            kind: What is allowed.
            reason: What requires it.
            along: These units and their owners; see `tie`.
        """
        scale = self.reduce(scale)
        if kind == "none":
            self.tie(scale, (), reason, along)
            return
        free = [var for var, e in self._innermost(scale, along) if self._kind[var] == "free" and abs(e) == 1]
        if len(scale) > 1 and free and kind != "free":
            # One free factor can make up for all others.
            self.tie(scale, ((self.fresh(self._unit[free[-1]], kind, reason), 1),), reason, along)
            return
        for var, exponent in scale:
            if kind != "positive" or exponent % 2:
                self._limit(var, kind, reason)

    def tie(self, left: Monomial, right: Monomial, reason: str, along: Sequence[int] = ()) -> None:
        """Let two monomials be equal.

        Args:
            left: What values along some units are multiplied by.
            right: Another monomial along the same units.
            reason: What requires it.
            along: These units and their owners, from the inside to the outside. A scale of an owner is shared
                by a run, so that it cannot be expressed through scales of the nested units.
        """
        rest = self.formal(times(self._expand(left), power(self._expand(right), -1)))
        if any(self._kind[var] == "free" for var, _ in rest):
            self._solve(rest, reason, along)
            return
        # Magnitudes and signs are equal separately.
        for kind in ("positive", "sign", "none"):
            self._solve(tuple(pair for pair in rest if self._kind[pair[0]] == kind), reason, along)

    def _innermost(self, scale: Monomial, along: Sequence[int]) -> Monomial:
        """The factors over the first of some units that has any; all if none has."""
        over = (tuple(pair for pair in scale if self._unit[pair[0]] == unit) for unit in along)
        return next(filter(None, over), scale)

    def _solve(self, rest: Monomial, reason: str, along: Sequence[int]) -> None:
        """Let a monomial be 1."""
        free = [var for var, _ in rest if self._kind[var] == "free"]
        inner = self._innermost(rest, along)
        usable = [(var, e) for var, e in inner if abs(e) == 1 and (not free or var in free)]
        if len(rest) > 1 and usable:
            # A free variable gives way without a condition on the others; the newest one does.
            var, exponent = usable[-1]
            self._equal[var] = times(power(tuple(pair for pair in rest if pair[0] != var), -exponent))
            return
        for var, exponent in rest:
            self._limit(var, "none" if exponent % 2 or len(rest) > 1 else "sign", reason)

    def _limit(self, var: int, kind: ScaleKind, reason: str) -> None:
        allowed = meet(self._kind[var], kind)
        if allowed != self._kind[var]:
            self._kind[var], self._reason[var] = allowed, reason
