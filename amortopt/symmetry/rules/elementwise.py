"""Elementwise functions of one tensor, by the scales that they commute with."""

from __future__ import annotations

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.rules.arithmetic import or_zero, together
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule
from amortopt.symmetry.rules.dimensions import by_axis, replaced, without
from amortopt.symmetry.solve.dims import fixed
from amortopt.symmetry.solve.labels import Labels

COMMUTES_WITH: dict[ScaleKind, tuple[str, ...]] = {
    "free": ("neg", "real", "imag", "conj", "deg2rad", "rad2deg"),  # f(q x) = q f(x)
    "positive": ("relu", "leaky_relu", "abs", "rrelu"),  # f(q x) = q f(x) for q > 0
    "sign": (  # f(-x) = -f(x)
        *("tanh", "sin", "tan", "erf", "erfinv", "atan", "asin", "atanh", "asinh", "sinh", "softsign"),
        *("sgn", "sign", "hardshrink", "softshrink", "round", "trunc", "frac", "nan_to_num"),
    ),
    "none": (  # permutations only
        *("gelu", "silu", "sigmoid", "softplus", "elu", "selu", "celu", "mish", "hardswish", "hardsigmoid"),
        *("relu6", "log_sigmoid", "threshold", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt"),
        *("cos", "cosh", "acos", "acosh", "log2", "log10", "exp2", "erfc", "logit", "sinc", "digamma"),
        *("lgamma", "floor", "ceil", "entr", "ndtr", "ndtri", "erfcx", "i0", "i0e", "log_ndtr", "angle"),
        *("i1", "i1e", "bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "airy_ai", "spherical_bessel_j0"),
        *("modified_bessel_i0", "modified_bessel_i1", "modified_bessel_k0", "modified_bessel_k1"),
        *("polygamma", "mvlgamma", "multigammaln", "isreal"),
    ),
}
_KIND: dict[str, ScaleKind] = {op: kind for kind, ops in COMMUTES_WITH.items() for op in ops}


@rule(*_KIND)
def elementwise(labels: Labels, call: Call) -> Result:
    """The output has the scales of the input that the function commutes with (`COMMUTES_WITH`)."""
    x = _input(call)
    labels.limit(x.dims, _KIND[call.name], call.name)
    if call.args.get("training", False) and not call.training:
        labels.freeze(x.dims)  # rrelu: slopes drawn for places
    config = tuple((key, str(arg)) for key, arg in call.args.items() if not isinstance(arg, Value))
    return Result(x.dims, call.name, config)


def _input(call: Call) -> Value:
    return call.value("self" if "self" in call.args else "input")


@rule("hardtanh", "clamp", "clamp_min", "clamp_max")
def clip(labels: Labels, call: Call) -> Result:
    """Clipping to [-a, a] is odd, to [0, inf) homogeneous."""
    keys = ("min_val", "max_val") if call.name == "hardtanh" else ("min", "max")
    low, high = (call.args.get(key) for key in keys)
    x = call.value("self")
    low, high = (or_zero(bound, x.shape, call) for bound in (low, high))
    if tensors := [bound for bound in (low, high) if isinstance(bound, Value)]:
        # max(x, low) of two tensors commutes with positive scales.
        dims = x.dims
        for bound in tensors:
            dims = together(labels, Value(dims, x.shape), bound, len(call.shape), call.name)
        homogeneous = len(tensors) == 2 or None in call.args.values()
        labels.limit(dims, "positive" if homogeneous else "none", call.name)
        return Result(dims, call.name)
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
    per_channel = weight.shape[0] > 1
    if per_channel and x.ndim < 2:
        raise NoRule("its input has no channels")
    labels.limit(x.dims, "positive", call.name)
    slopes = labels.unscaled(labels.resolve(x.dims[1])) if per_channel else fixed(1, "slope")
    labels.tie(weight.dims[0], slopes, call.name)
    return Result(x.dims, "prelu")


@rule("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(labels: Labels, call: Call) -> Result:
    """The identity in eval mode; in training mode linear, except that alpha dropout shifts.

    Where it drops units in eval mode too, its random numbers belong to places, so units keep their order.
    """
    dims = _input(call).dims
    if call.args.get("train", False):
        if not call.training and call.args.get("p") != 0:
            labels.freeze(dims)
        if "alpha" in call.name:
            labels.limit(dims, "none", call.name)
    return Result(dims)


@rule(
    *("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "_to_copy", "to", "type_as"),
    *("positive", "resolve_conj", "resolve_neg", "detach_copy"),
)
def same(labels: Labels, call: Call) -> Result:
    """Copies and casts: the identity, unless numbers are rounded to integers."""
    x = _input(call)
    if call.integer:
        labels.limit(x.dims, "none", call.name)
    return Result(x.dims, param=x.param, zero=x.zero)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(labels: Labels, call: Call) -> Result:
    """Permutations only."""
    x = _input(call)
    axis = call.axis("dim", x.ndim)
    labels.limit(x.dims, "none", call.name)
    labels.mix(without(x.dims, axis), (x.dims[axis],))
    return Result(x.dims, call.name, (("dim", str(axis)),))


@rule("glu")
def gated(labels: Labels, call: Call) -> Result:
    """a * sigmoid(b) with the two halves of a dimension: the gate is permuted like what it gates."""
    x = _input(call)
    axis = call.axis("dim", x.ndim)
    size = x.shape[axis] // 2
    value, gate = labels.cut(x.dims[axis], [size, 2 * size])
    # A scale along another dimension would multiply the gate too.
    labels.limit((gate, *without(x.dims, axis)), "none", call.name)
    dim = labels.product(gate, value, call.name)
    return Result(replaced(x.dims, axis, dim), call.name, (("dim", str(axis)),))


@rule("copy")
def copied(labels: Labels, call: Call) -> Result:
    """x.copy_(source): the tensor gets the units and scales of what is written into it."""
    x, source = call.value("self"), call.value("src")
    if x.shape != source.shape:
        return Result(together(labels, x, source, x.ndim, call.name), call.name)
    for before, after in zip(x.dims, source.dims, strict=True):
        labels.tie(before, after, call.name)
    labels.align(by_axis(x.dims), by_axis(source.dims))
    return Result(x.dims, call.name)
