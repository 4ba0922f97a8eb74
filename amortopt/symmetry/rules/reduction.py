"""Pooling and reductions over dimensions."""

from __future__ import annotations

import re
from typing import Any

import torch

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, held, per_axis, rule
from amortopt.symmetry.rules.broadcasting import together
from amortopt.symmetry.solve.dims import Dims, fixed
from amortopt.symmetry.solve.labels import Labels


def _pool(labels: Labels, call: Call, kind: ScaleKind, settings: tuple[str, ...]) -> Result:
    """Positions are mixed in a window; everything else is kept."""
    x = call.value("self")
    rank = int(re.findall(r"(\d)d", call.name)[0])
    kept = held(labels, x.dims, rank, call.name)
    labels.limit(kept, kind, call.name)
    given = {key: call.args[key] for key in settings if key in call.args}
    if given.get("stride") == []:
        given["stride"] = given["kernel_size"]
    positions = tuple(fixed(size, "position") for size in call.shape[-rank:])
    config = tuple(
        (key, str(value) if isinstance(value, bool) else per_axis(value, rank))
        for key, value in given.items()
    )
    dims = (*kept, *positions)
    if len(call.shapes) < 2:
        return Result(dims, call.name, config)
    # The second output are places of maxima, which have no scale.
    places = tuple(labels.unscaled(labels.resolve(dim)) for dim in dims)
    return Result((), call.name, config, parts=(dims, places))


@rule(
    *(f"max_pool{rank}d" for rank in (1, 2, 3)),
    *(f"max_pool{rank}d_with_indices" for rank in (1, 2, 3)),
    *(f"adaptive_max_pool{rank}d" for rank in (1, 2, 3)),
)
def max_pool(labels: Labels, call: Call) -> Result:
    """Commutes with positive scales, not with signs."""
    return _pool(
        labels, call, "positive", ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "output_size")
    )


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


@rule(
    *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "trilinear3d")),
    *(f"upsample_{kind}" for kind in ("bilinear2d", "bicubic2d", "_nearest_exact1d", "_nearest_exact2d")),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
)
def upsample(labels: Labels, call: Call) -> Result:
    """Linear, position by position."""
    x = call.value("input" if "input" in call.args else "self")
    kept = held(labels, x.dims, x.ndim - 2, call.name)
    positions = tuple(fixed(size, "position") for size in call.shape[2:])
    config = (("size", per_axis(call.shape[2:], len(positions))),)
    return Result((*kept, *positions), call.name, config)


@rule("mean", "sum", "nansum", "nanmean")
def linear_reduction(labels: Labels, call: Call) -> Result:
    """A sum over units keeps their permutations only."""
    if call.integer:
        raise NoRule("it rounds")
    x, axes, dims = _reduced(labels, call)
    spatial = x.ndim >= 3 and axes == tuple(range(2, x.ndim))
    if call.name == "mean" and spatial:
        return Result(dims, "global_avg_pool")
    return Result(dims, call.name, (("dim", str(axes)),))


@rule("amax", "amin")
def extremum(labels: Labels, call: Call) -> Result:
    """Positive scales of what is not reduced, permutations of what is."""
    _, axes, dims = _reduced(labels, call)
    labels.limit(dims, "positive", call.name)
    return Result(dims, call.name, (("dim", str(axes)),))


@rule("max", "min", "median", "nanmedian", "mode")
def extremum_with_place(labels: Labels, call: Call) -> Result:
    """The same with the place of the extremum, which is another one after a permutation."""
    if isinstance(call.args.get("other"), Value):
        dims = together(labels, call.value("self"), call.value("other"), len(call.shape), call.name)
        labels.limit(dims, "positive", call.name)
        return Result(dims, call.name)
    x, axes, dims = _reduced(labels, call)
    labels.limit(dims, "positive", call.name)
    config = (("dim", str(axes)),)
    if len(call.shapes) < 2:
        return Result(dims, call.name, config)
    labels.freeze(tuple(x.dims[axis] for axis in axes))
    places = tuple(labels.unscaled(labels.resolve(dim)) for dim in dims)
    return Result((), call.name, config, parts=(dims, places))


@rule("var", "std", "logsumexp", "prod", "any", "all", "count_nonzero", "var_mean", "std_mean", "aminmax")
def other_reduction(labels: Labels, call: Call) -> Result:
    """Permutations only."""
    _, axes, dims = _reduced(labels, call)
    labels.limit(dims, "none", call.name)
    config = (("dim", str(axes)),)
    if len(call.shapes) > 1:
        return Result((), call.name, config, parts=tuple(dims for _ in call.shapes))
    return Result(dims, call.name, config)


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
def running(labels: Labels, call: Call) -> Result:
    """Along an axis whose order matters; sums are linear, extrema commute with positive scales."""
    x = call.value("self")
    axis = call.axis("dim", x.ndim)
    dims = labels.even(x.dims, (axis,))
    labels.mix((*dims[:axis], *dims[axis + 1 :]), (x.dims[axis],))
    labels.freeze((x.dims[axis],))
    kind: dict[str, ScaleKind] = {"cumsum": "free", "cummax": "positive", "cummin": "positive"}
    labels.limit(dims, kind.get(call.name, "none"), call.name)
    config = (("dim", str(axis)),)
    if len(call.shapes) < 2:
        return Result(dims, call.name, config)
    return Result(
        (), call.name, config, parts=(dims, tuple(labels.unscaled(labels.resolve(d)) for d in dims))
    )


@rule("cosine_similarity", "pairwise_distance", "dist")
def compared_vectors(labels: Labels, call: Call) -> Result:
    """Of two tensors along a dimension; a cosine does not change with the signs of single coordinates."""
    x, y = (call.value(key) for key in (("self", "other") if call.name == "dist" else ("x1", "x2")))
    shape = tuple(torch.broadcast_shapes(x.shape, y.shape))
    dims = together(labels, x, y, len(shape), call.name)
    labels.limit(dims, "sign" if call.name == "cosine_similarity" else "none", call.name)
    over = (
        range(len(shape))
        if call.name == "dist"
        else [len(shape) - 1 if call.name == "pairwise_distance" else call.axis("dim", len(shape))]
    )
    rest = tuple(dim for axis, dim in enumerate(dims) if axis not in over)
    labels.limit(rest, "none", call.name)
    labels.mix(rest, tuple(dims[axis] for axis in over))
    if call.args.get("keepdim"):
        rest = (*rest, ())
    return Result(rest, call.name)


def _reduced(labels: Labels, call: Call) -> tuple[Value, tuple[int, ...], Dims]:
    x, axes = call.value("self"), _axes(call.args.get("dim"), call.value("self").ndim)
    even = labels.even(x.dims, axes)
    labels.mix(
        tuple(dim for axis, dim in enumerate(even) if axis not in axes), tuple(x.dims[a] for a in axes)
    )
    keep: Dims = ((),) if call.args.get("keepdim", False) else ()
    dims: Dims = ()
    for axis, dim in enumerate(even):
        dims += keep if axis in axes else (dim,)
    return x, axes, dims


def _axes(dim: Any, ndim: int) -> tuple[int, ...]:
    if dim is None or dim == [] or not ndim:
        return tuple(range(ndim))
    axes = dim if isinstance(dim, list | tuple) else [dim]
    return tuple(sorted(axis % ndim for axis in axes))
