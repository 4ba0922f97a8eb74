"""How two tensors meet element by element, broadcast against each other: sums, products, gates."""

from __future__ import annotations

from collections.abc import Callable

from amortopt.symmetry.rules.base import Value, by_axis
from amortopt.symmetry.solve.dims import Dim, Dims, fixed
from amortopt.symmetry.solve.labels import Labels


def together(labels: Labels, x: Value, y: Value, ndim: int, reason: str) -> Dims:
    """Labels of a sum: both terms move alike; beside a constant, permutations stay and scales do not."""

    def tied(left: Dim, right: Dim) -> Dim:
        # A fixed dimension must not replace a group: the group keeps its name, with nothing allowed.
        follower, leader = (left, right) if x.param is not None and y.param is None else (right, left)
        if not labels.variables(leader):
            labels.pin((follower,), reason)
            return follower
        if not labels.variables(follower):
            labels.pin((leader,), reason)
        else:
            labels.tie(follower, leader, reason)
        return leader

    return _broadcast(labels, x, y, ndim, tied, lambda long: labels.limit((long,), "none", reason), reason)


def times(labels: Labels, x: Value, y: Value, ndim: int, reason: str) -> Dims:
    """Labels of a product: scales multiply."""

    def both(left: Dim, right: Dim) -> Dim:
        follower, leader = (left, right) if x.param is not None and y.param is None else (right, left)
        return multiplied(labels, follower, leader, reason)

    return _broadcast(labels, x, y, ndim, both, lambda long: None, reason)


def gated(labels: Labels, gate: Value, x: Value, ndim: int, reason: str) -> Dims:
    """Labels of ``x`` under a condition, mask or weight without scales, which is permuted like ``x``.

    Along an axis that only the gate has, ``x`` is copied and the result follows the gate.
    """
    labels.limit(gate.dims, "none", reason)
    bare = Value(tuple(labels.unscaled(labels.resolve(dim)) for dim in gate.dims), gate.shape)
    return _broadcast(
        labels,
        x,
        bare,
        ndim,
        lambda own, other: multiplied(labels, own, other, reason),
        lambda _: None,
        reason,
    )


def _broadcast(
    labels: Labels,
    x: Value,
    y: Value,
    ndim: int,
    both: Callable[[Dim, Dim], Dim],
    one: Callable[[Dim], None],
    reason: str,
) -> Dims:
    """Labels of two broadcast tensors: ``both`` where both vary, ``one`` for what only one varies along."""
    for value in (x, y):
        if value.param is not None and value.ndim > 1:
            labels.nest(value.dims)
    dims = []
    for axis in range(-ndim, 0):
        left = x.dims[axis] if -axis <= x.ndim else ()
        right = y.dims[axis] if -axis <= y.ndim else ()
        sizes = [v.shape[axis] if -axis <= v.ndim else 1 for v in (x, y)]
        if sizes[0] == sizes[1]:
            dims.append(both(left, right))
            continue
        short, long = (right, left) if sizes[0] != 1 else (left, right)
        if short:
            labels.tie(short, fixed(1, "broadcast"), reason)
        one(long)
        dims.append(long)
    labels.align(by_axis(x.dims), by_axis(y.dims))
    return tuple(dims)


def multiplied(labels: Labels, x: Dim, y: Dim, reason: str) -> Dim:
    """The dimension of a product along which both factors vary; constants only keep the order."""
    known, other = labels.variables(x), labels.variables(y)
    if bool(known) != bool(other):
        labels.freeze((x, y))
        kept, lone = (x, y) if known else (y, x)
        constant = all(labels.origin(unit) == "constant" for unit in (*known, *other))
        return lone if constant and labels.is_pinned(kept) else kept
    return labels.product(x, y, reason)
