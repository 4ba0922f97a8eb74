"""What every dimension of every intermediate value is made of, and the constraints found so far.

A dimension is a product of atoms, the last one fastest, as in a flattened array. An atom is either fixed
(a kernel position, the batch) or a group variable: units that a group element permutes and rescales. The
invariant that every rule keeps: when the parameters are moved by an element, an intermediate value moves by
exactly what its labels say.

Variables begin with everything allowed and only ever lose freedom, so too many constraints make the answer
smaller, never wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from amortopt.symmetry.spec import ScaleKind, meet


@dataclass(frozen=True)
class Atom:
    """One factor of a dimension.

    Attributes:
        size: Number of positions.
        var: Group variable along it; None if the atom is fixed.
        exponent: The value is multiplied by q ** exponent, q the variable's scales; 0 for a fixed atom.
        role: What a fixed atom is: "batch", "kernel", "position", ...
    """

    size: int
    var: int | None = None
    exponent: int = 0
    role: str = ""


Dim: TypeAlias = tuple[Atom, ...]
Dims: TypeAlias = tuple[Dim, ...]


def fixed(size: int, role: str) -> Dim:
    """A dimension on which nothing acts."""
    return (Atom(size, role=role),)


def size_of(dim: Dim) -> int:
    """Number of positions along a dimension."""
    return math.prod(atom.size for atom in dim)


def with_exponent(dim: Dim, factor: int) -> Dim:
    """The same dimension with exponents multiplied: -1 for what is contracted with it, 0 to follow only."""
    return tuple(Atom(atom.size, atom.var, atom.exponent * factor, atom.role) for atom in dim)


class Labels:
    """Group variables under union-find, each with a scale kind and whether it may be permuted."""

    def __init__(self) -> None:
        self._size: list[int] = []
        self._kind: list[ScaleKind] = []
        self._permutable: list[bool] = []
        self._origin: list[str] = []
        self._reason: list[str] = []
        self._bound: dict[int, Dim] = {}

    def fresh(self, size: int, origin: str) -> Dim:
        """A dimension of one new variable, with everything allowed."""
        self._size.append(size)
        self._kind.append("free")
        self._permutable.append(True)
        self._origin.append(origin)
        self._reason.append("")
        return (Atom(size, len(self._size) - 1, 1),)

    def fresh_input(self, size: int) -> Dim:
        """A dimension along the network's input, with nothing allowed."""
        dim = self.fresh(size, "input")
        self.pin((dim,))
        return dim

    def is_input(self, atom: Atom) -> bool:
        """Whether an atom runs along the network's input."""
        return atom.var is not None and self._origin[atom.var] == "input"

    def mark_output(self, dims: Dims) -> None:
        """Name what the network returns, with nothing allowed; inputs that are passed on keep their name."""
        self.pin(dims)
        for var in self.variables(*dims):
            if self._origin[var] != "input":
                self._origin[var], self._reason[var] = "output", ""

    def resolve(self, dim: Dim) -> Dim:
        """The dimension in terms of variables that stand for themselves."""
        atoms: list[Atom] = []
        for atom in dim:
            if atom.var is None or atom.var not in self._bound:
                atoms.append(atom)
            else:
                atoms.extend(self.resolve(with_exponent(self._bound[atom.var], atom.exponent)))
        return tuple(atoms)

    def variables(self, *dims: Dim) -> list[int]:
        """Variables along the dimensions, each once, in order."""
        found = [atom.var for dim in dims for atom in self.resolve(dim) if atom.var is not None]
        return list(dict.fromkeys(found))

    def kind(self, var: int) -> ScaleKind:
        """Scale kind that is still allowed."""
        return self._kind[var]

    def permutable(self, var: int) -> bool:
        """Whether permutations are still allowed."""
        return self._permutable[var]

    def is_pinned(self, var: int) -> bool:
        """Whether nothing is allowed any more."""
        return self._kind[var] == "none" and not self._permutable[var]

    def size(self, var: int) -> int:
        """Number of units."""
        return self._size[var]

    def origin(self, var: int) -> str:
        """Where the variable comes from, and what decided its scale kind."""
        reason = self._reason[var]
        return f"{self._origin[var]}, {reason}" if reason else self._origin[var]

    def limit(self, dims: Dims, kind: ScaleKind, reason: str = "") -> None:
        """Let the scales that multiply a value be of ``kind`` at most; permutations stay."""
        for dim in dims:
            for atom in self.resolve(dim):
                if atom.var is not None and atom.exponent != 0:
                    self._limit(atom.var, kind, reason)

    def pin(self, dims: Dims, reason: str = "") -> None:
        """Allow nothing on any variable along the dimensions."""
        for var in self.variables(*dims):
            self._limit(var, "none", reason)
            self._permutable[var] = False

    def tie(self, follower: Dim, leader: Dim, reason: str = "") -> None:
        """Make two dimensions of equal size move alike; where there is a choice, ``follower`` is replaced."""
        left, right = _essential(self.resolve(follower)), _essential(self.resolve(leader))
        assert size_of(tuple(left)) == size_of(tuple(right)), "tied dimensions must have equal sizes"
        if not left or not right:
            self.pin((tuple(left), tuple(right)), reason)
        while left and right:
            first, second = _segment(left, right)
            # An earlier segment may have replaced a variable of this one.
            self._tie_segment(self.resolve(first), self.resolve(second), reason)

    def _limit(self, var: int, kind: ScaleKind, reason: str) -> None:
        allowed = meet(self._kind[var], kind)
        if allowed != self._kind[var]:
            self._kind[var] = allowed
            self._reason[var] = reason

    def _tie_segment(self, first: Dim, second: Dim, reason: str) -> None:
        if len(first) == 1 and first[0].var is not None and len(second) != 1:
            self._bind(first[0], second, reason)
        elif len(second) == 1 and second[0].var is not None and len(first) != 1:
            self._bind(second[0], first, reason)
        elif len(first) == 1 and len(second) == 1:
            self._tie_atoms(first[0], second[0], reason)
        else:
            self.pin((first, second), reason)

    def _tie_atoms(self, first: Atom, second: Atom, reason: str) -> None:
        if first.var is not None and first.var == second.var:
            # q^e = q^f: nothing to say, q = 1/q, or q = 1.
            if first.exponent != second.exponent:
                opposite = first.exponent == -second.exponent
                self._limit(first.var, "sign" if opposite else "none", reason)
        elif first.var is not None and (first.exponent != 0 or second.exponent == 0):
            self._bind(first, (second,), reason)
        elif second.var is not None:
            self._bind(second, (first,), reason)

    def _bind(self, atom: Atom, target: Dim, reason: str) -> None:
        """Replace a variable v by a product: v^e = target, so v = target^e for e = +-1."""
        var = atom.var
        assert var is not None
        if var in self.variables(target):
            self.pin(((atom,), target), reason)
            return
        if atom.exponent == 0:
            # Only permutations of v are seen here: the target may not scale, and v gives up its scales.
            self.limit((target,), "none", reason)
        else:
            self.limit((target,), self._kind[var], self._reason[var])
        if not self._permutable[var]:
            for other in self.variables(target):
                self._permutable[other] = False
        self._bound[var] = with_exponent(target, atom.exponent)


def _essential(dim: Dim) -> list[Atom]:
    """The atoms without fixed ones of size one, on which nothing depends."""
    return [atom for atom in dim if atom.var is not None or atom.size != 1] or list(dim[:1])


def _segment(left: list[Atom], right: list[Atom]) -> tuple[Dim, Dim]:
    """Take the shortest prefixes of equal size off both lists; what remains at the end has size one."""
    first, second = left[:1], right[:1]
    del left[:1], right[:1]
    while size_of(tuple(first)) != size_of(tuple(second)):
        source, taken = (left, first) if size_of(tuple(first)) < size_of(tuple(second)) else (right, second)
        taken.append(source.pop(0))
    if not left or not right:
        first.extend(left)
        second.extend(right)
        left.clear()
        right.clear()
    return tuple(first), tuple(second)
