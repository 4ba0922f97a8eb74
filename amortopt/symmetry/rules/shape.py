"""Operations that move dimensions about without computing anything."""

from __future__ import annotations

import math

from amortopt.symmetry.labels import Atom, Dim, Dims, Labels, size_of
from amortopt.symmetry.rules.base import Call, NoRule, Result, rule


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
def reshape(labels: Labels, call: Call) -> Result:
    """Products of dimensions are joined or taken apart between the same atoms."""
    x = call.value("self")
    dims = regroup(labels, x.dims, call.shape)
    # Whether dimensions of size one come or go makes no difference to what is computed.
    same = [size for size in x.shape if size != 1] == [size for size in call.shape if size != 1]
    return Result(dims, "" if same else "reshape", param=x.param if x.shape == call.shape else None)


def regroup(labels: Labels, dims: Dims, after: tuple[int, ...]) -> Dims:
    """Labels of a reshaped tensor.

    Args:
        labels: The constraints, to resolve ``dims``.
        dims: Labels before.
        after: Shape after.

    Raises:
        NoRule: A group would have to be taken apart.
    """
    before, sizes, result = list(dims), list(after), list[Dim]()
    while sizes:
        # The shortest runs of dimensions on both sides with as many positions.
        taken, wanted = before[:1], [sizes.pop(0)]
        del before[:1]
        while (have := math.prod(size_of(dim) for dim in taken)) != (need := math.prod(wanted)):
            if have < need:
                taken.append(before.pop(0))
            else:
                wanted.append(sizes.pop(0))
        if not sizes:
            taken.extend(before)
        result.extend(_distribute(labels, [atom for dim in taken for atom in labels.resolve(dim)], wanted))
    return tuple(result)


def _distribute(labels: Labels, atoms: list[Atom], sizes: list[int]) -> list[Dim]:
    """Spread atoms over dimensions of the given sizes, the total being the same."""
    if len(sizes) == 1:
        return [tuple(atoms)]
    if all(labels.is_input(atom) for atom in atoms):
        return [labels.fresh_input(size) for size in sizes]
    result: list[Dim] = []
    for size in sizes:
        taken: list[Atom] = []
        while (rest := size // size_of(tuple(taken))) > 1:
            atom = atoms.pop(0)
            if atom.size > rest or rest % atom.size:
                atom, remainder = _split(labels, atom, rest)
                atoms.insert(0, remainder)
            taken.append(atom)
        result.append(tuple(taken))
    result[-1] += tuple(atoms)
    return result


def _split(labels: Labels, atom: Atom, size: int) -> tuple[Atom, Atom]:
    if atom.size % size or (atom.var is not None and not labels.is_pinned(atom.var)):
        raise NoRule(f"it takes {atom.size} units apart")
    role = atom.role or "position"
    return Atom(size, role=role), Atom(atom.size // size, role=role)


@rule("t", "transpose", "permute", "numpy_T", "swapaxes", "movedim")
def permute(labels: Labels, call: Call) -> Result:
    """Dimensions change places."""
    del labels
    x = call.value("self")
    order = _order(call, x.ndim)
    dims = tuple(x.dims[axis] for axis in order)
    same = order == tuple(range(x.ndim)) or x.param is not None
    return Result(dims, "" if same else "permute", (("order", str(order)),), param=x.param)


def _order(call: Call, ndim: int) -> tuple[int, ...]:
    if call.name in ("t", "numpy_T"):
        return tuple(reversed(range(ndim)))
    if call.name == "permute":
        return tuple(axis % ndim for axis in call.args["dims"])
    if call.name in ("transpose", "swapaxes"):
        keys = ("dim0", "dim1") if call.name == "transpose" else ("axis0", "axis1")
        first, second = (call.args[key] % ndim for key in keys)
        order = list(range(ndim))
        order[first], order[second] = second, first
        return tuple(order)
    raise NoRule("its order of dimensions is not read")
