"""Pooling and reductions over dimensions."""

from __future__ import annotations

from typing import Any

from amortopt.symmetry.labels import Dims, Labels, fixed
from amortopt.symmetry.rules.base import Call, Result, Value, per_axis, rule
from amortopt.symmetry.spec import ScaleKind


def _pool(labels: Labels, call: Call, kind: ScaleKind, settings: tuple[str, ...]) -> Result:
    """Positions are mixed in a window; everything else is kept."""
    x = call.value("self")
    rank = int(call.name[-2])
    labels.pin(x.dims[-rank:], call.name)
    labels.limit(x.dims, kind, call.name)
    given = {key: call.args[key] for key in settings if key in call.args}
    if given.get("stride") == []:
        given["stride"] = given["kernel_size"]
    positions = tuple(fixed(size, "position") for size in call.shape[-rank:])
    config = tuple(
        (key, str(value) if isinstance(value, bool) else per_axis(value, rank))
        for key, value in given.items()
    )
    return Result((*x.dims[:-rank], *positions), call.name, config)


@rule("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(labels: Labels, call: Call) -> Result:
    """Commutes with positive scales, not with signs."""
    return _pool(labels, call, "positive", ("kernel_size", "stride", "padding", "dilation", "ceil_mode"))


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(labels: Labels, call: Call) -> Result:
    """Linear."""
    settings = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return _pool(labels, call, "free", settings)


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def adaptive_avg_pool(labels: Labels, call: Call) -> Result:
    """Linear."""
    result = _pool(labels, call, "free", ())
    rank = int(call.name[-2])
    if call.shape[-rank:] == (1,) * rank:
        return Result(result.dims, "global_avg_pool")
    return Result(result.dims, result.kind, (("output_size", per_axis(call.shape[-rank:], rank)),))


@rule("mean", "sum")
def linear_reduction(labels: Labels, call: Call) -> Result:
    """A sum over units keeps their permutations only."""
    x, axes, dims = _reduced(labels, call)
    spatial = x.ndim >= 3 and axes == tuple(range(2, x.ndim))
    if call.name == "mean" and spatial:
        return Result(dims, "global_avg_pool")
    return Result(dims, call.name, (("dim", str(axes)),))


@rule("amax", "amin")
def extremum(labels: Labels, call: Call) -> Result:
    """Positive scales of what is not reduced, permutations of what is."""
    x, axes, dims = _reduced(labels, call)
    labels.limit(x.dims, "positive", call.name)
    return Result(dims, call.name, (("dim", str(axes)),))


def _reduced(labels: Labels, call: Call) -> tuple[Value, tuple[int, ...], Dims]:
    x, axes = call.value("self"), _axes(call.args.get("dim"), call.value("self").ndim)
    labels.limit(tuple(x.dims[axis] for axis in axes), "none", call.name)
    keep: Dims = ((),) if call.args.get("keepdim", False) else ()
    dims: Dims = ()
    for axis, dim in enumerate(x.dims):
        dims += keep if axis in axes else (dim,)
    return x, axes, dims


def _axes(dim: Any, ndim: int) -> tuple[int, ...]:
    if dim is None or dim == []:
        return tuple(range(ndim))
    axes = dim if isinstance(dim, list | tuple) else [dim]
    return tuple(sorted(axis % ndim for axis in axes))
