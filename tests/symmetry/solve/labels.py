"""What the tests of labels ask of dimensions."""

from __future__ import annotations

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.solve.dims import Atom, Dim, atoms_of
from amortopt.symmetry.solve.labels import Labels


def kinds(labels: Labels, dim: Dim) -> list[list[ScaleKind]]:
    """Kinds of the live scales along every atom."""
    return [
        [labels.scales.kind(var) for var, _ in labels.scales.reduce(atom.scale)]
        for atom in atoms_of(labels.resolve(dim))
    ]


def unit_of_dim(labels: Labels, dim: Dim) -> int:
    unit = labels.unit_of(dim)
    assert unit is not None
    return unit


def owned(labels: Labels, owner: Dim, size: int) -> Dim:
    return labels.fresh(size, "nested", owner=unit_of_dim(labels, owner))


def atom_of(dim: Dim) -> Atom:
    (atom,) = dim
    assert isinstance(atom, Atom)
    return atom
