"""Sums and products of two tensors, or of a tensor and a number."""

from __future__ import annotations

from amortopt.symmetry.labels import Dims, Labels, fixed
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule


@rule("add", "sub", "rsub")
def add(labels: Labels, call: Call) -> Result:
    """A sum moves like its terms, so they move alike (a residual connection, a bias)."""
    x, y, alpha = call.value("self"), call.args["other"], call.args.get("alpha", 1)
    config = () if alpha == 1 else (("alpha", str(alpha)),)
    if not isinstance(y, Value):
        if y != 0:
            labels.limit(x.dims, "none", f"{call.name} of a constant")
        return Result(x.dims, call.name, (("other", str(y)), *config))
    return Result(_together(labels, x, y, len(call.shape), call.name), call.name, config)


def _together(labels: Labels, x: Value, y: Value, ndim: int, reason: str) -> Dims:
    """Tie two broadcast tensors; where one is constant, the other keeps its permutations, not its scales."""
    dims = []
    for axis in range(-ndim, 0):
        left = x.dims[axis] if -axis <= x.ndim else ()
        right = y.dims[axis] if -axis <= y.ndim else ()
        sizes = [v.shape[axis] if -axis <= v.ndim else 1 for v in (x, y)]
        if sizes[0] == sizes[1]:
            # A fixed dimension must not replace a group: the group keeps its name, with nothing allowed.
            follower, leader = (left, right) if x.param is not None and y.param is None else (right, left)
            if not labels.variables(leader):
                labels.pin((follower,), reason)
            elif not labels.variables(follower):
                labels.pin((leader,), reason)
            else:
                labels.tie(follower, leader, reason)
            dims.append(leader if labels.variables(leader) else follower)
        else:
            labels.limit((left, right), "none", reason)
            for value, dim, size in ((x, left, sizes[0]), (y, right, sizes[1])):
                if value.param is not None and size == 1 and dim:
                    labels.tie(dim, fixed(1, "broadcast"), reason)
            dims.append(left if sizes[0] != 1 else right)
    return tuple(dims)


@rule("mul", "div", "true_divide")
def scaled(labels: Labels, call: Call) -> Result:
    """Multiplication by a number is linear; a product of two tensors has no rule yet."""
    del labels
    x, factor = call.value("self"), call.args["other"]
    if isinstance(factor, Value) or call.args.get("rounding_mode") is not None:
        raise NoRule("its factor is not a number")
    return Result(x.dims, call.name, (("other", str(factor)),))
