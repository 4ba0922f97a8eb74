"""Sums, products and choices of two tensors, or of a tensor and a number."""

from __future__ import annotations

from collections.abc import Callable

from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, by_axis, rule
from amortopt.symmetry.rules.contraction import multiplied
from amortopt.symmetry.solve.dims import Dim, Dims, fixed, size_of, with_exponent
from amortopt.symmetry.solve.labels import Labels


@rule("add", "sub", "rsub")
def add(labels: Labels, call: Call) -> Result:
    """A sum moves like its terms, so they move alike (a residual connection, a bias)."""
    x, y, alpha = call.args["self"], call.args["other"], call.args.get("alpha", 1)
    config = () if alpha == 1 else (("alpha", str(alpha)),)
    if not isinstance(x, Value):
        x, y = y, x
    if not isinstance(y, Value):
        if y != 0:
            labels.limit(x.dims, "none", f"{call.name} of a constant")
        return Result(x.dims, call.name, (("other", str(y)), *config))
    return Result(together(labels, x, y, len(call.shape), call.name), call.name, config)


@rule("addcmul", "lerp")
def blended(labels: Labels, call: Call) -> Result:
    """x + w (y - x): what is blended moves alike, the weight has no scale."""
    if call.name == "addcmul":
        raise NoRule("it is three operations in one")
    x, y, weight = call.value("self"), call.value("end"), call.args["weight"]
    dims = together(labels, x, y, len(call.shape), call.name)
    if isinstance(weight, Value):
        _gate(labels, weight, dims, call.name)
    return Result(dims, call.name)


def together(labels: Labels, x: Value, y: Value, ndim: int, reason: str) -> Dims:
    """Tie two broadcast tensors; where one is constant, the other keeps its permutations, not its scales."""

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

    def stretched(long: Dim) -> None:
        labels.limit((long,), "none", reason)

    return _broadcast(labels, x, y, ndim, tied, stretched, reason)


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


def times(labels: Labels, x: Value, y: Value, ndim: int, reason: str) -> Dims:
    """Labels of an elementwise product, broadcast."""

    def both(left: Dim, right: Dim) -> Dim:
        follower, leader = (left, right) if x.param is not None and y.param is None else (right, left)
        return multiplied(labels, follower, leader, reason)

    return _broadcast(labels, x, y, ndim, both, lambda long: None, reason)


@rule("mul", "div", "true_divide")
def scaled(labels: Labels, call: Call) -> Result:
    """Scales multiply; by a number it is linear."""
    x, y = call.args["self"], call.args["other"]
    if call.args.get("rounding_mode") is not None:
        raise NoRule("it rounds")
    divides = call.name != "mul"
    if not isinstance(y, Value):
        return Result(call.value("self").dims, call.name, (("other", str(y)),))
    if divides:
        y = Value(tuple(with_exponent(labels.resolve(dim), -1) for dim in y.dims), y.shape, y.param)
    if not isinstance(x, Value):
        return Result(y.dims, call.name, (("other", str(x)),))
    return Result(times(labels, x, y, len(call.shape), call.name), call.name)


@rule("reciprocal", "square")
def power(labels: Labels, call: Call) -> Result:
    """f(q x) = q^k f(x)."""
    exponent = {"reciprocal": -1, "square": 2}[call.name]
    x = call.value("self")
    return Result(tuple(with_exponent(labels.resolve(dim), exponent) for dim in x.dims), call.name)


@rule("pow")
def to_the_power(labels: Labels, call: Call) -> Result:
    """Scales to a whole power; to any other one permutations only."""
    x, exponent = call.args["self"], call.args["exponent"]
    if not isinstance(x, Value) or isinstance(exponent, Value):
        raise NoRule("its base or its exponent varies")
    config = (("exponent", str(exponent)),)
    if float(exponent).is_integer() and abs(exponent) <= 8:
        dims = tuple(with_exponent(labels.resolve(dim), int(exponent)) for dim in x.dims)
        return Result(dims, call.name, config)
    labels.limit(x.dims, "none", call.name)
    return Result(x.dims, call.name, config)


@rule("maximum", "minimum", "fmax", "fmin")
def extremum(labels: Labels, call: Call) -> Result:
    """Positive scales commute."""
    dims = together(labels, call.value("self"), call.value("other"), len(call.shape), call.name)
    labels.limit(dims, "positive", call.name)
    return Result(dims, call.name)


@rule("eq", "ne", "gt", "lt", "ge", "le")
def compared(labels: Labels, call: Call) -> Result:
    """Signs against zero do not change under positive scales."""
    x, y = call.value("self"), call.args["other"]
    if isinstance(y, Value):
        dims = together(labels, x, y, len(call.shape), call.name)
        labels.limit(dims, "positive", call.name)
    else:
        labels.limit(x.dims, "positive" if y == 0 else "none", call.name)
        dims = x.dims
    return Result(tuple(labels.unscaled(labels.resolve(dim)) for dim in dims), call.name, (("other", ""),))


@rule(
    "logical_not", "logical_and", "logical_or", "bitwise_not", "bitwise_and", "bitwise_or", "isnan", "isinf"
)
def logic(labels: Labels, call: Call) -> Result:
    """Truth values have no scale."""
    x, y = call.value("self"), call.args.get("other")
    labels.limit(x.dims, "none", call.name)
    if not isinstance(y, Value):
        return Result(x.dims, call.name)
    return Result(together(labels, x, y, len(call.shape), call.name), call.name)


@rule("where")
def where(labels: Labels, call: Call) -> Result:
    """What is chosen between moves alike."""
    condition, x, y = call.value("condition"), call.args["self"], call.args["other"]
    dims: Dims
    if isinstance(x, Value) and isinstance(y, Value):
        dims = together(labels, x, y, len(call.shape), call.name)
    else:
        value, number = (x, y) if isinstance(x, Value) else (y, x)
        if not isinstance(value, Value):
            raise NoRule("it chooses between numbers")
        if number != 0:
            labels.limit(value.dims, "none", call.name)
        dims = value.dims
    if len(dims) != len(call.shape):
        raise NoRule("its condition has more dimensions than what it chooses from")
    _gate(labels, condition, dims, call.name)
    return Result(dims, call.name)


@rule("masked_fill")
def masked_fill(labels: Labels, call: Call) -> Result:
    """A mask that varies along units forbids permuting them; zeros have every scale."""
    x, mask, value = call.value("self"), call.value("mask"), call.args["value"]
    if isinstance(value, Value) or value != 0:
        labels.limit(x.dims, "none", call.name)
    _gate(labels, mask, x.dims, call.name)
    return Result(x.dims, call.name)


def _gate(labels: Labels, gate: Value, dims: Dims, reason: str) -> None:
    """A gate without scales over a value: it is permuted like it."""
    labels.limit(gate.dims, "none", reason)
    sizes = [size_of(dim) for dim in dims]
    if gate.ndim > len(dims) or any(
        gate.shape[axis] not in (1, sizes[axis]) for axis in range(-gate.ndim, 0)
    ):
        raise NoRule("what it chooses by is wider than what it chooses from")
    for axis in range(-gate.ndim, 0):
        if gate.shape[axis] != 1:
            multiplied(labels, gate.dims[axis], labels.unscaled(labels.resolve(dims[axis])), reason)
    labels.align(by_axis(gate.dims), by_axis(dims))
