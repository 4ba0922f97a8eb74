"""Two tensors element by element, broadcast against each other: sums, products, choices, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule, settings
from amortopt.symmetry.rules.dimensions import by_axis, to_power
from amortopt.symmetry.solve.dims import Dim, Dims, fixed
from amortopt.symmetry.solve.labels import Labels


def together(labels: Labels, x: Value, y: Value, ndim: int, reason: str) -> Dims:
    """Labels of x + y, with ``ndim`` dimensions: both terms have the same permutation and the same scales.

    Where one term is constant along an axis the sum may be permuted along it, but not rescaled.
    """

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
    """Labels of x * y, with ``ndim`` dimensions: both factors have the same permutation, scales multiply."""

    def both(left: Dim, right: Dim) -> Dim:
        follower, leader = (left, right) if x.param is not None and y.param is None else (right, left)
        return multiplied(labels, follower, leader, reason)

    return _broadcast(labels, x, y, ndim, both, lambda _: None, reason)


def gated(labels: Labels, gate: Value, x: Value, ndim: int, reason: str) -> Dims:
    """Labels of ``x`` under a condition, mask or weight without scales, which is permuted like ``x``.

    Along an axis that only the gate has, ``x`` is copied and the result follows the gate.
    """
    labels.limit(gate.dims, "none", reason)
    unscaled = Value(to_power(labels, gate.dims, 0), gate.shape)
    both = lambda left, right: multiplied(labels, left, right, reason)  # noqa: E731
    return _broadcast(labels, x, unscaled, ndim, both, lambda _: None, reason)


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
        # A tensor with fewer dimensions has size one and no labels along the missing ones.
        (left, n), (right, m) = (
            (v.dims[axis], v.shape[axis]) if -axis <= v.ndim else ((), 1) for v in (x, y)
        )
        if n == m:
            dims.append(both(left, right))
            continue
        short, long = (right, left) if n != 1 else (left, right)
        if short:
            labels.tie(short, fixed(1, "broadcast"), reason)
        one(long)
        dims.append(long)
    labels.align(by_axis(x.dims), by_axis(y.dims))
    return tuple(dims)


def or_zero(value: Any, shape: tuple[int, ...], call: Call) -> Any:
    """0 for one number that is known to be zero, if the result is as large without it; else the value."""
    return 0 if isinstance(value, Value) and value.zero and shape == call.shape else value


def multiplied(labels: Labels, x: Dim, y: Dim, reason: str) -> Dim:
    """The dimension of a product along which both factors vary; a constant factor only fixes the order."""
    x_units, y_units = labels.variables(x), labels.variables(y)
    if bool(x_units) != bool(y_units):
        labels.freeze((x, y))
        moving, still = (x, y) if x_units else (y, x)
        constant = all(labels.origin(unit) == "constant" for unit in (*x_units, *y_units))
        return still if constant and labels.is_pinned(moving) else moving
    return labels.product(x, y, reason)


@rule("add", "sub", "rsub")
def add(labels: Labels, call: Call) -> Result:
    """Both terms have the same permutation and scales (a residual connection, a bias)."""
    x, y, alpha = call.setting("self"), call.setting("other"), call.args.get("alpha", 1)
    if isinstance(x, Value) and isinstance(y, Value):
        y = or_zero(y, x.shape, call)
        x = or_zero(x, y.shape, call) if isinstance(y, Value) else x
    config = () if alpha == 1 else (("alpha", str(alpha)),)
    if not isinstance(x, Value):
        x, y = y, x
    if not isinstance(y, Value):
        if y != 0:
            labels.limit(x.dims, "none", f"{call.name} of a constant")
        return Result(x.dims, call.name, (("other", str(y)), *config))
    return Result(together(labels, x, y, len(call.shape), call.name), call.name, config)


@rule("addcmul", "addcdiv")
def add_product(labels: Labels, call: Call) -> Result:
    """x + a y z, or x + a y / z: the product has the scales of x."""
    x, y, z = call.value("self"), call.value("tensor1"), call.value("tensor2")
    shape = tuple(torch.broadcast_shapes(y.shape, z.shape))
    z = replace(z, dims=to_power(labels, z.dims, -1)) if call.name == "addcdiv" else z
    product = Value(times(labels, y, z, len(shape), call.name), shape)
    dims = together(labels, x, product, len(call.shape), call.name)
    return Result(dims, call.name, settings(call, "value"))


@rule("lerp")
def blended(labels: Labels, call: Call) -> Result:
    """x + w (y - x): x and y have the same scales, the weight has none."""
    x, y, weight = call.value("self"), call.value("end"), call.setting("weight")
    shape = tuple(torch.broadcast_shapes(x.shape, y.shape))
    dims = together(labels, x, y, len(shape), call.name)
    if isinstance(weight, Value):
        dims = gated(labels, weight, Value(dims, shape), len(call.shape), call.name)
    return Result(dims, call.name)


@rule("mul", "div")
def scaled(labels: Labels, call: Call) -> Result:
    """Scales multiply; a number as factor changes none."""
    x, y = call.setting("self"), call.setting("other")
    if call.args.get("rounding_mode") is not None:
        raise NoRule("it rounds")
    if not isinstance(y, Value):
        return Result(call.value("self").dims, call.name, (("other", str(y)),))
    if call.name == "div":
        y = replace(y, dims=to_power(labels, y.dims, -1))
    if not isinstance(x, Value):
        return Result(y.dims, call.name, (("other", str(x)),))
    return Result(times(labels, x, y, len(call.shape), call.name), call.name)


@rule("pow", "float_power", "reciprocal", "square")
def power(labels: Labels, call: Call) -> Result:
    """(q x)^k = q^k x^k for whole k up to 8; for other exponents permutations only."""
    if (whole := {"reciprocal": -1, "square": 2}.get(call.name)) is not None:
        return Result(to_power(labels, call.value("self").dims, whole), call.name)
    x, exponent = call.setting("self"), call.setting("exponent")
    if isinstance(x, Value) and isinstance(exponent, Value):
        labels.limit((*x.dims, *exponent.dims), "none", call.name)
        return Result(together(labels, x, exponent, len(call.shape), call.name), call.name)
    if not isinstance(x, Value):
        exponent = call.value("exponent")
        labels.limit(exponent.dims, "none", call.name)
        return Result(exponent.dims, call.name, (("self", str(x)),))
    config = (("exponent", str(exponent)),)
    if isinstance(exponent, int | float) and float(exponent).is_integer() and abs(exponent) <= 8:
        return Result(to_power(labels, x.dims, int(exponent)), call.name, config)
    labels.limit(x.dims, "none", call.name)
    return Result(x.dims, call.name, config)


@rule("maximum", "minimum", "fmax", "fmin")
def extremum(labels: Labels, call: Call) -> Result:
    """max(q x, q y) = q max(x, y) for q > 0."""
    x, y = call.value("self"), call.value("other")
    for zero, other in ((x, y), (y, x)):
        if not isinstance(or_zero(zero, other.shape, call), Value):
            labels.limit(other.dims, "positive", call.name)
            return Result(other.dims, call.name)
    dims = together(labels, x, y, len(call.shape), call.name)
    labels.limit(dims, "positive", call.name)
    return Result(dims, call.name)


@rule(
    *("atan2", "hypot", "remainder", "fmod", "floor_divide", "xlogy", "copysign", "logaddexp", "logaddexp2"),
    *("heaviside", "xlog1py", "zeta", "ldexp", "nextafter", "isclose", "gammainc", "gammaincc", "igamma"),
    "igammac",
)
def of_two(labels: Labels, call: Call) -> Result:
    """Functions of two tensors, or of a tensor and a number: permutations only."""
    x, y = call.setting("self"), call.setting("other" if "other" in call.args else "values")
    for value in (x, y):
        if isinstance(value, Value):
            labels.limit(value.dims, "none", call.name)
    if isinstance(x, Value) and isinstance(y, Value):
        return Result(together(labels, x, y, len(call.shape), call.name), call.name)
    tensor, number = (x, y) if isinstance(x, Value) else (y, x)
    if not isinstance(tensor, Value):
        raise NoRule("neither argument is one tensor")
    return Result(tensor.dims, call.name, (("other", str(number)),))


@rule("eq", "ne", "gt", "lt", "ge", "le")
def compared(labels: Labels, call: Call) -> Result:
    """q x > q y and q x > 0 hold for every q > 0 alike; truth values have no scale."""
    x, y = call.value("self"), call.setting("other")
    dims = together(labels, x, y, len(call.shape), call.name) if isinstance(y, Value) else x.dims
    labels.limit(dims, "positive" if isinstance(y, Value) or y == 0 else "none", call.name)
    return Result(to_power(labels, dims, 0), call.name, (("other", ""),))


@rule(
    *("logical_not", "logical_and", "logical_or", "logical_xor", "bitwise_not", "bitwise_and", "bitwise_or"),
    *("bitwise_xor", "isnan", "isinf", "isfinite", "isposinf", "isneginf", "signbit", "__and__", "__or__"),
    "__xor__",
)
def logic(labels: Labels, call: Call) -> Result:
    """Truth values have no scale."""
    x, y = call.value("self"), call.args.get("other")
    labels.limit(x.dims, "none", call.name)
    dims = together(labels, x, y, len(call.shape), call.name) if isinstance(y, Value) else x.dims
    return Result(dims, call.name)


@rule("where")
def where(labels: Labels, call: Call) -> Result:
    """Both alternatives have the same scales, and the condition is permuted like them."""
    condition, x, y = call.value("condition"), call.setting("self"), call.setting("other")
    x, y = (or_zero(value, call.shape, call) for value in (x, y))
    if isinstance(x, Value) and isinstance(y, Value):
        shape = tuple(torch.broadcast_shapes(x.shape, y.shape))
        chosen = Value(together(labels, x, y, len(shape), call.name), shape)
    else:
        chosen, number = (x, y) if isinstance(x, Value) else (y, x)
        if not isinstance(chosen, Value):
            chosen = Value((), ())
        elif number != 0:
            labels.limit(chosen.dims, "none", call.name)
    return Result(gated(labels, condition, chosen, len(call.shape), call.name), call.name)


@rule("masked_fill")
def masked_fill(labels: Labels, call: Call) -> Result:
    """A mask that varies along units forbids permuting them; zeros have every scale."""
    x, mask, value = call.value("self"), call.value("mask"), call.setting("value")
    if (isinstance(value, Value) and not value.zero) or (not isinstance(value, Value) and value != 0):
        labels.limit(x.dims, "none", call.name)
    return Result(gated(labels, mask, x, len(call.shape), call.name), call.name)


@rule("tril", "triu")
def triangle(labels: Labels, call: Call) -> Result:
    """Zeros on one side of the diagonal of the last two dimensions, which keep their order."""
    x = call.value("self")
    labels.freeze(x.dims[-2:])
    return Result(x.dims, call.name, settings(call, "diagonal"))
