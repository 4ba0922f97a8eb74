"""Operations that sum over an axis together with a weight: dense layers, matrix products, convolutions."""

from __future__ import annotations

from amortopt.symmetry.labels import Dim, Dims, Labels, fixed, with_exponent
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, per_axis, rule


@rule("linear")
def linear(labels: Labels, call: Call) -> Result:
    """y[..., o] = sum_i x[..., i] W[o, i] + b[o]: W reads with the inverse of x's scales."""
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    if weight.ndim != 2:
        raise NoRule("its weight is not a matrix")
    labels.tie(weight.dims[1], with_exponent(x.dims[-1], -1), call.name)
    out = weight.dims[0]
    _bias(labels, bias, out, x.dims[:-1], call.name)
    return Result((*x.dims[:-1], out), "linear")


def _bias(labels: Labels, bias: Value | None, out: Dim, others: Dims, reason: str) -> None:
    """A bias moves with the outputs and is constant along everything else, which then cannot scale."""
    if bias is not None:
        labels.tie(bias.dims[0], out, reason)
        labels.limit(others, "none", f"bias of {reason}")


@rule("matmul", "mm")
def matmul(labels: Labels, call: Call) -> Result:
    """y[..., o] = sum_i x[..., i] M[i, o] for a matrix M."""
    x, matrix = call.value("self"), call.value("mat2" if "mat2" in call.args else "other")
    return _product(labels, x, matrix, call.name)


@rule("addmm")
def addmm(labels: Labels, call: Call) -> Result:
    """y[n, o] = b[o] + sum_i x[n, i] M[i, o]."""
    bias = call.value("self")
    result = _product(labels, call.value("mat1"), call.value("mat2"), call.name)
    if bias.ndim != 1 or bias.shape[0] != call.shape[-1]:
        raise NoRule("its bias is not a vector over the outputs")
    _bias(labels, bias, result.dims[-1], result.dims[:-1], call.name)
    return result


def _product(labels: Labels, x: Value, matrix: Value, reason: str) -> Result:
    if matrix.ndim != 2 or x.ndim < 2:
        raise NoRule("it is not a product of rows with a matrix")
    inner, wanted = matrix.dims[0], with_exponent(x.dims[-1], -1)
    if x.param is not None and matrix.param is None:
        labels.tie(x.dims[-1], with_exponent(inner, -1), reason)
    else:
        labels.tie(inner, wanted, reason)
    return Result((*x.dims[:-1], matrix.dims[1]), "linear")


@rule("conv1d", "conv2d", "conv3d")
def convolution(labels: Labels, call: Call) -> Result:
    """One unit per channel: W[o, i, *kernel] as in a dense layer, and positions stay where they are."""
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    if call.args["groups"] != 1:
        raise NoRule(f"groups={call.args['groups']}")
    rank = weight.ndim - 2
    labels.pin(x.dims[-rank:], call.name)
    labels.tie(weight.dims[1], with_exponent(x.dims[-rank - 1], -1), call.name)
    for dim, size in zip(weight.dims[2:], weight.shape[2:], strict=True):
        labels.tie(dim, fixed(size, "kernel"), call.name)
    out = weight.dims[0]
    _bias(labels, bias, out, x.dims[: -rank - 1], call.name)
    positions = tuple(fixed(size, "position") for size in call.shape[-rank:])
    config = tuple((key, per_axis(call.args[key], rank)) for key in ("stride", "padding", "dilation"))
    return Result((*x.dims[: -rank - 1], out, *positions), call.name, config)
