"""Elementwise functions of one tensor, by what they commute with."""

from __future__ import annotations

from amortopt.symmetry.labels import Labels, fixed, with_exponent
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule
from amortopt.symmetry.spec import ScaleKind


def _unary(labels: Labels, call: Call, kind: ScaleKind) -> Result:
    """The input keeps the scales that the function commutes with; settings go into the config."""
    x = _input(call)
    labels.limit(x.dims, kind, call.name)
    config = tuple((key, str(arg)) for key, arg in call.args.items() if not isinstance(arg, Value))
    return Result(x.dims, call.name, config)


def _input(call: Call) -> Value:
    return call.value("self" if "self" in call.args else "input")


@rule("relu", "leaky_relu", "abs")
def homogeneous(labels: Labels, call: Call) -> Result:
    """f(q x) = q f(x) for q > 0."""
    return _unary(labels, call, "positive")


@rule("tanh", "sin", "erf", "atan", "asinh", "sinh", "softsign", "sgn", "sign", "hardshrink", "softshrink")
def odd(labels: Labels, call: Call) -> Result:
    """f(-x) = -f(x)."""
    return _unary(labels, call, "sign")


_OTHER = (
    *("gelu", "silu", "sigmoid", "softplus", "elu", "selu", "celu", "mish", "hardswish", "hardsigmoid"),
    *("relu6", "log_sigmoid", "threshold", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt"),
    *("reciprocal", "cos", "square"),
)  # fmt: skip


@rule(*_OTHER)
def other(labels: Labels, call: Call) -> Result:
    """Neither odd nor homogeneous: permutations only."""
    return _unary(labels, call, "none")


@rule("hardtanh", "clamp")
def clip(labels: Labels, call: Call) -> Result:
    """Clipping to [-a, a] is odd, to [0, inf) homogeneous."""
    keys = ("min_val", "max_val") if call.name == "hardtanh" else ("min", "max")
    low, high = (call.args.get(key) for key in keys)
    if isinstance(low, Value) or isinstance(high, Value):
        raise NoRule("its bounds are tensors")
    x = call.value("self")
    if low is not None and high is not None and low == -high:
        kind: ScaleKind = "sign"
    else:
        kind = "positive" if low in (None, 0) and high in (None, 0) else "none"
    labels.limit(x.dims, kind, call.name)
    bounds = [None if bound is None else float(bound) for bound in (low, high)]
    return Result(x.dims, "clip", (("min", str(bounds[0])), ("max", str(bounds[1]))))


@rule("prelu")
def prelu(labels: Labels, call: Call) -> Result:
    """max(x, 0) + a min(x, 0): homogeneous; a channel's slope follows its permutation, unscaled."""
    x, weight = call.value("self"), call.value("weight")
    if weight.ndim != 1:
        raise NoRule("its slopes are not a vector")
    labels.limit(x.dims, "positive", call.name)
    per_channel = weight.shape[0] > 1
    slopes = with_exponent(x.dims[1], 0) if per_channel else fixed(1, "slope")
    labels.tie(weight.dims[0], slopes, call.name)
    return Result(x.dims, "prelu")


@rule("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(labels: Labels, call: Call) -> Result:
    """Nothing in eval mode. Forced on, a plain one scales units at random, alike under any scale."""
    del labels
    if call.args.get("train", False):
        raise NoRule("it is random also in eval mode")
    return Result(_input(call).dims)


@rule("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "_to_copy", "to", "type_as", "float")
def same(labels: Labels, call: Call) -> Result:
    """Nothing is computed."""
    del labels
    x = _input(call)
    return Result(x.dims, param=x.param)


@rule("neg")
def negated(labels: Labels, call: Call) -> Result:
    """Linear."""
    return _unary(labels, call, "free")


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(labels: Labels, call: Call) -> Result:
    """Permutations only."""
    return _unary(labels, call, "none")
