"""Sums, products and choices of two tensors, or of a tensor and a number."""

from __future__ import annotations

from dataclasses import replace

import torch

from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule
from amortopt.symmetry.rules.broadcasting import gated, times, together
from amortopt.symmetry.solve.dims import Dims, with_exponent
from amortopt.symmetry.solve.labels import Labels


@rule("add", "sub", "rsub")
def add(labels: Labels, call: Call) -> Result:
    """A sum moves like its terms, so they move alike (a residual connection, a bias)."""
    x, y, alpha = call.setting("self"), call.setting("other"), call.args.get("alpha", 1)
    config = () if alpha == 1 else (("alpha", str(alpha)),)
    if not isinstance(x, Value):
        x, y = call.value("other"), x
    if not isinstance(y, Value):
        if y != 0:
            labels.limit(x.dims, "none", f"{call.name} of a constant")
        return Result(x.dims, call.name, (("other", str(y)), *config))
    return Result(together(labels, x, y, len(call.shape), call.name), call.name, config)


@rule("addcmul", "addcdiv")
def add_product(labels: Labels, call: Call) -> Result:
    """x + a y z, or x + a y / z: the product moves like x."""
    x, y, z = call.value("self"), call.value("tensor1"), call.value("tensor2")
    shape = tuple(torch.broadcast_shapes(y.shape, z.shape))
    z = _inverse(labels, z) if call.name == "addcdiv" else z
    product = Value(times(labels, y, z, len(shape), call.name), shape)
    dims = together(labels, x, product, len(call.shape), call.name)
    return Result(dims, call.name, (("value", str(call.args.get("value"))),))


@rule("lerp")
def blended(labels: Labels, call: Call) -> Result:
    """x + w (y - x): what is blended moves alike, the weight has no scale."""
    x, y, weight = call.value("self"), call.value("end"), call.setting("weight")
    shape = tuple(torch.broadcast_shapes(x.shape, y.shape))
    dims = together(labels, x, y, len(shape), call.name)
    if isinstance(weight, Value):
        dims = gated(labels, weight, Value(dims, shape), len(call.shape), call.name)
    return Result(dims, call.name)


@rule("mul", "div")
def scaled(labels: Labels, call: Call) -> Result:
    """Scales multiply; by a number it is linear."""
    x, y = call.setting("self"), call.setting("other")
    if call.args.get("rounding_mode") is not None:
        raise NoRule("it rounds")
    if not isinstance(y, Value):
        return Result(call.value("self").dims, call.name, (("other", str(y)),))
    if call.name == "div":
        y = _inverse(labels, y)
    if not isinstance(x, Value):
        return Result(y.dims, call.name, (("other", str(x)),))
    return Result(times(labels, x, y, len(call.shape), call.name), call.name)


def _inverse(labels: Labels, x: Value) -> Value:
    return replace(x, dims=tuple(with_exponent(labels.resolve(dim), -1) for dim in x.dims))


@rule("reciprocal", "square")
def power(labels: Labels, call: Call) -> Result:
    """f(q x) = q^k f(x)."""
    exponent = {"reciprocal": -1, "square": 2}[call.name]
    x = call.value("self")
    return Result(tuple(with_exponent(labels.resolve(dim), exponent) for dim in x.dims), call.name)


@rule("pow", "float_power")
def to_the_power(labels: Labels, call: Call) -> Result:
    """Scales to a whole power; to any other one permutations only."""
    x, exponent = call.setting("self"), call.setting("exponent")
    if isinstance(x, Value) and isinstance(exponent, Value):
        labels.limit((*x.dims, *exponent.dims), "none", call.name)
        return Result(together(labels, x, exponent, len(call.shape), call.name), call.name)
    if isinstance(x, Value):
        config = (("exponent", str(exponent)),)
        if isinstance(exponent, int | float) and float(exponent).is_integer() and abs(exponent) <= 8:
            dims = tuple(with_exponent(labels.resolve(dim), int(exponent)) for dim in x.dims)
            return Result(dims, call.name, config)
        labels.limit(x.dims, "none", call.name)
        return Result(x.dims, call.name, config)
    exponent = call.value("exponent")
    labels.limit(exponent.dims, "none", call.name)
    return Result(exponent.dims, call.name, (("self", str(x)),))


@rule("maximum", "minimum", "fmax", "fmin")
def extremum(labels: Labels, call: Call) -> Result:
    """Positive scales commute."""
    dims = together(labels, call.value("self"), call.value("other"), len(call.shape), call.name)
    labels.limit(dims, "positive", call.name)
    return Result(dims, call.name)


@rule(
    "atan2",
    "hypot",
    "remainder",
    "fmod",
    "floor_divide",
    "xlogy",
    "copysign",
    "logaddexp",
    "logaddexp2",
    "heaviside",
)
def of_two(labels: Labels, call: Call) -> Result:
    """Permutations only."""
    x, y = call.setting("self"), call.setting("other" if "other" in call.args else "values")
    for value in (x, y):
        if isinstance(value, Value):
            labels.limit(value.dims, "none", call.name)
    if isinstance(x, Value) and isinstance(y, Value):
        return Result(together(labels, x, y, len(call.shape), call.name), call.name)
    varies, number = (x, y) if isinstance(x, Value) else (y, x)
    if not isinstance(varies, Value):
        raise NoRule("neither argument is one tensor")
    return Result(varies.dims, call.name, (("other", str(number)),))


@rule("eq", "ne", "gt", "lt", "ge", "le")
def compared(labels: Labels, call: Call) -> Result:
    """Signs against zero do not change under positive scales."""
    x, y = call.value("self"), call.setting("other")
    if isinstance(y, Value):
        dims = together(labels, x, y, len(call.shape), call.name)
        labels.limit(dims, "positive", call.name)
    else:
        labels.limit(x.dims, "positive" if y == 0 else "none", call.name)
        dims = x.dims
    return Result(tuple(labels.unscaled(labels.resolve(dim)) for dim in dims), call.name, (("other", ""),))


@rule(
    *("logical_not", "logical_and", "logical_or", "logical_xor", "bitwise_not", "bitwise_and", "bitwise_or"),
    *("bitwise_xor", "isnan", "isinf", "isfinite", "isposinf", "isneginf", "signbit", "__and__", "__or__"),
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
    """What is chosen between moves alike, and the condition is permuted like it."""
    condition, x, y = call.value("condition"), call.setting("self"), call.setting("other")
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
    if isinstance(value, Value) or value != 0:
        labels.limit(x.dims, "none", call.name)
    return Result(gated(labels, mask, x, len(call.shape), call.name), call.name)


@rule("tril", "triu")
def triangle(labels: Labels, call: Call) -> Result:
    """Zeros on one side of the diagonal of the last two dimensions, which keep their order."""
    x = call.value("self")
    labels.freeze(x.dims[-2:])
    dims: Dims = x.dims
    return Result(dims, call.name, (("diagonal", str(call.args.get("diagonal"))),))
